# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Handles: the numbers by which a client names the repositories that it has open.

They count up from 1 in a process, so none is used twice, and they belong to a connection: nobody
else can use one, and all of a connection are closed when it ends. (The reference shares them among
its clients and keeps what a client forgot.)

Handle 0 is special: it is the repository that the server was told at its start (`cfsctl --repo PATH
varlink`), if it was, and opened for each connection that uses it. So a client that makes a
connection for each call, as varlinkctl does, can call everything.

A repository stays open, with its lock, as long as somebody works on it, also if its handle is
closed meanwhile.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bootc.composefs.locks import GivenUpError
from bootc.composefs.repository import Repository
from bootc.errors import BootcError, chain_text
from bootc.varlink import Call, ClientGoneError, Connection, VarlinkError

HANDLES_MAX = 64
"""Repositories that one connection may have open; each takes up to 260 descriptors."""
DEFAULT = 0
_STATE = "org.composefs.handles"
_OPTIONS = "org.composefs.options"
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How this service opens repositories: the global options of `cfsctl`."""

    erofs_version: int | None = None
    insecure: bool = False
    upgrade: bool = True
    require_verity: bool = False
    hash: str | None = None
    default: str | None = None
    """The path of the repository that is handle 0."""


def new_number() -> int:
    """A handle that was never used in this process."""
    return next(_numbers)


class Handle:
    """An open repository that is closed when its last user releases it; it begins with one."""

    def __init__(self, repo: Repository) -> None:
        self.repo = repo
        self._users = 1
        self._lock = threading.Lock()

    def retain(self) -> None:
        with self._lock:
            self._users += 1

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
        self.repo.close()


class Handles:
    """Those of one connection, whose calls run one after another."""

    def __init__(self) -> None:
        self._open: dict[int, Handle] = {}

    def add(self, repo: Repository, *, number: int) -> Handle:
        made = self._open[number] = Handle(repo)
        return made

    @property
    def is_full(self) -> bool:
        return len(self._open) >= HANDLES_MAX

    def find(self, number: int) -> Handle | None:
        return self._open.get(number)

    def close(self, number: int) -> bool:
        """False if there is none."""
        found = self._open.pop(number, None)
        if found is not None:
            found.release()
        return found is not None

    def close_all(self) -> None:
        for number in list(self._open):
            self.close(number)


def handles_of(connection: Connection) -> Handles:
    """The connection's handles; they end with it."""
    found = connection.state.get(_STATE)
    if isinstance(found, Handles):
        return found
    made = Handles()
    connection.state[_STATE] = made
    connection.on_close(made.close_all)
    return made


def need_handle(call: Call) -> Handle:
    """The one that the call's `handle` names, or its interface's InvalidHandle."""
    number = call.parameters["handle"]
    interface = call.method.rpartition(".")[0]
    handles = handles_of(call.connection)
    found = handles.find(number)
    if found is None and number == DEFAULT:
        found = _open_default(call, handles, interface)
    if found is None:
        raise VarlinkError(f"{interface}.InvalidHandle", {"handle": number})
    return found


def _open_default(call: Call, handles: Handles, interface: str) -> Handle | None:
    options = call.connection.state.get(_OPTIONS)
    if not isinstance(options, Options) or options.default is None:
        return None
    try:
        return handles.add(open_repository(options.default, options, call), number=DEFAULT)
    except ClientGoneError:
        raise
    except (BootcError, OSError) as error:
        raise VarlinkError(f"{interface}.RepoNotFound", {"message": chain_text(error)}) from error


def set_options(call: Call, options: Options) -> None:
    """Let the connection of a call know how repositories are opened here."""
    call.connection.state[_OPTIONS] = options


def open_repository(path: str, options: Options, call: Call) -> Repository:
    """Open a repository as the service's options say; wait for others as long as the client does.

    Raises `ClientGoneError` when it is gone.
    """
    with while_wanted():
        repo = Repository.open(
            path,
            upgrade=options.upgrade,
            erofs_version=options.erofs_version,
            insecure=options.insecure,
            give_up=call.cancelled.wait,
        )
    if options.require_verity and not repo.secure:
        repo.close()
        raise BootcError(f"{path} does not require fs-verity")
    if options.hash not in (None, repo.algorithm.value):
        repo.close()
        raise BootcError(f"{path} is configured for {repo.algorithm.identifier}")
    return repo


@contextmanager
def while_wanted() -> Iterator[None]:
    """Say of a wait for a repository's lock that was given up that the client is gone."""
    try:
        yield
    except GivenUpError:
        raise ClientGoneError from None


def user_repository() -> str | None:
    """Where the server's user has his, or None if the server knows no HOME."""
    home = os.environ.get("HOME")
    return os.path.join(home, ".var/lib/composefs") if home else None
