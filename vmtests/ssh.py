# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Root's shell in a guest: commands, files and an interactive session, by paramiko alone.

The guest's host key is not checked: the connection goes to a port on 127.0.0.1 that our own QEMU
forwards, and the guest may be seconds old. Files travel as a tar stream through an exec channel, so
the guest needs only `tar`.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import select
import shlex
import signal
import socket
import stat
import struct
import sys
import tarfile
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, ClassVar, cast

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bootc.errors import BootcError, ProcessError

_log = logging.getLogger(__name__)
_CHUNK = 128 * 1024
OnOutput = Callable[[bytes], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """An SSH key: the path of the private half, and the public half as one line."""

    private: Path
    public: str


def load_or_make_key(folder: Path) -> KeyPair:
    """The ed25519 key pair of a state folder (`id_ed25519`, mode 0600), made when missing."""
    private = folder / "id_ed25519"
    if not private.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        data = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        fresh = folder / f".id_ed25519.{os.getpid()}"
        fresh.unlink(missing_ok=True)
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        # link, not rename: of two processes that make the key at once, the first one wins.
        with suppress(FileExistsError):
            private.hardlink_to(fresh)
        fresh.unlink()
    os.chmod(private, 0o600)
    try:
        key = paramiko.Ed25519Key.from_private_key_file(str(private))
    except (paramiko.SSHException, OSError) as error:
        raise BootcError(
            f"{private} is no usable SSH key: {error}", hint=f"remove it: rm {private}"
        ) from error
    return KeyPair(private=private, public=f"{key.get_name()} {key.get_base64()} bootc-kit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a command in the guest said. `status` is -1 when the guest went away first."""

    command: str
    status: int
    stdout: str
    stderr: str


class GuestGone(BootcError):
    """The connection to the guest broke (it rebooted, hangs or was ended)."""


@dataclass(slots=True)
class Door:
    """Knocks at the guest's sshd until it opens, without hurrying it.

    QEMU's forward accepts at once whatever the guest does, so only the banner proves an sshd. One
    that was asked and left alone counts that against the caller (OpenSSH's `PerSourcePenalties`),
    and under emulation it takes seconds to answer: a knock is therefore waited for. But one from
    before the guest had an address is of no use any more, so there are several, one begun every
    `INTERVAL` seconds and given up after `PATIENCE`. The one that is answered becomes the login.
    When sshd is known to be there (`hurry`), the address may still be missing: then one is begun
    every `SOON` seconds. Those that come too early reach nobody, so few are left alone.

    QEMU goes on to deliver a knock that was given up, and the guest's sshd starts a process for it
    just when the login wants the CPU: a caller who knows that no sshd can be there yet says so.
    """

    INTERVAL: ClassVar[float] = 2.0
    SOON: ClassVar[float] = 0.4
    PATIENCE: ClassVar[float] = 8.0

    port: int
    _knocks: dict[socket.socket, float] = field(default_factory=dict)
    _last: float = 0.0
    _interval: float = INTERVAL

    def poll(self, seconds: float, *, knock: bool = True) -> socket.socket | None:
        """Look for an answer for `seconds`: a connection on which sshd's banner is to be read.

        With `knock=False` no new one is begun.
        """
        now = time.monotonic()
        if knock and now - self._last >= self._interval:
            self._last = now
            self._knock()
        for waiting, began in list(self._knocks.items()):
            if now - began > self.PATIENCE:
                self._give_up(waiting)
        if not self._knocks:
            time.sleep(seconds)
            return None
        for waiting in select.select(list(self._knocks), [], [], seconds)[0]:
            try:
                said = waiting.recv(4, socket.MSG_PEEK)
            except OSError:
                said = b""
            if said == b"SSH-":
                del self._knocks[waiting]
                self.close()
                waiting.setblocking(True)
                return waiting
            # Refused: the guest has its address, and sshd is about to come.
            self._give_up(waiting)
            self._last = min(self._last, now - self._interval + 0.3)
        return None

    def hurry(self) -> None:
        """Knock at the next `poll`, and often: something tells that sshd is there now."""
        self._last = -math.inf
        self._interval = self.SOON

    def _knock(self) -> None:
        with suppress(OSError):
            knock = socket.create_connection(("127.0.0.1", self.port), 5)
            knock.setblocking(False)
            self._knocks[knock] = self._last

    def _give_up(self, knock: socket.socket) -> None:
        del self._knocks[knock]
        knock.close()

    def close(self) -> None:
        for knock in list(self._knocks):
            self._give_up(knock)


@contextmanager
def open_guest(port: int, key: Path, *, timeout: float = 30.0) -> Iterator[Guest]:
    """A connection that is closed with the block."""
    guest = connect(port, key, timeout=timeout)
    try:
        yield guest
    finally:
        guest.close()


def connect(
    port: int, key: Path, *, timeout: float = 30.0, opened: socket.socket | None = None
) -> Guest:
    """Log in as root, on the connection `opened` if there is one; raises `GuestGone` when the guest
    does not answer or does not let us in."""
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    transport: paramiko.Transport | None = None
    try:
        connection = opened or socket.create_connection(("127.0.0.1", port), timeout)
        transport = paramiko.Transport(connection)
        transport.banner_timeout = timeout
        transport.auth_timeout = timeout
        transport.start_client(timeout=timeout)
        transport.auth_publickey("root", paramiko.Ed25519Key.from_private_key_file(str(key)))
        transport.set_keepalive(15)
    except paramiko.AuthenticationException as error:
        _close(transport)
        raise GuestGone(f"the guest's sshd does not accept {key}: {error}") from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        _close(transport)
        raise GuestGone(
            f"no SSH on 127.0.0.1:{port}: {str(error) or type(error).__name__}"
        ) from error
    return Guest(transport=transport)


def _close(transport: paramiko.Transport | None) -> None:
    if transport is not None:
        transport.close()


@dataclass(slots=True, kw_only=True)
class Guest:
    """A login to one guest."""

    transport: paramiko.Transport = field(repr=False)

    def close(self) -> None:
        self.transport.close()

    def is_alive(self) -> bool:
        return self.transport.is_active()

    def run(
        self,
        command: str,
        *,
        timeout: float = 60.0,
        check: bool = True,
        stdin: bytes = b"",
        on_output: OnOutput | None = None,
    ) -> Answer:
        """Run a shell command line to its end.

        `on_output` sees both outputs as they come. Raises `ProcessError` when it outlives `timeout`
        seconds or, with `check`, when it fails; `GuestGone` when the connection breaks and `check`.
        """
        with self._channel() as channel:
            channel.exec_command(command)
            return self._talk(channel, command, timeout, check, stdin, on_output)

    def _talk(
        self,
        channel: paramiko.Channel,
        command: str,
        timeout: float,
        check: bool,
        stdin: bytes,
        on_output: OnOutput | None,
    ) -> Answer:
        out, err = bytearray(), bytearray()
        deadline = time.monotonic() + timeout
        if stdin:
            channel.settimeout(timeout)
            with suppress(OSError):
                channel.sendall(stdin)
        channel.shutdown_write()
        while not _drain(channel, out, err, on_output):
            if time.monotonic() > deadline:
                raise ProcessError(
                    ["ssh", "root@guest", command],
                    None,
                    err.decode(errors="replace"),
                    reason=f"no end after {timeout:.0f} s",
                )
            if not channel.eof_received:
                select.select([channel], [], [], min(1.0, deadline - time.monotonic()))
            else:
                time.sleep(0.01)
        answer = Answer(
            command=command,
            status=channel.recv_exit_status(),
            stdout=out.decode(errors="replace"),
            stderr=err.decode(errors="replace"),
        )
        if check and answer.status == -1:
            raise GuestGone(f"the guest went away while it ran: {command}")
        if check and answer.status != 0:
            argv = ["ssh", "root@guest", command]
            raise ProcessError(argv, answer.status, answer.stderr or answer.stdout)
        return answer

    def put(self, source: Path, target: str, *, timeout: float = 120.0) -> None:
        """Copy a file or a tree to `target` in the guest, owned by root; folders are made."""
        where = PurePosixPath(target)
        parent = shlex.quote(str(where.parent))
        command = f"mkdir -p {parent} && exec tar -xf - -C {parent} --no-same-owner"
        with self._channel() as channel:
            channel.exec_command(command)
            channel.settimeout(timeout)
            try:
                with tarfile.open(fileobj=_sink(channel), mode="w|", bufsize=_CHUNK) as archive:
                    archive.add(source, arcname=where.name, filter=_owned_by_root)
            except OSError as error:
                _log.debug("%s: %s", command, error)  # its own complaint, below, says more
            self._talk(channel, command, timeout, True, b"", None)

    def put_bytes(self, data: bytes, target: str, *, mode: int = 0o644) -> None:
        """Write one small file."""
        quoted = shlex.quote(target)
        self.run(f"cat > {quoted} && chmod {mode:o} {quoted}", stdin=data)

    def get(self, source: str, target: Path, *, timeout: float = 120.0) -> None:
        """Copy a file or a tree from the guest to `target`, which must not exist as another kind.

        Only files, folders and symlinks arrive; names that lead out of `target` are refused.
        """
        where = PurePosixPath(source)
        command = f"exec tar -cf - -C {shlex.quote(str(where.parent))} -- {shlex.quote(where.name)}"
        with self._channel() as channel:
            channel.settimeout(timeout)
            channel.exec_command(command)
            channel.shutdown_write()
            stream = cast(IO[bytes], channel.makefile("rb", _CHUNK))
            try:
                with tarfile.open(fileobj=stream, mode="r|") as archive:
                    for member in archive:
                        _unpack(archive, member, where.name, target)
            except (tarfile.TarError, OSError) as error:
                _log.debug("%s: %s", command, error)
                self._talk(channel, command, timeout, True, b"", None)
                raise BootcError(f"cannot copy {source} from the guest: {error}") from error
            self._talk(channel, command, timeout, True, b"", None)

    def shell(self, command: str | None = None) -> int:
        """Connect our terminal to a login shell, or to `command`; returns its exit status."""
        with self._channel() as channel:
            terminal = sys.stdin.isatty() and sys.stdout.isatty()
            if terminal:
                size = os.get_terminal_size()
                channel.get_pty(os.environ.get("TERM", "xterm"), size.columns, size.lines)
            if command is None:
                channel.invoke_shell()
            else:
                channel.exec_command(command)
            with _raw_terminal(channel) if terminal else _nothing():
                _relay(channel)
            return channel.recv_exit_status()

    @contextmanager
    def _channel(self) -> Iterator[paramiko.Channel]:
        try:
            channel = self.transport.open_session(timeout=30)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise GuestGone(f"the guest does not answer: {error}") from error
        try:
            yield channel
        except paramiko.SSHException as error:
            raise GuestGone(f"the guest went away: {error}") from error
        finally:
            channel.close()


def _drain(
    channel: paramiko.Channel, out: bytearray, err: bytearray, on_output: OnOutput | None
) -> bool:
    """Take what is there from both outputs; whether the command is done and all is taken."""
    done = channel.closed or bool(channel.eof_received and channel.exit_status_ready())
    while channel.recv_ready():
        data = channel.recv(_CHUNK)
        out += data
        if on_output is not None:
            on_output(data)
    while channel.recv_stderr_ready():
        data = channel.recv_stderr(_CHUNK)
        err += data
        if on_output is not None:
            on_output(data)
    return done


def _sink(channel: paramiko.Channel) -> IO[bytes]:
    """What tarfile's streaming mode needs of a file: `write`."""

    class Sink:
        def write(self, data: bytes) -> int:
            channel.sendall(data)
            return len(data)

    return cast(IO[bytes], Sink())


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, top: str, target: Path) -> None:
    parts = PurePosixPath(member.name).parts
    if not parts or parts[0] != top or ".." in parts:
        raise BootcError(f"the guest's archive holds {member.name!r}, which leads elsewhere")
    path = target.joinpath(*parts[1:])
    if any(parent.is_symlink() for parent in path.parents if parent.is_relative_to(target)):
        raise BootcError(f"the guest's archive writes through a symlink: {member.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.isdir():
        path.mkdir(exist_ok=True)
    elif member.issym():
        path.unlink(missing_ok=True)
        path.symlink_to(member.linkname)
    elif member.isreg():
        content = archive.extractfile(member)
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            while content is not None and (data := content.read(_CHUNK)):
                file.write(data)
        path.chmod(stat.S_IMODE(member.mode) & 0o755 | 0o600)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _raw_terminal(channel: paramiko.Channel) -> Iterator[None]:
    """Our terminal passes every key on, and its size changes too."""

    def resize(_number: int, _frame: object) -> None:
        packed = fcntl.ioctl(sys.stdin, termios.TIOCGWINSZ, bytes(8))
        rows, columns = struct.unpack("HHHH", packed)[:2]
        channel.resize_pty(columns, rows)

    before = termios.tcgetattr(sys.stdin)
    handler = signal.signal(signal.SIGWINCH, resize)
    try:
        tty.setraw(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        signal.signal(signal.SIGWINCH, handler)


def _relay(channel: paramiko.Channel) -> None:
    """Pass bytes both ways until the guest's side ends."""
    out, err, source = sys.stdout.fileno(), sys.stderr.fileno(), sys.stdin.fileno()
    reading = True
    while True:
        ready = select.select([channel, source] if reading else [channel], [], [], 1.0)[0]
        if source in ready:
            typed = os.read(source, 4096)
            if typed:
                channel.sendall(typed)
            else:
                channel.shutdown_write()
                reading = False
        while channel.recv_ready():
            os.write(out, channel.recv(_CHUNK))
        while channel.recv_stderr_ready():
            os.write(err, channel.recv_stderr(_CHUNK))
        if channel.exit_status_ready() and channel.eof_received:
            if not channel.recv_ready() and not channel.recv_stderr_ready():
                return
        elif channel.closed:
            return
