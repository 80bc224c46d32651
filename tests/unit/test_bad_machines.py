# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What is said where bootc has nothing to do: on another system, in a container, without root."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bootc import process
from bootc.deploy.sysroot import is_container

TOP = Path(__file__).resolve().parents[2]
_RUN = """
import importlib, os, pkgutil, sys
import bootc
from bootc.cli import main
if "--nobody" in sys.argv and os.getuid() == 0:
    # All of it now: nobody may not look into a checkout below /root.
    for module in pkgutil.walk_packages(bootc.__path__, "bootc."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    os.setuid(65534)
sys.exit(main.main([word for word in sys.argv[1:] if word != "--nobody"]))
"""
CHANGING = [
    ["upgrade"],
    ["switch", "quay.io/example/os"],
    ["rollback"],
    ["usr-overlay"],
    ["delete-deployment", "0" * 128],
    ["internals", "composefs-gc", "--prune-repo"],
    ["internals", "prep-soft-reboot", "0" * 128],
]
LOOKING = [["upgrade", "--check"], ["config-diff"], ["internals", "fsck"]]


def refused(argv: list[str], *, container: bool = False) -> tuple[str, str]:
    """(error, hint) of a command line that must fail with status 1 and one line of each."""
    env = {"container": "podman" if container else "", "PYTHONPATH": str(TOP)}
    done = process.run([sys.executable, "-c", _RUN, *argv], env=env, check=False)
    assert done.status == 1, done
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 2, done.stderr
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint: ")
    return lines[0], lines[1]


@pytest.mark.parametrize("argv", [*CHANGING, *LOOKING], ids=" ".join)
def test_in_a_container(argv: list[str]) -> None:
    error, hint = refused(argv, container=True)
    assert "requires a booted host system, and this is a container" in error
    assert hint == "hint: run it on the machine itself"


@pytest.mark.parametrize("argv", [*CHANGING, *LOOKING], ids=" ".join)
def test_on_a_system_that_bootc_did_not_install(argv: list[str]) -> None:
    with open("/proc/cmdline", encoding="utf-8") as file:
        assert "composefs=" not in file.read(), "this test is for machines without composefs"
    error, _ = refused(argv)
    if is_container():
        assert "this is a container" in error
    elif os.getuid() == 0:
        assert "this system was not installed by bootc" in error
    else:
        assert "needs root" in error


@pytest.mark.parametrize("argv", [*CHANGING, *LOOKING], ids=" ".join)
def test_without_root(argv: list[str]) -> None:
    error, hint = refused(["--nobody", *argv])
    assert "this is a container" in error or "this command needs root" in error
    assert hint in ("hint: run it with sudo", "hint: run it on the machine itself")


def test_status_of_another_system_is_the_empty_document() -> None:
    env = {"PYTHONPATH": str(TOP)}
    done = process.run([sys.executable, "-c", _RUN, "status", "--format", "humanreadable"], env=env)
    assert done.stdout == "System is not deployed via bootc.\n"
