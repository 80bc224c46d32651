#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT

if getarg composefs= > /dev/null || getarg composefs.digest= > /dev/null; then
    /usr/lib/bootc/initrd/setup-root || die "bootc: the composefs root could not be set up"
fi
