# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Unified storage without podman: what the storage holds, what goes, what is told."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from bootc import paths
from bootc.composefs.progress import Done, Event, Progress, Skipped, Started
from bootc.deploy import unified, update
from bootc.deploy.cleanup import clean_up
from bootc.deploy.image_list import ImageType, ListedImage, Which, list_images
from bootc.deploy.progress import Observer, ProgressWriter, Stage
from bootc.deploy.set_unified import set_unified
from bootc.deploy.state import Origin
from bootc.deploy.stored_images import StoragePlan, plan_storage
from bootc.deploy.unified import find_stored, storage_in_use
from bootc.deploy.unified_pull import Importing, PodmanProgress
from bootc.errors import BootcError, FormatError
from bootc.oci.layout import LayoutSource
from bootc.oci.reference import ImageReference, parse_imgref
from bootc.podman.claims import claim_name, claims, stored_name
from bootc.podman.pull import Blob, BlobStatus, Text
from bootc.podman.storage import BootcStorage, StoredImage, find_storage, make_storage, normalized
from bootc.spec import BootType
from tests.ocibuild import END, member, sha256, write_layout
from tests.sysroots import MockMachine

NAME = "quay.io/example/os:1"
ONE, TWO, THREE = (f"sha256:{digit * 64}" for digit in "123")


def reference(text: str) -> ImageReference:
    return parse_imgref(text)


def image(digest: str | None, *names: str, id: str | None = None) -> StoredImage:
    made = id or hashlib.sha256(f"{digest}".encode()).hexdigest()
    return StoredImage(id=made, digest=digest, names=names)


def origin(name: str, digest: str | None) -> Origin:
    return Origin(
        image=reference(name), boot_type=BootType.BLS, boot_digest=None, manifest_digest=digest
    )


def write_storage(path: Path, images: list[StoredImage], layers: list[str] | None = None) -> None:
    """What of a storage we read."""
    (path / "overlay-images").mkdir(parents=True)
    (path / "overlay-layers").mkdir()
    records = [{"id": one.id, "digest": one.digest, "names": list(one.names)} for one in images]
    (path / "overlay-images/images.json").write_text(json.dumps(records))
    found = [{"id": digest[7:], "diff-digest": digest} for digest in layers or []]
    (path / "overlay-layers/layers.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("quay.io/a/b", "quay.io/a/b:latest"),
        ("quay.io/a/b:1", "quay.io/a/b:1"),
        (f"quay.io/a/b:1@{ONE}", f"quay.io/a/b@{ONE}"),
        ("localhost:5000/b", "localhost:5000/b:latest"),
        ("localhost/b", "localhost/b:latest"),
        ("fedora", "docker.io/library/fedora:latest"),
        ("fedora:42", "docker.io/library/fedora:42"),
        ("me/thing", "docker.io/me/thing:latest"),
    ],
)
def test_names_are_those_that_podman_gives(given: str, name: str) -> None:
    assert normalized(given) == name


def test_what_has_no_name_at_its_source_has_none_in_a_storage() -> None:
    assert stored_name(reference("oci:/a:1")) is None
    assert stored_name(reference(f"containers-storage:{'a' * 64}")) is None
    assert stored_name(reference("containers-storage:localhost/x")) == "localhost/x:latest"
    assert stored_name(reference(f"docker://{NAME}")) == NAME


def test_a_claim_is_a_name_of_a_registry() -> None:
    assert claim_name(ONE) == f"localhost/bootc-{ONE}"
    assert claims(image(ONE, NAME, claim_name(TWO), "localhost/bootc-sha256:short")) == {
        claim_name(TWO): TWO
    }


def test_an_image_is_known_by_name_digest_or_claim() -> None:
    images = [image(ONE, NAME), image(TWO, claim_name(THREE))]
    assert find_stored(images, reference(f"docker://{NAME}"), None) == images[0]
    assert find_stored(images, reference("oci:/x"), ONE) == images[0]
    assert find_stored(images, reference("oci:/x"), THREE) == images[1]
    assert find_stored(images, reference("docker://quay.io/other"), None) is None
    assert find_stored([image(None)], reference("oci:/x"), None) is None


def test_only_what_was_brought_for_a_deployment_goes_with_it() -> None:
    live = [origin(f"docker://{NAME}", ONE), origin("oci:/x:2", TWO)]
    images = [
        image(ONE, NAME),  # of a deployment, brought by another bootc
        image(TWO, claim_name(TWO)),
        image(THREE, claim_name(THREE), "quay.io/old:1"),  # of a deployment that is gone
        image(f"sha256:{'4' * 64}", "quay.io/bound:1"),  # nobody's claim
        image(f"sha256:{'5' * 64}"),
        image(f"sha256:{'6' * 64}", NAME, claim_name(f"sha256:{'6' * 64}")),  # pulled ahead
    ]
    plan = plan_storage(images, live)
    assert plan == StoragePlan(
        claimed=((images[0].id, claim_name(ONE)),),
        removed=(("quay.io/old:1", claim_name(THREE)),),
        unclaimed=(claim_name(f"sha256:{'6' * 64}"),),
    )
    assert plan.removes
    assert plan.describe() == ["Stored image: quay.io/old:1"]


