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
    echo base fs-lib
    # Without systemd its hooks wait for the root's device; with it, systemd does.
    dracut_module_included "systemd" || echo rootfs-block
    return 0
}

installkernel() {
    # The network card of a virtual machine: loaded beside the disk's driver, its link is there when
    # the real root's services want it; udev's second coldplug comes to it seconds later.
    hostonly='' instmods erofs overlay virtio_net
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
        inst_simple "$moddir/coldplug.conf" \
            "$systemdsystemconfdir/systemd-udev-trigger.service.d/50-bootc.conf"
        inst_simple "$moddir/cmdline.conf" \
            "$systemdsystemconfdir/dracut-cmdline.service.d/50-bootc.conf"
        # dracut's generator takes the time limit from the wait for a root that never comes, for a
        # queue that does not run here, and it is a shell script in the way of process 1. systemd's
        # own generators make the same mounts, and give up after 90 s with an emergency shell.
        mkdir -p "$initdir$systemdutilconfdir/system-generators"
        ln -sf /dev/null "$initdir$systemdutilconfdir/system-generators/dracut-rootfs-generator"
        $SYSTEMCTL -q --root "$initdir" add-requires initrd-root-fs.target bootc-root-setup.service
    else
        # Before rootfs-block's 95-parse-block.sh, which then waits for the device.
        inst_hook cmdline 20 "$moddir/parse-root.sh"
        inst_hook pre-pivot 20 "$moddir/setup-root.sh"
    fi
}
