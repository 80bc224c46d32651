#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# build.sh KERNEL-VERSION FILE: the distribution's initrd, made by dracut inside of the image.
# With more arguments, those go to dracut (for instance: --omit "systemd systemd-initrd …").
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 2 ] || { echo "usage: build.sh KERNEL-VERSION FILE [DRACUT-OPTION…]" >&2; exit 2; }
version=$1
target=$2
shift 2
command -v dracut > /dev/null || {
    echo "build.sh: error: this image has no dracut; install it, or take the tiny initrd" >&2
    exit 1
}
# Without it dracut falls back to gzip, silently.
command -v zstd > /dev/null || {
    echo "build.sh: error: this image has no zstd, which compresses the initrd" >&2
    exit 1
}
mkdir -p /usr/lib/dracut/modules.d /usr/lib/dracut/dracut.conf.d /usr/lib/systemd/system
cp -r "$here/51bootc" /usr/lib/dracut/modules.d/
cp "$here/50-bootc.conf" /usr/lib/dracut/dracut.conf.d/
cp "$here/../systemd/bootc-root-setup.service" /usr/lib/systemd/system/
dracut --force --quiet --kver "$version" "$@" "$target"
