# SPDX-License-Identifier: Apache-2.0 OR MIT
"""How podman is called: for bootc's own storage, or for the machine's.

For bootc's storage it is always

    podman --storage-driver overlay --root /run/bootc/storage --runroot /proc/self/fd/3 …

in a mount namespace of its own, where the storage's folder is at that path (see `launch`): podman
keeps these paths in the storage's database and refuses others later.

Its credentials are those of bootc's auth file (REGISTRY_AUTH_FILE), or none.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from bootc import fs, process
from bootc.errors import ProcessError
from bootc.podman.launch import RUNROOT, launch_argv

ALIAS = "/run/bootc/storage"
DRIVER = "overlay"
HINT = "install podman (apt-get install podman, dnf install podman), in the image, too"
_FIRST_FD = 10
"""Descriptors for podman get numbers from here on: `RUNROOT` has to stay free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Podman:
    """A podman that can be run as long as its block: the beginning of its command line, what it
    gets on top of our environment, and the descriptors that it inherits."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    fds: tuple[int, ...] = ()
    authfile: str | None = None

    def run(
        self, *words: str, timeout: float = process.DEFAULT_TIMEOUT, check: bool = True
    ) -> process.Completed:
        """Run it to its end. Raises `ProcessError`."""
        argv = [*self.argv, *words]
        try:
            return process.run(argv, timeout=timeout, check=check, env=self.env, pass_fds=self.fds)
        except ProcessError as error:
            reason = None
            if error.status is None:
                reason = f"no end after {timeout:.0f} s"
            raise ProcessError(
                ["podman", *words], error.status, error.stderr, reason=reason
            ) from None

    def pass_through(self, *words: str, timeout: float = 4 * 3600.0) -> int:
        """Run it with our output; its exit status."""
        argv = [*self.argv, *words]
        return process.run(
            argv, timeout=timeout, check=False, env=self.env, pass_fds=self.fds, capture=False
        ).status


def need_podman() -> str:
    """podman's path. Raises `BootcError` without one."""
    return process.need_program("podman", hint=HINT)


@contextmanager
def host_podman(*, authfile: str | None = None) -> Iterator[Podman]:
    """podman with the machine's own storage."""
    program = need_podman()
    with _auth(authfile) as (env, fds):
        yield Podman(argv=(program,), env=env, fds=fds, authfile=authfile)


@contextmanager
def storage_podman(
    folder: str, runroot: str, *, alias: str = ALIAS, authfile: str | None = None
) -> Iterator[Podman]:
    """podman with the storage in `folder`, whose state until the next boot is in `runroot`."""
    program = need_podman()
    options = ("--storage-driver", DRIVER, "--root", alias, "--runroot", f"/proc/self/fd/{RUNROOT}")
    with confined(folder, runroot, alias=alias, authfile=authfile) as made:
        yield Podman(
            argv=(*made.argv, program, *options), env=made.env, fds=made.fds, authfile=authfile
        )


@contextmanager
def confined(
    folder: str, runroot: str, *, alias: str = ALIAS, authfile: str | None = None
) -> Iterator[Podman]:
    """The surroundings of `storage_podman`, for any program: its path has to follow `argv`."""
    os.makedirs(alias, mode=0o700, exist_ok=True)
    os.makedirs(runroot, mode=0o700, exist_ok=True)
    with ExitStack() as stack:
        env, fds = stack.enter_context(_auth(authfile))
        storage_fd = stack.enter_context(_opened(folder))
        runroot_fd = stack.enter_context(_opened(runroot))
        yield Podman(
            argv=tuple(launch_argv(os.getpid(), alias, storage_fd, runroot_fd, ())),
            env=env,
            fds=(*fds, storage_fd, runroot_fd),
            authfile=authfile,
        )


@contextmanager
def _opened(folder: str) -> Iterator[int]:
    with fs.open_directory(folder) as fd, _moved(fd) as high:
        yield high


@contextmanager
def _moved(fd: int) -> Iterator[int]:
    """The same file at a descriptor that podman has no other use for."""
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FD)
    try:
        yield high
    finally:
        os.close(high)


@contextmanager
def _auth(authfile: str | None) -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
    """The environment, and its descriptor, by which podman finds the credentials: a copy of the
    file, or of none, that has no name."""
    text = b"{}"
    if authfile is not None:
        with open(authfile, "rb") as file:
            text = file.read()
    copy = os.memfd_create("bootc-auth", os.MFD_CLOEXEC)
    try:
        fs.write_all(copy, text)
        with _moved(copy) as high:
            yield {"REGISTRY_AUTH_FILE": f"/proc/self/fd/{high}"}, (high,)
    finally:
        os.close(copy)
