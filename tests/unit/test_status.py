# SPDX-License-Identifier: Apache-2.0 OR MIT
"""From boot entries, origins and the repository to the Host document, on mock machines."""

import json
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bootc import paths, process, status
from bootc.boot import menu
from bootc.cli import render
from bootc.composefs.digest import Algorithm, digest_bytes
from bootc.composefs.documents import find_documents
from bootc.composefs.repository import Repository
from bootc.composefs.stored import load_image, open_stream
from bootc.deploy import selinux_policy, state
from bootc.deploy.sysroot import booted_deployment, find_cmdline, read_menu
from bootc.errors import BootcError
from bootc.spec import BootEntry, BootOrder, BootType, Host, UsrOverlay
from tests.sysroots import ImageContent, MockMachine

SCHEMA = Path(__file__).resolve().parents[2] / "tmt/tests/booted/host-v1.schema.json"
A = "a" * 128


@pytest.mark.parametrize(
    ("source", "expected"), [(f"composefs:{A}", A), (f"transient:composefs={A}", A)]
)
def test_booted_deployment(source: str, expected: str) -> None:
    assert booted_deployment(source) == expected


def test_booted_without_composefs() -> None:
    with pytest.raises(BootcError, match="told to boot a composefs image, but / is '/dev/vda3'"):
        booted_deployment("/dev/vda3")


def test_cmdline(tmp_path: Path) -> None:
    file = tmp_path / "cmdline"
    file.write_text("rw quiet\n")
    assert find_cmdline(str(file)) is None
    file.write_text(f"rw composefs=?{A}\n")
    found = find_cmdline(str(file))
    assert found is not None
    assert (found.digest, found.insecure) == (A, True)


@pytest.fixture
def machine(tmp_path: Path) -> MockMachine:
    return MockMachine(tmp_path / "machine")


def install(machine: MockMachine, *versions: str, **content: Any) -> list[str]:
    """Deploy images that differ in their versions alone, and in what is said."""
    return [
        machine.install(machine.image(version, ImageContent(version, **content)))
        for version in versions
    ]


def stage(machine: MockMachine, deployment: str, *, locked: bool = False) -> None:
    """Make a deployment of the menu the staged one."""
    entries = read_menu(machine.sysroot, paths.ENTRIES)
    by_id = {name: entry for name, (_, entry) in zip(machine.menu(), entries, strict=True)}
    chosen = by_id.pop(deployment)
    menu.write_staged(str(machine.esp), list(by_id.values()))
    menu.exchange(str(machine.esp))
    menu.write_staged(str(machine.esp), [chosen, by_id[machine.sysroot.need_booted()]])
    machine.stage_mark(deployment, locked=locked)


def read(machine: MockMachine, **options: Any) -> Host:
    """The document; it is valid, whatever is in it."""
    host = status.describe(machine.sysroot, **{"selinux": False, **options})
    check(host)
    return host


def check(host: Host) -> None:
    document = json.loads(render.host_json(host))
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document)
    assert render.host_yaml(host)
    assert render.host_human(host, verbose=True)


def verity(entry: BootEntry | None) -> str | None:
    return entry.composefs.verity if entry is not None and entry.composefs is not None else None


def test_one_deployment(machine: MockMachine) -> None:
    (one,) = install(machine, "1")
    host = read(machine)
    booted = host.status.booted
    assert booted is not None
    assert booted.composefs is not None
    assert booted.image is not None
    assert (booted.image.version, booted.image.architecture) == ("1", "amd64")
    assert booted.image.digest.startswith("sha256:")
    assert booted.composefs.verity == one
    assert booted.composefs.boot_type is BootType.BLS
    assert booted.composefs.boot_digest is not None
    assert booted.composefs.missing_verity_allowed
    assert host.spec.image == booted.image.image
    assert host.status.staged is None
    assert host.status.rollback is None
    assert not host.status.rollback_queued


def test_staged_rollback_and_others(machine: MockMachine) -> None:
    one, two, three, four = install(machine, "1", "2", "3", "4")
    stage(machine, four, locked=True)
    host = read(machine)
    assert verity(host.status.booted) == one
    assert verity(host.status.staged) == four
    assert host.status.staged is not None
    assert host.status.staged.download_only
    assert verity(host.status.rollback) == two
    assert [verity(entry) for entry in host.status.others] == [three]
    assert host.status.staged.image is not None
    assert host.spec.image == host.status.staged.image.image


