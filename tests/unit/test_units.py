# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The units that ship: they start on composefs machines, and run what the command line knows."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

from bootc.cli import parser
from bootc.deploy.machine import FINALIZE_UNIT
from bootc.varlink.wire import Limits

TOP = Path(__file__).resolve().parents[2]
UNITS = sorted((TOP / "bootc/data/systemd").iterdir())
IMAGE_ONLY = ("bootc-root-setup.service", "bootc-finalize-staged.service")
"""The initrd's, and the one that only bootc starts."""
VARLINK = "bootc-varlink.service"


class _Unit(configparser.RawConfigParser):
    def optionxform(self, optionstr: str) -> str:
        return optionstr


def commands(path: Path) -> list[str]:
    found = re.findall(r"^Exec\w+=/usr/bin/bootc ?(.*)$", path.read_text(), re.MULTILINE)
    if path.name == VARLINK:
        # No verb: it serves on the sockets that it is started with.
        assert found == [""]
        return []
    return found


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_each_unit_says_what_it_is(path: Path) -> None:
    unit = _Unit(strict=False)
    unit.read_string(path.read_text())
    assert unit["Unit"]["Description"].startswith("bootc: ")
    assert unit["Unit"]["Documentation"] == "man:bootc(8)"


@pytest.mark.parametrize("name", [VARLINK, "cfsctl.service"])
def test_servers_may_have_as_many_descriptors_as_they_promise(name: str) -> None:
    unit = _Unit(strict=False)
    unit.read_string((TOP / "bootc/data/systemd" / name).read_text())
    limits = Limits()
    needed = limits.clients + limits.handlers * limits.fds
    assert int(unit["Service"]["LimitNOFILE"]) > needed


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_commands_are_known(path: Path) -> None:
    for command in commands(path):
        found = parser.parse(command.split())
        assert not getattr(found, "not_yet", False)


def test_what_starts_by_itself_starts_on_composefs() -> None:
    """Spec §14, 8: upstream's are conditioned on ostree and never start here."""
    conditioned = [path for path in UNITS if path.name not in IMAGE_ONLY]
    # A composefs repository may be anywhere, and a target that others pull in needs no condition.
    conditioned = [path for path in conditioned if not path.name.startswith("cfsctl.")]
    conditioned = [path for path in conditioned if path.name != "bootc-status-updated.target"]
    assert len(conditioned) == 7
    for path in conditioned:
        text = path.read_text()
        assert re.search(r"^ConditionKernelCommandLine=\|?composefs$", text, re.MULTILINE), path


def test_finalizing_happens_when_the_unit_stops() -> None:
    path = TOP / "bootc/data/systemd" / FINALIZE_UNIT
    assert commands(path) == ["composefs-finalize-staged"]
    text = path.read_text()
    assert "ExecStop=" in text
    assert "ExecStart=" not in text
    for line in (
        "RemainAfterExit=yes",
        "Conflicts=final.target",
        "RequiresMountsFor=/sysroot /etc",
    ):
        assert f"\n{line}\n" in text


@pytest.mark.parametrize("script", ["packaging/install.sh", "packaging/bootc.spec"])
def test_units_that_the_image_turns_on(script: str) -> None:
    text = (TOP / script).read_text()
    found = re.search(r"for unit in (bootc-status-updated\.path .*); do", text)
    assert found is not None
    assert "sockets.target.wants/bootc-varlink.socket" in text
    for name in (*found[1].split(), "bootc-varlink.socket"):
        assert (TOP / "bootc/data/systemd" / name).exists()
        assert "[Install]" not in (TOP / "bootc/data/systemd" / name).read_text()


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("bootc-varlink.socket", "/run/bootc/varlink"),
        ("cfsctl.socket", "/run/composefs/cfsctl.varlink"),
    ],
)
def test_sockets_are_for_root_alone(name: str, address: str) -> None:
    unit = _Unit(strict=False)
    unit.read_string((TOP / "bootc/data/systemd" / name).read_text())
    assert unit["Socket"]["SocketMode"] == "0600"
    assert unit["Socket"]["ListenStream"] == address
    # Accept=no, so one service has all clients.
    assert "Accept" not in unit["Socket"]
    for key in ("SocketUser", "SocketGroup"):
        assert key not in unit["Socket"]
