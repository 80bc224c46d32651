# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Image references as skopeo spells them: `docker://quay.io/x/y:tag`, `oci:/path:tag`, …"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from bootc.errors import BootcError


class Transport(StrEnum):
    """Where an image comes from; the values are those of the Host document."""

    REGISTRY = "registry"
    OCI = "oci"
    OCI_ARCHIVE = "oci-archive"
    DOCKER_ARCHIVE = "docker-archive"
    CONTAINERS_STORAGE = "containers-storage"
    DIR = "dir"

    @property
    def prefix(self) -> str:
        """What stands before the name in skopeo's spelling."""
        return "docker://" if self is Transport.REGISTRY else f"{self.value}:"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReference:
    transport: Transport
    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `TRANSPORT:NAME`; `registry:` is understood besides `docker://`."""
        for transport in Transport:
            if text.startswith(transport.prefix) and len(text) > len(transport.prefix):
                return cls(transport=transport, name=text[len(transport.prefix) :])
        if text.startswith("registry:") and len(text) > len("registry:"):
            return cls(transport=Transport.REGISTRY, name=text.removeprefix("registry:"))
        known = ", ".join(transport.prefix for transport in Transport)
        raise BootcError(
            f"{text!r} does not say where the image comes from",
            hint=f"begin it with one of: {known} (for example docker://{text})",
        )

    def __str__(self) -> str:
        return f"{self.transport.prefix}{self.name}"

    def layout(self) -> tuple[str, str | None]:
        """(path, tag) of an `oci:` reference: split at the last colon that no slash follows."""
        path, colon, tag = self.name.rpartition(":")
        if not colon or "/" in tag or not path:
            return self.name, None
        return path, tag or None
