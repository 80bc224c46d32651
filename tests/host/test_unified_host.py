# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Unified storage with the podman, skopeo and file systems of this machine. Needs root."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

import pytest

from bootc import paths, process
from bootc.cli import main
from bootc.composefs.progress import Done, Event, Skipped, Started
from bootc.composefs.repository import Repository
from bootc.composefs.stored import load_image
from bootc.deploy import update
from bootc.deploy.cleanup import clean_up
from bootc.deploy.copy_out import copy_to_storage
from bootc.deploy.image_list import ImageType, Which, list_system
from bootc.deploy.progress import Observer, Stage
from bootc.deploy.set_unified import set_unified
from bootc.deploy.source import open_image
from bootc.deploy.sysroot import Sysroot
from bootc.deploy.unified import Unify, copies_allowed
from bootc.deploy.unified_pull import fetch
from bootc.errors import BootcError, find_hint
from bootc.linux import blockdev
from bootc.oci.model import INDEX
from bootc.oci.reference import ImageReference, Transport, parse_imgref
from bootc.podman.claims import claim_name
from bootc.podman.fetch import fetch_image
from bootc.podman.storage import find_storage, make_storage
from tests.hostpodman import served_registry
from tests.ocibuild import sha256, write_blob, write_layout
from tests.sysroots import MockMachine
from tests.unifiedscene import (
    COMMON,
    check,
    publish,
    reboot,
    storage_of,
    upgrade,
)
from vmtests.registry import Fault, FaultKind, On, Registry

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_podman")]
COPY = Unify(wanted=True, allow_copy=True)
TOP = Path(__file__).resolve().parents[2]
UPGRADE = """
import json, sys
from bootc.deploy import update
from bootc.deploy.sysroot import Sysroot
update.upgrade(Sysroot(**json.loads(sys.argv[1])), update.UpgradeOptions())
"""


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with served_registry(tmp_path, [COMMON]) as running:
        yield running


