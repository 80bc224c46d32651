# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Checks the OCI images of a repository: their documents, their layers and what ties them together.

`check_images` checks the repository as `fsck` does, then every tagged image, or one:

* the tag is a name that a tag may have and leads to a manifest;
* manifest and config are there, have the digests that they are known by, and parse;
* every layer of the config is referred to, is published, is there, and its tar, put together again,
  has the diff id (`layers=False` leaves that last one out: it reads all contents once more);
* the EROFS image that a config's label `containers.composefs.fsverity` names is there;
* of an artifact, every blob is referred to and is there.

A finding is `fsck: KIND: IMAGE: DETAIL`, IMAGE being the tag. `OciReport.to_json` has the fields of
the varlink reply, `to_text` the lines of `cfsctl oci fsck`: those about the repository, then
`oci images: GOOD/ALL ok` and, if there are, `oci errors: N` and the findings. The command fails
when `ok` is false, except with `--json`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import StrEnum

from bootc.composefs.fsck import FsckReport, check_repository
from bootc.composefs.refs import REFS, STREAMS, Found, escape_tag, parse_digest, unescape_tag
from bootc.composefs.repository import OCI_REFS, NotFoundError, Repository
from bootc.composefs.splitstream import SplitStream, read_splitstream
from bootc.errors import BootcError, chain_text
from bootc.jsonutil import Json
from bootc.oci.model import digest_hasher, read_config, read_manifest

SEAL_LABEL = "containers.composefs.fsverity"
_MANIFEST = "oci-manifest-"
_TAGS = f"{STREAMS}/{REFS}/{OCI_REFS}"
_CHUNK = 1 << 20


class OciKind(StrEnum):
    """What can be wrong with an image."""

    MANIFEST_READ_FAILED = "manifest-read-failed"
    MANIFEST_DIGEST_MISMATCH = "manifest-digest-mismatch"
    MANIFEST_PARSE_FAILED = "manifest-parse-failed"
    CONFIG_REF_MISSING = "config-ref-missing"
    CONFIG_READ_FAILED = "config-read-failed"
    CONFIG_DIGEST_MISMATCH = "config-digest-mismatch"
    CONFIG_PARSE_FAILED = "config-parse-failed"
    LAYER_REF_MISSING = "layer-ref-missing"
    LAYER_STREAM_MISSING = "layer-stream-missing"
    LAYER_CHECK_FAILED = "layer-check-failed"
    LAYER_OBJECT_MISSING = "layer-object-missing"
    SEAL_IMAGE_MISSING = "seal-image-missing"
    ARTIFACT_LAYER_REF_MISSING = "artifact-layer-ref-missing"
    ARTIFACT_LAYER_OBJECT_MISSING = "artifact-layer-object-missing"
    REF_RESOLVE_FAILED = "ref-resolve-failed"
    INVALID_REF_NAME = "invalid-ref-name"


@dataclass(frozen=True, slots=True, kw_only=True)
class OciFinding:
    """One thing that is wrong with an image."""

    kind: OciKind
    image: str
    detail: str

    def __str__(self) -> str:
        return f"fsck: {self.kind.value}: {self.image}: {self.detail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OciReport:
    """The result: of the repository, and of the images."""

    repo: FsckReport
    images_checked: int
    images_corrupted: int
    findings: tuple[OciFinding, ...]

    @property
    def ok(self) -> bool:
        return self.repo.ok and not self.findings

    def to_json(self) -> dict[str, Json]:
        return {
            "ok": self.ok,
            "images_checked": self.images_checked,
            "images_corrupted": self.images_corrupted,
            "errors": [str(finding) for finding in self.findings],
            "repo": self.repo.to_json(),
        }

    def to_text(self) -> str:
        """Lines, each with its newline."""
        good = self.images_checked - self.images_corrupted
        lines = [f"oci images: {good}/{self.images_checked} ok"]
        if self.findings:
            lines.append(f"oci errors: {len(self.findings)}")
            lines += [f"  - {finding}" for finding in self.findings]
        return self.repo.to_text() + "".join(f"{line}\n" for line in lines)