def test_a_staged_deployment_may_be_in_the_menu_too(machine: MockMachine) -> None:
    _, two = install(machine, "1", "2")
    machine.stage_mark(two)
    host = read(machine)
    assert verity(host.status.staged) == two
    assert host.status.rollback is None
    assert not host.status.rollback_queued


def test_staged_entries_that_nothing_is_said_about_are_no_deployments(machine: MockMachine) -> None:
    _, two = install(machine, "1", "2")
    stage(machine, two)
    Path(machine.sysroot.staged_file).unlink()
    host = read(machine)
    assert (host.status.staged, host.status.rollback, host.status.others) == (None, None, ())


def test_defect_8_a_composefs_host_has_a_type(machine: MockMachine) -> None:
    install(machine, "1")
    assert json.loads(render.host_json(read(machine)))["status"]["type"] == "bootcHost"
    assert json.loads(render.host_json(Host()))["status"]["type"] is None


def test_defect_11_the_schema_wants_the_boot_type_with_a_capital(machine: MockMachine) -> None:
    install(machine, "1")
    booted = json.loads(render.host_json(read(machine)))["status"]["booted"]
    assert booted["composefs"]["bootType"] == "Bls"


def test_defect_3_a_rollback_is_queued_when_it_comes_first(machine: MockMachine) -> None:
    one, two = install(machine, "1", "2")
    host = read(machine)
    assert not host.status.rollback_queued
    assert host.spec.boot_order is BootOrder.DEFAULT
    machine.boot(two)
    host = read(machine)
    assert verity(host.status.rollback) == one
    assert host.status.rollback_queued
    assert host.spec.boot_order is BootOrder.ROLLBACK


def test_defect_25_booted_shows_nothing_but_the_booted_one(machine: MockMachine) -> None:
    one, _, _, four = install(machine, "1", "2", "3", "4")
    stage(machine, four)
    host = read(machine, booted_only=True)
    assert verity(host.status.booted) == one
    assert (host.status.staged, host.status.rollback, host.status.others) == (None, None, ())


# -- Soft reboots


def test_the_same_kernel_and_arguments_are_capable_of_a_soft_reboot(machine: MockMachine) -> None:
    install(machine, "1", "2")
    install(machine, "3", kernel=b"another")
    install(machine, "4", kargs={"a.toml": 'kargs = ["quiet"]'})
    host = read(machine)
    assert host.status.booted is not None
    assert not host.status.booted.soft_reboot_capable
    assert host.status.rollback is not None
    assert host.status.rollback.soft_reboot_capable
    assert [entry.soft_reboot_capable for entry in host.status.others] == [False, False]


def _with_policy(policy: bytes | None, kind: str = "targeted") -> dict[str, bytes]:
    config = f"# a comment\nSELINUX=enforcing\nSELINUXTYPE={kind}\n# {'x' * 100}\n".encode()
    folder = f"etc/selinux/{kind}"
    found = {
        "etc/selinux/config": config,
        f"{folder}/contexts/files/file_contexts": b"",
        f"{folder}/policy/policy.9": b"old",
    }
    if policy is not None:
        found[f"{folder}/policy/policy.33"] = policy
    return found


def test_another_selinux_policy_needs_a_whole_reboot(machine: MockMachine) -> None:
    big = b"policy" * 100
    install(machine, "1", "2", extra=_with_policy(big))
    install(machine, "3", extra=_with_policy(b"tiny"))
    install(machine, "4", extra=_with_policy(None))
    install(machine, "5")
    install(machine, "6", extra=_with_policy(big, "mls"))
    on = read(machine, selinux=True).status
    assert on.rollback is not None
    assert on.rollback.soft_reboot_capable
    assert [entry.soft_reboot_capable for entry in on.others] == [False, False, False, True]
    off = read(machine, selinux=False).status
    assert all(entry.soft_reboot_capable for entry in off.others)
    live = machine.etc(machine.sysroot.need_booted()) / "selinux/targeted/policy/policy.33"
    live.write_bytes(b"changed here")
    changed = read(machine, selinux=True).status
    assert changed.rollback is not None
    assert not changed.rollback.soft_reboot_capable


