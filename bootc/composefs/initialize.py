# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Making a repository where there is none, upgrading an old one, making one anew.

Every step may be interrupted: what is left is a whole repository, or a directory that is none yet
and can be initialized.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from bootc import fs
from bootc.composefs.metadata import (
    META,
    Metadata,
    infer_metadata,
    load_metadata,
    write_metadata,
)
from bootc.composefs.refs import IMAGES, STREAMS
from bootc.errors import BootcError

REMOVED = ".removed-"
"""How the names of directories begin that an interrupted `reset` may leave."""


def make_directory(path: str) -> bool:
    """Make the directory of a repository, for its owner only; False if there is one."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return False
    except OSError as error:
        raise BootcError(f"cannot make the repository {path}: {error.strerror}") from error
    return True


def is_repository(path: str) -> bool:
    """Whether there is a repository at `path`, be it an old one."""
    return any(os.path.lexists(os.path.join(path, name)) for name in (META, "objects"))


def initialize(path: str, metadata: Metadata, *, secure: bool) -> None:
    """Write meta.json, or check that the one there says the same."""
    with fs.open_directory(path) as fd:
        found = load_metadata(fd, path)
        if found is None and "objects" in os.listdir(fd):
            _check_objects(fd, path, metadata)
        if found is None:
            try:
                write_metadata(fd, path, metadata, secure=secure)
            except FileExistsError:
                # Another process was quicker by a moment.
                found = load_metadata(fd, path)
        if found is not None and found[0] != metadata:
            raise BootcError(
                f"{path} is already a repository with {found[0].algorithm.identifier} and EROFS "
                f"version {found[0].erofs_default}",
                hint="open it as it is, or make it anew with --reset-metadata",
            )


def _check_objects(fd: int, path: str, metadata: Metadata) -> None:
    """Refuse to make a repository of one algorithm around the streams of another."""
    if not any(name in os.listdir(fd) for name in (STREAMS, IMAGES)):
        return
    found, _ = infer_metadata(fd, path)
    if found.algorithm != metadata.algorithm:
        raise BootcError(
            f"{path} is an old repository with {found.algorithm.identifier}",
            hint=f"ask for that, or drop what it has with `cfsctl --repo {path} init "
            "--reset-metadata`",
        )


def upgrade(fd: int, path: str, *, allowed: bool) -> tuple[Metadata, bool]:
    """The metadata of a repository that has no meta.json, written there where that is possible."""
    if "objects" not in os.listdir(fd):
        raise BootcError(
            f"{path} is not a composefs repository",
            hint=f"make it one with `cfsctl --repo {path} init`",
        )
    if not allowed:
        raise BootcError(
            f"{path} is a repository of an old format without {META}",
            hint="leave --no-upgrade out, or make it anew with `cfsctl init --reset-metadata`",
        )
    found = infer_metadata(fd, path)
    try:
        write_metadata(fd, path, found[0], secure=found[1])
    except FileExistsError:
        return load_metadata(fd, path) or found
    except BootcError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError) or cause.errno not in (errno.EROFS, errno.EACCES):
            raise
    return found


def reset(fd: int, path: str) -> None:
    """Remove all but the objects of the repository `fd`, which is locked exclusively."""
    import shutil  # rarely needed, and slow to import

    removed = []
    try:
        for name in (IMAGES, STREAMS):
            other = fs.temporary_name(REMOVED)
            try:
                os.rename(name, other, src_dir_fd=fd, dst_dir_fd=fd)
            except FileNotFoundError:
                continue
            removed.append(other)
        os.fsync(fd)
        with suppress(FileNotFoundError):
            os.unlink(META, dir_fd=fd)
        os.fsync(fd)
        for name in removed:
            shutil.rmtree(name, dir_fd=fd)
    except OSError as error:
        raise BootcError(f"cannot reset {path}: {error.strerror}") from error
