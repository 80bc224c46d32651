# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What cleaning up removes and, above all, what it must leave; on mock machines."""

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bootc import paths
from bootc.boot import bls, menu
from bootc.composefs.fsck import check_repository
from bootc.composefs.gc import GcResult
from bootc.composefs.pull import pull
from bootc.composefs.repository import Repository
from bootc.composefs.stored import load_image
from bootc.deploy import legacy, messages, state
from bootc.deploy.cleanup import clean_up
from bootc.deploy.kernel import list_kernel_folders
from bootc.deploy.sysroot import Sysroot, read_deployments, read_menu
from bootc.errors import BootcError
from bootc.oci.layout import open_source
from tests.cuts import run_until_cut
from tests.sysroots import ImageContent, MockMachine


def build(path: Path, *contents: ImageContent) -> tuple[MockMachine, list[str]]:
    """A machine with these deployments, and no garbage."""
    machine = MockMachine(path)
    found = [machine.install(machine.image(one.version, one)) for one in contents]
    clean_up(machine.sysroot)
    return machine, found


def versions(*names: str, kernel: bytes | None = None) -> list[ImageContent]:
    """Images with a kernel each, or with one that they have in common."""
    return [
        ImageContent(
            name, kernel=kernel or name.encode() * 9, extra={"usr/big": name.encode() * 99}
        )
        for name in names
    ]


def test_images_of_kept_deployments_are_not_searched_for_what_their_layers_have(
    tmp_path: Path,
) -> None:
    machine, ids = build(tmp_path, *versions("1", "2"))
    result = clean_up(machine.sysroot, dry_run=True)
    assert result.is_no_op
    assert not set(ids) & set(result.plan.roots)
    # An image that its OCI image does not name is a root itself, and needs what it needs.
    origin = state.read_origin(str(machine.root), ids[1])
    assert origin is not None
    state.write_origin(str(machine.root), ids[1], replace(origin, manifest_digest="sha256:0"))
    result = clean_up(machine.sysroot, dry_run=True)
    assert set(ids) & set(result.plan.roots) == {ids[1]}


def keep(machine: MockMachine, *deployments: str) -> None:
    """Make the menu these deployments."""
    entries = {
        one.id: one.entry for one in read_deployments(machine.sysroot) if one.entry is not None
    }
    menu.write_staged(str(machine.esp), [entries[name] for name in deployments])
    menu.exchange(str(machine.esp))


def entry_of(machine: MockMachine, deployment: str) -> bls.Entry:
    for one in read_deployments(machine.sysroot):
        if one.id == deployment and one.entry is not None:
            return one.entry
    raise AssertionError(deployment)


def snapshot(top: Path) -> dict[str, object]:
    """Everything below a folder: types, modes, times, targets, contents."""
    found: dict[str, object] = {}
    for folder, folders, files in os.walk(top):
        for name in [*folders, *files]:
            path = Path(folder) / name
            status = path.lstat()
            content: object = None
            if path.is_symlink():
                content = os.readlink(path)
            elif path.is_file():
                content = path.read_bytes()
            found[str(path.relative_to(top))] = (status.st_mode, status.st_mtime_ns, content)
    return found


def check_whole(machine: MockMachine) -> None:
    """Each deployment of the menu has its kernel, state, image, tag and every object."""
    with Repository.open(machine.sysroot.repository) as repo:
        assert not [str(one) for one in check_repository(repo).findings]
        for name, entry in read_menu(machine.sysroot, paths.ENTRIES):
            assert entry.linux is not None, name
            assert (machine.esp / entry.linux.lstrip("/")).is_file()
        for one in read_deployments(machine.sysroot):
            if one.staged:
                continue
            assert one.origin is not None
            assert machine.etc(one.id).is_dir()
            assert repo.has_image(bytes.fromhex(one.id))
            assert one.origin.manifest_digest is not None
            load_image(repo, f"{paths.TAG_PREFIX}{one.origin.manifest_digest}")


def tags(machine: MockMachine) -> list[str]:
    with Repository.open(machine.sysroot.repository) as repo:
        return [tag for tag, _ in repo.tags()]


def test_nothing_to_do_is_a_no_op(tmp_path: Path) -> None:
    machine, _ = build(tmp_path / "m", *versions("1", "2"))
    clean_up(machine.sysroot)
    before = snapshot(machine.path)
    result = clean_up(machine.sysroot, assert_no_op=True)
    assert result.is_no_op
    assert result.collected == GcResult()
    assert snapshot(machine.path) == before