def test_policies_are_known_by_their_digests(machine: MockMachine) -> None:
    _, two = install(machine, "1", "2", extra=_with_policy(b"tiny"))
    expected = digest_bytes(b"tiny", Algorithm.SHA512)
    assert selinux_policy.policy_of_root(str(machine.current)) == expected
    with Repository.open(machine.sysroot.repository) as repo:
        assert selinux_policy.policy_of_image(repo, two) == expected
        assert not selinux_policy.has_same_policy(repo, expected, "0" * 128)
    assert selinux_policy.policy_of_root(str(machine.path)) is None


# -- Damage


def test_an_entry_without_origin_is_left_out(
    machine: MockMachine, caplog: pytest.LogCaptureFixture
) -> None:
    _, two, three = install(machine, "1", "2", "3")
    (machine.root / paths.origin_file(two)).unlink()
    host = read(machine)
    assert verity(host.status.rollback) == three
    assert host.status.others == ()
    assert two in caplog.text
    ids = [getattr(record, "MESSAGE_ID", None) for record in caplog.records]
    assert "d264f924dadb4c31bff0412107d391fb" in ids


@pytest.mark.parametrize(
    "text",
    [b"", b"[", b"[origin]\n", b"[origin]\ncontainer-image-reference=x\n", b"\0", b"\xff\xfe["],
)
def test_a_damaged_origin_is_as_good_as_none(
    machine: MockMachine, caplog: pytest.LogCaptureFixture, text: bytes
) -> None:
    one, two = install(machine, "1", "2")
    for deployment in (one, two):
        (machine.root / paths.origin_file(deployment)).write_bytes(text)
    host = read(machine)
    assert verity(host.status.booted) == one
    assert host.status.booted is not None
    assert host.status.booted.image is None
    assert host.status.rollback is None
    assert "d264f924dadb4c31bff0412107d391fb" in [
        getattr(record, "MESSAGE_ID", None) for record in caplog.records
    ]


def test_a_damaged_entry_is_left_out(
    machine: MockMachine, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = install(machine, "1", "2")
    folder = machine.esp / paths.ENTRIES
    (folder / "bootc_half-1-0.conf").write_text("title half\noptions composefs=")
    (folder / "foreign.conf").write_text("title Other\nlinux /k\n")
    (folder / "bootc_binary-1-0.conf").write_bytes(b"\xff\xfe\0composefs")
    host = read(machine)
    assert [verity(host.status.booted), verity(host.status.rollback)] == [one, two]
    assert host.status.others == ()
    assert "bootc_half-1-0.conf" in caplog.text


def test_booted_without_entry_or_origin_is_still_told(machine: MockMachine) -> None:
    (one,) = install(machine, "1")
    (machine.root / paths.origin_file(one)).unlink()
    for entry in (machine.esp / paths.ENTRIES).iterdir():
        entry.unlink()
    host = read(machine)
    assert verity(host.status.booted) == one
    assert host.status.booted is not None
    assert host.status.booted.image is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"depl_id": 3}', "{}"])
