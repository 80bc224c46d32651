# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Messages on a socket: strict JSON, framing, descriptors and who owns them."""

from __future__ import annotations

import array
import json
import os
import random
import resource
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bootc.varlink.message import DEPTH_MAX, FdList, Reply, VarlinkError, decode, encode
from bootc.varlink.wire import SCM_MAX, Limits, Stream, bind
from tests.varlinks import open_fds

BAD_JSON = {
    b"": "not JSON",
    b"{": "not JSON",
    b'{"a":1}}': "not JSON",
    b"[]": "not a JSON object",
    b'"text"': "not a JSON object",
    b'{"a":1,"a":1}': "the member 'a' is there twice",
    b'{"x":{"a":1,"b":2,"a":3}}': "the member 'a' is there twice",
    b'{"a":NaN}': "NaN is no number",
    b'{"a":-Infinity}': "-Infinity is no number",
    b'{"a":"\xff"}': "not UTF-8 at byte 6",
    b'{"a":"\xed\xa0\x80"}': "not UTF-8",
    b'{"a":"\\ud800"}': "half a surrogate pair",
    b'{"a":"\n"}': "not JSON",
    b"\xef\xbb\xbf{}": "not JSON",
    '{"a":1}'.encode("utf-16"): "not UTF-8",
    b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}": "nested deeper",
    b'{"a":' * (DEPTH_MAX + 1) + b"1" + b"}" * (DEPTH_MAX + 1): "nested deeper",
    b'{"a":' + b"9" * 5000 + b"}": "not JSON",
    b'{"a":[' + b"[]," * (1 << 18) + b"1]}": "more than 262144 arrays and objects",
}


@pytest.mark.parametrize("data", BAD_JSON, ids=lambda data: repr(data[:24]))
def test_strict_json(data: bytes) -> None:
    with pytest.raises(ValueError, match=BAD_JSON[data]):
        decode(data)


def test_json_that_is_good() -> None:
    deep = b'{"a":' * DEPTH_MAX + b"1" + b"}" * DEPTH_MAX
    assert decode(deep)["a"]
    wide = encode({"a": [[[]] for _ in range(10 * DEPTH_MAX)]})
    assert len(decode(wide[:-1])["a"]) == 10 * DEPTH_MAX
    pair = b'{"a":"\\ud83d\\ude00"}'
    assert decode(pair) == {"a": "\U0001f600"}
    assert encode({"\u00e9": 1}) == b'{"\xc3\xa9":1}\0'
    # A NUL inside of a string is escaped, so it never ends a message.
    assert encode({"a": "\0"}) == b'{"a":"\\u0000"}\0'
    for value in (float("nan"), "\ud800"):
        with pytest.raises(ValueError, match=r"JSON|surrogates"):
            encode({"a": value})


def test_descriptors_have_one_owner() -> None:
    before = open_fds()
    fds = FdList(os.pipe())
    assert (len(fds), fds[0], list(fds)) == (2, fds[0], [fds[0], fds[1]])
    mine = fds.take(0)
    assert (len(fds), len(list(fds))) == (2, 1)
    for index in (0, 2, -1):
        with pytest.raises(IndexError, match="no file descriptor"):
            fds.take(index)
    fds.close()
    fds.close()
    os.close(mine)
    with Reply({}, os.pipe()) as reply:
        assert len(reply.fds.take_all()) == 2
        reply.fds = FdList(os.pipe())
    assert len(open_fds() - before) == 2
    for fd in open_fds() - before:
        os.close(fd)
    error = VarlinkError("a.b.C", {"why": "x" * 1000, "list": [1, 2]})
    assert len(error.message) < 500
    assert "list: [1, 2]" in error.message


@contextmanager
def streams(limits: Limits | None = None) -> Iterator[tuple[Stream, Stream]]:
    left, right = socket.socketpair()
    one, two = Stream(left, limits), Stream(right, limits)
    try:
        yield one, two
    finally:
        one.close()
        two.close()