def test_an_image_with_two_manifests_stays_for_either() -> None:
    both = image(ONE, claim_name(ONE), claim_name(TWO))
    assert plan_storage([both], [origin("oci:/x", TWO)]) == StoragePlan(
        unclaimed=(claim_name(ONE),)
    )
    assert plan_storage([both], []) == StoragePlan(removed=((claim_name(ONE), claim_name(TWO)),))


def test_images_are_listed_with_their_kind() -> None:
    images = [image(ONE, NAME, claim_name(ONE)), image(TWO, "quay.io/b:1", "quay.io/c:1")]
    images.append(image(THREE))
    origins = [origin(f"docker://{NAME}", ONE), origin("oci:/x:1", None)]

    def listed(which: Which) -> list[tuple[str, str]]:
        return [(one.image, one.type.value) for one in list_images(origins, images, which)]

    hosts = [(NAME, "unified"), ("oci:/x:1", "host")]
    logical = [(name, "logical") for name in ("quay.io/b:1", "quay.io/c:1", images[2].id)]
    assert listed(Which.ALL) == [*hosts, *logical]
    assert listed(Which.HOST) == hosts
    assert listed(Which.LOGICAL) == logical
    assert ListedImage(image="x", type=ImageType.HOST).to_json() == {
        "image": "x",
        "image_type": "host",
    }


# -- The storage's folder


def test_an_absent_or_empty_folder_is_no_storage(tmp_path: Path) -> None:
    assert find_storage(str(tmp_path)) is None
    (tmp_path / paths.STORAGE).mkdir(parents=True)
    assert find_storage(str(tmp_path)) is None
    write_storage(tmp_path / paths.STORAGE, [image(ONE, NAME)], [TWO])
    found = find_storage(str(tmp_path), run="/x")
    assert found is not None
    assert found.runroot == "/x/storage-run"
    assert found.images() == (image(ONE, NAME),)
    assert found.layers() == {TWO}
    assert found.find_image("quay.io/example/os:1") == found.images()[0]
    assert found.find_image(ONE) == found.images()[0]
    assert found.find_image("quay.io/example/os") is None


@pytest.mark.parametrize("kind", ["file", "half"])
def test_something_else_in_its_place_is_refused_and_kept(tmp_path: Path, kind: str) -> None:
    path = tmp_path / paths.STORAGE
    if kind == "file":
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    else:
        (path / "overlay").mkdir(parents=True)
    for look in (find_storage, make_storage):
        with pytest.raises(BootcError, match="container storage") as caught:
            look(str(tmp_path))
        assert f"mv {path} {path}.old" in str(caught.value.hint)
    assert path.exists()
    assert os.listdir(path.parent) == ["storage"]


@pytest.mark.parametrize("text", ["{", "[1]", '[{"id": 5}]', '[{"id": "x", "names": [1]}]'])
def test_a_damaged_list_of_images_is_named(tmp_path: Path, text: str) -> None:
    write_storage(tmp_path, [])
    (tmp_path / "overlay-images/images.json").write_text(text)
    with pytest.raises(FormatError, match=r"overlay-images/images\.json"):
        BootcStorage(path=str(tmp_path)).images()


def test_an_image_that_was_pulled_by_an_index_has_its_own_digest(tmp_path: Path) -> None:
    write_storage(tmp_path, [])
    record = {"id": "x", "digest": TWO, "big-data-digests": {"manifest": ONE}, "names": None}
    (tmp_path / "overlay-images/images.json").write_text(json.dumps([record]))
    assert BootcStorage(path=str(tmp_path)).images() == (image(ONE, id="x"),)


# -- A machine


@pytest.fixture
def machine(tmp_path: Path) -> MockMachine:
    made = MockMachine(tmp_path / "machine")
    made.install(made.image("1"), origin=f"docker://{NAME}")
    return made


def manifest_of(machine: MockMachine) -> str:
    return LayoutSource(str(machine.path / "images/1")).manifest_digest


def test_the_booted_image_or_the_next_one_make_a_system_unified(machine: MockMachine) -> None:
    known = (reference(f"docker://{NAME}"), manifest_of(machine))
    other = (reference("docker://quay.io/other"), None)
    assert storage_in_use(machine.sysroot, [known, other]) is None
    storage = machine.root / paths.STORAGE
    write_storage(storage, [image(ONE, "quay.io/bound:1")])
    assert storage_in_use(machine.sysroot, [known, other]) is None
    records = [{"id": "a" * 64, "digest": manifest_of(machine), "names": []}]
    (storage / "overlay-images/images.json").write_text(json.dumps(records))
    found = storage_in_use(machine.sysroot, [other, known])
    assert found is not None
    assert found.path == str(storage)
    assert found.run == f"{machine.run}/bootc"


