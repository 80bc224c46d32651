# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The key pair, and how the kit knocks at an sshd that is not there yet."""

from __future__ import annotations

import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from bootc.errors import BootcError
from vmtests import ssh


def test_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    first = ssh.load_or_make_key(tmp_path / "state")
    assert stat.S_IMODE(first.private.stat().st_mode) == 0o600
    assert first.public.startswith("ssh-ed25519 AAAA")
    assert ssh.load_or_make_key(tmp_path / "state") == first
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["id_ed25519"]


def test_broken_key_is_told_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "id_ed25519").write_text("no key")
    with pytest.raises(BootcError) as caught:
        ssh.load_or_make_key(tmp_path)
    assert caught.value.hint is not None
    assert "rm " in caught.value.hint


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server


def test_a_silent_forward_is_waited_for_and_its_banner_is_left_to_read(
    listener: socket.socket,
) -> None:
    with closing(ssh.Door(listener.getsockname()[1])) as door:
        assert door.poll(0.01) is None
        guest = listener.accept()[0]
        assert door.poll(0.01) is None  # the same knock goes on: no second connection
        guest.sendall(b"SSH-2.0-test\r\n")
        opened = door.poll(5.0)
        assert opened is not None
        with opened, guest:
            assert opened.recv(64) == b"SSH-2.0-test\r\n"
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_refused_knock_is_repeated_soon(listener: socket.socket) -> None:
    listener.settimeout(10)
    with closing(ssh.Door(listener.getsockname()[1])) as door:
        assert door.poll(0.01) is None
        listener.accept()[0].close()
        opened = None
        for _ in range(200):
            assert opened is None
            opened = door.poll(0.05)
            listener.setblocking(False)
            try:
                again = listener.accept()[0]
            except BlockingIOError:
                continue
            again.close()
            return
        pytest.fail("no second knock")


def test_a_hurried_door_knocks_beside_the_knock_that_waits(listener: socket.socket) -> None:
    listener.settimeout(10)
    with closing(ssh.Door(listener.getsockname()[1])) as door:
        assert door.poll(0.01) is None
        door.hurry()
        assert door.poll(0.01) is None
        with listener.accept()[0], listener.accept()[0] as second:
            second.sendall(b"SSH-2.0-test\r\n")
            opened = door.poll(5.0)
            assert opened is not None
            opened.close()


def test_a_hurried_door_knocks_more_often(listener: socket.socket) -> None:
    assert ssh.Door.SOON < ssh.Door.INTERVAL / 2
    listener.settimeout(10)
    with closing(ssh.Door(listener.getsockname()[1])) as door, ExitStack() as guests:
        door.hurry()
        begin = time.monotonic()
        for _ in range(2):
            assert door.poll(ssh.Door.SOON) is None
            guests.enter_context(listener.accept()[0])
        assert time.monotonic() - begin >= ssh.Door.SOON


def test_a_caller_who_knows_better_has_no_knock_begun(listener: socket.socket) -> None:
    listener.settimeout(10)
    with closing(ssh.Door(listener.getsockname()[1])) as door:
        assert door.poll(0.01, knock=False) is None
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
        assert door.poll(0.01) is None
        with listener.accept()[0] as guest:
            guest.sendall(b"SSH-2.0-test\r\n")
            opened = door.poll(5.0, knock=False)
            assert opened is not None, "those that wait are answered all the same"
            opened.close()


def test_nobody_listening_is_no_error() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    with closing(ssh.Door(port)) as door:
        assert door.poll(0.01) is None
    with pytest.raises(ssh.GuestGone, match="no SSH"):
        ssh.connect(port, Path("/nonexistent"), timeout=2)
