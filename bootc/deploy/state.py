# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The state of deployments on the physical root: origin files, /etc and /var, what is staged.

    state/deploy/<id>/etc            the writable copy of the image's /etc
    state/deploy/<id>/var            -> ../../os/default/var, shared by all deployments
    state/deploy/<id>/<id>.origin    where the deployment came from (INI):

        [origin]
        container-image-reference=ostree-unverified-image:<transport>:<image>
        [boot]
        boot_type=bls | uki
        digest=<sha256 of vmlinuz and initrd, one after the other>
        [image]
        manifest_digest=sha256:…

Before the reference stands how the image is verified: `ostree-unverified-image:` not at all,
`ostree-image-signed:` by containers-policy.json(5), `ostree-remote-image:<remote>:` by an ostree
remote.

`/run/composefs/staged-deployment` is `{"depl_id": "<id>", "finalization_locked": false}`; without
it nothing is staged. In a reference, a registry's transport reads `docker://`.
"""

from __future__ import annotations

import os

from bootc import fs, jsonutil, paths
from bootc.errors import BootcError, FormatError
from bootc.oci.reference import (
    CONTAINER_POLICY,
    OSTREE_REMOTE,
    ImageReference,
    Transport,
    parse_imgref,
)
from bootc.records import dataclass, replace
from bootc.spec import BootType

UNVERIFIED = "ostree-unverified-image:"
UNVERIFIED_REGISTRY = "ostree-unverified-registry:"
SIGNED = "ostree-image-signed:"
REMOTE = "ostree-remote-image:"
REMOTE_REGISTRY = "ostree-remote-registry:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What an origin file says. Files of older versions lack the two digests."""

    image: ImageReference
    boot_type: BootType
    boot_digest: str | None
    manifest_digest: str | None

    def to_text(self) -> str:
        sections: dict[str, dict[str, str | None]] = {
            "origin": {"container-image-reference": _scheme(self.image) + self.image.imgref},
            "boot": {"boot_type": self.boot_type.value.lower(), "digest": self.boot_digest},
            "image": {"manifest_digest": self.manifest_digest},
        }
        blocks = [
            "".join([f"[{name}]\n", *(f"{key}={text}\n" for key, text in keys.items() if text)])
            for name, keys in sections.items()
        ]
        return "\n".join(blocks)


def _scheme(image: ImageReference) -> str:
    """How the image's signature is to be verified, before its reference."""
    if image.signature is None:
        return UNVERIFIED
    if image.signature == CONTAINER_POLICY:
        return SIGNED
    return f"{REMOTE}{image.signature.removeprefix(OSTREE_REMOTE)}:"


def parse_origin(text: str, source: str) -> Origin:
    """Read an origin file; `source` names it in a `FormatError`."""
    table = _read_ini(text, source)
    reference = table.get(("origin", "container-image-reference"))
    if not reference:
        raise FormatError(source, "origin.container-image-reference", "is missing")
    kind = table.get(("boot", "boot_type"), "")
    if kind not in ("bls", "uki"):
        raise FormatError(source, "boot.boot_type", f"{kind!r} is neither bls nor uki")
    return Origin(
        image=_parse_reference(reference, source),
        boot_type=BootType.BLS if kind == "bls" else BootType.UKI,
        boot_digest=table.get(("boot", "digest")),
        manifest_digest=table.get(("image", "manifest_digest")),
    )


def _read_ini(text: str, source: str) -> dict[tuple[str, str], str]:
    """(section, key) → value; of two the last. Lines that begin with `#` or `;` are comments.

    By hand: `configparser` takes as long to import as all else that reads an origin.
    """
    found: dict[tuple[str, str], str] = {}
    section: str | None = None
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        if line[0] == "[" and line[-1] == "]":
            section = line[1:-1]
            continue
        key, equals, value = line.partition("=")
        if section is None or not equals or not key.strip():
            raise FormatError(
                source, f"line {number}", "is not an INI file: no section or key=value"
            )
        found[section, key.strip().lower()] = value.strip()
    return found


def _parse_reference(text: str, source: str) -> ImageReference:
    signature = None
    reference = text
    for scheme in (UNVERIFIED, SIGNED, REMOTE, REMOTE_REGISTRY, UNVERIFIED_REGISTRY):
        if reference.startswith(scheme):
            reference = reference.removeprefix(scheme)
            break
    else:
        raise FormatError(
            source, "origin.container-image-reference", f"{reference!r} has an unknown scheme"
        )
    if scheme == SIGNED:
        signature = CONTAINER_POLICY
    elif scheme in (REMOTE, REMOTE_REGISTRY):
        name, _, reference = reference.partition(":")
        signature = f"{OSTREE_REMOTE}{name}"
    if scheme in (UNVERIFIED_REGISTRY, REMOTE_REGISTRY):
        return ImageReference(image=reference, transport=Transport.REGISTRY, signature=signature)
    try:
        return replace(parse_imgref(reference), signature=signature)
    except BootcError as error:
        raise FormatError(source, "origin.container-image-reference", error.message) from error


def read_origin(root: str, deployment: str) -> Origin | None:
    """The origin of a deployment below the physical root, or None without the file."""
    path = f"{root}/{paths.origin_file(deployment)}"
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return parse_origin(file.read(), path)
    except FileNotFoundError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """The deployment that waits for the next shutdown; `locked` is download-only mode."""

    deployment: str
    locked: bool


def read_staged(path: str = paths.STAGED) -> Staged | None:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return None
    try:
        record = jsonutil.read_object(data, path)
        return Staged(
            deployment=record.text("depl_id"),
            locked=record.boolean("finalization_locked", default=False),
        )
    except FormatError as error:
        error.hint = f"rm {path}, then nothing is staged; stage again: bootc upgrade"
        raise


def write_staged(staged: Staged, path: str = paths.STAGED) -> None:
    """Say what is staged: the last thing that staging does."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    document: jsonutil.Json = {
        "depl_id": staged.deployment,
        "finalization_locked": staged.locked,
    }
    fs.write_atomic(path, jsonutil.canonical(document))


def clear_staged(path: str = paths.STAGED) -> bool:
    """Nothing is staged any more; whether something was."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def list_deployments(root: str) -> list[str]:
    """The ids that have a state folder."""
    try:
        return sorted(os.listdir(f"{root}/{paths.STATE_DEPLOY}"))
    except FileNotFoundError:
        return []


def make_skeleton(root: str, deployment: str) -> str:
    """Make the folders and links of a deployment (without /etc) and return its state folder.

    Existing folders are kept, so /var survives; the links are made anew.
    """
    for folder in (paths.STATE_VAR, paths.STATE_DEPLOY, "ostree", "boot", paths.STORAGE):
        os.makedirs(f"{root}/{folder}", mode=0o755, exist_ok=True)
    state = f"{root}/{paths.state_dir(deployment)}"
    os.mkdir(state, 0o755)
    os.symlink(paths.STATE_VAR_LINK, f"{state}/var")
    link, target = paths.OSTREE_LINK
    if not os.path.lexists(f"{root}/{link}"):
        os.symlink(target, f"{root}/{link}")
    return state


def write_origin(root: str, deployment: str, origin: Origin) -> None:
    """Write the origin file (mode 0644), whole or not at all."""
    fs.write_atomic(f"{root}/{paths.origin_file(deployment)}", origin.to_text())
