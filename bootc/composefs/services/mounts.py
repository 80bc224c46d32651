# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Mount and OciMount: the reply carries the mount, a descriptor of a directory attached nowhere."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import ExitStack

from bootc.composefs.described import erofs_image_name
from bootc.composefs.mount import mount_image
from bootc.composefs.repository import NotFoundError, Repository
from bootc.composefs.services.handles import need_handle
from bootc.composefs.services.replies import OCI, REPOSITORY, fail, invalid_request
from bootc.composefs.services.stored_images import need_image
from bootc.varlink import Call, Reply, VarlinkError


def _invalid_spec(problem: str) -> VarlinkError:
    return fail(REPOSITORY, "InvalidSpec", message=problem)


def mount(call: Call) -> Reply:
    repo, name = need_handle(call).repo, call.parameters["name"]
    try:
        return _mounted(repo, name, call, _invalid_spec)
    except NotFoundError as error:
        raise fail(REPOSITORY, "NoSuchRef", reference=name) from error


def oci_mount(call: Call) -> Reply:
    repo, image = need_handle(call).repo, call.parameters["image"]
    named = f"@{image}" if image.startswith("sha256:") else image
    found = need_image(repo, named)
    try:
        name = erofs_image_name(repo, found, boot=call.parameters["bootable"])
        return _mounted(repo, name, call, invalid_request)
    except NotFoundError as error:
        raise fail(OCI, "NoSuchImage", image=image) from error


def _mounted(
    repo: Repository, name: str, call: Call, refuse: Callable[[str], VarlinkError]
) -> Reply:
    options = call.parameters["options"]
    overlay, read_write = bool(options.get("overlay")), bool(options.get("read_write"))
    wanted = 2 if overlay else 0
    if len(call.fds) != wanted:
        raise refuse(f"this takes {wanted} descriptors, and {len(call.fds)} came")
    if read_write and not overlay:
        raise refuse("without an overlay there is nothing to write to")
    with ExitStack() as stack:
        paths: list[str] = []
        for index in range(wanted):
            fd = call.fds.take(index)
            stack.callback(os.close, fd)
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                raise refuse(f"descriptor {index} is no directory")
            paths.append(f"/proc/self/fd/{fd}")
        upper, work = paths if paths else (None, None)
        with mount_image(repo, name, upper=upper, work=work, read_write=read_write) as made:
            fd, made.fd = made.fd, -1
    return Reply({"fd_index": 0}, [fd])
