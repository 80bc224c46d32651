# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Long runs of a varlink server in a process of its own, with counts before and after.

Each soak puts the server under one kind of load, then waits for it to be idle again, and returns
what the server held before and after: descriptors, threads, bytes of memory. The first, uncounted
round fills caches and the allocator.
"""

from __future__ import annotations

import array
import json
import os
import random
import select
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bootc import process
from bootc.errors import BootcError
from bootc.varlink import Client, VarlinkError
from tests.varlinks import INTERFACE

TOP = Path(__file__).resolve().parents[1]
T = "org.example.test"
_SERVER = """
import logging
import sys
logging.disable()
sys.path.insert(0, sys.argv[1])
from bootc.varlink import Limits, bind, serve, server
from tests.varlinks import Handlers
server.WORKER_IDLE = 0.2
if len(sys.argv) > 3:
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[3]), int(sys.argv[3])))
serve(Handlers().service(), bind(sys.argv[2]), limits=Limits(clients=6000, send_seconds=5))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a process holds."""

    fds: int
    threads: int
    memory: int

    def is_kept(self, before: Held, memory: int) -> bool:
        """Whether no more is held than before, but for some memory."""
        return (self.fds, self.threads) == (before.fds, before.threads) and (
            self.memory <= before.memory + memory
        )


class Scene:
    """A server in another process."""

    def __init__(self, address: str, pid: int) -> None:
        self.address = address
        self.pid = pid

    def client(self, timeout: float = 60.0) -> Client:
        known = [INTERFACE]
        return Client.connect(f"unix:{self.address}", interfaces=known, timeout=timeout)

    def raw(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            # Blocking, or it fails where the queue is full.
            made.connect(self.address)
        except BaseException:
            made.close()
            raise
        made.settimeout(60)
        return made

    def held(self) -> Held:
        """What the server holds, once it is idle: only the loop's thread is left."""
        end = time.monotonic() + 60
        while True:
            status = Path(f"/proc/{self.pid}/status").read_text()
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            threads = int(fields["Threads"])
            fds = len(os.listdir(f"/proc/{self.pid}/fd"))
            if threads == 1 or time.monotonic() > end:
                memory = int(fields["VmRSS"].split()[0]) * 1024
                return Held(fds=fds, threads=threads, memory=memory)
            time.sleep(0.05)


@contextmanager
def server(fds: int | None = None) -> Iterator[Scene]:
    """`fds`: the descriptors that the server may have."""
    with tempfile.TemporaryDirectory(prefix="bootc-soak-") as folder:
        address = f"{folder}/s"
        argv = [sys.executable, "-c", _SERVER, str(TOP), address]
        argv += [] if fds is None else [f"{fds}"]
        with process.running(argv) as child:
            end = time.monotonic() + 30
            while not os.path.exists(address):
                if child.poll() is not None or time.monotonic() > end:
                    raise BootcError("the server did not start")
                time.sleep(0.01)
            yield Scene(address, child.pid)


Soak = Callable[[Scene, int], None]


def measured(scene: Scene, soak: Soak, count: int, *, first: int) -> tuple[Held, Held]:
    """What the server held before and after `count` rounds, after `first` uncounted ones."""
    soak(scene, first)
    before = scene.held()
    soak(scene, count)
    return before, scene.held()


def _must(condition: bool, text: str) -> None:
    if not condition:
        raise AssertionError(text)


def calls_on_one_connection(scene: Scene, count: int) -> None:
    with scene.client() as client:
        for number in range(count):
            text = f"{number}"
            reply = client.call(f"{T}.Echo", {"text": text, "kind": "one"})
            _must(reply.parameters["text"] == text, f"call {number}: {reply.parameters}")


def many_clients(scene: Scene, count: int) -> None:
    """`count` clients are connected at once; all have called before the first reply is read."""
    with ExitStack() as stack:
        raws = [stack.enter_context(scene.raw()) for _ in range(count)]
        for part in range(3):
            for number, raw in enumerate(raws):
                parameters = {"text": f"{part} {number}"}
                call = json.dumps({"method": f"{T}.Echo", "parameters": parameters})
                raw.sendall(call.encode() + b"\0")
            for number, raw in enumerate(raws):
                reply = _one_reply(raw)
                want = {"parameters": {"text": f"{part} {number}"}}
                _must(reply == want, f"client {number}: {reply}")


def _one_reply(raw: socket.socket) -> object:
    data = b""
    while not data.endswith(b"\0"):
        more = raw.recv(65536)
        _must(bool(more), f"the connection ended after {data!r}")
        data += more
    return json.loads(data[:-1])


def dummy_descriptors(scene: Scene, count: int) -> None:
    """Descriptors at random slots, both ways; some calls are refused, some replies not taken."""
    rng = random.Random(count)
    with scene.client() as client, open("/dev/null", "rb") as null:
        for number in range(count):
            before = rng.choice((0, 1, 2, 250))
            text = f"text {number}"
            with client.call(f"{T}.Open", {"text": text, "before": before}) as reply:
                index = reply.parameters["fd_index"]
                _must(len(reply.fds) == before + 1 == index + 1, f"{len(reply.fds)} descriptors")
                slot = rng.randrange(3)
                given = [null.fileno()] * 3
                given[slot] = reply.fds[index]
                read = client.call(f"{T}.Read", {"fd_index": slot}, given)
                _must(read.parameters["data"] == text, f"round {number}: {read.parameters}")
            if number % 5 == 0:
                try:
                    client.call(f"{T}.Echo", {"text": ""}, [null.fileno()] * 253)
                except VarlinkError as error:
                    _must(error.name.endswith("WrongDescriptors"), error.name)
                else:
                    _must(False, "descriptors that nobody wants were taken")