def test_what_no_entry_names_goes_and_the_rest_stays(tmp_path: Path) -> None:
    machine, (one, two, three) = build(tmp_path / "m", *versions("1", "2", "3"))
    keep(machine, one, three)
    result = clean_up(machine.sysroot)
    assert result.plan.kernels == (f"{paths.BOOT_PREFIX}{two}",)
    assert result.plan.states == (two,)
    assert len(result.plan.tags_removed) == 1
    assert result.collected is not None
    assert result.collected.objects_removed > 0
    assert sorted(state.list_deployments(str(machine.root))) == sorted([one, three])
    assert len(tags(machine)) == 2
    check_whole(machine)
    assert clean_up(machine.sysroot, assert_no_op=True).is_no_op


def test_a_dry_run_changes_nothing_and_says_what_would_go(tmp_path: Path) -> None:
    machine, (one, two, three) = build(tmp_path / "m", *versions("1", "2", "3"))
    keep(machine, one, three)
    with Repository.open(machine.sysroot.repository) as repo:
        for tag in list(repo.tags())[:1]:
            repo.untag(tag[0])
    menu.write_staged(str(machine.esp), [entry_of(machine, one)])
    before = snapshot(machine.path)
    planned = clean_up(machine.sysroot, dry_run=True)
    assert snapshot(machine.path) == before
    with pytest.raises(BootcError, match=f"there is garbage: .*State: {two}"):
        clean_up(machine.sysroot, assert_no_op=True)
    assert snapshot(machine.path) == before
    assert clean_up(machine.sysroot) == planned


def test_a_dry_run_does_not_even_upgrade_an_old_repository(tmp_path: Path) -> None:
    machine, _ = build(tmp_path / "m", *versions("1"))
    (machine.root / paths.REPOSITORY / "meta.json").unlink()
    before = snapshot(machine.path)
    with pytest.raises(BootcError, match="of an old format"):
        clean_up(machine.sysroot, dry_run=True)
    assert snapshot(machine.path) == before
    clean_up(machine.sysroot)
    check_whole(machine)


def test_without_pruning_only_kernels_go(tmp_path: Path) -> None:
    machine, (one, two) = build(tmp_path / "m", *versions("1", "2"))
    keep(machine, one)
    result = clean_up(machine.sysroot, prune=False)
    assert result.collected is None
    assert list_kernel_folders(str(machine.esp)) == [f"{paths.BOOT_PREFIX}{one}"]
    assert sorted(state.list_deployments(str(machine.root))) == sorted([one, two])
    assert len(tags(machine)) == 2


def share_kernel(machine: MockMachine, deployment: str, owner: str) -> bls.Entry:
    """The entry of `deployment` with the kernel that was written for `owner`."""
    folder = f"/{paths.ESP_KERNELS}/{paths.BOOT_PREFIX}{owner}"
    shutil.rmtree(machine.esp / paths.ESP_KERNELS / f"{paths.BOOT_PREFIX}{deployment}")
    entry = entry_of(machine, deployment)
    return replace(entry, linux=f"{folder}/vmlinuz", initrd=(f"{folder}/initrd",))


def test_a_kernel_that_is_shared_stays_when_its_first_deployment_goes(tmp_path: Path) -> None:
    machine, (one, two, three) = build(tmp_path / "m", *versions("1", "2", "3", kernel=b"same"))
    shared = share_kernel(machine, two, three)
    menu.write_staged(str(machine.esp), [entry_of(machine, one), shared])
    menu.exchange(str(machine.esp))
    result = clean_up(machine.sysroot)
    assert result.plan.states == (three,)
    assert result.plan.kernels == ()
    check_whole(machine)
    keep(machine, one)
    assert clean_up(machine.sysroot).plan.kernels == (f"{paths.BOOT_PREFIX}{three}",)
    check_whole(machine)


def test_foreign_tags_survive(tmp_path: Path) -> None:
    machine, (one, _) = build(tmp_path / "m", *versions("1", "2"))
    app = machine.image("app", ImageContent("app", extra={"usr/app": b"app" * 99}))
    with Repository.open(machine.sysroot.repository) as repo, open_source(app) as source:
        pulled = pull(repo, source, reference=app, tag="quay.io/example/app:latest")
    keep(machine, one)
    clean_up(machine.sysroot)
    assert "quay.io/example/app:latest" in tags(machine)
    with Repository.open(machine.sysroot.repository) as repo:
        assert load_image(repo, f"@{pulled.manifest_digest}").layers
    check_whole(machine)


