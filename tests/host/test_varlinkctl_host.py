# SPDX-License-Identifier: Apache-2.0 OR MIT
"""systemd's `varlinkctl` as client of our server: started by it, and over a socket.

systemd has it since 255. A distribution with an older one has no such program, and the test says
so; `VARLINKCTL` names one from elsewhere.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bootc import process
from bootc.varlink import bind, serving
from tests.varlinkctl import CASES, check_texts, find_varlinkctl, need_varlinkctl, program, run_case
from tests.varlinks import Handlers


def systemd_version() -> int:
    told = process.run(["systemctl", "--version"], check=False) if _has_systemd() else None
    found = re.match(r"systemd (\d+)", told.stdout) if told else None
    return int(found[1]) if found else 0


def _has_systemd() -> bool:
    return process.find_program("systemctl") is not None


@pytest.fixture(scope="module")
def varlinkctl() -> str:
    if find_varlinkctl() is None and systemd_version() < 255:
        pytest.skip(f"systemd {systemd_version()} has no varlinkctl; VARLINKCTL can name one")
    return need_varlinkctl()


@pytest.mark.parametrize("name", CASES)
def test_it_calls_a_server_that_it_started(name: str, varlinkctl: str, tmp_path: Path) -> None:
    assert run_case(varlinkctl, program(tmp_path), CASES[name]) == ""


@pytest.mark.parametrize("name", CASES)
def test_it_calls_a_server_over_a_socket(name: str, varlinkctl: str, tmp_path: Path) -> None:
    with serving(Handlers().service(), bind(f"{tmp_path}/s")):
        assert run_case(varlinkctl, f"unix:{tmp_path}/s", CASES[name]) == ""


def test_it_reads_our_interfaces(varlinkctl: str, tmp_path: Path) -> None:
    assert check_texts(varlinkctl, program(tmp_path), tmp_path) == []
