# SPDX-License-Identifier: Apache-2.0 OR MIT
"""upgrade, switch, finalize and rollback on a mock machine: from what is offered to what boots."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from bootc import paths
from bootc.boot import menu
from bootc.composefs.assemble import assemble
from bootc.composefs.repository import Repository
from bootc.composefs.stored import load_image
from bootc.deploy import state, update
from bootc.deploy.finalize import finalize_staged
from bootc.deploy.kernel import Kernel, find_kernel, known_boot_digest
from bootc.deploy.rollback import rollback
from bootc.deploy.sysroot import read_deployments
from bootc.deploy.update import UpgradeOptions
from bootc.errors import BootcError, chain_text, find_hint
from bootc.oci.reference import parse_imgref
from tests.ocibuild import write_blob, write_layout
from tests.sysroots import (
    FIRST_ARGUMENTS,
    ImageContent,
    MockMachine,
    everything,
    follow,
    reference_of,
    started,
)

NOTHING = UpgradeOptions()


@pytest.fixture
def machine(tmp_path: Path) -> MockMachine:
    return MockMachine(tmp_path / "machine")


def test_upgrade_finalize_reboot_rollback(machine: MockMachine) -> None:
    first = started(machine)
    follow(machine, "2")
    done = update.upgrade(machine.sysroot, NOTHING)
    assert done.staged is not None
    second = done.staged.id
    assert done.lines[0].startswith("Queued for next boot: oci:")
    assert done.lines[1:] == (
        "  Version: 1",
        f"  Digest: {done.staged.digest}",
        "  Total new layers: 1  Size: 10 KiB",
        "  Removed layers: 1  Size: 10 KiB",
        "  Added layers: 1  Size: 10 KiB",
    )
    assert (done.changed, done.ready) == (True, True)
    assert machine.menu() == [first]
    assert [(one.id, one.staged) for one in read_deployments(machine.sysroot)] == [
        (first, False),
        (second, True),
    ]
    assert (machine.run / "reboot-required").read_text() == f"{done.staged.digest}\n"
    finalized = finalize_staged(machine.sysroot)
    assert finalized is not None
    assert machine.menu() == [second, first]
    assert machine.reboot() == second
    assert rollback(machine.sysroot).lines == ("Next boot: rollback deployment",)
    assert machine.reboot() == first


def test_a_third_deployment_drops_the_first(machine: MockMachine) -> None:
    ids = [started(machine)]
    for version in ("2", "3"):
        follow(machine, version, ImageContent(version, kernel=f"kernel {version}".encode()))
        update.upgrade(machine.sysroot, NOTHING)
        finalize_staged(machine.sysroot)
        ids.append(machine.reboot())
    assert machine.menu() == [ids[2], ids[1]]
    folders = sorted(os.listdir(machine.esp / paths.ESP_KERNELS))
    assert folders == sorted(f"{paths.BOOT_PREFIX}{one}" for one in ids[1:])


def test_check_changes_nothing_even_with_the_image_pulled(machine: MockMachine) -> None:
    """Spec §14, 2: upstream's `--check` upgrades when the config is in the repository."""
    first = started(machine)
    follow(machine, "2")
    update.upgrade(machine.sysroot, NOTHING)
    rollback_free = everything(machine.path)
    done = update.upgrade(machine.sysroot, UpgradeOptions(check=True))
    assert done.lines[0].startswith("Update available for: oci:")
    assert done.lines[2].startswith("  Digest: sha256:")
    assert done.lines[-1].startswith("  Added layers: 1")
    assert not done.changed
    assert everything(machine.path) == rollback_free
    assert machine.menu() == [first]


def test_check_without_an_update(machine: MockMachine) -> None:
    started(machine)
    before = everything(machine.path)
    done = update.upgrade(machine.sysroot, UpgradeOptions(check=True))
    assert done.lines[0].startswith("No changes in: oci:")
    assert everything(machine.path) == before


def test_nothing_new(machine: MockMachine) -> None:
    started(machine)
    done = update.upgrade(machine.sysroot, NOTHING)
    assert (done.lines, done.changed, done.ready) == ((update.NO_UPDATE,), False, False)


