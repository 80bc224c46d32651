# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Pull an image by podman's API: the request, the lines of its answer, and what they mean.

    POST /v5.0.0/libpod/images/pull?reference=…&policy=always&pullProgress=true

The answer is 200 as soon as the pull begins; then it is one JSON object a line:

    {"stream": "Copying blob sha256:…\\n"}                       for people; podman before 5.9
    {"status": "pulling", "pullProgress": {"status": "pulling",  podman 5.9 and newer
        "current": 1024, "total": 4096, "progressComponentID": "sha256:…"}}
    {"error": "…"}                                               it failed, in spite of the 200
    {"images": ["<id>"], "id": "<id>"}                           the last line: the image is there

`pullProgress.status` is `pulling`, `success` or `skipped` (the layer was there). `total` may be -1:
nobody knows. An answer that ends without an id is a failure, however it ends. Any other status has
`{"cause", "message", "response"}`, or text.

`auth` is sent as `X-Registry-Auth`: base64 of a JSON object from registries to
`{"username", "password"}`. Source: podman's API reference (libpod, images/pull).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlencode

from bootc.errors import BootcError, FormatError
from bootc.jsonutil import Reader, read_object
from bootc.podman.auth import Credentials

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bootc.podman.http import Answer

_API = "/v5.0.0/libpod/images/pull"
_HEAD_TIMEOUT = 120.0
_SILENT_WITH_PROGRESS = 120.0
_SILENT_WITHOUT = 3600.0
_SHOWN = 300
_ID = re.compile(r"[0-9a-f]{64}")
_BLOB = re.compile(r"Copying blob (sha256:[0-9a-f]{64})\b(.*)", re.DOTALL)


class BlobStatus(StrEnum):
    PULLING = "pulling"
    SUCCESS = "success"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A line for people, without its newline."""

    text: str

    def blob(self) -> str | None:
        """The digest of the blob whose copying it announces."""
        found = _BLOB.match(self.text)
        return found[1] if found else None

    def blob_was_here(self) -> bool:
        found = _BLOB.match(self.text)
        return found is not None and "already exists" in found[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """How far a blob is. `total` is None when nobody knows."""

    id: str
    status: BlobStatus
    current: int
    total: int | None


PullLine = Text | Blob
OnLine = Callable[[PullLine], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequest:
    """What to pull: `reference` names an image of a registry, with or without `docker://`.

    `tls_verify` None leaves that to registries.conf. The times are in seconds: for the answer's
    head, and between two lines of a podman that tells its progress, and of one that doesn't.
    """

    reference: str
    policy: str = "always"
    tls_verify: bool | None = None
    credentials: Credentials | None = None
    head_timeout: float = _HEAD_TIMEOUT
    silent_with_progress: float = _SILENT_WITH_PROGRESS
    silent_without: float = _SILENT_WITHOUT

    def target(self) -> str:
        query = {"reference": self.reference, "pullProgress": "true", "policy": self.policy}
        if self.tls_verify is not None:
            query["tlsVerify"] = "true" if self.tls_verify else "false"
        return f"{_API}?{urlencode(query)}"

    def headers(self) -> dict[str, str]:
        if not self.credentials:
            return {}
        table = {
            registry: {"username": user, "password": password}
            for registry, (user, password) in self.credentials.items()
        }
        text = base64.urlsafe_b64encode(json.dumps(table).encode()).decode()
        return {"X-Registry-Auth": text}


def pull_image(socket_path: str, request: PullRequest, on_line: OnLine) -> str:
    """Have the server at `socket_path` pull the image; returns its id (64 hexadecimal digits).

    `on_line` is told each line. Raises `BootcError`.
    """
    what = f"podman: pull of {request.reference.removeprefix('docker://')}"
    from bootc.podman.http import post  # start-up time: each upgrade imports this module

    with post(
        socket_path,
        request.target(),
        what,
        headers=request.headers(),
        timeout=request.head_timeout,
    ) as answer:
        if not 200 <= answer.status < 300:
            raise _refused(what, answer)
        return _follow(answer, request, what, on_line)


def _follow(answer: Answer, request: PullRequest, what: str, on_line: OnLine) -> str:
    has_progress = False
    image: str | None = None

    def patience() -> float:
        return request.silent_with_progress if has_progress else request.silent_without

    for line in answer.lines(what, patience):
        for found in read_line(line, what):
            if isinstance(found, str):
                image = found
                continue
            has_progress |= isinstance(found, Blob)
            on_line(found)
    if image is None:
        raise BootcError(
            f"{what}: the answer ends, and no image was named",
            hint="`dmesg | tail` tells when the kernel ended podman; try again",
        )
    return image


def read_line(line: bytes, source: str) -> Iterator[PullLine | str]:
    """What a line says: progress, a text, or, as a string, the id of the image that was pulled.

    What it doesn't know it passes over. Raises `BootcError` for an `error`, `FormatError`.
    """
    top = read_object(line, source)
    said = top.optional_text("error")
    if said:
        raise pull_error(source, said)
    text = top.optional_text("stream")
    if text and text.strip():
        yield Text(text=text.strip())
    progress = top.optional_table("pullProgress")
    if progress is not None:
        found = _read_progress(progress)
        if found is not None:
            yield found
    image = top.optional_text("id")
    if image and progress is None:
        if not _ID.fullmatch(image):
            raise FormatError(source, ".id", f"{image[:80]!r} is no image id")
        yield image


def _read_progress(table: Reader) -> Blob | None:
    name = table.optional_text("progressComponentID")
    status = table.optional_text("status")
    if not name or status not in {item.value for item in BlobStatus}:
        return None
    total = table.integer("total") if table.has("total") else -1
    current = table.integer("current") if table.has("current") else 0
    if current < 0:
        raise FormatError(table.source, f"{table.path}.current", "is negative")
    return Blob(
        id=name,
        status=BlobStatus(status),
        current=current,
        total=None if total < 0 else total,
    )


def _refused(what: str, answer: Answer) -> BootcError:
    body = answer.refusal()
    said = " ".join(body.decode("utf-8", "replace").split())
    try:
        table = read_object(body, what)
        said = table.optional_text("message") or table.optional_text("cause") or said
    except FormatError:
        pass
    return BootcError(
        f"{what}: HTTP {answer.status}: {said[:_SHOWN] or answer.reason}",
        hint="only images of registries are pulled this way"
        if "unsupported transport" in said
        else None,
    )


def pull_error(what: str, said: str) -> BootcError:
    """The failure that podman reported as `said`, with the advice that fits."""
    low = said.lower()
    hint = None
    if "unauthorized" in low or "authentication required" in low or "denied" in low:
        hint = (
            "put the registry's credentials into /etc/ostree/auth.json (`podman login --authfile`)"
        )
    elif "manifest unknown" in low or "name unknown" in low or "not found" in low:
        hint = "look at the image's name and tag: skopeo list-tags docker://NAME"
    elif "invalid reference" in low:
        hint = "write it like quay.io/example/os:latest"
    elif "no space left" in low:
        hint = "make room on the root file system"
    elif "certificate" in low or "server gave http response" in low:
        hint = "containers-registries.conf(5) says which registries are reached without TLS"
    return BootcError(f"{what}: {' '.join(said.split())[:_SHOWN]}", hint=hint)
