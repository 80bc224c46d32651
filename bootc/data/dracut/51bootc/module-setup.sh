#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR MIT
# The dracut module "bootc": a composefs root, with systemd in the initrd or without.
#
# The programs are Python; `bootc.initramfs.pack` puts exactly what they import into the initrd,
# so nothing here names an interpreter's files.

check() {
    require_binaries python3 || return 1
    # Not by itself: the image that wants it says so (dracut.conf.d/50-bootc.conf).
    return 255
}

depends() {
    echo base rootfs-block fs-lib
    return 0
}

installkernel() {
    hostonly='' instmods erofs overlay
}

install() {
    if ! python3 -m bootc.initramfs.pack --into "$initdir" --root "${dracutsysrootdir:-/}"; then
        dfatal "bootc: cannot pack the Python programs of the initrd"
        exit 1
    fi
    if dracut_module_included "systemd"; then
        # The journal opens it only to seal, which no initrd does, and it is half a megabyte.
        if ! ldd "$systemdutildir/systemd-journald" | grep -q libgcrypt; then
            rm -f "$initdir"/usr/lib*/libgcrypt.so* "$initdir"/usr/lib/*/libgcrypt.so*
        fi
        inst_simple "$systemdsystemunitdir/bootc-root-setup.service"
        $SYSTEMCTL -q --root "$initdir" add-requires initrd-root-fs.target bootc-root-setup.service
    else
        # Before rootfs-block's 95-parse-block.sh, which then waits for the device.
        inst_hook cmdline 20 "$moddir/parse-root.sh"
        inst_hook pre-pivot 20 "$moddir/setup-root.sh"
    fi
}
