# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Checks of repositories and of the OCI images in them: every kind of finding, and both outputs.

The file systems that tests run on have no fs-verity. What a secure repository says is seen by
opening one with the flag of a secure one, which nothing here has the verity for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bootc.composefs.digest import Algorithm
from bootc.composefs.erofs_writer import write_image
from bootc.composefs.forked import map_forked
from bootc.composefs.fsck import FsckReport, Kind, check_repository
from bootc.composefs.objects import object_path
from bootc.composefs.oci_fsck import OciKind, OciReport, check_images
from bootc.composefs.repository import NotFoundError, Repository
from bootc.composefs.splitstream import (
    OCI_BLOB,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    SplitStreamWriter,
)
from bootc.errors import BootcError
from bootc.jsonutil import Json
from bootc.tree import Directory, External, Leaf, Stat

SHA256 = Algorithm.SHA256
CONTENT = b"content of a file" * 100


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def document(
    repo: Repository, content_id: str, kind: bytes, data: bytes, refs: dict[str, bytes]
) -> bytes:
    stream = SplitStreamWriter(repo.algorithm, kind)
    for name, digest in refs.items():
        stream.named_ref(name, digest)
    stream.external(repo.ensure_object(data), len(data))
    return repo.write_stream(content_id, stream.finish())


