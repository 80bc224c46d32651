# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What `bootc upgrade` imports: a quarter of the processor's time of one that changes little."""

import sys
from pathlib import Path

from bootc import process
from tests.sysroots import MockMachine

TOP = Path(__file__).resolve().parents[2]
_UPGRADE = """
import sys
before = set(sys.modules)
from bootc import log
from bootc.cli import commands, parser, render
parser.parse(["upgrade", "--quiet"])
log.setup(level="warning")
from bootc.deploy import update
from bootc.deploy.sysroot import Sysroot
names = ("root", "esp", "run", "current", "booted")
sysroot = Sysroot(**dict(zip(names, sys.argv[1:])), insecure=True)
print(update.upgrade(sysroot, update.UpgradeOptions()).changed)
print(*sorted(set(sys.modules) - before))
"""
# What reads podman's storage, or talks to podman; and TOML, which is for the storage's options.
_UNUSED = ("bootc.storage", "bootc.podman.fetch", "bootc.podman.pull", "tomllib", "http", "urllib")


def test_an_upgrade_from_a_layout_imports_nothing_of_podman(tmp_path: Path) -> None:
    machine = MockMachine(tmp_path / "machine")
    machine.install(machine.image("1"), origin=f"oci:{machine.path}/images/2:2")
    machine.image("2")
    system = machine.sysroot
    parts = [system.root, system.need_esp(), system.run, system.current, system.need_booted()]
    done = process.run([sys.executable, "-c", _UPGRADE, *parts], env={"PYTHONPATH": str(TOP)})
    changed, modules = done.stdout.splitlines()
    assert changed == "True"
    assert [name for name in modules.split() if name.startswith(_UNUSED)] == []