def test_missing_tags_are_made_before_anything_goes(tmp_path: Path) -> None:
    machine, _ = build(tmp_path / "m", *versions("1", "2"))
    with Repository.open(machine.sysroot.repository) as repo:
        for tag, _ in list(repo.tags()):
            repo.untag(tag)
    result = clean_up(machine.sysroot)
    assert len(result.plan.tags_made) == 2
    assert result.is_no_op
    check_whole(machine)


def test_a_staged_deployment_is_kept_by_its_mark_alone(tmp_path: Path) -> None:
    machine, (one, two, three) = build(tmp_path / "m", *versions("1", "2", "3"))
    staged = entry_of(machine, three)
    keep(machine, one, two)
    menu.write_staged(str(machine.esp), [staged, entry_of(machine, one)])
    machine.stage_mark(three)
    assert clean_up(machine.sysroot).is_no_op
    assert menu.has_staged(str(machine.esp))
    # A power cut: /run is empty after it.
    Path(machine.sysroot.staged_file).unlink()
    result = clean_up(machine.sysroot)
    assert result.plan.staged_menu
    assert result.plan.states == (three,)
    assert result.plan.kernels == (f"{paths.BOOT_PREFIX}{three}",)
    assert not menu.has_staged(str(machine.esp))
    check_whole(machine)


@pytest.mark.parametrize("text", ["{", '{"depl_id": "gone", "finalization_locked": false}'])
def test_a_mark_of_nothing_is_removed(tmp_path: Path, text: str) -> None:
    machine, (one,) = build(tmp_path / "m", *versions("1"))
    machine.stage_mark(one)
    Path(machine.sysroot.staged_file).write_text(text)
    assert clean_up(machine.sysroot).plan.staged_mark
    assert not Path(machine.sysroot.staged_file).exists()


def test_if_the_booted_one_were_hit_nothing_is_done(tmp_path: Path) -> None:
    machine, (one, two) = build(tmp_path / "m", *versions("1", "2"))
    keep(machine, two)
    before = snapshot(machine.path)
    for prune in (True, False):
        with pytest.raises(BootcError, match=r"the booted deployment .* has no boot entry"):
            clean_up(machine.sysroot, prune=prune)
    assert snapshot(machine.path) == before
    assert machine.sysroot.booted == one


def test_a_damaged_entry_keeps_what_it_mentions(tmp_path: Path) -> None:
    machine, (one, two, three) = build(tmp_path / "m", *versions("1", "2", "3"))
    folder = machine.esp / paths.ENTRIES
    for name, _ in read_menu(machine.sysroot, paths.ENTRIES):
        text = (folder / name).read_text()
        if two in text:
            (folder / name).write_text("\n".join(text.splitlines()[2:]))
    assert [one.id for one in read_deployments(machine.sysroot)] == [one, three]
    result = clean_up(machine.sysroot)
    assert (result.plan.kernels, result.plan.states) == ((), ())
    with Repository.open(machine.sysroot.repository) as repo:
        assert repo.has_image(bytes.fromhex(two))
        assert not check_repository(repo).findings


@pytest.mark.parametrize("text", ["", "title half\noptions composefs=", "\0" * 99])
def test_an_entry_that_tells_nothing_keeps_everything(tmp_path: Path, text: str) -> None:
    machine, (one, two, three) = build(tmp_path / "m", *versions("1", "2", "3"))
    folder = machine.esp / paths.ENTRIES
    (victim,) = (
        folder / name
        for name, _ in read_menu(machine.sysroot, paths.ENTRIES)
        if two in (folder / name).read_text()
    )
    kept = victim.read_text()
    victim.write_text(text)
    for prune in (True, False):
        assert clean_up(machine.sysroot, prune=prune).is_no_op
    victim.write_text(kept)
    check_whole(machine)
    assert sorted(state.list_deployments(str(machine.root))) == sorted([one, two, three])
    assert len(tags(machine)) == 3


def test_what_is_no_deployment_in_the_state_folder_is_left_alone(tmp_path: Path) -> None:
    machine, (one, two) = build(tmp_path / "m", *versions("1", "2"))
    keep(machine, one)
    (machine.root / paths.STATE_DEPLOY / "notes").mkdir()
    var = machine.root / paths.state_dir(two) / "var"
    var.unlink()
    var.mkdir()
    (var / "precious").write_text("data")
    clean_up(machine.sysroot)
    assert (machine.root / paths.STATE_DEPLOY / "notes").is_dir()
    assert (var / "precious").read_text() == "data"


