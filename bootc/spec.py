# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The Host document, version 1: what `bootc status` says, as frozen records.

`to_json()` gives plain dicts in the order of the public schema (`org.containers.bootc/v1`): names
in camel case, what is unset is `null`, except where the schema leaves it out (metadata's optional
keys, a signature, an empty `otherDeployments`).

An image reference is written `transport:image`; the canonical name of a registry's transport is
`registry`, which containers-transports(5) spells `docker://`.
"""

from __future__ import annotations

from enum import StrEnum

from bootc.jsonutil import Json
from bootc.oci.reference import ImageReference
from bootc.records import dataclass

API_VERSION = "org.containers.bootc/v1"
KIND = "BootcHost"

JsonObject = dict[str, Json]


class BootOrder(StrEnum):
    DEFAULT = "default"
    ROLLBACK = "rollback"


class BootType(StrEnum):
    """Kernel and initrd as files with an entry, or one signed file."""

    BLS = "Bls"
    UKI = "Uki"


class Bootloader(StrEnum):
    GRUB = "grub"
    GRUB_CC = "grub-cc"
    SYSTEMD = "systemd"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStatus:
    """`timestamp` is RFC 3339, `digest` the manifest's (`sha256:…`)."""

    image: ImageReference
    digest: str
    architecture: str
    version: str | None = None
    timestamp: str | None = None

    def to_json(self) -> JsonObject:
        return {
            "image": self.image.to_json(),
            "version": self.version,
            "timestamp": self.timestamp,
            "imageDigest": self.digest,
            "architecture": self.architecture,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposefsEntry:
    """`verity` is the deployment id, `boot_digest` the hash of what the firmware loads."""

    verity: str
    boot_type: BootType
    bootloader: Bootloader
    boot_digest: str | None
    missing_verity_allowed: bool

    def to_json(self) -> JsonObject:
        return {
            "verity": self.verity,
            "bootType": self.boot_type.value,
            "bootloader": self.bootloader.value,
            "bootDigest": self.boot_digest,
            "missingVerityAllowed": self.missing_verity_allowed,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class OstreeEntry:
    """What ostree knows of a deployment; not of this backend."""

    stateroot: str
    checksum: str
    deploy_serial: int

    def to_json(self) -> JsonObject:
        return {
            "stateroot": self.stateroot,
            "checksum": self.checksum,
            "deploySerial": self.deploy_serial,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BootEntry:
    """A deployment; `incompatible`, `pinned` and `store` mean something to ostree only."""

    image: ImageStatus | None = None
    cached_update: ImageStatus | None = None
    incompatible: bool = False
    pinned: bool = False
    soft_reboot_capable: bool = False
    download_only: bool = False
    store: str | None = None
    ostree: OstreeEntry | None = None
    composefs: ComposefsEntry | None = None

    def to_json(self) -> JsonObject:
        return {
            "image": self.image.to_json() if self.image else None,
            "cachedUpdate": self.cached_update.to_json() if self.cached_update else None,
            "incompatible": self.incompatible,
            "pinned": self.pinned,
            "softRebootCapable": self.soft_reboot_capable,
            "downloadOnly": self.download_only,
            "store": self.store,
            "ostree": self.ostree.to_json() if self.ostree else None,
            "composefs": self.composefs.to_json() if self.composefs else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class UsrOverlay:
    """What is mounted over /usr."""

    read_only: bool
    persistent: bool = False

    def to_json(self) -> JsonObject:
        return {
            "accessMode": "readOnly" if self.read_only else "readWrite",
            "persistence": "persistent" if self.persistent else "transient",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSpec:
    """What is wanted: the image that is followed, and what boots next."""

    image: ImageReference | None = None
    boot_order: BootOrder = BootOrder.DEFAULT

    def to_json(self) -> JsonObject:
        return {
            "image": self.image.to_json() if self.image else None,
            "bootOrder": self.boot_order.value,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStatus:
    """`managed` is whether this machine was deployed by bootc (`type` in the document)."""

    staged: BootEntry | None = None
    booted: BootEntry | None = None
    rollback: BootEntry | None = None
    others: tuple[BootEntry, ...] = ()
    rollback_queued: bool = False
    managed: bool = False
    usr_overlay: UsrOverlay | None = None
    read_only: bool = False

    def to_json(self) -> JsonObject:
        found: JsonObject = {
            "staged": self.staged.to_json() if self.staged else None,
            "booted": self.booted.to_json() if self.booted else None,
            "rollback": self.rollback.to_json() if self.rollback else None,
        }
        if self.others:
            found["otherDeployments"] = [entry.to_json() for entry in self.others]
        found["rollbackQueued"] = self.rollback_queued
        found["type"] = "bootcHost" if self.managed else None
        found["usrOverlay"] = self.usr_overlay.to_json() if self.usr_overlay else None
        found["readOnly"] = self.read_only
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The whole document."""

    spec: HostSpec = HostSpec()
    status: HostStatus = HostStatus()

    def to_json(self) -> JsonObject:
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": "host"},
            "spec": self.spec.to_json(),
            "status": self.status.to_json(),
        }
