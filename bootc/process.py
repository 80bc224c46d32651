# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The one door to other programs: argv only, stdin closed, C.UTF-8, an explicit time limit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO

from bootc.errors import BootcError, ProcessError
from bootc.records import dataclass

DEFAULT_TIMEOUT = 600.0
"""Seconds; a caller that knows better says so."""
Child = subprocess.Popen[bytes]
"""What `running` gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """What a finished program said: `status` is its exit status, the outputs are text."""

    status: int
    stdout: str
    stderr: str


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our environment with a fixed locale and `extra` on top."""
    return {**os.environ, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", **(extra or {})}


def find_program(name: str) -> str | None:
    """The path of `name` on PATH (sbin folders included), or None."""
    path = os.environ.get("PATH", os.defpath)
    return shutil.which(name, path=f"{path}:/usr/local/sbin:/usr/sbin:/sbin")


def need_program(name: str, *, hint: str) -> str:
    """The path of `name`, or a `BootcError` whose hint says how to get it."""
    found = find_program(name)
    if found is None:
        raise BootcError(f"{name} is not on PATH", hint=hint)
    return found


def run(
    argv: Sequence[str],
    *,
    timeout: float = DEFAULT_TIMEOUT,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    stdin: str | bytes | None = None,
    capture: bool = True,
    pass_fds: Sequence[int] = (),
) -> Completed:
    """Run `argv` to its end.

    `capture=False` lets its output through to ours. Raises `ProcessError` when it does not start,
    outlives `timeout` seconds (its process group is killed) or, with `check`, exits non-zero.
    """
    pipe = subprocess.PIPE if capture else None
    data = stdin.encode() if isinstance(stdin, str) else stdin
    with _started(
        argv,
        stdin=subprocess.PIPE if data is not None else subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        env=env,
        cwd=cwd,
        pass_fds=pass_fds,
    ) as child:
        try:
            out, err = child.communicate(data, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise ProcessError(argv, None, reason=f"no end after {timeout:.0f} s") from error
    done = Completed(
        status=child.returncode,
        stdout=(out or b"").decode("utf-8", "replace"),
        stderr=(err or b"").decode("utf-8", "replace"),
    )
    if check and done.status != 0:
        raise ProcessError(argv, done.status, done.stderr or done.stdout)
    return done


@contextmanager
def running(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    stdin: int | IO[bytes] | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs as long as the block; its process group is ended with the block."""
    with _started(
        argv,
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=stdout,
        stderr=stderr,
        env=env,
        cwd=cwd,
        pass_fds=pass_fds,
    ) as child:
        yield child


PIPE = subprocess.PIPE


@contextmanager
def _started(
    argv: Sequence[str],
    *,
    stdin: int | IO[bytes],
    stdout: int | IO[bytes] | None,
    stderr: int | IO[bytes] | None,
    env: Mapping[str, str] | None,
    cwd: str | os.PathLike[str] | None,
    pass_fds: Sequence[int],
) -> Iterator[subprocess.Popen[bytes]]:
    program = find_program(argv[0]) if "/" not in argv[0] else argv[0]
    if program is None:
        raise ProcessError(argv, None, reason=f"{argv[0]} is not on PATH")
    try:
        child = subprocess.Popen(
            [program, *argv[1:]],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=environment(env),
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    except OSError as error:
        raise ProcessError(argv, None, reason=f"cannot start: {error.strerror}") from error
    try:
        yield child
    finally:
        _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        for kill, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            try:
                os.killpg(child.pid, kill)
                child.wait(patience)
                break
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream is not None:
            stream.close()
    child.wait()
