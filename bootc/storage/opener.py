# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Opens the files of a store; without root, with the help of a process in a user namespace.

A rootless store belongs to its user, but the files in it to the ids of /etc/subuid and /etc/subgid,
and those that only their owner may read are closed to us. What is not is opened directly. For the
first one that is, a helper is started: it makes a user namespace, newuidmap(1) and newgidmap(1) put
the user and the subordinate ids into it, and there it may open everything. It gets a directory's
descriptor and a name, and answers with a descriptor.

    request   u32 flags, u64 resolve, name            and the descriptor of the directory
    answer    i32 errno, 0 for success                and the file's descriptor

over a SOCK_SEQPACKET socket. The helper ends when the socket does, or our process: it watches a
pidfd. (PR_SET_PDEATHSIG would end it with the *thread* that started it.)
"""

from __future__ import annotations

import errno
import os
import pwd
import select
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from bootc import process
from bootc.closing import Closing
from bootc.errors import BootcError
from bootc.linux import libc

_REQUEST = struct.Struct("=IQ")
_ANSWER = struct.Struct("=i")
_DENIED = (errno.EACCES, errno.EPERM)
_TIMEOUT = 60.0
_RANGES_MAX = 340
_READY, _GO = b"ready", b"go"


class Opener(Closing):
    """Use as a context manager: the helper, if one was needed, ends with it."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._channel: socket.socket | None = None
        self._guard = threading.Lock()

    def close(self) -> None:
        self._channel = None
        self._stack.close()

    def open_beneath(self, directory: int, name: bytes, flags: int, resolve: int) -> int:
        """openat2(2). Raises `OSError`; `BootcError` where the helper cannot be had."""
        try:
            return libc.openat2(directory, os.fsdecode(name), flags, resolve=resolve)
        except OSError as error:
            if error.errno not in _DENIED or os.geteuid() == 0:
                raise
        return self._ask(directory, name, flags, resolve)

    def open_path(self, path: str, flags: int) -> int:
        """open(2)."""
        try:
            return os.open(path, flags)
        except OSError as error:
            if error.errno not in _DENIED or os.geteuid() == 0:
                raise
        parent = os.open("/", os.O_PATH | os.O_CLOEXEC)
        try:
            return self._ask(parent, os.fsencode(path), flags, 0)
        finally:
            os.close(parent)

    def _ask(self, directory: int, name: bytes, flags: int, resolve: int) -> int:
        with self._guard:
            if self._channel is None:
                self._channel = self._stack.enter_context(_Helper()).channel
            channel = self._channel
            try:
                socket.send_fds(channel, [_REQUEST.pack(flags, resolve) + name], [directory])
                answer, fds, _, _ = socket.recv_fds(channel, _ANSWER.size, 1)
            except OSError as error:
                raise BootcError(f"the user-namespace helper failed: {error}") from error
        if len(answer) != _ANSWER.size:
            raise BootcError("the user-namespace helper ended early", hint="look at the kernel log")
        (number,) = _ANSWER.unpack(answer)
        if number:
            raise OSError(number, os.strerror(number), os.fsdecode(name))
        os.set_inheritable(fds[0], False)
        return fds[0]


class _Helper:
    """The helper's process; `channel` is our end of the socket."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        uid, gid = os.geteuid(), os.getegid()
        maps = (("newuidmap", uid, "/etc/subuid"), ("newgidmap", gid, "/etc/subgid"))
        commands = []
        for program, own, path in maps:
            found = process.need_program(
                program, hint="install uidmap (Fedora: shadow-utils-subid), or run this as root"
            )
            commands.append((found, _ranges(path, own)))
        with ExitStack() as stack:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(ours)
            with theirs:
                child = stack.enter_context(process.running(_argv(), stdin=theirs.fileno()))
            ours.settimeout(_TIMEOUT)
            if ours.recv(16) != _READY:
                raise BootcError(
                    "no user namespace can be made",
                    hint="run this as root, or in `podman unshare`",
                )
            for program, ranges in commands:
                process.run([program, str(child.pid), *ranges], timeout=_TIMEOUT)
            ours.send(_GO)
            self.channel = ours
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


def _ranges(path: str, own: int) -> list[str]:
    """The arguments of newuidmap(1): ourselves as 0, then the subordinate ids of the user."""
    name = pwd.getpwuid(os.geteuid()).pw_name
    found = ["0", str(own), "1"]
    inside = 1
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                user, _, rest = line.strip().partition(":")
                start, _, count = rest.partition(":")
                if user in (name, str(os.geteuid())) and start.isdigit() and count.isdigit():
                    found += [str(inside), start, count]
                    inside += int(count)
    except OSError as error:
        raise BootcError(f"cannot read {path}: {error.strerror}") from error
    if inside == 1 or len(found) > 3 * _RANGES_MAX:
        raise BootcError(
            f"{name} has no subordinate ids in {path}",
            hint="usermod --add-subuids 200000-265535 --add-subgids 200000-265535 " + name,
        )
    return found


def _argv() -> list[str]:
    import bootc

    top = os.path.dirname(os.path.dirname(os.path.abspath(bootc.__file__)))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "from bootc.storage.opener import serve; serve(int(sys.argv[2]))"
    )
    return [sys.executable, "-I", "-c", code, top, str(os.getpid())]


def serve(parent: int) -> None:
    """The helper: answer what comes over descriptor 0, until it or the process `parent` ends."""
    watched = os.pidfd_open(parent)
    if os.getppid() != parent:
        return
    libc.unshare(libc.CLONE_NEWUSER)
    with socket.socket(fileno=0) as channel:
        channel.send(_READY)
        for message, fds in _requests(channel, watched):
            if message == _GO:
                continue
            try:
                opened = _serve_one(message, fds)
            except OSError as error:
                channel.send(_ANSWER.pack(error.errno or errno.EIO))
                continue
            finally:
                for fd in fds:
                    os.close(fd)
            socket.send_fds(channel, [_ANSWER.pack(0)], [opened])
            os.close(opened)


def _requests(channel: socket.socket, watched: int) -> Iterator[tuple[bytes, list[int]]]:
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(watched, select.POLLIN)
    while True:
        ready = [fd for fd, _ in poll.poll()]
        if watched in ready:
            return
        message, fds, _, _ = socket.recv_fds(channel, 1 << 16, 1)
        if not message:
            return
        yield message, fds


def _serve_one(message: bytes, fds: list[int]) -> int:
    flags, resolve = _REQUEST.unpack_from(message)
    name = message[_REQUEST.size :].decode("utf-8", "surrogateescape")
    return libc.openat2(fds[0], name, flags, resolve=resolve)