def test_what_is_staged_already_is_recognised(machine: MockMachine) -> None:
    """Spec §14, 1: upstream compares a manifest digest with a config digest."""
    started(machine)
    follow(machine, "2")
    update.upgrade(machine.sysroot, NOTHING)
    done = update.upgrade(machine.sysroot, NOTHING)
    assert (done.lines, done.changed, done.ready) == ((update.KEPT,), False, True)


def test_download_only_and_back(machine: MockMachine) -> None:
    """Spec §14, 1: repeating `--download-only` toggles."""
    first = started(machine)
    follow(machine, "2")
    done = update.upgrade(machine.sysroot, UpgradeOptions(download_only=True))
    assert not done.ready
    assert not (machine.run / "reboot-required").exists()
    assert finalize_staged(machine.sysroot) is None
    assert machine.menu() == [first]
    done = update.upgrade(machine.sysroot, UpgradeOptions(download_only=True))
    assert (done.lines, done.ready) == ((update.KEPT,), False)
    done = update.upgrade(machine.sysroot, UpgradeOptions(from_downloaded=True))
    assert done.lines == ("Staged deployment will now be applied on reboot",)
    assert done.ready
    again = update.upgrade(machine.sysroot, UpgradeOptions(from_downloaded=True))
    assert again.lines == ("Staged deployment is already set to apply on reboot",)
    assert again.ready
    done = update.upgrade(machine.sysroot, UpgradeOptions(download_only=True))
    assert (done.changed, done.ready) == (True, False)
    done = update.upgrade(machine.sysroot, NOTHING)
    assert (done.changed, done.ready) == (True, True)
    assert finalize_staged(machine.sysroot) is not None


def test_from_downloaded_without_any(machine: MockMachine) -> None:
    started(machine)
    with pytest.raises(BootcError, match="No staged deployment found"):
        update.upgrade(machine.sysroot, UpgradeOptions(from_downloaded=True))


def test_a_new_upgrade_replaces_what_is_staged(machine: MockMachine) -> None:
    started(machine)
    follow(machine, "2")
    second = update.upgrade(machine.sysroot, NOTHING).staged
    follow(machine, "3")
    third = update.upgrade(machine.sysroot, NOTHING).staged
    assert second is not None
    assert third is not None
    mark = state.read_staged(machine.sysroot.staged_file)
    assert mark is not None
    assert mark.deployment == third.id
    finalize_staged(machine.sysroot)
    assert machine.reboot() == third.id


def test_switch_and_then_upgrades_from_there(machine: MockMachine) -> None:
    first = started(machine)
    target = parse_imgref(machine.image("other", ImageContent("9", os_id="other-os")))
    done = update.switch(machine.sysroot, target)
    assert done.staged is not None
    assert reference_of(machine, done.staged.id) == target
    # An upgrade follows what is staged by now, not what is booted.
    again = update.upgrade(machine.sysroot, NOTHING)
    assert again.lines == (update.KEPT,)
    finalize_staged(machine.sysroot)
    assert machine.reboot() == done.staged.id
    assert machine.menu() == [done.staged.id, first]
    assert update.upgrade(machine.sysroot, NOTHING).lines == (update.NO_UPDATE,)


def test_switch_to_what_is_followed(machine: MockMachine) -> None:
    first = started(machine)
    done = update.switch(machine.sysroot, reference_of(machine, first))
    assert (done.lines, done.changed, done.ready) == ((update.UNCHANGED,), False, False)


def test_switch_to_the_same_image_elsewhere(machine: MockMachine) -> None:
    first = started(machine)
    target = parse_imgref(machine.image("copy", ImageContent("1")))
    before = everything(machine.root)
    with pytest.raises(BootcError, match="same fs-verity digest as the existing booted") as caught:
        update.switch(machine.sysroot, target)
    assert caught.value.hint is not None
    assert "bootc switch --mutate-in-place --transport oci" in caught.value.hint
    assert everything(machine.root) == before
    done = update.switch_in_place(machine.sysroot, target)
    assert done.lines == (f"Updates will come from: {target.imgref}",)
    assert reference_of(machine, first) == target


def test_switch_to_the_same_system_in_another_manifest(machine: MockMachine) -> None:
    started(machine)
    target = parse_imgref(machine.image("copy", ImageContent("1")))
    layout = Path(target.layout()[0])
    index = (layout / "index.json").read_text()
    # The same layer, named once more by a manifest of its own.
    again = write_layout(layout, [ImageContent("1").tar()], how="gzip", tag="copy")
    assert (layout / "index.json").read_text() != index
    with pytest.raises(BootcError, match="same fs-verity digest as the existing booted"):
        update.switch(machine.sysroot, parse_imgref(again))
    assert not menu.has_staged(str(machine.esp))


