# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The kit's refusals as a person sees them: one `error:` line, one `hint:` line, no traceback.

The kit runs as a program of its own, with nothing of our environment but what a test gives it.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bootc import process
from vmtests import cache, image, paths, podman
from vmtests.content import Inputs

TOP = Path(__file__).resolve().parents[2]
INVOKE = ("-m", "invoke")
TMT = ("-m", "vmtests.main")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What was said; `story` is the rest of stderr."""

    status: int
    error: str
    hint: str
    story: str


def run_kit(*argv: str, path: str | None = None, **settings: str) -> process.Completed:
    """Python with `argv` in the checkout; `settings` are all of its environment, beside PATH."""
    kept = {"PATH": path or os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **settings}
    told = [f"{name}={value}" for name, value in kept.items()]
    return process.run(
        ["env", "-i", *told, sys.executable, *argv], cwd=TOP, check=False, timeout=120
    )


def refusal(done: process.Completed) -> Refusal:
    """The one error and the one hint of a refused command, which must not have answered."""
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
    assert len(errors) == 1, done.stderr
    assert len(hints) == 1, done.stderr
    story = "\n".join(line for line in lines if not line.startswith(("error: ", "hint: ")))
    return Refusal(status=done.status, error=errors[0], hint=hints[0], story=story)


def path_without(folder: Path, *hidden: str) -> str:
    """A PATH that has every program but those whose names begin like one of `hidden`."""
    folder.mkdir()
    for part in os.environ["PATH"].split(":"):
        for found in Path(part).iterdir() if part and Path(part).is_dir() else ():
            if not found.name.startswith(hidden) and not (folder / found.name).exists():
                (folder / found.name).symlink_to(found)
    for place in ("/usr/local/sbin", "/usr/sbin", "/sbin"):  # where every program is looked for
        for name in hidden:
            if list(Path(place).glob(f"{name}*")):
                pytest.skip(f"{name} is in {place}, and cannot be hidden")
    return str(folder)


@pytest.mark.parametrize(
    "argv",
    [
        (*INVOKE, "build"),
        (*INVOKE, "build", "--json"),
        (*INVOKE, "why-rebuild"),
        (*INVOKE, "bcvk-up"),
        (*INVOKE, "bcvk-ephemeral"),
    ],
    ids=" ".join,
)
def test_an_unknown_value_is_refused_before_anything_is_done(argv: tuple[str, ...]) -> None:
    said = refusal(run_kit(*argv, BOOTC_bootloader="gurb"))
    assert said.status == 1
    assert said.error == ("BOOTC_bootloader=gurb: 'gurb' is none of systemd, grub, grub-cc, none")
    assert said.hint == (
        "did you mean grub? That is not supported yet: set BOOTC_bootloader=systemd"
    )
    assert said.story == ""


@pytest.mark.parametrize("verb", ["tmt", "tmt-full", "interop"])
def test_an_unknown_value_is_no_failed_test(verb: str) -> None:
    said = refusal(run_kit(*TMT, verb, BOOTC_bootloader="gurb"))
    assert said.status == 2
    assert said.error.startswith("BOOTC_bootloader=gurb: 'gurb' is none of systemd")
    assert said.story == ""


def test_a_combination_that_cannot_boot_names_the_rules_and_a_way_out() -> None:
    said = refusal(run_kit(*INVOKE, "build", BOOTC_seal_state="sealed", BOOTC_filesystem="xfs"))
    assert said.status == 1
    assert "BOOTC_seal_state=sealed BOOTC_filesystem=xfs: breaks C1" in said.error
    assert "C2 (sealed ⇒ filesystem is not xfs): a sealed root needs fs-verity" in said.error
    # What this release can do comes first.
    assert said.hint.startswith("set BOOTC_seal_state=unsealed; or set ")


def test_a_way_out_is_none_that_is_refused_again() -> None:
    asked = {"BOOTC_seal_state": "sealed", "BOOTC_filesystem": "xfs"}
    said = refusal(run_kit(*INVOKE, "build", **asked))
    found = re.match(r"set (BOOTC_\w+)=(\w+);", said.hint)
    assert found is not None
    told = run_kit(*INVOKE, "explain", **(asked | {found[1]: found[2]}))
    assert "refused" not in told.stdout


def test_a_misspelt_variable_is_refused() -> None:
    said = refusal(run_kit(*INVOKE, "build", BOOTC_bootlaoder="systemd"))
    assert said.status == 1
    assert said.error == "BOOTC_bootlaoder: unknown variable"
    assert said.hint == "did you mean BOOTC_bootloader?"


def test_a_disk_that_is_too_small_is_refused_with_the_reason() -> None:
    said = refusal(run_kit(*INVOKE, "build", BOOTC_disk_size="100M"))
    assert said.status == 1
    assert said.error.startswith("BOOTC_disk_size=100M: is too small: at least 2G, because ")
    assert said.hint == "set BOOTC_disk_size to a size, 2G or more, or unset it"


def test_all_mistakes_are_told_at_once() -> None:
    said = refusal(run_kit(*INVOKE, "build", BOOTC_bootlaoder="systemd", BOOTC_vcpus="many"))
    assert said.error == (
        "BOOTC_bootlaoder: unknown variable; BOOTC_vcpus=many: is not a whole number"
    )
    assert said.hint == ("did you mean BOOTC_bootloader?; set BOOTC_vcpus to 1 to 255, or unset it")


def test_another_computers_libvirt_is_refused() -> None:
    said = refusal(run_kit(*INVOKE, "bcvk-up", BOOTC_libvirt_uri="qemu+ssh://far/system"))
    assert said.error.endswith("names the host far, and machines run on this one only")
    assert "qemu:///system" in said.hint


def test_variants_mark_nothing_when_the_options_cannot_be_read() -> None:
    done = run_kit(*INVOKE, "variants", BOOTC_bootloader="gurb")
    assert done.status == 0
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("warning: BOOTC_bootloader=gurb: 'gurb' is none of")
    assert "*" not in done.stdout
    assert "*" in run_kit(*INVOKE, "variants").stdout


def test_a_filter_that_selects_nothing_builds_nothing(tmp_path: Path) -> None:
    # Without podman it could not even look for an image.
    path = path_without(tmp_path / "bin", "podman")
    said = refusal(run_kit(*TMT, "tmt", "no-such-plan", path=path))
    assert said.status == 2
    assert said.error == "no plan and no test has 'no-such-plan' in its name"
    assert said.hint.startswith("plans: /tmt/plans/")
    assert said.story == ""


def test_a_failed_system_call_is_an_error_and_no_traceback() -> None:
    said = refusal(
        run_kit(*INVOKE, "package-srpm", "--allow-dirty", "--outdir", "/proc/bootc-no-such-folder")
    )
    assert said.status == 1
    assert "/proc/bootc-no-such-folder" in said.error
    assert "BOOTC_LOG=debug" in said.hint


def test_doctor_says_how_to_get_a_missing_qemu(tmp_path: Path) -> None:
    done = run_kit(*INVOKE, "doctor", path=path_without(tmp_path / "bin", "qemu-"))
    assert done.status == 1
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    for program in ("qemu-system-x86_64", "qemu-img (overlays)"):
        where = lines.index(f"missing  {program}")
        assert re.search(r"→ .*(install|package).* qemu-", lines[where + 1])


NEED_QEMU = {
    "an overlay": "qcow2.make_qcow2(folder / 'disk.qcow2', size=1 << 20)",
    "the KVM probe": "accel._key('qemu-system-x86_64')",
    "a machine": "hypervisor.open_hypervisor(None, folder).__enter__()",
}


@pytest.mark.parametrize("what", NEED_QEMU)
def test_whatever_needs_qemu_says_which_package_has_it(what: str, tmp_path: Path) -> None:
    script = (
        "from pathlib import Path\n"
        "from vmtests import accel, hypervisor, qcow2, tell\n"
        f"folder = Path({str(tmp_path)!r})\n"
        f"with tell.reported():\n    {NEED_QEMU[what]}\n"
    )
    said = refusal(run_kit("-c", script, path=path_without(tmp_path / "bin", "qemu-")))
    assert said.status == 1
    assert re.search(r"qemu-(img|system-x86_64) .*(is not on PATH|does not run)", said.error)
    assert re.search(r"apt-get install qemu-.* dnf install qemu-", said.hint)


def test_no_podman_is_told_with_the_package(tmp_path: Path) -> None:
    path = path_without(tmp_path / "bin", "podman")
    said = refusal(run_kit(*INVOKE, "build", path=path))
    assert said.status == 1
    assert said.error == "podman is not on PATH"
    assert "apt-get install podman" in said.hint


@pytest.fixture
def kernelless(tmp_path: Path) -> Iterator[str]:
    """An image in podman's storage that has one file, and that is no kernel."""
    tar = tmp_path / "tree.tar"
    with tarfile.open(tar, "w") as archive:
        member = tarfile.TarInfo("usr/lib/os-release")
        member.size = len(b"ID=none\n")
        archive.addfile(member, io.BytesIO(b"ID=none\n"))
    name = f"localhost/bootc-test-nokernel:{os.getpid()}"
    podman.podman("import", "--quiet", str(tar), name, timeout=120)
    try:
        yield name
    finally:
        podman.podman("rmi", name, timeout=120)


