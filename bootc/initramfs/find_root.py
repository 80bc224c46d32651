# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`bootc-find-root LINK`: link the discoverable root partition at LINK, for an initrd that has
neither systemd nor `root=`. Looks once; the initrd's queue calls it again."""

import os
import sys

from bootc.initramfs import rootdev


def main() -> int:
    """The program; returns its exit status."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: bootc-find-root LINK\n")
        return 2
    try:
        device = rootdev.find_root(None, patience=0)
        os.symlink(device.path, sys.argv[1])
    except (rootdev.RootDeviceError, OSError) as error:
        sys.stderr.write(f"bootc-find-root: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