def test_upgrade_to_the_rollback(machine: MockMachine) -> None:
    started(machine)
    follow(machine, "2")
    update.upgrade(machine.sysroot, NOTHING)
    finalize_staged(machine.sysroot)
    machine.reboot()
    follow(machine, "1")
    done = update.upgrade(machine.sysroot, NOTHING)
    assert done.lines[0].startswith("No changes in: ")
    assert "`bootc rollback` boots it" in done.lines[1]


def test_kernels_are_shared_and_not_copied(machine: MockMachine) -> None:
    first = started(machine)
    follow(machine, "2")
    update.upgrade(machine.sysroot, NOTHING)
    finalize_staged(machine.sysroot)
    second = machine.reboot()
    assert os.listdir(machine.esp / paths.ESP_KERNELS) == [f"{paths.BOOT_PREFIX}{first}"]
    follow(machine, "3")
    update.upgrade(machine.sysroot, NOTHING)
    finalize_staged(machine.sysroot)
    third = machine.reboot()
    assert machine.menu() == [third, second]
    # The first deployment is gone; its kernel isn't, because both others start it.
    assert os.listdir(machine.esp / paths.ESP_KERNELS) == [f"{paths.BOOT_PREFIX}{first}"]


def test_a_damaged_kernel_is_not_shared(machine: MockMachine) -> None:
    first = started(machine)
    (machine.esp / paths.ESP_KERNELS / f"{paths.BOOT_PREFIX}{first}" / "initrd").write_bytes(b"?")
    follow(machine, "2")
    done = update.upgrade(machine.sysroot, NOTHING)
    assert done.staged is not None
    own = machine.esp / paths.ESP_KERNELS / f"{paths.BOOT_PREFIX}{done.staged.id}"
    assert (own / "initrd").read_bytes() == b"initrd 1"


def test_a_kernel_that_the_booted_image_has_is_not_read_again(machine: MockMachine) -> None:
    first = started(machine)
    origin = state.read_origin(str(machine.root), first)
    assert origin is not None
    # Contents of files this small lie in the image itself; so this shows whose digest is taken.
    state.write_origin(str(machine.root), first, replace(origin, boot_digest="0" * 64))
    follow(machine, "2")
    done = update.upgrade(machine.sysroot, NOTHING)
    assert done.staged is not None
    # What the origin claims isn't what lies on the ESP: the kernel is written, and known rightly.
    own = machine.esp / paths.ESP_KERNELS / f"{paths.BOOT_PREFIX}{done.staged.id}"
    assert (own / "vmlinuz").read_bytes() == b"kernel 1"
    made = state.read_origin(str(machine.root), done.staged.id)
    assert made is not None
    assert made.boot_digest == origin.boot_digest


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_kernel_is_known_by_the_names_of_its_contents(machine: MockMachine, size: int) -> None:
    contents = [
        ImageContent("1", kernel=b"k" * size, initrd=b"i" * size),
        ImageContent("2", kernel=b"k" * size, initrd=b"i" * size),
        ImageContent("3", kernel=b"k" * size, initrd=b"j" * size),
    ]
    ids = [machine.install(machine.image(one.version, one)) for one in contents]
    with Repository.open(machine.sysroot.repository) as repo:
        found = []
        for name in ids:
            origin = state.read_origin(str(machine.root), name)
            assert origin is not None
            kernel = find_kernel(assemble(repo, load_image(repo, f"@{origin.manifest_digest}")))
            assert isinstance(kernel, Kernel)
            found.append(known_boot_digest(kernel, repo.read_image(ids[0]), "the digest"))
    assert found == ["the digest", "the digest", None]


def test_a_kernel_of_the_same_version_may_be_another(machine: MockMachine) -> None:
    first = started(machine)
    follow(machine, "2", ImageContent("2", initrd=b"initrd 2"))
    done = update.upgrade(machine.sysroot, NOTHING)
    assert done.staged is not None
    origins = [state.read_origin(str(machine.root), name) for name in (first, done.staged.id)]
    assert len({one.boot_digest for one in origins if one is not None}) == 2
    own = machine.esp / paths.ESP_KERNELS / f"{paths.BOOT_PREFIX}{done.staged.id}"
    assert (own / "initrd").read_bytes() == b"initrd 2"