def test_a_damaged_storage_does_not_hinder_updates(
    machine: MockMachine, caplog: pytest.LogCaptureFixture
) -> None:
    (machine.root / paths.STORAGE / "overlay").mkdir()
    assert storage_in_use(machine.sysroot, [(reference(f"docker://{NAME}"), None)]) is None
    assert "is not used" in caplog.text
    assert clean_up(machine.sysroot).plan.storage == StoragePlan()
    assert "is left as it is" in caplog.text


def test_a_dry_cleanup_tells_what_would_go(machine: MockMachine) -> None:
    images = [image(TWO, claim_name(TWO)), image(ONE, "quay.io/bound:1")]
    write_storage(machine.root / paths.STORAGE, images)
    result = clean_up(machine.sysroot, dry_run=True)
    assert result.plan.describe() == [f"Stored image: {claim_name(TWO)}"]
    with pytest.raises(BootcError, match="there is garbage: Stored image"):
        clean_up(machine.sysroot, assert_no_op=True)


def test_a_damaged_menu_keeps_all_images(machine: MockMachine) -> None:
    write_storage(machine.root / paths.STORAGE, [image(TWO, claim_name(TWO))])
    (machine.esp / paths.ENTRIES / "bootc_mock-1-9.conf").write_text("\0")
    assert clean_up(machine.sysroot, dry_run=True).plan.storage == StoragePlan()


def test_without_podman_nothing_is_begun(
    machine: MockMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BootcError, match="podman is not on PATH") as caught:
        set_unified(machine.sysroot, allow_copy=True)
    assert "install podman" in str(caught.value.hint)
    assert not os.path.exists(machine.root / unified.ALLOW_COPY)
    with pytest.raises(BootcError, match="podman is not on PATH"):
        make_storage(str(tmp_path / "root"))
    assert not (tmp_path / "root" / f"{paths.STORAGE}.tmp").exists()


def test_what_is_unified_already_stays_as_it_is(machine: MockMachine, tmp_path: Path) -> None:
    fake = tmp_path / "podman"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    write_storage(machine.root / paths.STORAGE, [image(ONE, NAME)])
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("PATH", str(tmp_path))
        done = set_unified(machine.sysroot)
    assert not done.changed
    assert done.text.startswith("Unified already: quay.io/example/os:1")


# -- Progress


@pytest.fixture
def offered(tmp_path: Path) -> LayoutSource:
    layout = tmp_path / "layout"
    layout.mkdir()
    write_layout(layout, [member(b"a", b"a" * 5000) + END, member(b"b") + END], how="zstd")
    return LayoutSource(str(layout))


def layers_of(source: LayoutSource) -> list[tuple[str, str, int]]:
    """(blob digest, diff id, blob size)."""
    manifest = json.loads(source.manifest)
    ids = json.loads(source.config)["rootfs"]["diff_ids"]
    return [
        (layer["digest"], diff_id, layer["size"])
        for layer, diff_id in zip(manifest["layers"], ids, strict=True)
    ]


def blob(digest: str, status: BlobStatus, current: int = 0, total: int | None = None) -> Blob:
    return Blob(id=digest, status=status, current=current, total=total)


def test_progress_of_blobs_becomes_that_of_layers(offered: LayoutSource) -> None:
    told: list[Event] = []
    (one, one_id, one_size), (two, two_id, _) = layers_of(offered)
    progress = PodmanProgress(offered, told.append)
    progress(blob(one, BlobStatus.PULLING, 5, -1))
    progress(blob(one, BlobStatus.PULLING, 10**9))
    progress(blob(two, BlobStatus.SKIPPED))
    progress(blob(one, BlobStatus.SUCCESS))
    progress(blob(one, BlobStatus.SUCCESS))
    progress(blob("sha256:unheard-of", BlobStatus.SUCCESS))
    progress.end()
    assert told == [
        Started(id=one_id, total=one_size),
        Progress(id=one_id, fetched=5, total=one_size),
        Progress(id=one_id, fetched=one_size, total=one_size),
        Skipped(id=two_id),
        Done(id=one_id, transferred=one_size),
    ]


