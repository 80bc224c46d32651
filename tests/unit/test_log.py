# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What goes to the journal: only what has an id, in journald's own protocol."""

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootc.journal import Journal

ID = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(str(tmp_path / "socket"))
        one.settimeout(5)
        yield one


def _logger(tmp_path: Path) -> logging.Logger:
    logger = logging.Logger("test")
    logger.addHandler(Journal(str(tmp_path / "socket")))
    return logger


def test_a_record_with_an_id_is_sent(tmp_path: Path, journald: socket.socket) -> None:
    logger = _logger(tmp_path)
    logger.warning("without one")
    logger.warning("deployment %s", "x", extra={"MESSAGE_ID": ID})
    assert journald.recv(4096).decode() == (
        f"MESSAGE=deployment x\nMESSAGE_ID={ID}\nPRIORITY=4\nSYSLOG_IDENTIFIER=bootc\n"
    )


def test_several_lines_have_a_length(tmp_path: Path, journald: socket.socket) -> None:
    _logger(tmp_path).error("a\nb", extra={"MESSAGE_ID": ID})
    assert journald.recv(4096).startswith(b"MESSAGE\n\x03\0\0\0\0\0\0\0a\nb\nMESSAGE_ID=")


def test_without_a_journal_nothing_fails(tmp_path: Path) -> None:
    _logger(tmp_path).error("a", extra={"MESSAGE_ID": ID})
    assert not (tmp_path / "socket").exists()