def test_removing_a_state_does_not_touch_var(tmp_path: Path) -> None:
    machine, (one, _) = build(tmp_path / "m", *versions("1", "2"))
    shared = machine.root / paths.STATE_VAR / "log"
    shared.write_text("log")
    keep(machine, one)
    clean_up(machine.sysroot)
    assert state.list_deployments(str(machine.root)) == [one]
    assert shared.read_text() == "log"


def test_a_kernel_that_lost_its_long_name_goes(tmp_path: Path) -> None:
    """A power cut may keep only the second of two sectors that a long name of vfat lies in."""
    machine, (one, two) = build(tmp_path / "m", *versions("1", "2"))
    kernels = machine.esp / paths.ESP_KERNELS
    cut, image = kernels / "bootc_~2", machine.esp / paths.UKI_FOLDER / "bootc_~1.efi"
    theirs = kernels / "boot~1"
    for folder in (cut, image.parent, theirs):
        folder.mkdir()
    for file in (cut / "vmlinuz.new", image, theirs / "vmlinuz"):
        file.write_text("kernel")
    clean_up(machine.sysroot)
    assert not cut.exists()
    assert not image.exists()
    assert theirs.exists()
    assert set(machine.menu()) == {one, two}
    check_whole(machine)


def test_a_kernel_that_lost_its_long_name_stays_while_one_is_missing(tmp_path: Path) -> None:
    machine, (one, two) = build(tmp_path / "m", *versions("1", "2"))
    kernels = machine.esp / paths.ESP_KERNELS
    (kernels / f"{paths.BOOT_PREFIX}{one}").rename(kernels / "BOOTC_~1")
    clean_up(machine.sysroot)
    assert sorted(path.name for path in kernels.iterdir()) == [
        "BOOTC_~1",
        f"{paths.BOOT_PREFIX}{two}",
    ]


def test_defect_6_images_in_the_container_storage_survive(tmp_path: Path) -> None:
    machine, (one, _) = build(tmp_path / "m", *versions("1", "2"))
    bound = machine.root / paths.STORAGE / "overlay-images" / "images.json"
    bound.parent.mkdir(parents=True)
    bound.write_text("[]")
    keep(machine, one)
    clean_up(machine.sysroot)
    assert bound.read_text() == "[]"
    check_whole(machine)


def test_leftovers_of_an_aborted_upgrade_go_and_are_named_in_the_journal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine, (one, two) = build(tmp_path / "m", *versions("1", "2"))
    aborted = "cd" * 64
    state.make_skeleton(str(machine.root), aborted)
    folder = machine.esp / paths.ESP_KERNELS / f"{paths.BOOT_PREFIX}{aborted}"
    folder.mkdir()
    (folder / "vmlinuz.new").write_text("half")
    staged = machine.esp / paths.ENTRIES_STAGED
    staged.mkdir()
    (staged / ".bootc_x-1-1.conf.Ab3").write_text("title ha")
    (staged / "bootc_x-1-0.conf").write_text(f"options composefs={aborted}")
    with caplog.at_level("INFO"):
        clean_up(machine.sysroot)
    assert sorted(state.list_deployments(str(machine.root))) == sorted([one, two])
    assert not folder.exists()
    assert not staged.exists()
    told = [
        record.getMessage()
        for record in caplog.records
        if getattr(record, "MESSAGE_ID", None) == messages.REMOVED
    ]
    assert told == [
        "removed a staged menu that nothing waits for",
        f"removed the kernel folder {paths.BOOT_PREFIX}{aborted}",
        f"removed the state of deployment {aborted}",
    ]
    check_whole(machine)


# -- Origins of older versions


def make_legacy(machine: MockMachine, deployment: str, *, prefix: str = "sha256:") -> str:
    """Turn an origin into the old form; returns the manifest's digest."""
    origin = state.read_origin(str(machine.root), deployment)
    assert origin is not None
    assert origin.manifest_digest is not None
    with Repository.open(machine.sysroot.repository) as repo:
        image = load_image(repo, f"@{origin.manifest_digest}")
    state.write_origin(str(machine.root), deployment, replace(origin, manifest_digest=None))
    manifest = json.loads(image.manifest)
    manifest["config"]["digest"] = prefix + image.config_digest.removeprefix("sha256:")
    text = json.dumps({"config": json.loads(image.config), "manifest": manifest})
    (machine.root / paths.state_dir(deployment) / f"{deployment}.imginfo").write_text(text)
    return origin.manifest_digest


