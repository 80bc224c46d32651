# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The cache of built things: one folder an entry, complete or not there, never used half-made.

    .bootc/cache/KIND/KEY/            made under a temporary name and renamed when it is whole
    .bootc/cache/KIND/KEY/inputs.json the digest of every input (`why` it was made anew)
    .bootc/cache/KIND.lock            flock: exclusive while making or removing, shared while using

Two runs at once share the cache: the second waits, aloud, for what the first is making. The least
recently used entries go when a kind has more than `KEEP` of them; one in use stays.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bootc.jsonutil import pretty, read_object
from vmtests import paths
from vmtests.content import Inputs

_log = logging.getLogger(__name__)

KEEP = 4
"""Entries of a kind that stay: a disk is some 300 MB."""


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a flock on `path`; says so when it has to wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("another run of this checkout holds %s: waiting for it", path.name)
            fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def _folder(kind: str, key: str) -> Path:
    return paths.CACHE / kind / key


def is_cached(kind: str, inputs: Inputs) -> bool:
    return (_folder(kind, inputs.key) / "inputs.json").exists()


def why_not_cached(kind: str, inputs: Inputs) -> list[str]:
    """The inputs that differ from the newest entry of `kind`, one a line; empty when cached."""
    if is_cached(kind, inputs):
        return []
    entries = sorted((paths.CACHE / kind).glob("*/inputs.json"), key=_last_use, reverse=True)
    if not entries:
        return [f"there is no cached {kind} yet"]
    newest = read_object(entries[0].read_bytes(), str(entries[0]))
    return inputs.changes({name: newest.text(name) for name in newest.value})


def _last_use(path: Path) -> float:
    return path.stat().st_mtime


@contextmanager
def entry(kind: str, inputs: Inputs, make: Callable[[Path], None]) -> Iterator[Path]:
    """The folder of the entry for `inputs`, made by `make(folder)` if it is not there.

    It stays for as long as the block; a failing `make` leaves nothing.
    """
    folder = _folder(kind, inputs.key)
    lock = paths.CACHE / f"{kind}-{inputs.key}.lock"
    while True:
        with locked(lock):
            if not is_cached(kind, inputs):
                _make(kind, inputs, folder, make)
        with locked(lock, shared=True):
            # Between the two locks another run may have removed the entry again.
            if is_cached(kind, inputs):
                os.utime(folder / "inputs.json")
                yield folder
                return


def _make(kind: str, inputs: Inputs, folder: Path, make: Callable[[Path], None]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent) as scratch:
        fresh = Path(scratch) / "entry"
        fresh.mkdir()
        make(fresh)
        (fresh / "inputs.json").write_text(pretty(dict(inputs.digests)))
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    _forget(kind, folder)


def _forget(kind: str, kept: Path) -> None:
    """Remove the least recently used entries beyond `KEEP` that nobody holds."""
    entries = sorted((paths.CACHE / kind).glob("*/inputs.json"), key=_last_use, reverse=True)
    for found in entries[KEEP:]:
        folder = found.parent
        if folder == kept:
            continue
        lock = paths.CACHE / f"{kind}-{folder.name}.lock"
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def sizes() -> dict[str, int]:
    """Bytes on disk by kind."""
    total: dict[str, int] = {}
    for kind in paths.CACHE.iterdir() if paths.CACHE.is_dir() else ():
        if kind.is_dir():
            total[kind.name] = sum(
                path.lstat().st_blocks * 512 for path in kind.rglob("*") if path.is_file()
            )
    return total


def remove_all() -> None:
    """Remove the whole cache and the results of tests."""
    for folder in (paths.CACHE, paths.STATE / "results"):
        shutil.rmtree(folder, ignore_errors=True)