def test_plain_lines_become_progress_of_layers(
    offered: LayoutSource, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    told: list[Event] = []
    (one, one_id, one_size), (two, two_id, two_size) = layers_of(offered)
    progress = PodmanProgress(offered, told.append, present={two_id})
    progress(Text(text="Trying to pull it..."))
    progress(Text(text=f"Copying blob {one}"))
    progress(Text(text=f"Copying blob {two}"))
    progress(Text(text="Copying config sha256:1"))
    progress.end()
    assert told == [
        Started(id=one_id, total=one_size),
        Skipped(id=two_id),
        Done(id=one_id, transferred=one_size),
    ]
    assert "Trying to pull it..." in caplog.text
    told.clear()
    progress = PodmanProgress(offered, told.append)
    progress(Text(text=f"Copying blob {one} skipped: already exists"))
    progress(Text(text=f"Copying blob {two}"))
    progress.end()
    assert told == [
        Skipped(id=one_id),
        Started(id=two_id, total=two_size),
        Done(id=two_id, transferred=two_size),
    ]


def test_both_halves_of_a_unified_pull_are_told_once(offered: LayoutSource) -> None:
    reading, writing = os.pipe()
    with ProgressWriter(writing) as writer:
        writer.begin(offered)
        writer.stage(Stage.PULLING)
        progress = PodmanProgress(offered, writer.report)
        (one, _, size), (two, _, _) = layers_of(offered)
        progress(blob(one, BlobStatus.SUCCESS))
        progress(blob(two, BlobStatus.SKIPPED))
        progress.end()
        importing: Observer = Importing(writer)
        importing.begin(offered)
        importing.stage(Stage.PULLING)
        importing.report(Skipped(id=sha256(b"")))
        importing.stage(Stage.IMPORTING)
        importing.stage(Stage.MERGING)
        importing.end()
    with os.fdopen(reading) as file:
        lines = [json.loads(line) for line in file]
    tasks = [(line.get("task"), line.get("steps")) for line in lines]
    assert tasks[0] == (None, None)
    assert tasks[-4:] == [("importing", 0), ("importing", 1), ("staging", 0), ("staging", 1)]
    pulled = [line for line in lines if line.get("task") == "pulling"][-1]
    assert (pulled["bytes"], pulled["bytesTotal"]) == (size, size)
    assert (pulled["steps"], pulled["stepsCached"]) == (1, 1)


# -- Reflinks


def test_what_cannot_be_shared_is_refused_with_the_way_out(tmp_path: Path) -> None:
    storage = tmp_path / paths.STORAGE
    write_storage(storage, [image(ONE, NAME)])
    (storage / "overlay-layers").rename(storage / "vfs-layers")  # another driver's
    found = find_storage(str(tmp_path))
    assert found is not None
    with (
        pytest.raises(BootcError, match="cannot be taken over") as caught,
        unified.open_stored(found, image(ONE)),
    ):
        pass
    assert "--allow-copy" in str(caught.value.hint)


def test_copies_are_allowed_once_and_for_all(tmp_path: Path) -> None:
    memory = "/dev/shm"  # tmpfs has no reflinks
    assert not unified.can_share(memory)
    with pytest.raises(BootcError, match="has no reflinks") as caught:
        unified.need_sharing(str(tmp_path / "none"), memory)
    assert "--allow-copy" in str(caught.value.hint)
    unified.permit_copies(str(tmp_path), False)
    assert not unified.copies_allowed(str(tmp_path))
    unified.permit_copies(str(tmp_path), True)
    unified.need_sharing(str(tmp_path), memory)
    unified.permit_copies(str(tmp_path), True)


def test_a_storage_on_a_file_system_of_its_own_shares_nothing(tmp_path: Path) -> None:
    (tmp_path / paths.STORAGE).mkdir(parents=True)
    with pytest.raises(BootcError, match="/dev/shm are on two file systems, so each file"):
        unified.need_sharing(str(tmp_path), "/dev/shm")


def test_an_upgrade_of_a_unified_system_needs_podman(
    machine: MockMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_storage(machine.root / paths.STORAGE, [image(ONE, NAME)])
    unified.permit_copies(str(machine.root), True)
    offer = LayoutSource(machine.image("2").removeprefix("oci:").rpartition(":")[0])
    before = machine.menu()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BootcError, match="podman is not on PATH") as caught:
        update.upgrade(
            machine.sysroot, update.UpgradeOptions(), open_image=lambda image: nullcontext(offer)
        )
    assert "install podman" in str(caught.value.hint)
    assert machine.menu() == before
    assert not os.path.exists(machine.sysroot.staged_file)


def test_a_system_that_is_not_unified_is_left_alone(
    machine: MockMachine, offered: LayoutSource
) -> None:
    observer = Observer()
    with unified.through_storage(
        machine.sysroot,
        reference(f"docker://{NAME}"),
        offered,
        observer,
        booted=(reference(f"docker://{NAME}"), manifest_of(machine)),
        open_stored=lambda storage, image: nullcontext(offered),
    ) as (source, tell):
        assert source is offered
        assert tell is observer