def one_byte_at_a_time(scene: Scene, count: int) -> None:
    """Calls byte by byte, the descriptor with any of the bytes."""
    rng = random.Random(count)
    with scene.raw() as raw:
        for number in range(count):
            end, writer = os.pipe()
            os.write(writer, f"{number}".encode())
            os.close(writer)
            call = json.dumps({"method": f"{T}.Read", "parameters": {"fd_index": 0}}).encode()
            at = rng.randrange(len(call))
            for place, byte in enumerate(call + b"\0"):
                rights = array.array("i", [end] if place == at else [])
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
                raw.sendmsg([bytes([byte])], ancillary)
            os.close(end)
            reply = _one_reply(raw)
            _must(reply == {"parameters": {"data": f"{number}"}}, f"{number}: {reply}")


def clients_that_leave(scene: Scene, count: int) -> None:
    """In the middle of a message, of a call, of a stream, and with replies unread."""
    rng = random.Random(count)
    wait = json.dumps({"method": f"{T}.Wait"}).encode() + b"\0"
    stream = {"method": f"{T}.Count", "parameters": {"to": 100000, "pause": 1}, "more": True}
    many = json.dumps({"method": f"{T}.Open", "parameters": {"text": "", "before": 200}}).encode()
    with open("/dev/null", "rb") as null:
        for _ in range(count):
            with scene.raw() as raw:
                match rng.randrange(5):
                    case 0:
                        raw.sendall(wait[: rng.randrange(len(wait))])
                    case 1:
                        raw.sendall(wait)
                    case 2:
                        raw.sendall(json.dumps(stream).encode() + b"\0")
                        raw.recv(10)
                    case 3:
                        raw.sendall((many + b"\0") * 3)
                    case _:
                        rights = array.array("i", [null.fileno()] * 100)
                        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
                        raw.sendmsg([b"no end"], ancillary)


_PARTS = (
    b'{"method":"org.example.test.Echo","parameters":{"text":"a"}}',
    b'{"method":"org.example.test.Count","parameters":{"to":3},"more":true}',
    b'{"method":"org.example.test.Read","parameters":{"fd_index":0}}',
    b'{"method":"org.example.test.Fail","parameters":{"how":"refused"}}',
    b'{"method":"org.varlink.service.GetInfo"}',
    b'{"method":"org.example.test.Echo","parameters":{"text":"a","tree":{"name":"","branches":[]}}}',
)


def fuzzed_frames(scene: Scene, count: int) -> None:
    """Messages with wrong bytes, descriptors and lengths, many to a connection.

    `count` counts those that were answered. Nothing is answered but JSON objects with `parameters`
    or an `error`, and in between a good client gets good answers.
    """
    rng = random.Random(count)
    answered = 0
    with open("/dev/null", "rb") as null, scene.client() as good:
        while answered < count:
            with scene.raw() as raw:
                answered += _fuzz_connection(raw, rng, null.fileno())
            reply = good.call(f"{T}.Echo", {"text": "good"})
            _must(reply.parameters == {"text": "good"}, "a good client got a wrong answer")


def _fuzz_connection(raw: socket.socket, rng: random.Random, fd: int) -> int:
    raw.setblocking(False)
    answer = b""
    try:
        for _ in range(rng.randrange(1, 200)):
            data = _fuzzed(rng)
            rights = array.array("i", [fd] * rng.choice((1, 2, 253)) if rng.random() < 0.05 else [])
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
            try:
                raw.sendmsg([data], ancillary)
            except BlockingIOError:
                break
            try:
                answer += raw.recv(1 << 20)
            except BlockingIOError:
                continue
        raw.shutdown(socket.SHUT_WR)
        while True:
            if not select.select([raw], [], [], 30)[0]:
                raise AssertionError("the server does not end the connection")
            if not (more := raw.recv(1 << 20)):
                break
            answer += more
    except (BrokenPipeError, ConnectionResetError):
        pass
    answered = 0
    for reply in answer.split(b"\0")[:-1]:
        value = json.loads(reply)
        _must({"parameters", "error"} & value.keys() != set(), f"no answer: {reply!r}")
        answered += not value.get("continues", False)
    return answered


def _fuzzed(rng: random.Random) -> bytes:
    data = bytearray(rng.choice(_PARTS))
    how = rng.random()
    if how < 0.4:
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.choice(b'"{}[]:,0a\\\xff\0 ')
    elif how < 0.6:
        start = rng.randrange(len(data))
        del data[start : start + rng.randrange(1, 20)]
    elif how < 0.7:
        part = rng.choice((b"[" * 300, b'{"a":' * 200, b"1e999", b"NaN", b'"\\ud800"', b"9" * 5000))
        at = rng.randrange(len(data))
        data[at:at] = part
    elif how < 0.8:
        data[rng.randrange(len(data)) :] = rng.choice(_PARTS)
    if rng.random() < 0.97:
        data += b"\0"
    return bytes(data)


SOAKS: dict[str, Soak] = {
    "calls on one connection": calls_on_one_connection,
    "clients at once": many_clients,
    "descriptors at random slots": dummy_descriptors,
    "one byte at a time": one_byte_at_a_time,
    "clients that leave": clients_that_leave,
    "fuzzed frames": fuzzed_frames,
}
