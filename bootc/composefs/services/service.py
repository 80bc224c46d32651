# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The service: which function answers which method, and who may call.

A method's module is imported when the method is called for the first time, because a server that a
socket activates has to answer at once.

Whoever may call can make the server read and write files with its rights; so only root and the
server's own user may. (The socket of the unit can be opened by root alone.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from importlib import import_module

from bootc import __version__
from bootc.composefs.services.handles import Options, set_options
from bootc.composefs.services.replies import OCI, REPOSITORY, translated, translated_stream
from bootc.varlink import Call, Handler, Reply, Service, Stream, VarlinkError, parse

_HERE = os.path.dirname(os.path.abspath(__file__))
_FDS_MAX = 253
_PACKAGE = "bootc.composefs.services"

# The names of a module here and of a function in it.
_REPOSITORY = {
    "InitRepository": ("repository", "init_repository"),
    "EnsureRepository": ("repository", "ensure_repository"),
    "OpenRepository": ("repository", "open_"),
    "CloseRepository": ("repository", "close"),
    "Fsck": ("checking", "fsck"),
    "Gc": ("checking", "gc"),
    "ImageObjects": ("checking", "image_objects"),
    "ListImageRefs": ("repository", "list_image_refs"),
    "Mount": ("mounts", "mount"),
}
_OCI = {
    "ListImages": ("stored_images", "list_images"),
    "Check": ("checking", "check"),
    "Inspect": ("stored_images", "inspect"),
    "Tag": ("stored_images", "tag"),
    "Untag": ("stored_images", "untag"),
    "ComputeId": ("stored_images", "compute_id"),
    "Pull": ("pulling", "pull_image"),
    "OciMount": ("mounts", "oci_mount"),
    "GetInfo": ("stored_images", "get_info"),
    "HasLayer": ("layers", "has_layer"),
    "GetLayer": ("layers", "get_layer"),
    "PutLayer": ("layers", "put_layer"),
    "FinalizeImage": ("layers", "put_image"),
}
_WITH_OPTIONS = ("InitRepository", "EnsureRepository", "OpenRepository")
_STREAMS = ("Pull", "GetLayer")
_WITH_FDS = ("Mount", "OciMount", "PutLayer")


def read_interface(name: str) -> str:
    """The text of an interface that is served here."""
    with open(os.path.join(_HERE, f"{name}.varlink"), encoding="utf-8") as file:
        return file.read()


def make_service(options: Options | None = None) -> Service:
    """Both interfaces. `options`: how repositories are opened."""
    chosen = options or Options()
    service = Service(
        vendor="org.composefs",
        product="cfsctl",
        version=__version__,
        url="https://github.com/composefs/composefs-rs",
        authorize=partial(_authorize, chosen),
    )
    for interface, methods in ((REPOSITORY, _REPOSITORY), (OCI, _OCI)):
        handlers = {
            name: _handler(interface, name, *where, chosen) for name, where in methods.items()
        }
        service.add(parse(read_interface(interface), f"{interface}.varlink"), handlers)
    return service


def _authorize(options: Options, call: Call) -> None:
    if call.peer.uid not in (0, os.geteuid()):
        raise VarlinkError("org.varlink.service.PermissionDenied")
    set_options(call, options)


def _handler(interface: str, name: str, module: str, function: str, options: Options) -> Handler:
    fds = (0, _FDS_MAX) if name in _WITH_FDS else (0, 0)
    home = f"{_PACKAGE}.{module}"
    if name in _STREAMS:

        def stream(call: Call) -> Stream:
            found: Callable[[Call], Stream] = getattr(import_module(home), function)
            return found(call)

        return Handler(handle=translated_stream(interface, stream), fds=fds)

    def answer(call: Call) -> Reply:
        found: Callable[..., Reply] = getattr(import_module(home), function)
        return found(call, options) if name in _WITH_OPTIONS else found(call)

    return Handler(handle=translated(interface, answer), fds=fds)