def arguments(machine: MockMachine, deployment: str) -> list[str]:
    found = {one.id: one for one in read_deployments(machine.sysroot)}
    entry = found[deployment].entry
    assert entry is not None
    return entry.arguments


def test_kernel_arguments_follow_kargs_d(machine: MockMachine) -> None:
    """Spec §14, 17: without kargs.d in the new image the old arguments go."""
    first = machine.install(
        machine.image(
            "updates",
            ImageContent("1", kargs={"a.toml": 'kargs = ["one", "two=2"]\n'}),
        )
    )
    assert arguments(machine, first) == [*FIRST_ARGUMENTS, f"composefs=?{first}", "one", "two=2"]
    follow(machine, "2", ImageContent("2", kargs={"a.toml": 'kargs = ["two=2", "three"]\n'}))
    update.upgrade(machine.sysroot, NOTHING)
    finalize_staged(machine.sysroot)
    second = machine.reboot()
    assert arguments(machine, second) == [
        *FIRST_ARGUMENTS,
        f"composefs=?{second}",
        "two=2",
        "three",
    ]
    follow(machine, "3")
    update.upgrade(machine.sysroot, NOTHING)
    finalize_staged(machine.sysroot)
    third = machine.reboot()
    assert arguments(machine, third) == [*FIRST_ARGUMENTS, f"composefs=?{third}"]


def test_etc_is_carried_over(machine: MockMachine) -> None:
    first = started(machine)
    (machine.etc(first) / "mine").write_text("kept\n")
    (machine.etc(first) / "hostname").write_text("changed\n")
    follow(machine, "2", ImageContent("2", etc={"hostname": b"two\n", "new": b"default\n"}))
    update.upgrade(machine.sysroot, NOTHING)
    (machine.etc(first) / "late").write_text("after staging\n")
    finalize_staged(machine.sysroot)
    second = machine.reboot()
    found = {path.name: path.read_text() for path in machine.etc(second).iterdir()}
    assert found == {
        "hostname": "changed\n",
        "late": "after staging\n",
        "mine": "kept\n",
        "new": "default\n",
    }


def test_a_conflict_in_etc_stages_nothing(machine: MockMachine) -> None:
    first = started(machine)
    (machine.etc(first) / "thing.d").mkdir()
    follow(machine, "2", ImageContent("2", etc={"thing.d": b"a file\n"}))
    with pytest.raises(BootcError, match=r"Merge conflicts found in etc: Directory 'thing\.d'"):
        update.upgrade(machine.sysroot, NOTHING)
    assert state.read_staged(machine.sysroot.staged_file) is None
    assert not menu.has_staged(str(machine.esp))
    assert state.list_deployments(str(machine.root)) == [first]


def test_a_conflict_at_shutdown_leaves_the_old_system(machine: MockMachine) -> None:
    first = started(machine)
    follow(machine, "2", ImageContent("2", etc={"thing.d": b"a file\n"}))
    update.upgrade(machine.sysroot, NOTHING)
    (machine.etc(first) / "thing.d").mkdir()
    with pytest.raises(BootcError, match="Merge conflicts found in etc"):
        finalize_staged(machine.sysroot)
    assert machine.reboot() == first


def test_finalizing_twice_does_not_exchange_back(machine: MockMachine) -> None:
    started(machine)
    follow(machine, "2")
    done = update.upgrade(machine.sysroot, NOTHING)
    assert done.staged is not None
    finalize_staged(machine.sysroot)
    machine.stage_mark(done.staged.id)
    finalize_staged(machine.sysroot)
    assert machine.reboot() == done.staged.id