def check_images(
    repo: Repository,
    *,
    image: str | None = None,
    layers: bool = True,
    metadata_only: bool = False,
    workers: int | None = None,
) -> OciReport:
    """Check the repository, and every tagged image or only `image`, a tag or `@DIGEST`.

    Raises `NotFoundError` if there is no such tag. `metadata_only` and `workers` are those of
    `check_repository`.
    """
    found = [tag for tag in repo.links.references(_TAGS) if tag.target is not None]
    if image is not None and image.startswith("@"):
        found = [Found(path=f"{_TAGS}/{image}", target=f"../../{_MANIFEST}{image[1:]}")]
        if repo.find_stream(found[0].leads_to) is None:
            raise NotFoundError(f"there is no image {image} in {repo.path}")
    elif image is not None:
        found = [tag for tag in found if tag.path == f"{_TAGS}/{escape_tag(image)}"]
        if not found:
            raise NotFoundError(
                f"there is no image {image} in {repo.path}",
                hint="`cfsctl oci images` lists the images",
            )
    report = check_repository(repo, metadata_only=metadata_only, workers=workers)
    check = _Check(repo, layers=layers and not metadata_only)
    corrupted = 0
    for tag in found:
        before = len(check.findings)
        check.tag(tag, by_digest=image is not None and image.startswith("@"))
        corrupted += len(check.findings) > before
    return OciReport(
        repo=report,
        images_checked=len(found),
        images_corrupted=corrupted,
        findings=tuple(check.findings),
    )


class _BadDocumentError(Exception):
    """A document that was reported, without which the image cannot be checked further."""


