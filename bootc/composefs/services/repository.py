# SPDX-License-Identifier: Apache-2.0 OR MIT
"""org.composefs.Repository: make, open and close repositories, list what has a name."""

from __future__ import annotations

import os

from bootc.composefs.digest import Algorithm
from bootc.composefs.initialize import is_repository
from bootc.composefs.repository import Repository, read_algorithm
from bootc.composefs.services.handles import (
    HANDLES_MAX,
    Options,
    handles_of,
    need_handle,
    new_number,
    open_repository,
    user_repository,
    while_wanted,
)
from bootc.composefs.services.replies import REPOSITORY, fail, told
from bootc.errors import BootcError
from bootc.varlink import Call, ClientGoneError, Reply, VarlinkError

SYSTEM = "/sysroot/composefs"


def _invalid(message: str) -> VarlinkError:
    return fail(REPOSITORY, "InvalidSpec", message=message)


def _path(call: Call) -> str:
    path: str = call.parameters["path"]
    if not path.startswith("/") or "\0" in path:
        raise _invalid(f"{path!r} is no absolute path")
    return path


def _algorithm(call: Call) -> Algorithm | None:
    name = call.parameters.get("algorithm")
    if name is None:
        return None
    try:
        return read_algorithm(name, "algorithm")
    except BootcError as error:
        raise _invalid(told(error)) from error


def init_repository(call: Call, options: Options) -> Reply:
    path, algorithm = _path(call), _algorithm(call)
    existed = os.path.lexists(os.path.join(path, "meta.json"))
    try:
        os.makedirs(os.path.dirname(path.rstrip("/")) or "/", exist_ok=True)
        with while_wanted():
            Repository.init(
                path,
                algorithm=algorithm or Algorithm.SHA512,
                secure=not call.parameters.get("insecure"),
                erofs_version=1 if options.erofs_version is None else options.erofs_version,
                give_up=call.cancelled.wait,
            ).close()
    except ClientGoneError:
        raise
    except BootcError as error:
        if existed:
            raise _invalid(told(error)) from error
        raise
    return Reply({"created": not existed})


def ensure_repository(call: Call, options: Options) -> Reply:
    path, algorithm = _path(call), _algorithm(call)
    os.makedirs(os.path.dirname(path.rstrip("/")) or "/", exist_ok=True)
    with while_wanted():
        repo, status = Repository.ensure(
            path,
            # One that exists keeps its configuration, whatever it is.
            algorithm=None if is_repository(path) else algorithm,
            secure=not call.parameters.get("insecure"),
            erofs_version=1 if options.erofs_version is None else options.erofs_version,
            give_up=call.cancelled.wait,
        )
    repo.close()
    return Reply({"status": status.value})


def open_(call: Call, options: Options) -> Reply:
    given = call.parameters
    chosen = [key for key in ("path", "user", "system") if given.get(key) not in (None, False)]
    if len(chosen) != 1:
        raise _invalid("say exactly one of path, user and system")
    if chosen == ["path"]:
        path = _path(call)
    elif chosen == ["system"]:
        path = SYSTEM
    else:
        found = user_repository()
        if found is None:
            raise _invalid("the server has no HOME: say the path")
        path = found
    handles = handles_of(call.connection)
    if handles.is_full:
        raise _invalid(f"this connection has {HANDLES_MAX} repositories open: close one")
    try:
        repo = open_repository(path, options, call)
    except ClientGoneError:
        raise
    except (BootcError, OSError) as error:
        raise fail(REPOSITORY, "RepoNotFound", message=told(error)) from error
    handle = new_number()
    handles.add(repo, number=handle)
    return Reply(
        {
            "handle": handle,
            "hash_algorithm": repo.algorithm.value,
            "objects_device_id": _device(repo),
        }
    )


def _device(repo: Repository) -> int:
    try:
        return os.stat("objects", dir_fd=repo.fd).st_dev
    except FileNotFoundError:
        return os.fstat(repo.fd).st_dev


def close(call: Call) -> Reply:
    need_handle(call)
    handles_of(call.connection).close(call.parameters["handle"])
    return Reply()


def list_image_refs(call: Call) -> Reply:
    repo = need_handle(call).repo
    refs = [{"name": name, "digest": digest} for name, digest in repo.image_refs()]
    return Reply({"images": refs})
