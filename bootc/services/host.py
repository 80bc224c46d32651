# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`containers.bootc`: the status of this machine, and of a system that is mounted somewhere."""

from __future__ import annotations

import os

from bootc.errors import BootcError
from bootc.oci.reference import OSTREE_REMOTE, ImageReference
from bootc.services.failures import NotRootError, OptionError, blaming, error_reply
from bootc.varlink.message import Reply
from bootc.varlink.service import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bootc.spec import Host

INTERFACE = "containers.bootc"


def host_reply(host: Host) -> dict[str, Any]:
    """The `Host` of the interface: the document, with the signatures of images as strings."""
    return {"host": with_plain_signatures(host.to_json())}


def image_reply(image: ImageReference) -> dict[str, Any]:
    """The `ImageReference` of the interfaces."""
    found: dict[str, Any] = with_plain_signatures(image.to_json())
    return found


def with_plain_signatures(value: Any) -> Any:
    """A document in which no signature is an object."""
    if isinstance(value, list):
        return [with_plain_signatures(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: with_plain_signatures(item) for key, item in value.items()}
    signature = found.get("signature")
    if isinstance(signature, dict):
        found["signature"] = f"{OSTREE_REMOTE}{signature['ostreeRemote']}"
    return found


def get_status(call: Call) -> Reply:
    from bootc.deploy.sysroot import find_cmdline, is_container
    from bootc.status import read_host

    try:
        if os.geteuid() != 0 and not is_container() and find_cmdline() is not None:
            raise NotRootError
        return Reply(host_reply(read_host(booted_only=bool(call.parameters.get("booted")))))
    except (BootcError, OSError) as error:
        raise error_reply(INTERFACE, error) from error


def get_status_for_sysroot(call: Call) -> Reply:
    from bootc.deploy.sysroot import open_at
    from bootc.status import describe

    path = call.parameters["sysroot"]
    try:
        if not path.startswith("/"):
            raise OptionError("sysroot", f"{path!r} is no absolute path")
        with blaming("sysroot"), open_at(path) as sysroot:
            return Reply(host_reply(describe(sysroot)))
    except (BootcError, OSError) as error:
        raise error_reply(INTERFACE, error) from error