@dataclass(slots=True)
class _Check:
    repo: Repository
    layers: bool
    findings: list[OciFinding] = field(default_factory=list)
    _image: str = ""
    _read: dict[bytes, str] = field(default_factory=dict)

    def add(self, kind: OciKind, detail: str) -> None:
        self.findings.append(OciFinding(kind=kind, image=self._image, detail=detail))

    def tag(self, tag: Found, *, by_digest: bool = False) -> None:
        name = tag.path.removeprefix(f"{_TAGS}/")
        self._image = unescape_tag(name)
        try:
            if not by_digest and escape_tag(self._image) != name:
                self.add(OciKind.INVALID_REF_NAME, f"the link is called {name}")
        except BootcError as error:
            self.add(OciKind.INVALID_REF_NAME, chain_text(error))
        if not tag.leads_to.startswith(_MANIFEST):
            self.add(OciKind.REF_RESOLVE_FAILED, f"leads to {tag.target}, which is no manifest")
            return
        try:
            self._check_manifest(tag.leads_to)
        except _BadDocumentError:
            return

    def _check_manifest(self, content_id: str) -> None:
        digest = None
        try:
            digest = self.repo.find_stream(content_id)
            if digest is None:
                raise NotFoundError(f"there is no stream {content_id}")
        except (BootcError, OSError) as error:
            self.add(OciKind.MANIFEST_READ_FAILED, chain_text(error))
            return
        stream, data = self._document(digest, content_id, OciKind.MANIFEST_READ_FAILED)
        self._compare(data, content_id.removeprefix(_MANIFEST), OciKind.MANIFEST_DIGEST_MISMATCH)
        try:
            manifest = read_manifest(data, content_id)
        except BootcError as error:
            self.add(OciKind.MANIFEST_PARSE_FAILED, chain_text(error))
            return
        name = manifest.config.digest
        config_id = stream.named_refs.get(f"config:{name}")
        if config_id is None:
            self.add(OciKind.CONFIG_REF_MISSING, name)
            return
        config_stream, config = self._document(
            config_id, f"oci-config-{name}", OciKind.CONFIG_READ_FAILED
        )
        self._compare(config, name, OciKind.CONFIG_DIGEST_MISMATCH)
        if manifest.is_container:
            self._check_container(config_stream, config)
        else:
            self._check_artifact(stream, [layer.digest for layer in manifest.layers])

    def _document(self, digest: bytes, source: str, kind: OciKind) -> tuple[SplitStream, bytes]:
        """The stream of a document and its bytes."""
        try:
            stream = read_splitstream(self.repo.read_object(digest), source)
            return stream, b"".join(
                self.repo.read_object(stream.object_refs[chunk])
                if isinstance(chunk, int)
                else chunk
                for chunk in stream.chunks()
            )
        except (BootcError, OSError) as error:
            self.add(kind, chain_text(error))
            raise _BadDocumentError from error

    def _compare(self, data: bytes, digest: str, kind: OciKind) -> None:
        found = _digest_like(digest, data)
        if found != digest:
            self.add(kind, f"{digest}: the content has {found or 'no such digest'}")

    def _check_container(self, stream: SplitStream, data: bytes) -> None:
        try:
            config = read_config(data, stream.source)
        except BootcError as error:
            self.add(OciKind.CONFIG_PARSE_FAILED, chain_text(error))
            return
        for diff_id in config.diff_ids:
            digest = stream.named_refs.get(diff_id)
            if digest is None:
                self.add(OciKind.LAYER_REF_MISSING, diff_id)
                continue
            if self.repo.links.target(f"{STREAMS}/oci-layer-{diff_id}") is None:
                self.add(OciKind.LAYER_STREAM_MISSING, diff_id)
            if not self._has_object(digest):
                self.add(OciKind.LAYER_OBJECT_MISSING, f"{diff_id}: {digest.hex()}")
            elif problem := self._layer_problem(digest, diff_id):
                self.add(OciKind.LAYER_CHECK_FAILED, f"{diff_id}: {problem}")
        seal = config.labels.get(SEAL_LABEL)
        if seal is not None:
            image = parse_digest(seal.lower(), self.repo.algorithm)
            if image is None or not self.repo.has_image(image) or not self._has_object(image):
                self.add(OciKind.SEAL_IMAGE_MISSING, seal[:200])

    def _check_artifact(self, stream: SplitStream, blobs: list[str]) -> None:
        for blob in blobs:
            digest = stream.named_refs.get(blob)
            if digest is None:
                self.add(OciKind.ARTIFACT_LAYER_REF_MISSING, blob)
            elif not self._has_object(digest):
                self.add(OciKind.ARTIFACT_LAYER_OBJECT_MISSING, f"{blob}: {digest.hex()}")

    def _has_object(self, digest: bytes) -> bool:
        name = digest.hex()
        return os.access(f"objects/{name[:2]}/{name[2:]}", os.F_OK, dir_fd=self.repo.fd)

    def _layer_problem(self, digest: bytes, diff_id: str) -> str:
        """What is wrong with a layer, or nothing. However many images have it, it is read once."""
        if digest not in self._read:
            self._read[digest] = self._read_layer(digest, diff_id)
        found = self._read[digest]
        return "" if found in (diff_id, _UNREAD) else found

    def _read_layer(self, digest: bytes, diff_id: str) -> str:
        """The digest of the layer's tar, `_UNREAD`, or why it can't be read."""
        try:
            stream = read_splitstream(self.repo.read_object(digest), f"oci-layer-{diff_id}")
            if not self.layers:
                return _UNREAD
            hasher = digest_hasher(diff_id)
            for chunk in stream.chunks():
                if isinstance(chunk, bytes):
                    hasher.update(chunk)
                    continue
                with os.fdopen(self.repo.open_object(stream.object_refs[chunk]), "rb") as file:
                    while piece := file.read(_CHUNK):
                        hasher.update(piece)
            return f"{hasher.name}:{hasher.hexdigest()}"
        except (BootcError, OSError) as error:
            return chain_text(error)


_UNREAD = "unread"


def _digest_like(digest: str, data: bytes) -> str:
    """The digest of `data` by the algorithm of another digest; empty if there is no such one."""
    try:
        hasher = digest_hasher(digest)
    except ValueError:
        return ""
    hasher.update(data)
    return f"{hasher.name}:{hasher.hexdigest()}"
