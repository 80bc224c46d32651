#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Runs inside the image build, in the folder of the build context: put our wheel, the dracut module and
# the units where the distribution has them, then make the initrd that INITRD asks for (tiny | dracut).
set -eu
context=$(cd "$(dirname "$0")" && pwd)
initrd=${INITRD:-tiny}

say() { printf 'install.sh: %s\n' "$*"; }
die() { printf 'install.sh: error: %s\n' "$*" >&2; exit 1; }

kernel=""
for candidate in /usr/lib/modules/*/vmlinuz; do
  [ -e "$candidate" ] || die "the base image has no kernel: nothing at /usr/lib/modules/<version>/vmlinuz (set BOOTC_base to a bootable image)"
  [ -z "$kernel" ] || die "the base image has more than one kernel: $kernel and $candidate"
  kernel=$candidate
done
version=$(basename "$(dirname "$kernel")")

command -v python3 > /dev/null || die "the base image has no python3"
# Debian's own layout is /usr/lib/python3/dist-packages; elsewhere the variable means nothing.
export DEB_PYTHON_INSTALL_LAYOUT=deb PYTHONDONTWRITEBYTECODE=1
if python3 -c 'import installer' 2> /dev/null; then
  python3 -m installer --prefix /usr "$context"/*.whl
elif python3 -m pip --version > /dev/null 2>&1; then
  python3 -m pip install --quiet --no-index --no-deps --prefix /usr --root-user-action ignore "$context"/*.whl
else
  die "the base image has neither python3-installer nor pip to install the wheel with"
fi
package=$(python3 -c 'import bootc, os; print(os.path.dirname(bootc.__file__))')
python3 -m compileall -q --invalidation-mode unchecked-hash "$package"

cp -r "$package/data/dracut/51bootc" /usr/lib/dracut/modules.d/ 2> /dev/null || say "the base image has no dracut"
for unit in "$package"/data/systemd/*; do
  [ -e "$unit" ] || continue
  install -m 0644 "$unit" /usr/lib/systemd/system/
done
# On by the image itself, without presets; the update timer is the administrator's to enable.
wants=/usr/lib/systemd/system/multi-user.target.wants
mkdir -p "$wants"
for unit in bootc-status-updated.path bootc-status-updated-onboot.target bootc-boot-complete.service; do
  ln -sf "../$unit" "$wants/$unit"
done
mkdir -p /usr/lib/systemd/system/sockets.target.wants
ln -sf ../bootc-varlink.socket /usr/lib/systemd/system/sockets.target.wants/bootc-varlink.socket
# Where podman finds bootc's container storage, if storage.conf names it as an additional store.
mkdir -p /usr/lib/bootc
ln -sfn ../../../sysroot/ostree/bootc/storage /usr/lib/bootc/storage

target=/usr/lib/modules/$version/initramfs.img
rm -f "$target"
case $initrd in
  tiny)
    # The disk first, then the network card, so that it has an address when sshd is up; a file
    # system's module is loaded only when the root is one.
    python3 -m bootc.initramfs.pack --root / --kver "$version" --output "$target" \
      --modules virtio_blk,virtio_net,erofs,overlay,btrfs,xfs
    ;;
  dracut) sh "$package/data/dracut/build.sh" "$version" "$target" ;;
  *) die "INITRD is '$initrd', expected tiny or dracut" ;;
esac
say "initrd ($initrd): $(stat -c %s "$target") bytes"
rm -rf /var/cache/* /var/log/* /tmp/* /var/tmp/*