def test_var_is_not_touched(machine: MockMachine) -> None:
    started(machine)
    mine = machine.root / paths.STATE_VAR / "mine"
    mine.write_text("mine")
    follow(machine, "2", ImageContent("2", extra={"var/theirs": b"theirs"}))
    update.upgrade(machine.sysroot, NOTHING)
    finalize_staged(machine.sysroot)
    machine.reboot()
    assert [path.name for path in mine.parent.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (ImageContent("2", extra={"usr/lib/modules/7.0/vmlinuz": b"k"}), "has several kernels"),
        (ImageContent("2", kernel=b"", initrd=b""), "has no kernel"),
        (ImageContent("2", initrd=b""), "has no initramfs.img"),
        (ImageContent("2", extra={"boot/EFI/Linux/a.efi": b"MZ"}), "is no PE file"),
    ],
)
def test_images_that_cannot_boot(machine: MockMachine, content: ImageContent, problem: str) -> None:
    first = started(machine)
    follow(machine, "2", content)
    with pytest.raises(BootcError, match=problem):
        update.upgrade(machine.sysroot, NOTHING)
    assert not menu.has_staged(str(machine.esp))
    assert state.list_deployments(str(machine.root)) == [first]


def test_a_system_with_an_empty_os_release_gets_names_of_its_id(machine: MockMachine) -> None:
    started(machine)
    content = ImageContent("2", extra={"usr/lib/os-release": b"\n"})
    follow(machine, "2", content)
    done = update.upgrade(machine.sysroot, NOTHING)
    assert done.staged is not None
    finalize_staged(machine.sysroot)
    assert f"bootc_bootc-{done.staged.id}-1.conf" in os.listdir(machine.esp / paths.ENTRIES)
    assert machine.reboot() == done.staged.id


def test_an_image_without_os_release_at_all_is_refused(machine: MockMachine) -> None:
    first = started(machine)
    content = ImageContent("2")
    tar = content.tar()
    at = tar.index(b"usr/lib/os-release")
    size = 512 + -(-int(tar[at + 124 : at + 135], 8) // 512) * 512
    layout = machine.path / "images" / "updates"
    write_layout(layout, [tar[:at] + tar[at + size :]], tag="updates")
    with pytest.raises(BootcError, match="has no /usr/lib/os-release") as caught:
        update.upgrade(machine.sysroot, NOTHING)
    assert caught.value.hint is not None
    assert not menu.has_staged(str(machine.esp))
    assert state.list_deployments(str(machine.root)) == [first]


def test_leftovers_of_an_interrupted_upgrade(machine: MockMachine) -> None:
    first = started(machine)
    follow(machine, "2")
    done = update.upgrade(machine.sysroot, NOTHING)
    assert done.staged is not None
    # The power goes: /run is empty, everything else is there.
    assert machine.reboot() == first
    again = update.upgrade(machine.sysroot, NOTHING)
    assert again.staged is not None
    assert again.staged.id == done.staged.id
    finalize_staged(machine.sysroot)
    assert machine.reboot() == done.staged.id


def test_an_image_that_is_not_there(machine: MockMachine) -> None:
    first = started(machine)
    target = parse_imgref(f"oci:{machine.path}/nowhere:latest")
    with pytest.raises(BootcError) as caught:
        update.switch(machine.sysroot, target)
    assert "is no OCI layout" in chain_text(caught.value)
    assert find_hint(caught.value) is not None
    assert state.list_deployments(str(machine.root)) == [first]


def test_an_image_that_breaks_off(machine: MockMachine) -> None:
    """A blob that is shorter than its manifest says."""
    first = started(machine)
    follow(machine, "2")
    layout = machine.path / "images" / "updates"
    blobs = (layout / "blobs/sha256").iterdir()
    largest = max(blobs, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:2048])
    with pytest.raises(BootcError) as caught:
        update.upgrade(machine.sysroot, NOTHING)
    assert find_hint(caught.value) is not None
    assert state.list_deployments(str(machine.root)) == [first]
    follow(machine, "2")
    assert update.upgrade(machine.sysroot, NOTHING).staged is not None


def test_an_image_for_another_machine(machine: MockMachine) -> None:
    started(machine)
    follow(machine, "2")
    layout = machine.path / "images" / "updates"
    index = json.loads((layout / "index.json").read_text())
    [entry] = index["manifests"]
    manifest = json.loads((layout / "blobs" / entry["digest"].replace(":", "/")).read_text())
    path = layout / "blobs" / manifest["config"]["digest"].replace(":", "/")
    config = json.loads(path.read_text()) | {"architecture": "s390x"}
    manifest["config"] |= write_blob(layout, json.dumps(config).encode())
    entry |= write_blob(layout, json.dumps(manifest).encode())
    (layout / "index.json").write_text(json.dumps(index))
    for options in (NOTHING, UpgradeOptions(check=True)):
        with pytest.raises(BootcError, match="is for s390x, this machine is "):
            update.upgrade(machine.sysroot, options)