@pytest.fixture
def machine(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> MockMachine:
    """A machine that was installed from the registry; its path is short enough for a socket."""
    made = MockMachine(tmp_path_factory.mktemp("m") / "m")
    made.install(publish(registry, "1"))
    registry.forget()
    return made


class Recorder(Observer):
    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self.events: list[Event] = []

    def stage(self, stage: Stage) -> None:
        self.stages.append(stage)

    def report(self, event: Event) -> None:
        self.events.append(event)


def booted_digest(machine: MockMachine) -> str:
    booted = update.read_facts(machine.sysroot).booted
    assert booted is not None
    assert booted.digest is not None
    return booted.digest


def blobs_sent(registry: Registry) -> list[str]:
    return sorted(
        one.path.rpartition("/")[2]
        for one in registry.requests
        if one.is_blob and one.method == "GET" and one.sent > 0
    )


def test_a_unified_system_stays_one_and_gives_back_what_it_does_not_need(
    machine: MockMachine, registry: Registry
) -> None:
    first = booted_digest(machine)
    done = set_unified(machine.sysroot, allow_copy=True)
    assert (done.changed, done.digest) == (True, first)
    assert done.text.startswith("Unified: ")
    storage = storage_of(machine)
    [image] = storage.images()
    name = f"{registry.address}/os:1"
    assert {name, claim_name(first)} <= set(image.names)
    assert os.path.samefile(machine.root / "ostree/bootc/storage", storage.path)
    assert not os.path.exists(f"{storage.path}.tmp")
    assert not set_unified(machine.sysroot).changed

    # Someone else's image, which no deployment has.
    publish(registry, "bound", "bound")
    bound = ImageReference(image=f"{registry.address}/os:bound", transport=Transport.REGISTRY)
    fetch_image(storage, bound, lambda line: None, owned=False)
    digests = [first]
    for version in ("2", "3"):
        registry.forget()
        publish(registry, version)
        told = Recorder()
        outcome = upgrade(machine, told)
        assert outcome.ready
        assert outcome.staged is not None
        digests.append(outcome.staged.digest)
        held = {one.digest: one for one in storage.images()}
        assert claim_name(digests[-1]) in held[digests[-1]].names
        assert name in held[digests[-1]].names
        assert told.stages == [
            Stage.PULLING, Stage.IMPORTING, Stage.MERGING, Stage.DEPLOYING, Stage.CLEANUP
        ]  # fmt: skip
        assert any(isinstance(event, Done) for event in told.events)
        # Of each image podman gets the new layer, once; skopeo and podman a config each.
        new = json.loads((registry.layout / "index.json").read_text())["manifests"][0]["digest"]
        document = registry.find_blob(new)
        assert document is not None
        manifest = json.loads(document.read_text())
        layers = [layer["digest"] for layer in manifest["layers"]]
        assert [layer for layer in blobs_sent(registry) if layer in layers] == [layers[1]]
        reboot(machine)
        assert booted_digest(machine) == digests[-1]
        check(machine)
        assert not upgrade(machine).changed
    clean_up(machine.sysroot)
    left = {one.digest for one in storage.images()}
    assert digests[0] not in left
    assert set(digests[1:]) < left
    listed = list_system(machine.sysroot, Which.ALL)
    assert [(one.image, one.type) for one in listed] == [
        (name, ImageType.UNIFIED),
        (f"{registry.address}/os:bound", ImageType.LOGICAL),
    ]
    assert clean_up(machine.sysroot, assert_no_op=True).is_no_op


def processes_below(folder: Path) -> list[str]:
    """The command lines that name a path below the folder."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in line:
            found.append(line.replace(b"\0", b" ").decode())
    return found


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_killed_while_podman_pulls(machine: MockMachine, registry: Registry) -> None:
    set_unified(machine.sysroot, allow_copy=True)
    before, states = storage_of(machine).images(), os.listdir(machine.root / "state/deploy")
    publish(registry, "2")
    [new] = json.loads((registry.layout / "index.json").read_text())["manifests"]
    document = registry.find_blob(new["digest"])
    assert document is not None
    layer = json.loads(document.read_text())["layers"][-1]["digest"]
    registry.forget()
    registry.faults = (Fault(kind=FaultKind.STALL, on=On.BLOBS, at=10, digest=layer),)
    argv = [sys.executable, "-c", UPGRADE, json.dumps(asdict(machine.sysroot))]
    with process.running(argv, env={"PYTHONPATH": str(TOP)}) as child:
        wait_until(lambda: registry.met == (1,) or child.poll() is not None, "nobody asked for it")
        assert child.poll() is None
        assert [line for line in processes_below(machine.run) if " service " in line]
        child.kill()
        child.wait()
    wait_until(lambda: not processes_below(machine.path), "a process is left")
    assert not os.path.exists(machine.sysroot.staged_file)
    assert os.listdir(machine.root / "state/deploy") == states
    assert machine.menu() == [machine.sysroot.booted]
    assert storage_of(machine).images() == before
    registry.faults = ()
    made = upgrade(machine)
    assert made.staged is not None
    assert made.staged.digest == new["digest"]
    assert processes_below(machine.path) == []
    reboot(machine)
    check(machine)


def wrap_in_index(registry: Registry) -> None:
    """What is published becomes one of two images of an index, as most registries have them."""
    path = registry.layout / "index.json"
    [entry] = json.loads(path.read_text())["manifests"]
    own = {key: entry[key] for key in ("mediaType", "digest", "size")}
    native = {"os": "linux", "architecture": "amd64"}
    other = {**own, "digest": sha256(b"other"), "platform": {**native, "architecture": "s390x"}}
    manifests = [other, {**own, "platform": native}]
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).encode()
    entry |= {"mediaType": INDEX, **write_blob(registry.layout, index)}
    path.write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def test_an_image_for_several_architectures(machine: MockMachine, registry: Registry) -> None:
    wrap_in_index(registry)
    first = booted_digest(machine)
    assert set_unified(machine.sysroot, allow_copy=True).digest == first
    publish(registry, "2")
    [entry] = json.loads((registry.layout / "index.json").read_text())["manifests"]
    wrap_in_index(registry)
    made = upgrade(machine)
    assert made.staged is not None
    assert made.staged.digest == entry["digest"]
    assert {one.digest for one in storage_of(machine).images()} == {first, entry["digest"]}
    reboot(machine)
    assert upgrade(machine).lines == (update.NO_UPDATE,)
    check(machine)


def test_a_switch_makes_a_system_unified(machine: MockMachine, registry: Registry) -> None:
    target = parse_imgref(publish(registry, "2", "2"))
    told = Recorder()
    made = update.switch(machine.sysroot, target, unify=COPY, observer=told)
    assert made.staged is not None
    assert [one.digest for one in storage_of(machine).images()] == [made.staged.digest]
    assert copies_allowed(str(machine.root))
    ids = {event.id for event in told.events if isinstance(event, Started)}
    assert sha256(COMMON) in ids
    assert {event.id for event in told.events if isinstance(event, Done)} == ids
    reboot(machine)
    publish(registry, "3", "2")
    assert upgrade(machine).ready
    assert len(storage_of(machine).images()) == 2


def test_an_image_of_the_machines_own_storage(machine: MockMachine, registry: Registry) -> None:
    """It is looked at first, and the locks that this takes must not keep podman waiting."""
    publish(registry, "2", "2")
    process.run(["podman", "pull", "--quiet", f"{registry.address}/os:2"])
    process.run(["podman", "tag", f"{registry.address}/os:2", "localhost/mine"])
    target = ImageReference(image="localhost/mine", transport=Transport.CONTAINERS_STORAGE)
    made = update.switch(machine.sysroot, target, unify=COPY)
    assert made.staged is not None
    [stored] = storage_of(machine).images()
    assert (stored.digest, stored.has_name("localhost/mine")) == (made.staged.digest, True)
    reboot(machine)
    check(machine)
    assert not set_unified(machine.sysroot).changed


@pytest.mark.parametrize(
    ("fault", "said", "hint"),
    [
        (Fault(kind=FaultKind.UNAUTHORIZED), "nauthorized|authentication", "auth.json"),
        (Fault(kind=FaultKind.NOT_FOUND, on=On.MANIFESTS), "name unknown", "list-tags"),
        (Fault(kind=FaultKind.WRONG_CONTENT, on=On.BLOBS, at=100), "digest|gzip|corrupt", ""),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_a_pull_that_fails_leaves_nothing(
    tmp_path: Path, registry: Registry, fault: Fault, said: str, hint: str
) -> None:
    image = parse_imgref(publish(registry, "1"))
    storage = make_storage(str(tmp_path / "root"), run=str(tmp_path / "run"))
    registry.faults = (fault,)
    with pytest.raises(BootcError, match=said) as caught:
        fetch_image(storage, image, lambda line: None)
    assert hint in (find_hint(caught.value) or "")
    assert storage.images() == ()
    assert sorted(os.listdir(tmp_path / "run")) == ["storage-run"]
    registry.faults = ()
    fetched = fetch_image(storage, image, lambda line: None)
    assert set(fetched.image.names) == {f"{registry.address}/os:1", claim_name(fetched.digest)}


def test_layers_that_are_there_are_told_as_such(tmp_path: Path, registry: Registry) -> None:
    storage = make_storage(str(tmp_path / "root"), run=str(tmp_path / "run"))
    fetch_image(storage, parse_imgref(publish(registry, "1")), lambda line: None)
    image = parse_imgref(publish(registry, "2"))
    told = Recorder()
    with open_image(image) as offered:
        fetch(storage, image, offered, told)
    assert Skipped(id=sha256(COMMON)) in told.events
    assert [type(event) for event in told.events if not isinstance(event, Skipped)] == [
        Started,
        Done,
    ]


def test_other_transports_go_by_podmans_command(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    layout.mkdir()
    reference = parse_imgref(write_layout(layout, [COMMON], how="gzip", tag="x"))
    storage = make_storage(str(tmp_path / "root"), run=str(tmp_path / "run"))
    fetched = fetch_image(storage, reference, lambda line: None)
    assert claim_name(fetched.digest) in fetched.image.names
    missing = parse_imgref(f"oci:{tmp_path}/none:x")
    with pytest.raises(BootcError, match="podman: pull of oci:"):
        fetch_image(storage, missing, lambda line: None)
    assert [one.id for one in storage.images()] == [fetched.image.id]


def test_an_image_of_the_machines_storage_is_copied(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    layout.mkdir()
    write_layout(layout, [COMMON], how="gzip", tag="x")
    image = process.run(["podman", "pull", "--quiet", f"oci:{layout}:x"]).stdout.strip()
    process.run(["podman", "tag", image, "localhost/mine"])
    storage = make_storage(str(tmp_path / "root"), run=str(tmp_path / "run"))
    mine = ImageReference(image="localhost/mine", transport=Transport.CONTAINERS_STORAGE)
    fetched = fetch_image(storage, mine, lambda line: None)
    assert "localhost/mine:latest" in fetched.image.names
    # An install in a container knows its image by the id alone.
    by_id = ImageReference(image=image, transport=Transport.CONTAINERS_STORAGE)
    again = fetch_image(storage, by_id, lambda line: None)
    assert again.image.id == fetched.image.id == image
    assert again.digest == fetched.digest
    none = ImageReference(image="localhost/none", transport=Transport.CONTAINERS_STORAGE)
    with pytest.raises(BootcError, match="there is no such image") as caught:
        fetch_image(storage, none, lambda line: None)
    assert "podman images" in str(caught.value.hint)


@pytest.mark.parametrize("unified", [True, False])
def test_a_deployed_image_is_given_to_podman(machine: MockMachine, unified: bool) -> None:
    if unified:
        set_unified(machine.sysroot, allow_copy=True)
    assert copy_to_storage(machine.sysroot) == "containers-storage:localhost/bootc"
    with Repository.open(machine.root / paths.REPOSITORY) as repo:
        config = load_image(repo, f"@{booted_digest(machine)}").config
    argv = ["podman", "image", "inspect", "--format", "{{.Id}}", "localhost/bootc"]
    assert f"sha256:{process.run(argv).stdout.strip()}" == sha256(config)
    with pytest.raises(BootcError, match=r"no deployment is of quay\.io/none") as caught:
        copy_to_storage(machine.sysroot, source="quay.io/none")
    assert "/os:1" in str(caught.value.hint)


def test_a_locked_storage_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    storage = make_storage(str(tmp_path / "root"), run=str(tmp_path / "run"))
    with open(f"{storage.path}/overlay-images/images.lock", "r+b") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        with pytest.raises(BootcError, match="podman did not finish") as caught:
            storage.run_podman("images", timeout=2)
    assert f"fuser -v {storage.path}/storage.lock" in str(caught.value.hint)
    assert storage.run_podman("images", "--quiet") == ""


def test_what_podman_could_not_make_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    fake = programs / "podman"
    fake.write_text("#!/bin/sh\necho 'Error: no overlay here' >&2\nexit 125\n")
    fake.chmod(0o755)
    root = tmp_path / "root"
    with monkeypatch.context() as changed:
        changed.setenv("PATH", str(programs), prepend=":")
        with pytest.raises(BootcError, match="no overlay here"):
            make_storage(str(root), run=str(tmp_path / "run"))
        fake.write_text("#!/bin/sh\nexit 0\n")
        with pytest.raises(BootcError, match="made no overlay-images") as caught:
            make_storage(str(root), run=str(tmp_path / "run"))
        assert caught.value.hint
    assert os.listdir(root / "composefs/bootc") == []
    left = root / "composefs/bootc/storage.tmp"
    (left / "half").mkdir(parents=True)
    (root / "composefs/bootc/storage").mkdir()
    assert find_storage(str(root)) is None
    made = make_storage(str(root), run=str(tmp_path / "run"))
    assert not left.exists()
    assert made.images() == ()


def test_labels_are_those_of_podmans_own_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """restorecon sees the new storage at the path that the policy knows; others never do."""
    programs, log = tmp_path / "bin", tmp_path / "log"
    programs.mkdir()
    fake = programs / "restorecon"
    fake.write_text(f'#!/bin/sh\necho "$@" > {log}; ls "$2" >> {log}\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    root, before = tmp_path / "root", blockdev.read_mounts()
    storage = make_storage(str(root), run=str(tmp_path / "run"), selinux=True)
    words, *seen = log.read_text().splitlines()
    assert words == "-R /var/lib/containers/storage"
    assert "overlay-images" in seen
    assert os.path.exists(f"{storage.path}/.bootc_labeled")
    assert blockdev.read_mounts() == before
    log.unlink()
    make_storage(str(root), run=str(tmp_path / "run"), selinux=True)
    assert not log.exists()
    fake.write_text("#!/bin/sh\necho 'no policy' >&2\nexit 1\n")
    with pytest.raises(BootcError, match="no policy"):
        make_storage(str(tmp_path / "other"), run=str(tmp_path / "run"), selinux=True)
    assert os.listdir(tmp_path / "other/composefs/bootc") == []


def test_the_verbs_of_the_command_line(
    machine: MockMachine,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def opened(*, writable: bool = True, wait: bool = True) -> AbstractContextManager[Sysroot]:
        return nullcontext(machine.sysroot)

    monkeypatch.setattr("bootc.deploy.sysroot.is_container", lambda: False)
    monkeypatch.setattr("bootc.deploy.sysroot.open_booted", opened)
    monkeypatch.setattr("bootc.deploy.migrate.open_booted", opened)
    name = f"{registry.address}/os:1"

    def run(*argv: str, status: int = 0) -> str:
        assert main.main(["image", *argv]) == status
        said = capfd.readouterr()
        return said.out if status == 0 else said.err

    assert run("list").splitlines()[1:] == [f"{name}  host"]
    said = run("set-unified", status=1)
    assert "has no reflinks" in said
    assert "hint: --allow-copy" in said
    assert run("set-unified", "--allow-copy", "--quiet").startswith(f"Unified: {name} sha256:")
    publish(registry, "2", "2")
    pulled = run("cmd", "pull", f"{registry.address}/os:2").strip()
    assert json.loads(run("list", "--format", "json")) == [
        {"image": name, "image_type": "unified"},
        {"image": f"{registry.address}/os:2", "image_type": "logical"},
    ]
    assert pulled[:12] in run("cmd", "list")
    assert run("copy-to-storage", "--target", "localhost/copy").strip() == (
        "containers-storage:localhost/copy"
    )
    process.run(["podman", "tag", "localhost/copy", "localhost/mine"])
    assert run("pull-from-default-storage", "localhost/mine").strip()
    assert storage_of(machine).find_image("localhost/mine") is not None
    said = run("cmd", "push", "localhost/none", f"dir:{machine.path}/none", status=1)
    assert "podman image push ended with status 125" in said
    run("cmd", "push", "localhost/mine", f"dir:{machine.path}/pushed")
    assert (machine.path / "pushed/manifest.json").exists()