def test_a_damaged_staged_file_stages_nothing(
    machine: MockMachine, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    _, two = install(machine, "1", "2")
    machine.stage_mark(two)
    Path(machine.sysroot.staged_file).write_text(text)
    host = read(machine)
    assert host.status.staged is None
    assert verity(host.status.rollback) == two
    assert "what is staged cannot be told" in caplog.text


def test_a_staged_deployment_without_origin_is_left_out(machine: MockMachine) -> None:
    _, two = install(machine, "1", "2")
    stage(machine, two)
    (machine.root / paths.origin_file(two)).unlink()
    assert read(machine).status.staged is None


def test_a_missing_image_is_a_warning(
    machine: MockMachine, caplog: pytest.LogCaptureFixture
) -> None:
    (one,) = install(machine, "1")
    origin = state.read_origin(str(machine.root), one)
    assert origin is not None
    gone = replace(origin, manifest_digest="sha256:" + "0" * 64)
    state.write_origin(str(machine.root), one, gone)
    host = read(machine)
    assert host.status.booted is not None
    assert host.status.booted.image is None
    assert "is not in the repository" in caplog.text


def test_a_repository_that_is_gone_is_a_warning(
    machine: MockMachine, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = install(machine, "1", "2")
    (machine.root / paths.REPOSITORY).rename(machine.root / "elsewhere")
    host = read(machine, selinux=True)
    assert [verity(host.status.booted), verity(host.status.rollback)] == [one, two]
    assert "the repository cannot be read" in caplog.text


def test_an_origin_of_an_older_version_still_leads_to_the_image(machine: MockMachine) -> None:
    one, two = install(machine, "1", "2")
    before = read(machine)
    for deployment in (one, two):
        origin = state.read_origin(str(machine.root), deployment)
        assert origin is not None
        state.write_origin(str(machine.root), deployment, replace(origin, manifest_digest=None))
    assert read(machine) == before


def test_documents_are_those_that_the_repository_has(machine: MockMachine) -> None:
    (one,) = install(machine, "1")
    origin = state.read_origin(str(machine.root), one)
    assert origin is not None
    digest = origin.manifest_digest
    assert digest is not None
    repository = machine.sysroot.repository
    found = find_documents(repository, digest)
    assert found is not None
    with Repository.open(repository) as repo:
        image = load_image(repo, f"@{digest}")
    assert found.manifest.value == json.loads(image.manifest)
    assert found.config.value == json.loads(image.config)
    assert find_documents(repository, "sha256:" + "0" * 64) is None
    assert find_documents(repository, "../../etc") is None


@pytest.mark.parametrize("which", ["stream", "object"])
def test_damaged_documents_are_never_shown(
    machine: MockMachine, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    (one,) = install(machine, "1")
    origin = state.read_origin(str(machine.root), one)
    assert origin is not None
    stream = Path(machine.sysroot.repository) / f"streams/oci-manifest-{origin.manifest_digest}"
    victim = stream.resolve()
    if which == "object":
        with Repository.open(machine.sysroot.repository) as repo:
            digest = open_stream(repo, stream.name).only_object().hex()
        victim = stream.parents[1] / "objects" / digest[:2] / digest[2:]
    before = read(machine).status.booted
    victim.chmod(0o644)
    data = victim.read_bytes()
    for damaged in (b"", data[:20], data[:-9], data.replace(b"sha256", b"sha257"), bytes(99)):
        victim.write_bytes(damaged)
        booted = read(machine).status.booted
        assert booted is not None
        # A damaged stream may still lead to the whole document, which its digest proves.
        assert booted.image is None or (which == "stream" and booted == before)
    assert "is not in the repository" in caplog.text


# -- At rest


def test_a_sysroot_at_rest_has_only_others_in_the_order_of_its_menu(machine: MockMachine) -> None:
    ids = install(machine, "1", "2", "3")
    host = status.describe(replace(machine.sysroot, booted=None))
    check(host)
    assert [verity(entry) for entry in host.status.others] == ids
    assert (host.status.booted, host.status.staged, host.status.rollback) == (None, None, None)
    assert host.spec.image is None
    assert not host.status.rollback_queued
    assert render.host_human(host).count("Other image") == 3


def test_without_an_esp_the_state_folders_tell(machine: MockMachine) -> None:
    ids = install(machine, "1", "2")
    (machine.root / paths.STATE_DEPLOY / "half").mkdir()
    host = status.describe(replace(machine.sysroot, booted=None, esp=None))
    check(host)
    assert sorted(str(verity(entry)) for entry in host.status.others) == sorted(ids)


def test_what_is_no_sysroot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BootcError, match="is not the root of a system that bootc installed"):
        status.read_host_at(str(tmp_path))
    with pytest.raises(BootcError, match="missing"):
        status.read_host_at(str(tmp_path / "missing"))


# -- Random states


def test_random_states_give_valid_documents_that_name_each_deployment_once(
    tmp_path: Path,
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    machine = MockMachine(tmp_path / "machine")
    ids = install(machine, *"12345")
    menu_now = read_menu(machine.sysroot, paths.ENTRIES)
    entries = {name: entry for name, (_, entry) in zip(machine.menu(), menu_now, strict=True)}
    for _ in range(60):
        order = rng.sample(ids, rng.randint(0, 5))
        menu.write_staged(str(machine.esp), [entries[name] for name in order])
        menu.exchange(str(machine.esp))
        machine.boot(rng.choice(ids))
        mark = rng.choice([*ids, None])
        Path(machine.sysroot.staged_file).unlink(missing_ok=True)
        if mark is not None:
            machine.stage_mark(mark)
        host = read(machine)
        shown = [
            verity(entry)
            for entry in (
                host.status.booted,
                host.status.staged,
                host.status.rollback,
                *host.status.others,
            )
            if entry is not None
        ]
        booted = machine.sysroot.booted
        first = [booted, *([mark] if mark in order and mark != booted else [])]
        assert shown == [*first, *(name for name in order if name not in first)]
        rollback = host.status.rollback
        is_first = rollback is not None and order[0] == verity(rollback)
        assert host.status.rollback_queued == is_first


_PROGRAM = """
import sys
from bootc import status
from bootc.cli import render
from bootc.deploy.sysroot import Sysroot

root, esp, run, current, booted = sys.argv[1:]
sysroot = Sysroot(root=root, esp=esp, run=run, current=current, booted=booted, insecure=True)
render.say_exactly(render.host_json(status.describe(sysroot)))
"""


def test_ten_at_once_say_the_same(machine: MockMachine) -> None:
    install(machine, "1", "2")
    sysroot = machine.sysroot
    argv = [sys.executable, "-c", _PROGRAM, sysroot.root, sysroot.need_esp(), sysroot.run]
    argv += [sysroot.current, sysroot.need_booted()]
    with ThreadPoolExecutor(10) as pool:
        options = {"PYTHONPATH": str(SCHEMA.parents[3])}
        said = [pool.submit(process.run, argv, env=options) for _ in range(10)]
        found = {one.result().stdout for one in said}
    assert found == {render.host_json(read(machine))}


def test_the_overlay_of_usr_is_shown(machine: MockMachine) -> None:
    install(machine, "1")
    host = read(machine)
    shown = replace(host, status=replace(host.status, usr_overlay=UsrOverlay(read_only=False)))
    check(shown)
    assert "/usr overlay: transient, read/write" in render.host_human(shown)


def _damage(path: Path, how: int, rng: random.Random) -> None:
    data = path.read_bytes() if path.is_file() else b""
    path.unlink()
    match how:
        case 0:
            return
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to(path.name)
        case 3:
            path.write_bytes(data[: rng.randrange(len(data) + 1)])
        case 4:
            path.write_bytes(rng.randbytes(200))
        case _:
            at = rng.randrange(len(data) + 1)
            path.write_bytes(data[:at] + rng.randbytes(3) + data[at + 3 :])


def test_no_damage_to_any_file_makes_status_fail(tmp_path: Path) -> None:
    print(f"seed {(seed := random.randrange(1 << 32))}")
    rng = random.Random(seed)
    machine = MockMachine(tmp_path / "machine")
    one, two, three = install(machine, "1", "2", "3")
    stage(machine, three)
    origin = state.read_origin(str(machine.root), two)
    assert origin is not None
    state.write_origin(str(machine.root), two, replace(origin, manifest_digest=None))
    repository = machine.root / paths.REPOSITORY
    victims = [
        *(machine.esp / "loader").rglob("*.conf"),
        *machine.root.glob(f"{paths.STATE_DEPLOY}/*/*.origin"),
        *repository.glob("streams/oci-*"),
        *repository.glob("images/*"),
        *(path.resolve() for path in repository.glob("streams/oci-manifest-*")),
        *(path.resolve() for path in repository.glob("streams/oci-config-*")),
        repository / "meta.json",
        Path(machine.sysroot.staged_file),
    ]
    victims = [path for path in victims if not path.is_dir() or path.is_symlink()]
    for victim in rng.sample(victims, 14):
        for how in range(6):
            kept = victim.with_name(victim.name + ".kept")
            victim.rename(kept)
            if kept.is_symlink():
                victim.symlink_to(os.readlink(kept))
            else:
                victim.write_bytes(kept.read_bytes())
            _damage(victim, how, rng)
            try:
                host = read(machine, selinux=rng.random() < 0.3)
                assert verity(host.status.booted) == one, (victim, how)
            finally:
                if victim.is_dir() and not victim.is_symlink():
                    victim.rmdir()
                victim.unlink(missing_ok=True)
                kept.rename(victim)
    assert verity(read(machine).status.staged) == three
