#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Without root=, take the discoverable root partition. systemd's own generator does this where
# there is systemd in the initrd; here a job of the queue links the device once it appears.

if [ -z "$root" ] && { getarg composefs= > /dev/null || getarg composefs.digest= > /dev/null; }; then
    root="/dev/gpt-auto-root"
    # shellcheck disable=SC2034 # read by dracut's init
    rootok=1
    /sbin/initqueue --settled --unique --name bootc-find-root \
        /bin/sh -c "[ -e $root ] || /usr/lib/bootc/initrd/find-root $root"
fi
