# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What tests of varlink need: an interface, its service, and what a process holds."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from bootc.varlink import Call, Handler, Reply, Service, Stream, Upgrade, VarlinkError, parse

TEXT = """# For tests.
interface org.example.test

type Kind (one, two)
type Tree (name: string, branches: []Tree)

# Gives back what it gets.
method Echo (text: string, kind: ?Kind, tree: ?Tree) -> (text: string, kind: ?Kind, tree: ?Tree)

# Counts up to `to`; after each number but the last it waits for `pause` milliseconds.
method Count (to: int, pause: ?int) -> (number: int)

# Reads what `fd_index` says, of one to three descriptors.
method Read (fd_index: int) -> (data: string)

# The reading end of a pipe with `text`, after `before` other descriptors.
method Open (text: string, before: int) -> (fd_index: int)

# Waits until the client is gone.
method Wait () -> ()

# Afterwards each byte comes back as a capital letter.
method Shout () -> ()

# Fails as it is told.
method Fail (how: string) -> (number: int)

method Missing () -> ()

error Refused (why: string)
"""
INTERFACE = parse(TEXT, "org.example.test")


def open_fds() -> set[int]:
    """The descriptors of this process."""
    found = {int(name) for name in os.listdir("/proc/self/fd")}
    return {fd for fd in found if os.path.lexists(f"/proc/self/fd/{fd}")}


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Handlers:
    """The handlers, and what they noticed."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.waiting = threading.Semaphore(0)

    def echo(self, call: Call) -> Reply:
        return Reply(call.parameters)

    def count(self, call: Call) -> Stream:
        try:
            last = call.parameters["to"]
            for number in range(1, last):
                yield Reply({"number": number})
                if call.cancelled.wait((call.parameters.get("pause") or 0) / 1000):
                    self.events.append("count: cancelled")
            return Reply({"number": last})
        finally:
            self.events.append("count: closed")

    def read(self, call: Call) -> Reply:
        with open(call.take_fd(call.parameters["fd_index"], "fd_index")) as file:
            return Reply({"data": file.read()})

    def open(self, call: Call) -> Reply:
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(call.parameters["before"])]
        end, writer = os.pipe()
        os.write(writer, call.parameters["text"].encode())
        os.close(writer)
        return Reply({"fd_index": len(fds)}, [*fds, end])

    def wait(self, call: Call) -> Reply:
        call.connection.on_close(lambda: self.events.append("wait: closed"))
        self.waiting.release()
        gone = call.cancelled.wait(20)
        self.events.append(f"wait: {'cancelled' if gone else 'too long'}")
        call.check()
        return Reply()

    def shout(self, call: Call) -> Upgrade:
        def protocol(sock: object, early: bytes) -> None:
            from socket import socket

            assert isinstance(sock, socket)
            sock.sendall(early.upper())
            while data := sock.recv(100):
                sock.sendall(data.upper())

        return Upgrade(protocol)

    def fail(self, call: Call) -> Reply:
        match call.parameters["how"]:
            case "refused":
                raise VarlinkError("org.example.test.Refused", {"why": "so"})
            case "unknown error":
                raise VarlinkError("org.example.test.Nonsense")
            case "foreign error":
                raise VarlinkError("org.example.other.Error")
            case "bad error":
                raise VarlinkError("org.example.test.Refused", {"why": 1})
            case "no text":
                raise VarlinkError("org.example.test.Refused", {"why": "\ud800"})
            case "wrong type":
                return Reply({"number": "1"}, [os.open("/dev/null", os.O_RDONLY)])
            case "too much":
                return Reply({"number": 1, "more": 2})
            case "bad descriptor":
                return Reply({"number": 1}, [9999])
            case "nothing":
                nothing: list[Any] = [None]
                reply: Reply = nothing[0]
                return reply
            case "connection":
                raise ConnectionRefusedError("of somebody else")
            case how:
                raise RuntimeError(how)

    def service(self) -> Service:
        made = Service(vendor="Example", product="Test", version="1", url="https://example.org/")
        made.add(
            INTERFACE,
            {
                "Echo": self.echo,
                "Count": self.count,
                "Read": Handler(handle=self.read, fds=(1, 3)),
                "Open": self.open,
                "Wait": self.wait,
                "Shout": Handler(handle=self.shout, upgrade=True),
                "Fail": self.fail,
            },
        )
        return made