@pytest.mark.root
def test_an_image_without_a_kernel_is_refused(kernelless: str) -> None:
    built = image.read_image(kernelless)
    assert built is not None
    script = (
        "from vmtests import image, tell, tree\n"
        f"with tell.reported(), tree.exported(image.read_image({kernelless!r})):\n    pass\n"
    )
    inputs = Inputs({"image": built.id})
    try:
        said = refusal(run_kit("-c", script))
    finally:
        (paths.CACHE / f"trees-{inputs.key}.lock").unlink(missing_ok=True)
    assert said.status == 1
    assert said.error == (
        f"image {kernelless} has no kernel: there is nothing at usr/lib/modules/<version>/vmlinuz"
    )
    assert said.hint == "build it from a bootable base image (BOOTC_base), or unset BOOTC_base"
    assert not cache.is_cached("trees", inputs)


@pytest.mark.root
def test_an_image_that_the_kit_did_not_build_is_not_overwritten(kernelless: str) -> None:
    before = image.read_image(kernelless)
    said = refusal(run_kit(*INVOKE, "build", BOOTC_base_img=kernelless))
    assert said.status == 1
    assert said.error == f"{kernelless} is there, but was not built by this kit"
    assert said.hint == f"remove it (podman rmi {kernelless}) or set BOOTC_base_img"
    assert image.read_image(kernelless) == before
