# SPDX-License-Identifier: Apache-2.0 OR MIT
"""org.composefs.Oci: layers in and out by splitdirfdstream, and images made of them."""

from __future__ import annotations

from collections.abc import Generator

from bootc.composefs.dirfdstream_export import export_layer, export_stored_layer
from bootc.composefs.dirfdstream_fds import BATCH_MAX, Outgoing
from bootc.composefs.dirfdstream_import import (
    CancelledError,
    DiffIdMismatchError,
    PipeReader,
    receive_layer,
)
from bootc.composefs.finalize_image import MissingLayerError, finalize_image
from bootc.composefs.repository import NotFoundError
from bootc.composefs.services.handles import need_handle
from bootc.composefs.services.replies import OCI, fail, invalid_digest, invalid_request
from bootc.composefs.services.stored_images import check_tag, need_digest
from bootc.composefs.stored import PulledLayer, layer_content_id
from bootc.errors import BootcError, FormatError
from bootc.storage.store import NoStoreError, Unsupported
from bootc.varlink import Call, ClientGoneError, Reply
from bootc.varlink.message import Parameters

PUT_MIN = 2
"""Descriptors of PutLayer: the pipe and a directory."""


def has_layer(call: Call) -> Reply:
    repo = need_handle(call).repo
    digest = repo.find_stream(layer_content_id(need_digest(call.parameters["diff_id"])))
    if digest is None:
        return Reply({"present": False})
    return Reply({"present": True, "layer_verity": digest.hex()})


def get_layer(call: Call) -> Generator[Reply, None, Reply]:
    wanted = call.parameters["params"]
    storage, diff_id = wanted.get("storage"), wanted.get("diff_id")
    if (storage is None) == (diff_id is None):
        raise invalid_request("say which layer: either diff_id or storage")
    with _export(call, diff_id) if storage is None else _export_stored(call, storage) as outgoing:
        layout = outgoing.layout
        told = {"dir_count": layout.directories}
        if not call.more:
            if layout.total > BATCH_MAX:
                raise fail(OCI, "FdLimitExceeded", fd_count=layout.total, max_per_frame=BATCH_MAX)
            return Reply(told, outgoing.take(layout.total))
        *first, last = layout.batches()
        for count in first:
            yield Reply(told, outgoing.take(count))
        return Reply(told, outgoing.take(last))


def _export(call: Call, diff_id: str) -> Outgoing:
    """A layer of the repository."""
    handle = need_handle(call)
    need_digest(diff_id)
    handle.retain()
    try:
        return export_layer(handle.repo, diff_id, handle.release)
    except BaseException as error:
        handle.release()
        if isinstance(error, NotFoundError):
            raise fail(OCI, "NoSuchLayer", diff_id=diff_id) from error
        raise


def _export_stored(call: Call, storage: Parameters) -> Outgoing:
    """A layer of podman's storage."""
    root, layer = storage["storage_path"], storage["layer_id"]
    if not root.startswith("/") or "\0" in root:
        raise invalid_request(f"{root[:200]!r} is no absolute path")

    def pause(seconds: float) -> None:
        if call.cancelled.wait(seconds):
            raise ClientGoneError

    may_read_all = call.parameters["params"]["consumer_has_cap_dac_override"]
    try:
        return export_stored_layer(root, layer, may_read_all=may_read_all, pause=pause)
    except NotFoundError as error:
        raise fail(OCI, "NoSuchLayer", diff_id=layer) from error
    except (NoStoreError, Unsupported) as error:
        raise invalid_request(error) from error


def put_layer(call: Call) -> Reply:
    repo, diff_id = need_handle(call).repo, need_digest(call.parameters["diff_id"])
    if len(call.fds) < PUT_MIN:
        raise invalid_request(
            f"this takes a pipe and at least one directory, and {len(call.fds)} descriptors came"
        )
    repo.need_writable()
    pipe, *directories = call.fds
    try:
        received = receive_layer(
            repo,
            PipeReader(pipe, call.cancelled),
            directories,
            diff_id,
            zerocopy=call.parameters["zerocopy"],
        )
    except CancelledError:
        raise ClientGoneError from None
    except DiffIdMismatchError as error:
        raise fail(OCI, "DiffIdMismatch", expected=error.expected, actual=error.actual) from error
    except BootcError as error:
        if isinstance(error.__cause__, OSError):
            raise  # the disk's fault, not the client's
        raise invalid_request(error) from error
    counts = received.counts
    return Reply(
        {
            "layer_verity": received.digest.hex(),
            "already_present": received.already_present,
            "objects_reflinked": counts.reflinked,
            "objects_hardlinked": counts.hardlinked,
            "objects_copied": counts.copied + counts.written,
            "objects_already_present": counts.existing,
        }
    )


def put_image(call: Call) -> Reply:
    """FinalizeImage."""
    repo, given = need_handle(call).repo, call.parameters
    layers = []
    for layer in given["layers"]:
        need_digest(layer["diff_id"])
        try:
            digest = bytes.fromhex(layer["layer_verity"])
        except ValueError:
            raise invalid_digest(f"{layer['layer_verity'][:200]!r} is not hexadecimal") from None
        layers.append(PulledLayer(diff_id=layer["diff_id"], digest=digest))
    name = given.get("name")
    if name is not None:
        check_tag(name)
    repo.need_writable()
    try:
        done = finalize_image(
            repo,
            given["manifest_json"].encode(),
            given["config_json"].encode(),
            layers,
            tag=name,
        )
    except MissingLayerError as error:
        raise fail(OCI, "NoSuchLayer", diff_id=error.diff_id) from error
    except FormatError as error:
        raise invalid_request(error) from error
    return Reply(
        {
            "manifest_digest": done.manifest_digest,
            "manifest_verity": done.manifest_id,
            "config_digest": done.config_digest,
            "config_verity": done.config_id,
        }
    )
