# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What `bootc status` imports: start-up is most of its time."""

import json
import sys
from pathlib import Path

import pytest

from bootc import paths, process
from tests.sysroots import MockMachine

TOP = Path(__file__).resolve().parents[2]
_SHOW = """
import sys
before = set(sys.modules)
from bootc import log
from bootc.cli import commands, parser, render
arguments = parser.parse(["status", "--json"])
log.setup()
from bootc.deploy.sysroot import Sysroot
from bootc.status import describe
names = ("root", "esp", "run", "current", "booted")
sysroot = Sysroot(**dict(zip(names, sys.argv[1:])), insecure=True)
render.say_exactly(render.host_json(describe(sysroot, selinux=False)))
print()
print(*sorted(set(sys.modules) - before))
"""
_SLOW = {"dataclasses", "inspect", "socket", "tempfile", "typing"}
_OWN = {
    "bootc",
    "bootc.boot",
    "bootc.boot.bls",
    "bootc.boot.entries",
    "bootc.boot.esp",
    "bootc.boot.kargs",
    "bootc.boot.loader_info",
    "bootc.cli",
    "bootc.cli.commands",
    "bootc.cli.main",
    "bootc.cli.parser",
    "bootc.cli.render",
    "bootc.composefs",
    "bootc.composefs.documents",
    "bootc.deploy",
    "bootc.deploy.messages",
    "bootc.deploy.soft_reboot_check",
    "bootc.deploy.state",
    "bootc.deploy.sysroot",
    "bootc.errors",
    "bootc.fs",
    "bootc.journal",
    "bootc.jsonutil",
    "bootc.linux",
    "bootc.linux.blockdev",
    "bootc.linux.libc",
    "bootc.linux.mount",
    "bootc.linux.namespaces",
    "bootc.linux.newmount",
    "bootc.log",
    "bootc.oci",
    "bootc.oci.reference",
    "bootc.paths",
    "bootc.records",
    "bootc.spec",
    "bootc.status",
}


@pytest.fixture
def machine(tmp_path: Path) -> MockMachine:
    return MockMachine(tmp_path / "machine")


def shown(machine: MockMachine) -> process.Completed:
    """`bootc status --json` of the mock, and a line with the modules that it took."""
    system = machine.sysroot
    parts = [system.root, system.need_esp(), system.run, system.current, system.need_booted()]
    return process.run([sys.executable, "-c", _SHOW, *parts], env={"PYTHONPATH": str(TOP)})


def test_status_imports_few_modules(machine: MockMachine) -> None:
    """Importing is most of what `bootc status` takes: a module more is to be weighed here."""
    for version in ("1", "2", "3"):
        machine.install(machine.image(version))
    said, modules = shown(machine).stdout.splitlines()
    assert len(json.loads(said)["status"]["otherDeployments"]) == 1
    names = set(modules.split())
    assert {name for name in names if name.partition(".")[0] == "bootc"} <= _OWN
    assert not names & _SLOW


def test_what_status_has_to_say_is_said_and_formatted(machine: MockMachine) -> None:
    ids = [machine.install(machine.image(version)) for version in ("1", "2")]
    (machine.root / paths.origin_file(ids[1])).unlink()
    told = shown(machine)
    assert told.stderr.startswith(f"warning: deployment {ids[1]} has a boot entry, but no origin")