@pytest.mark.parametrize("prefix", ["sha256:", ""])
def test_defect_9_the_digest_from_an_imginfo_has_its_algorithm(tmp_path: Path, prefix: str) -> None:
    machine, (_, two) = build(tmp_path / "m", *versions("1", "2"))
    digest = make_legacy(machine, two, prefix=prefix)
    assert digest.startswith("sha256:")
    known = {item.id: item for item in read_deployments(machine.sysroot)}
    with Repository.open(machine.sysroot.repository) as repo:
        for tag, _ in list(repo.tags()):
            repo.untag(tag)
        assert legacy.find_manifest_digest(repo, str(machine.root), known[two]) == digest
    result = clean_up(machine.sysroot)
    assert digest in result.plan.tags_made
    assert f"{paths.TAG_PREFIX}{digest}" in tags(machine)


def test_without_an_imginfo_the_tagged_image_is_found_by_the_id(tmp_path: Path) -> None:
    machine, (_, two) = build(tmp_path / "m", *versions("1", "2"))
    digest = make_legacy(machine, two)
    (machine.root / paths.state_dir(two) / f"{two}.imginfo").unlink()
    known = {item.id: item for item in read_deployments(machine.sysroot)}
    with Repository.open(machine.sysroot.repository) as repo:
        assert legacy.find_manifest_digest(repo, str(machine.root), known[two]) == digest
    assert clean_up(machine.sysroot).is_no_op


@pytest.mark.parametrize("text", ["", "{}", '{"manifest": {"config": {"digest": "x"}}}', "[1"])
def test_a_damaged_imginfo_costs_nothing(tmp_path: Path, text: str) -> None:
    machine, (_, two) = build(tmp_path / "m", *versions("1", "2"))
    make_legacy(machine, two)
    (machine.root / paths.state_dir(two) / f"{two}.imginfo").write_text(text)
    assert legacy.read_config_digest(str(machine.root), two) is None
    assert clean_up(machine.sysroot).is_no_op


def test_a_deployment_whose_image_nobody_knows_keeps_its_files(tmp_path: Path) -> None:
    machine, (_, two) = build(tmp_path / "m", *versions("1", "2"))
    (machine.root / paths.origin_file(two)).unlink()
    with Repository.open(machine.sysroot.repository) as repo:
        for tag, _ in list(repo.tags()):
            repo.untag(tag)
    clean_up(machine.sysroot)
    assert two in state.list_deployments(str(machine.root))
    with Repository.open(machine.sysroot.repository) as repo:
        assert repo.has_image(bytes.fromhex(two))
        assert not check_repository(repo).findings


# -- Interrupted


def test_cut_at_any_change_the_next_run_finishes_and_nothing_dangles(tmp_path: Path) -> None:
    machine, (one, _, three) = build(tmp_path / "m", *versions("1", "2", "3"))
    keep(machine, one, three)
    menu.write_staged(str(machine.esp), [entry_of(machine, one)])
    model = tmp_path / "model"
    machine.path.rename(model)
    rng = random.Random(seed := random.randrange(1 << 32))
    number = 0
    cuts = 0
    while True:
        shutil.copytree(model, machine.path, symlinks=True)
        if not run_until_cut(lambda: clean_up(machine.sysroot), number):
            break
        cuts += 1
        check_whole(machine)
        clean_up(machine.sysroot)
        check_whole(machine)
        assert clean_up(machine.sysroot, assert_no_op=True).is_no_op, f"cut {number}, seed {seed}"
        assert sorted(state.list_deployments(str(machine.root))) == sorted([one, three])
        shutil.rmtree(machine.path)
        number += rng.randint(1, 4)
    assert cuts > 5


def test_random_menus_leave_what_they_name(tmp_path: Path) -> None:
    print(f"seed {(seed := random.randrange(1 << 32))}")
    rng = random.Random(seed)
    machine, ids = build(tmp_path / "m", *versions("1", "2", "3", "4", "5"))
    while len(ids) > 1:
        ids = rng.sample(ids, rng.randint(1, len(ids)))
        keep(machine, *ids)
        machine.boot(rng.choice(ids))
        mark = rng.choice([*ids, None])
        if mark is not None:
            machine.stage_mark(mark)
        clean_up(machine.sysroot)
        check_whole(machine)
        assert sorted(state.list_deployments(str(machine.root))) == sorted(ids)
        assert list_kernel_folders(str(machine.esp)) == sorted(
            f"{paths.BOOT_PREFIX}{name}" for name in ids
        )
        assert len(tags(machine)) == len(ids)


def test_without_an_esp_nothing_is_done(tmp_path: Path) -> None:
    machine, _ = build(tmp_path / "m", *versions("1"))
    blind: Sysroot = replace(machine.sysroot, esp=None)
    with pytest.raises(BootcError, match="no EFI system partition"):
        clean_up(blind, prune=False)
