# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Put the edited `bootc/` into the running machine, and prove that it is what runs there.

The package is copied to a folder of its own below /run and bound over the installed one (an overlay
on /usr, as a system extension makes it, would be a third file system stacked on composefs, and the
kernel allows two). Then the guest's own `bootc internals build-id`, a digest over the files that it
would run, must equal the digest of ours. A reboot brings the installed package back.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
import time
from pathlib import Path

from bootc.cli.build_id import build_id
from bootc.errors import BootcError
from vmtests import content, paths
from vmtests.machine import Machine

_FOLDER = "/run/bootc-sync"


def wanted_build_id() -> str:
    """The digest of the checkout's package as it is now."""
    return build_id(str(paths.CHECKOUT / "bootc"))


def sync_package(machine: Machine) -> tuple[str, float]:
    """The build id that the guest now reports, and the seconds that it took."""
    start = time.monotonic()
    package = paths.CHECKOUT / "bootc"
    wanted = wanted_build_id()
    where = f"{_FOLDER}/{wanted[:16]}"
    with tempfile.TemporaryDirectory(prefix="sync-") as scratch:
        copy = Path(scratch) / wanted[:16] / "bootc"
        for source in content.package_files(package):
            target = copy / source.relative_to(package)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        machine.put(copy.parent, where)
    script = (
        "set -e; "
        'installed=$(cd / && python3 -c "import importlib.util as u; '
        "print(u.find_spec('bootc').submodule_search_locations[0])\"); "
        'while mountpoint -q "$installed"; do umount "$installed"; done; '
        f'mount --bind {shlex.quote(where)}/bootc "$installed"; '
        f"find {_FOLDER} -mindepth 1 -maxdepth 1 ! -path {shlex.quote(where)} -exec rm -rf {{}} +; "
        "bootc internals build-id"
    )
    reported = machine.run(script, timeout=60).stdout.strip()
    if reported != wanted:
        raise BootcError(
            f"the guest runs build {reported[:16] or '(none)'}, not {wanted[:16]}",
            hint="reboot it and try again: ./dev invoke bcvk-restart, then ./dev invoke bcvk-sync",
        )
    return wanted, time.monotonic() - start
