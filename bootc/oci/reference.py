# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Image references: `docker://quay.io/x/y:tag`, `oci:/path:tag`, … (containers-transports(5))."""

from __future__ import annotations

from enum import StrEnum

from bootc.errors import BootcError
from bootc.records import dataclass

CONTAINER_POLICY = "containerPolicy"
OSTREE_REMOTE = "ostreeRemote:"
"""Before the name of the remote."""


class Transport(StrEnum):
    """Where an image can lie. The values are those of the Host document."""

    REGISTRY = "registry"
    OCI = "oci"
    OCI_ARCHIVE = "oci-archive"
    CONTAINERS_STORAGE = "containers-storage"
    DIR = "dir"
    DOCKER_ARCHIVE = "docker-archive"
    DOCKER_DAEMON = "docker-daemon"

    @property
    def prefix(self) -> str:
        """How containers-transports(5) writes it before an image's name."""
        return "docker://" if self is Transport.REGISTRY else f"{self.value}:"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReference:
    """`signature` says how it is verified: None (not at all), by containers-policy.json
    (`CONTAINER_POLICY`), or by an ostree remote (`OSTREE_REMOTE` and its name).
    """

    image: str
    transport: Transport
    signature: str | None = None

    def __str__(self) -> str:
        """For people: a registry's image has no prefix."""
        if self.transport is Transport.REGISTRY:
            return self.image
        return f"{self.transport.value}:{self.image}"

    @property
    def imgref(self) -> str:
        """The form that skopeo and the origin file know: `docker://…`, `oci:…`."""
        return f"{self.transport.prefix}{self.image}"

    def layout(self) -> tuple[str, str | None]:
        """(path, tag) of an `oci:` reference: split at the last colon that no slash follows."""
        path, colon, tag = self.image.rpartition(":")
        if not colon or "/" in tag or not path:
            return self.image, None
        return path, tag or None

    def to_json(self) -> dict[str, object]:
        found: dict[str, object] = {"image": self.image, "transport": self.transport.value}
        if self.signature is not None and self.signature.startswith(OSTREE_REMOTE):
            found["signature"] = {"ostreeRemote": self.signature.removeprefix(OSTREE_REMOTE)}
        elif self.signature is not None:
            found["signature"] = self.signature
        return found


def parse_imgref(text: str) -> ImageReference:
    """Read `docker://IMAGE`, `oci:PATH[:TAG]`, `registry:IMAGE`, …"""
    for transport in Transport:
        for prefix in (transport.prefix, f"{transport.value}:"):
            if text.startswith(prefix) and len(text) > len(prefix):
                return ImageReference(image=text[len(prefix) :], transport=transport)
    known = ", ".join(transport.prefix for transport in Transport)
    raise BootcError(
        f"{text!r} does not say where the image lies", hint=f"begin it with one of: {known}"
    )