def test_a_damaged_mark_is_an_error_with_advice(machine: MockMachine) -> None:
    first = started(machine)
    follow(machine, "2")
    update.upgrade(machine.sysroot, NOTHING)
    mark = Path(machine.sysroot.staged_file)
    mark.write_text("{")
    for work in (finalize_staged, lambda one: update.upgrade(one, NOTHING)):
        with pytest.raises(BootcError, match="is not JSON") as caught:
            work(machine.sysroot)
        assert caught.value.hint is not None
        assert f"rm {mark}" in caught.value.hint
    mark.unlink()
    assert update.upgrade(machine.sysroot, NOTHING).staged is not None
    assert machine.menu() == [first]


def test_the_booted_one_without_an_entry_is_refused(machine: MockMachine) -> None:
    started(machine)
    for path in (machine.esp / paths.ENTRIES).iterdir():
        path.unlink()
    follow(machine, "2")
    with pytest.raises(BootcError, match="has no entry in the boot menu"):
        update.upgrade(machine.sysroot, NOTHING)


@pytest.mark.parametrize(
    ("image", "tag", "expected"),
    [
        ("docker://quay.io:5000/a/b:1", "2", "docker://quay.io:5000/a/b:2"),
        ("docker://quay.io/a/b", "2", "docker://quay.io/a/b:2"),
        ("docker://quay.io/a/b:1@sha256:00", "2", "docker://quay.io/a/b:2"),
        ("containers-storage:localhost/a:1", "2", "containers-storage:localhost/a:2"),
        ("oci:/a/b:1", "2", "oci:/a/b:2"),
        ("oci:/a/b", "2", "oci:/a/b:2"),
    ],
)
def test_tag(image: str, tag: str, expected: str) -> None:
    assert update.with_tag(parse_imgref(image), tag).imgref == expected


@pytest.mark.parametrize("tag", ["", "a/b", "a:b", "a@b"])
def test_no_tag(tag: str) -> None:
    with pytest.raises(BootcError, match="is not a tag"):
        update.with_tag(parse_imgref("docker://quay.io/a/b"), tag)


def test_upgrade_by_tag(machine: MockMachine) -> None:
    first = started(machine)
    layout = machine.path / "images" / "updates"
    write_layout(layout, [ImageContent("2").tar()], tag="next")
    done = update.upgrade(machine.sysroot, UpgradeOptions(tag="next"))
    assert done.staged is not None
    assert reference_of(machine, done.staged.id).imgref == f"oci:{layout}:next"
    assert reference_of(machine, first).imgref == f"oci:{layout}:updates"


def test_the_signature_policy_is_kept_and_enforced(
    machine: MockMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spec §14, 20: upstream's origin is always unverified."""
    first = started(machine)
    origin = state.read_origin(str(machine.root), first)
    assert origin is not None
    signed = replace(origin, image=replace(origin.image, signature="containerPolicy"))
    state.write_origin(str(machine.root), first, signed)
    assert state.read_origin(str(machine.root), first) == signed
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    monkeypatch.setenv("CONTAINERS_POLICY_JSON", str(policy))
    follow(machine, "2")
    with pytest.raises(BootcError, match="accepts anything for it"):
        update.upgrade(machine.sysroot, NOTHING)


def test_damaged_origin_of_the_booted_one(machine: MockMachine) -> None:
    first = started(machine)
    (machine.root / paths.origin_file(first)).unlink()
    with pytest.raises(BootcError, match="no image reference is known") as caught:
        update.upgrade(machine.sysroot, NOTHING)
    assert caught.value.hint == "say where updates come from: bootc switch IMAGE"
    follow(machine, "2")
    target = parse_imgref(f"oci:{machine.path}/images/updates:updates")
    assert update.switch(machine.sysroot, target).staged is not None


def test_the_repository_is_whole_after_an_upgrade(machine: MockMachine) -> None:
    started(machine)
    follow(machine, "2")
    done = update.upgrade(machine.sysroot, NOTHING)
    assert done.staged is not None
    with Repository.open(machine.sysroot.repository) as repo:
        assert repo.find_tag(f"{paths.TAG_PREFIX}{done.staged.digest}") is not None
        assert repo.find_image(done.staged.id) is not None