def rights(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    assert sock.sendmsg([data], ancillary) == len(data)


def numbered(number: int) -> int:
    """A descriptor that can be told from others by what it reads."""
    fd = os.memfd_create(str(number), os.MFD_CLOEXEC)
    os.write(fd, str(number).encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def numbers(fds: FdList) -> list[int]:
    return [int(os.pread(fd, 20, 0)) for fd in fds]


def test_messages_split_and_joined_anyhow() -> None:
    rng = random.Random(3)
    before = open_fds()
    messages = [bytes(rng.choices(b"abc", k=rng.choice((0, 1, 5, 300)))) for _ in range(200)]
    data = b"".join(message + b"\0" for message in messages)
    with streams() as (one, two):
        found = []
        while data:
            size = rng.choice((1, 1, 2, 10, 1000))
            one.socket.send(data[:size])
            data = data[size:]
            two.fill()
            while frame := two.pop():
                found.append(frame.data)
        assert found == messages
        one.socket.close()
        assert two.receive() is None
    assert open_fds() == before


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_descriptors_belong_to_their_message(size: int) -> None:
    """Random messages of which some bring descriptors, in pieces, read at random moments."""
    rng = random.Random(size)
    before = open_fds()
    with streams() as (one, two):
        want: list[tuple[bytes, list[int]]] = []
        found: list[tuple[bytes, list[int]]] = []
        number = 0

        def read() -> None:
            two.fill()
            while frame := two.pop():
                with frame.fds:
                    found.append((frame.data, numbers(frame.fds)))

        for index in range(120):
            data = b"%d %s" % (index, b"x" * rng.randrange(40))
            fds = [numbered(number + n) for n in range(rng.choice((0, 0, 1, 3)))]
            want.append((data, list(range(number, number + len(fds)))))
            number += len(fds)
            rest = data + b"\0"
            # With the first piece, or with any one: the message is the same.
            at = rng.randrange((len(rest) + size - 1) // size)
            while rest:
                if fds and at == 0:
                    rights(one.socket, rest[:size], fds)
                    FdList(fds).close()
                    fds = []
                else:
                    one.socket.send(rest[:size])
                at -= 1
                rest = rest[size:]
                if rng.random() < 0.3:
                    read()
        # Those that were sent and not read yet.
        one.socket.shutdown(socket.SHUT_WR)
        while two.fill():
            while frame := two.pop():
                with frame.fds:
                    found.append((frame.data, numbers(frame.fds)))
        assert found == want
    assert open_fds() == before


def test_many_descriptors_and_too_many() -> None:
    before = open_fds()
    with open("/dev/null") as null, streams(Limits(fds=5)) as (one, two):
        fds = [null.fileno()] * 6
        for count in (5, 6, 0):
            one.send(b"%d\0" % count, fds[:count])
            frame = two.receive()
            assert frame is not None
            with frame.fds:
                assert (frame.data, len(frame.fds)) == (b"%d" % count, count)
            assert (frame.problem is not None) == (count == 6)
            if frame.problem:
                assert frame.problem.name.endswith(".TooManyDescriptors")
        # Piece by piece for one message, without end.
        for _ in range(40):
            rights(one.socket, b"x", fds)
        one.socket.send(b"\0")
        frame = two.receive()
        assert frame is not None
        assert frame.problem is not None
        assert len(open_fds() - before) < 60
        frame.fds.close()
        one.send(b"next\0")
        frame = two.receive()
        assert frame is not None
        assert (frame.data, frame.problem) == (b"next", None)
    with open("/dev/null") as null, streams() as (one, two):
        one.send(b"x\0", [null.fileno()] * SCM_MAX)
        frame = two.receive()
        assert frame is not None
        assert len(frame.fds) == SCM_MAX
        frame.fds.close()
        with pytest.raises(OSError, match="Invalid argument"):
            one.send(b"x\0", [null.fileno()] * (SCM_MAX + 1))
    assert open_fds() == before


def test_descriptors_that_find_no_room_are_noticed() -> None:
    """MSG_CTRUNC: the kernel delivers as many as fit; none may stay, and the message is told."""
    before = open_fds()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open("/dev/null") as null, streams() as (one, two):
        one.send(b"first\0", [null.fileno()] * 20)
        one.send(b"second\0", [null.fileno()])
        free = [fd for fd in range(1024) if fd not in open_fds()]
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[4], hard))
        try:
            frame = two.receive()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert frame is not None
        assert (frame.data, len(frame.fds)) == (b"first", 0)
        assert frame.problem is not None
        assert frame.problem.name == "containers.bootc.transport.DescriptorsLost"
        frame = two.receive()
        assert frame is not None
        assert (frame.data, len(frame.fds), frame.problem) == (b"second", 1, None)
        frame.fds.close()
    assert open_fds() == before


def test_descriptors_of_what_never_ends_are_closed() -> None:
    before = open_fds()
    with open("/dev/null") as null, streams() as (one, two):
        rights(one.socket, b"no end", [null.fileno()] * 3)
        two.fill()
        assert two.pop() is None
        one.socket.close()
        with pytest.raises(ConnectionResetError, match="in the middle of a message"):
            two.receive()
    with open("/dev/null") as null, streams() as (one, two):
        # They are in the socket, and nobody has read them.
        one.send(b"x\0", [null.fileno()] * 3)
    assert open_fds() == before


def test_limit_of_a_message() -> None:
    for size, good in ((1000, True), (1001, False)):
        with streams(Limits(message=1000)) as (one, two):
            one.socket.send(b"x" * size + b"\0")
            if good:
                frame = two.receive()
                assert frame is not None
                assert len(frame.data) == 1000
            else:
                with pytest.raises(VarlinkError, match=r"MessageTooLong \(bytes_max: 1000\)"):
                    two.receive()
    with streams(Limits(message=1000)) as (one, two):
        one.socket.send(b"x" * 1001)
        with pytest.raises(VarlinkError, match="MessageTooLong"):
            two.receive()


def test_waiting_has_an_end() -> None:
    with streams(Limits(send_seconds=0.05)) as (one, two):
        with pytest.raises(TimeoutError, match="does not move"):
            two.receive(time.monotonic() + 0.01)
        with pytest.raises(TimeoutError, match="does not move"):
            one.send(b"x" * (8 << 20))


def test_received_descriptors_do_not_reach_children() -> None:
    with open("/dev/null") as null, streams() as (one, two):
        one.send(b"x\0", [null.fileno()])
        frame = two.receive()
        assert frame is not None
        with frame.fds:
            assert not os.get_inheritable(frame.fds[0])


def test_what_was_read_too_early() -> None:
    before = open_fds()
    with open("/dev/null") as null, streams() as (one, two):
        one.socket.send(b"call\0early")
        two.fill()
        rights(one.socket, b"er", [null.fileno()])
        two.fill()
        frame = two.pop()
        assert frame is not None
        assert (frame.data, len(frame.fds)) == (b"call", 0)
        sock, early = two.detach()
        assert early == b"earlyer"
        one.socket.send(b"!")
        assert sock.recv(10) == b"!"
        sock.close()
    assert open_fds() == before


def test_binding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = "sock"
    with bind(path) as first:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        with pytest.raises(OSError, match="in use"):
            bind(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
        assert first.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    # Nobody listens any more: it is replaced.
    with bind(path, mode=0o666):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o666 & ~os.umask(os.umask(0o022))
    os.unlink(path)
    (tmp_path / path).write_text("a file")
    with pytest.raises(OSError, match="in use"):
        bind(path)
    assert (tmp_path / path).read_text() == "a file"
    name = f"@bootc-test-{os.getpid()}"
    with bind(name), pytest.raises(OSError, match="in use"):
        bind(name)


def test_fuzzed_bytes_are_messages_or_nothing() -> None:
    """Random bytes never come out as anything but an object of JSON that reads as itself."""
    rng = random.Random(9)
    good = 0
    for _ in range(3000):
        text = bytearray(
            json.dumps({"method": "a.B", "parameters": {"x": [1, {"y": "z"}]}}).encode()
        )
        for _ in range(rng.randrange(3)):
            text[rng.randrange(len(text))] = rng.choice(b'"{}[]:,x1\\\xc3\xff')
        try:
            value = decode(bytes(text))
        except ValueError:
            continue
        assert decode(encode(value)[:-1]) == value
        good += 1
    assert 300 < good < 2900