class Store:
    """A repository with an image `os`, a container image `app` and an artifact `art`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with Repository.init(path, algorithm=SHA256, secure=False) as repo:
            self.content = repo.ensure_object(CONTENT)
            root = Directory(Stat(0o755))
            root.entries[b"file"] = Leaf(Stat(0o644), External(len(CONTENT), self.content))
            self.image = repo.write_image(write_image(root, algorithm=SHA256), "os")
            self.diff_id = sha256(b"header" + CONTENT + b"end")
            layer = SplitStreamWriter(SHA256, OCI_LAYER)
            layer.inline(b"header")
            layer.external(self.content, len(CONTENT))
            layer.inline(b"end")
            self.layer = repo.write_stream(f"oci-layer-{self.diff_id}", layer.finish())
            self.add_image(repo)
            self.blob = repo.write_stream("oci-blob-x", self.stream_of(repo, b"blob" * 50))
            self.add_artifact(repo)

    def stream_of(self, repo: Repository, data: bytes) -> bytes:
        stream = SplitStreamWriter(SHA256, OCI_BLOB)
        stream.external(repo.ensure_object(data), len(data))
        return stream.finish()

    def add_image(
        self,
        repo: Repository,
        *,
        tag: str = "app",
        config_refs: dict[str, bytes] | None = None,
        config_ref: bool = True,
        labels: dict[str, str] | None = None,
        config: bytes | None = None,
        manifest: bytes | None = None,
        manifest_digest: str | None = None,
        config_digest: str | None = None,
    ) -> None:
        value = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Labels": labels or {}},
            "rootfs": {"type": "layers", "diff_ids": [self.diff_id]},
        }
        config = json.dumps(value).encode() if config is None else config
        config_digest = config_digest or sha256(config)
        refs = {self.diff_id: self.layer} if config_refs is None else config_refs
        self.config = document(repo, f"oci-config-{config_digest}", OCI_CONFIG, config, refs)
        if manifest is None:
            manifest = self.manifest_of(
                "application/vnd.oci.image.config.v1+json", config_digest, len(config), []
            )
        manifest_digest = manifest_digest or sha256(manifest)
        self.manifest = document(
            repo,
            f"oci-manifest-{manifest_digest}",
            OCI_MANIFEST,
            manifest,
            {f"config:{config_digest}": self.config} if config_ref else {},
        )
        repo.tag(f"oci-manifest-{manifest_digest}", tag)

    def manifest_of(self, media_type: str, config: str, size: int, layers: list[Json]) -> bytes:
        return json.dumps(
            {
                "schemaVersion": 2,
                "config": {"mediaType": media_type, "digest": config, "size": size},
                "layers": layers,
            }
        ).encode()

    def add_artifact(self, repo: Repository, *, tag: str = "art", refs: bool = True) -> None:
        blob = sha256(b"blob" * 50)
        config = document(repo, f"oci-config-{sha256(b'{}')}", OCI_CONFIG, b"{}", {})
        layers: list[Json] = [{"mediaType": "text/plain", "digest": blob, "size": 200}]
        manifest = self.manifest_of("application/vnd.oci.empty.v1+json", sha256(b"{}"), 2, layers)
        found = {f"config:{sha256(b'{}')}": config} | ({blob: self.blob} if refs else {})
        document(repo, f"oci-manifest-{sha256(manifest)}", OCI_MANIFEST, manifest, found)
        repo.tag(f"oci-manifest-{sha256(manifest)}", tag)

    def object_file(self, digest: bytes) -> Path:
        return self.path / "objects" / object_path(digest)

    def check(self, *, metadata_only: bool = False, workers: int = 1) -> FsckReport:
        with Repository.open(self.path) as repo:
            return check_repository(repo, metadata_only=metadata_only, workers=workers)

    def check_images(self, image: str | None = None, *, layers: bool = True) -> OciReport:
        with Repository.open(self.path) as repo:
            return check_images(repo, image=image, layers=layers, workers=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "repo")


def found(report: FsckReport) -> list[tuple[str, str]]:
    return [(finding.kind.value, finding.path) for finding in report.findings]


def test_fsck_of_a_sound_repository(store: Store) -> None:
    report = store.check()
    assert report.to_text() == (
        "meta.json: ok\nobjects: 13/13 ok\nstreams: 6/6 ok\nimages: 1/1 ok\nstatus: ok\n"
    )
    assert store.check(metadata_only=True).to_text() == (
        "meta.json: ok\nobjects: 0/0 ok\nstreams: 6/6 ok\nimages: 1/1 ok\nstatus: ok\n"
    )


def test_fsck_of_an_empty_repository(tmp_path: Path) -> None:
    with Repository.init(tmp_path / "r", secure=False) as repo:
        assert check_repository(repo, workers=1).ok
        assert os.listdir(repo.fd) == ["meta.json"]


def test_fsck_says_the_same_however_many_processes_work(store: Store) -> None:
    for digest in (store.content, store.layer, store.image):
        store.object_file(digest).write_bytes(b"damaged")
    reports = [store.check(workers=count) for count in (1, 2, 7)]
    assert len(reports[0].findings) >= 3
    assert reports[0] == reports[1] == reports[2]


def change(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def replace_link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


Damage = Callable[[Store], object]

DAMAGES: dict[str, tuple[Damage, list[Kind], tuple[int, int, int]]] = {
    # name: (what is done, the findings, (objects, streams, images) that count as corrupted)
    "changed object": (
        lambda s: s.object_file(s.content).write_bytes(change(CONTENT, 700)),
        [Kind.OBJECT_DIGEST_MISMATCH],
        (1, 0, 0),
    ),
    "longer object": (
        lambda s: s.object_file(s.content).write_bytes(CONTENT + b"\0"),
        [Kind.OBJECT_DIGEST_MISMATCH, Kind.STREAM_READ_FAILED],
        (1, 1, 0),
    ),
    "bad name": (
        lambda s: (s.path / "objects/00/cd").touch(),
        [Kind.OBJECT_INVALID_NAME],
        (1, 0, 0),
    ),
    "directory as object": (
        lambda s: (s.path / "objects/00" / ("0" * 62)).mkdir(parents=True),
        [Kind.UNEXPECTED_FILE_TYPE],
        (1, 0, 0),
    ),
    "fifo as object": (
        lambda s: os.mkfifo(s.path / "objects/00" / ("0" * 62)),
        [Kind.UNEXPECTED_FILE_TYPE],
        (1, 0, 0),
    ),
    "link as object": (
        lambda s: link(s.path / "objects/00" / ("0" * 62), "../../meta.json"),
        [Kind.OBJECT_OPEN_FAILED],
        (1, 0, 0),
    ),
    "missing content": (
        lambda s: s.object_file(s.content).unlink(),
        [Kind.MISSING_OBJECT_REF, Kind.IMAGE_MISSING_OBJECT],
        (0, 0, 0),
    ),
    "missing layer": (
        lambda s: s.object_file(s.layer).unlink(),
        [Kind.MISSING_NAMED_REF, Kind.BROKEN_SYMLINK],
        (0, 1, 0),
    ),
    "missing image": (
        lambda s: s.object_file(s.image).unlink(),
        [Kind.BROKEN_SYMLINK, Kind.BROKEN_SYMLINK],
        (0, 0, 1),
    ),
    "file among streams": (
        lambda s: (s.path / "streams/file").touch(),
        [Kind.ENTRY_NOT_SYMLINK],
        (0, 1, 0),
    ),
    "file among references": (
        lambda s: (s.path / "images/refs/file").touch(),
        [Kind.UNEXPECTED_FILE_TYPE],
        (0, 0, 0),
    ),
    "link to itself": (lambda s: link(s.path / "images/x", "x"), [Kind.STAT_FAILED], (0, 0, 1)),
    "link to no object": (
        lambda s: link(s.path / "streams/x", "../meta.json"),
        [Kind.STREAM_OPEN_FAILED],
        (0, 1, 0),
    ),
    "image under another name": (
        lambda s: link(s.path / "images" / ("a" * 64), f"../objects/{object_path(s.image)}"),
        [Kind.IMAGE_OPEN_FAILED],
        (0, 0, 1),
    ),
    "image that is none": (
        lambda s: link(
            s.path / f"images/{s.content.hex()}", f"../objects/{object_path(s.content)}"
        ),
        [Kind.IMAGE_INVALID],
        (0, 0, 1),
    ),
    "stream that is none": (
        lambda s: link(s.path / "streams/x", f"../objects/{object_path(s.content)}"),
        [Kind.STREAM_OPEN_FAILED],
        (0, 1, 0),
    ),
    "truncated image": (
        lambda s: truncate(s.object_file(s.image), 5000),
        [Kind.OBJECT_DIGEST_MISMATCH, Kind.IMAGE_INVALID],
        (1, 0, 1),
    ),
    "truncated stream": (
        lambda s: truncate(s.object_file(s.layer), 120),
        [Kind.OBJECT_DIGEST_MISMATCH, Kind.STREAM_OPEN_FAILED],
        (1, 1, 0),
    ),
    "reference to another reference": (
        lambda s: link(s.path / "images/refs/x", "os"),
        [Kind.BROKEN_SYMLINK],
        (0, 0, 0),
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_fsck_finds_damage(store: Store, name: str) -> None:
    damage, kinds, corrupted = DAMAGES[name]
    (store.path / "objects/00").mkdir(exist_ok=True)
    damage(store)
    report = store.check()
    assert [finding.kind for finding in report.findings] == kinds
    assert corrupted == (
        report.objects_corrupted,
        report.streams_corrupted,
        report.images_corrupted,
    )
    assert not report.ok


def test_fsck_text_and_json_of_damage(store: Store) -> None:
    store.object_file(store.content).unlink()
    (store.path / "streams/file").touch()
    store.object_file(store.image).write_bytes(b"x")
    report = store.check()
    errors = [str(finding) for finding in report.findings]
    assert errors[0].startswith(
        f"fsck: object-digest-mismatch: objects/{object_path(store.image)}: measured "
    )
    assert len(errors[0].rsplit(" ", 1)[1]) == 2 * SHA256.size
    layer = f"streams/oci-layer-{store.diff_id}"
    assert errors[1] == "fsck: entry-not-symlink: streams/file"
    assert errors[2] == f"fsck: missing-object-ref: {layer}: {store.content.hex()}"
    assert errors[3].startswith(f"fsck: image-invalid: images/{store.image.hex()}: ")
    assert len(errors) == 4
    assert report.to_text() == (
        "meta.json: ok\nobjects: 11/12 ok\nstreams: 6/7 ok\nimages: 0/1 ok\nmissing objects: 1\n"
        "status: 4 error(s)\n" + "".join(f"  - {error}\n" for error in errors)
    )
    assert report.to_json() == {
        "ok": False,
        "has_metadata": True,
        "objects_checked": 12,
        "objects_corrupted": 1,
        "streams_checked": 7,
        "streams_corrupted": 1,
        "images_checked": 1,
        "images_corrupted": 1,
        "broken_links": 0,
        "missing_objects": 1,
        "errors": errors,
    }
    assert list(report.to_json())[:3] == ["ok", "has_metadata", "objects_checked"]


def test_fsck_of_metadata_that_changed_after_opening(store: Store) -> None:
    with Repository.open(store.path) as repo:
        meta = store.path / "meta.json"
        text = meta.read_text()
        meta.write_text(text.replace("sha256", "sha512"))
        assert found(check_repository(repo, workers=1)) == [
            ("metadata-algorithm-mismatch", "meta.json")
        ]
        meta.write_text("{")
        report = check_repository(repo, metadata_only=True)
        assert found(report) == [("metadata-parse-failed", "meta.json")]
        assert report.to_text().startswith("meta.json: error\n")
        meta.unlink()
        report = check_repository(repo, metadata_only=True)
        assert (report.ok, report.has_metadata) == (True, False)
        assert report.to_text().startswith("meta.json: absent\n")


def test_fsck_of_a_secure_repository_wants_verity_on_everything(store: Store) -> None:
    with Repository.open(store.path) as repo:
        repo.secure = True
        repo.objects.secure = True
        report = check_repository(repo, workers=1)
    kinds = [finding.kind for finding in report.findings]
    assert kinds.count(Kind.OBJECT_VERITY_MISSING) == report.objects_checked == 13
    assert kinds.count(Kind.STREAM_OPEN_FAILED) == report.streams_corrupted == 6
    assert kinds.count(Kind.IMAGE_OPEN_FAILED) == report.images_corrupted == 1


def test_fsck_of_a_stream_of_another_algorithm(store: Store) -> None:
    stream = SplitStreamWriter(Algorithm.SHA512, OCI_LAYER)
    stream.inline(b"x")
    with Repository.open(store.path) as repo:
        repo.write_stream("other", stream.finish())
        report = check_repository(repo, workers=1)
    assert found(report) == [("stream-open-failed", "streams/other")]


def test_fsck_of_a_stream_whose_size_is_wrong(store: Store) -> None:
    stream = SplitStreamWriter(SHA256, OCI_LAYER)
    stream.external(store.content, 5)
    with Repository.open(store.path) as repo:
        repo.write_stream("other", stream.finish())
        report = check_repository(repo, workers=1)
    assert found(report) == [("stream-read-failed", "streams/other")]
    assert "1700 bytes of content, 5 are said" in report.findings[0].detail


# -- OCI


def test_oci_fsck_of_sound_images(store: Store) -> None:
    report = store.check_images()
    assert report.to_text().endswith("status: ok\noci images: 2/2 ok\n")
    assert report.to_json()["repo"] == report.repo.to_json()
    assert store.check_images("app").images_checked == 1
    with Repository.open(store.path) as repo:
        digest = (repo.find_tag("app") or "").removeprefix("oci-manifest-")
    assert store.check_images(f"@{digest}").ok
    with pytest.raises(NotFoundError):
        store.check_images("nothing")
    with pytest.raises(NotFoundError):
        store.check_images(f"@{sha256(b'')}")


def broken(add: Callable[[Store, Repository], None]) -> Damage:
    """Replace the image by one that `add` makes."""

    def damage(store: Store) -> None:
        with Repository.open(store.path) as repo:
            add(store, repo)

    return damage


def lose_artifact_blob(store: Store) -> None:
    store.object_file(store.blob).unlink()


def forget_artifact_blob(store: Store) -> None:
    with Repository.open(store.path) as repo:
        store.add_artifact(repo, refs=False)


def spoil_layer(store: Store) -> None:
    other = SplitStreamWriter(SHA256, OCI_LAYER)
    other.inline(b"another tar")
    with Repository.open(store.path) as repo:
        layer = repo.write_stream("oci-layer-other", other.finish())
        store.add_image(repo, config_refs={store.diff_id: layer})


OCI_DAMAGES: dict[str, tuple[Damage, list[OciKind]]] = {
    "no manifest": (
        lambda s: s.object_file(s.manifest).unlink(),
        [OciKind.MANIFEST_READ_FAILED],
    ),
    "manifest of another digest": (
        broken(lambda s, repo: s.add_image(repo, manifest_digest=sha256(b"other"))),
        [OciKind.MANIFEST_DIGEST_MISMATCH],
    ),
    "manifest that is none": (
        broken(lambda s, repo: s.add_image(repo, manifest=b"[]")),
        [OciKind.MANIFEST_PARSE_FAILED],
    ),
    "no reference to the config": (
        broken(lambda s, repo: s.add_image(repo, config_ref=False)),
        [OciKind.CONFIG_REF_MISSING],
    ),
    "no config": (lambda s: s.object_file(s.config).unlink(), [OciKind.CONFIG_READ_FAILED]),
    "config of another digest": (
        broken(lambda s, repo: s.add_image(repo, config_digest=sha256(b"other"))),
        [OciKind.CONFIG_DIGEST_MISMATCH],
    ),
    "config that is none": (
        broken(lambda s, repo: s.add_image(repo, config=b"{}")),
        [OciKind.CONFIG_PARSE_FAILED],
    ),
    "no reference to the layer": (
        broken(lambda s, repo: s.add_image(repo, config_refs={})),
        [OciKind.LAYER_REF_MISSING],
    ),
    "no link to the layer": (
        lambda s: (s.path / f"streams/oci-layer-{s.diff_id}").unlink(),
        [OciKind.LAYER_STREAM_MISSING],
    ),
    "no layer": (lambda s: s.object_file(s.layer).unlink(), [OciKind.LAYER_OBJECT_MISSING]),
    "a layer of other content": (spoil_layer, [OciKind.LAYER_CHECK_FAILED]),
    "a damaged layer": (
        lambda s: truncate(s.object_file(s.layer), 100),
        [OciKind.LAYER_CHECK_FAILED],
    ),
    "no sealed image": (
        broken(
            lambda s, repo: s.add_image(repo, labels={"containers.composefs.fsverity": "ab" * 32})
        ),
        [OciKind.SEAL_IMAGE_MISSING],
    ),
    "a seal that is none": (
        broken(lambda s, repo: s.add_image(repo, labels={"containers.composefs.fsverity": "zz"})),
        [OciKind.SEAL_IMAGE_MISSING],
    ),
    "no blob": (lose_artifact_blob, [OciKind.ARTIFACT_LAYER_OBJECT_MISSING]),
    "no reference to the blob": (forget_artifact_blob, [OciKind.ARTIFACT_LAYER_REF_MISSING]),
    "a tag that leads nowhere": (
        lambda s: link(s.path / "streams/refs/oci/gone", "../../gone"),
        [OciKind.REF_RESOLVE_FAILED],
    ),
    "a tag with a reserved name": (
        lambda s: (s.path / "streams/refs/oci/app").rename(s.path / "streams/refs/oci/@app"),
        [OciKind.INVALID_REF_NAME],
    ),
    "a tag that is not escaped": (
        lambda s: (s.path / "streams/refs/oci/app").rename(s.path / "streams/refs/oci/a%p"),
        [OciKind.INVALID_REF_NAME],
    ),
}


@pytest.mark.parametrize("name", OCI_DAMAGES)
def test_oci_fsck_finds_damage(store: Store, name: str) -> None:
    damage, kinds = OCI_DAMAGES[name]
    damage(store)
    report = store.check_images()
    assert [finding.kind for finding in report.findings] == kinds
    assert not report.ok
    assert f"oci errors: {len(kinds)}\n  - fsck: {kinds[0].value}: " in report.to_text()


def test_oci_fsck_of_a_sealed_image(store: Store) -> None:
    with Repository.open(store.path) as repo:
        store.add_image(repo, labels={"containers.composefs.fsverity": store.image.hex()})
    assert store.check_images().ok


def test_oci_fsck_can_leave_the_content_of_layers_alone(store: Store) -> None:
    spoil_layer(store)
    assert store.check_images(layers=False).ok


# -- Forked work


@pytest.mark.parametrize("workers", [1, 3, 50])
def test_forked_work_comes_back_in_order(workers: int) -> None:
    assert map_forked(lambda number: number * 2, 20, workers=workers) == list(range(0, 40, 2))
    assert map_forked(lambda number: number, 0, workers=workers) == []


def test_forked_work_that_fails_is_an_error_here() -> None:
    def work(number: int) -> Json:
        if number == 7:
            raise BootcError("the seventh is bad")
        return None

    with pytest.raises(BootcError, match="the seventh is bad"):
        map_forked(work, 20, workers=3)


def test_forked_worker_that_is_killed_is_an_error_here() -> None:
    own = os.getpid()

    def work(number: int) -> Json:
        if number == 7 and os.getpid() != own:
            os.kill(os.getpid(), 9)
        return None

    with pytest.raises(BootcError, match="ended early"):
        map_forked(work, 20, workers=3)


def test_forked_work_leaves_no_descriptors_and_no_children() -> None:
    before = len(os.listdir("/proc/self/fd"))
    map_forked(lambda number: number, 100, workers=4)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
