# SPDX-License-Identifier: Apache-2.0 OR MIT
"""org.composefs.Oci's Pull: a thread pulls, and what it tells becomes replies.

Progress that the client was too slow for is left out, so that what waits is bounded by the number
of layers. A client that closes the connection stops the pull at its next piece of data, and the
source's wait for one; nothing has got a name then.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Generator
from contextlib import ExitStack

from bootc.composefs.assemble import XattrMode
from bootc.composefs.committed import (
    CommittedImage,
    NoBootImageError,
    PlainImages,
    commit_pulled,
)
from bootc.composefs.progress import Done, Event, Message, Progress, Skipped, Started
from bootc.composefs.pull import pull
from bootc.composefs.repository import Repository
from bootc.composefs.services.handles import need_handle
from bootc.composefs.services.replies import OCI, fail, invalid_digest, invalid_request
from bootc.composefs.services.stored_images import check_tag, xattr_mode
from bootc.composefs.stored import manifest_content_id
from bootc.oci.layout import ImageSource, LocalStorage, open_source
from bootc.varlink import Call, Cancelled, ClientGoneError, Reply
from bootc.varlink.message import Parameters

_AUTO = ("auto", "if-possible")
_ZEROCOPY = ("zerocopy", "zero-copy")
_STORAGE = "containers-storage:"
_PATIENCE = 0.1
"""Seconds after which the client is looked for while nothing happens."""


class _Events:
    """What the pull told and the client doesn't know yet."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[object, Event] = OrderedDict()
        self._changed = threading.Condition()
        self._count = 0
        self._ended = False

    def put(self, event: Event) -> None:
        with self._changed:
            self._count += 1
            # The latest progress of a layer takes the place of the one before.
            key = event.id if isinstance(event, Progress) else self._count
            self._waiting[key] = event
            if isinstance(event, Done):
                self._waiting.pop(event.id, None)
            self._changed.notify()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()

    def take(self, cancelled: Cancelled) -> list[Event] | None:
        """What is new, or None when the pull has ended. Raises `ClientGoneError`."""
        with self._changed:
            while not self._waiting and not self._ended:
                self._changed.wait(_PATIENCE)
                if cancelled.is_set():
                    raise ClientGoneError
            found = list(self._waiting.values())
            self._waiting.clear()
            return found or None


class _Pull:
    """The pull, in a thread of its own."""

    def __init__(self, repo: Repository, call: Call) -> None:
        self.events = _Events()
        self.result: CommittedImage | None = None
        self.error: BaseException | None = None
        self._repo = repo
        self._call = call
        self._source: ImageSource | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pull", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Make it end, and wait for that."""
        self._stopped.set()
        source = self._source
        if source is not None:
            source.cancel()
        self._thread.join()

    def _run(self) -> None:
        try:
            self.result = self._pull()
        except BaseException as error:  # handed to the thread that replies
            self.error = error
        finally:
            self.events.end()

    def _report(self, event: Event) -> None:
        if self._stopped.is_set():
            raise ClientGoneError
        self.events.put(event)

    def _pull(self) -> CommittedImage:
        given, repo = self._call.parameters, self._repo
        image = _reference(self._call)
        zerocopy = given["local_fetch"] in _ZEROCOPY
        local = LocalStorage.SKOPEO
        if zerocopy:
            local = LocalStorage.NATIVE
        elif given["local_fetch"] in _AUTO or given.get("storage_root") is not None:
            local = LocalStorage.AUTO
        images = PlainImages(repo)
        with ExitStack() as stack:
            self._source = stack.enter_context(open_source(image, local=local))
            pulled = pull(
                repo,
                self._source,
                reference=image,
                zerocopy=zerocopy,
                on_progress=self._report,
                meanwhile=images.make,
            )
            self._source = None
        self._report(Message(text="write the composefs image"))
        done = commit_pulled(
            repo,
            pulled,
            plain_images=images,
            bootable=given["bootable"],
            expected=given.get("expected_digest"),
            xattrs=xattr_mode(self._call) or XattrMode.ALLOWLIST_ONLY,
        )
        if self._stopped.is_set():
            raise ClientGoneError
        name = given.get("name")
        if name is not None:
            repo.tag(manifest_content_id(pulled.manifest_digest), name)
        return done


def pull_image(call: Call) -> Generator[Reply, None, Reply]:
    """Pull."""
    handle = need_handle(call)
    _check(call)
    handle.repo.need_writable()
    work = _Pull(handle.repo, call)
    work.start()
    try:
        while (events := work.events.take(call.cancelled)) is not None:
            for event in events:
                yield Reply(_told(event))
    finally:
        work.stop()
    if isinstance(work.error, NoBootImageError):
        error = work.error
        raise fail(OCI, "BootImageMismatch", expected=error.expected, tried=error.tried)
    if work.error is not None:
        raise work.error
    assert work.result is not None
    return Reply({"completed": _completed(work.result, call)})


def _check(call: Call) -> None:
    """Refuse what can't work before anything is read."""
    given = call.parameters
    expected = given.get("expected_digest")
    if expected is not None:
        if not given["bootable"]:
            raise invalid_request("expected_digest is about the bootable image: say bootable")
        if given.get("xattrs") is not None:
            raise invalid_request("expected_digest finds out the filter: leave xattrs out")
        if not expected or set(expected.lower()) - set("0123456789abcdef"):
            raise invalid_digest(f"{expected[:200]!r} is not hexadecimal")
    if "\0" in given["image"]:
        raise invalid_request("the reference has a zero byte in it")
    root = given.get("storage_root")
    if root is not None and (
        not given["image"].startswith(_STORAGE)
        or not root.startswith("/")
        or set(root) & set("]+\0")
    ):
        raise invalid_request("storage_root is an absolute path, for a containers-storage: image")
    name = given.get("name")
    if name is not None:
        check_tag(name)


def _reference(call: Call) -> str:
    """The image, in the storage that the call names."""
    image: str = call.parameters["image"]
    root = call.parameters.get("storage_root")
    if root is None:
        return image
    return f"{_STORAGE}[overlay@{root}]{image.removeprefix(_STORAGE)}"


def _told(event: Event) -> Parameters:
    match event:
        case Started(id=id, total=total, unit=unit):
            return {"started": {"id": id, "total": total, "unit": unit.value}}
        case Progress(id=id, fetched=fetched, total=total):
            return {"progress": {"id": id, "fetched": fetched, "total": total}}
        case Skipped(id=id):
            return {"skipped": {"id": id}}
        case Done(id=id, transferred=transferred):
            return {"done": {"id": id, "transferred": transferred}}
        case Message(text=text):
            return {"message": text}


def _completed(done: CommittedImage, call: Call) -> Parameters:
    pulled, boot = done.pulled, done.boot
    return {
        "manifest_digest": pulled.manifest_digest,
        "config_digest": pulled.config_digest,
        "manifest_verity": pulled.manifest_id,
        "config_verity": pulled.config_id,
        "stats": str(pulled.stats),
        "boot_image": None if boot is None else boot.id,
        "boot_image_mode": None if boot is None else done.boot_mode.value,
        "boot_image_format_version": None if boot is None else f"V{done.boot_version}",
    }
