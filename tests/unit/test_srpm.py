# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The pure half of packaging: versions, the archive's bytes, the spec's text, the pins.

What needs git and rpmbuild is in tests/host/test_srpm_host.py.
"""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import io
import itertools
import re
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"


def load(name: str) -> ModuleType:
    """A module of packaging/, which is no package; not entered in sys.modules, as tasks.py does."""
    spec = importlib.util.spec_from_file_location(f"test_{name}", PACKAGING / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


version = load("version")
srpm = load("srpm")
vendor = load("vendor")


def source(*, backwards: bool = False) -> object:
    """Three files of a development build; `backwards` names them in the other order."""
    members = [
        srpm.Member(name="b.txt", data=b"two\n"),
        srpm.Member(name="a/z.sh", data=b"#!/bin/sh\n", executable=True),
        srpm.Member(name="link", data=b"b.txt", symlink=True),
    ]
    return srpm.Source(
        members=tuple(reversed(members) if backwards else members),
        version=version.Version.parse("0.1.0.dev3+g0123456789"),
        commit="0123456789abcdef0123456789abcdef01234567",
        time=1_700_000_000,
    )


@pytest.mark.parametrize(
    ("pep440", "rpm"),
    [
        ("0.1.0", "0.1.0"),
        ("1.2", "1.2"),
        ("0.1.0.dev12+g1a2b3c4d5e", "0.1.0~dev12^g1a2b3c4d5e"),
        ("0.1.1.dev0+g1a2b3c4d5e.dirty", "0.1.1~dev0^g1a2b3c4d5e.dirty"),
    ],
)
def test_version_has_two_spellings_and_parses_its_own(pep440: str, rpm: str) -> None:
    parsed = version.Version.parse(pep440)
    assert parsed.pep440 == pep440
    assert parsed.rpm == rpm


@pytest.mark.parametrize("text", ["", "v1.0", "1.0rc1", "1.0.dev3", "1.0+g12", "1.0\n", "1..0"])
def test_version_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(version.VersionError, match="is not a version of the form"):
        version.Version.parse(text)


def test_development_builds_sort_below_their_release_in_pep440() -> None:
    rising = ["0.0.9", "0.1.0.dev2+gffff", "0.1.0.dev10+g0000", "0.1.0", "0.1.1.dev0+g0000.dirty"]
    parse = importlib.import_module("packaging.version").Version
    assert all(parse(low) < parse(high) for low, high in itertools.pairwise(rising))
    assert [str(parse(text)) for text in rising] == rising  # already in normal form


def test_version_is_written_into_the_one_line_that_has_it() -> None:
    text = '"""Doc."""\n\n__version__ = "0.1.0"\n'
    assert version.stamped(text, "0.1.0.dev3+gabc") == text.replace("0.1.0", "0.1.0.dev3+gabc")
    for bad in ("", text + text, "__version__ = VERSION\n"):
        with pytest.raises(version.VersionError, match="no single line"):
            version.stamped(bad, "1")


def test_archive_is_sorted_owned_by_root_and_dated_by_the_commit() -> None:
    data = srpm.archive_bytes(source())
    assert data[4:8] == bytes(4), "gzip's own time"
    assert data[3] == 0, "gzip's flags: no file name"
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
        script = tar.extractfile("bootc-0.1.0~dev3^g0123456789/a/z.sh")
        assert script is not None
        assert script.read() == b"#!/bin/sh\n"
    top = "bootc-0.1.0~dev3^g0123456789"
    assert [member.name for member in members] == [f"{top}/a/z.sh", f"{top}/b.txt", f"{top}/link"]
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {
        (0, 0, "", "", 1_700_000_000)
    }
    assert [member.mode for member in members] == [0o755, 0o644, 0o777]
    assert members[2].issym()
    assert members[2].linkname == "b.txt"


def test_archive_does_not_depend_on_the_order_of_reading() -> None:
    assert srpm.archive_bytes(source()) == srpm.archive_bytes(source(backwards=True))


def test_spec_gets_version_and_changelog_and_nothing_else() -> None:
    template = (PACKAGING / "bootc.spec").read_text()
    text = srpm.spec_text(template, source())
    added = [line for line in text.splitlines() if line not in template.splitlines()]
    assert added == [
        "Version:        0.1.0~dev3^g0123456789",
        "* Tue Nov 14 2023 bootc developers <bootc@localhost> - 0.1.0~dev3^g0123456789-1",
        "- Build of commit 0123456789abcdef0123456789abcdef01234567",
    ]
    removed = [line for line in template.splitlines() if line not in text.splitlines()]
    assert removed == ["Version:        0"]


def test_spec_with_vendored_wheels_turns_its_condition_on() -> None:
    template = (PACKAGING / "bootc.spec").read_text()
    text = srpm.spec_text(template, source(), vendored=True)
    assert "%bcond_without vendor\n" in text
    assert "%bcond_with vendor\n" not in text


@pytest.mark.parametrize("missing", [r"Version: +", "%changelog"])
def test_spec_without_a_place_for_the_version_is_refused(missing: str) -> None:
    template = re.sub(rf"^{missing}.*\n", "", (PACKAGING / "bootc.spec").read_text(), flags=re.M)
    with pytest.raises(srpm.SrpmError, match="the spec has no line"):
        srpm.spec_text(template, source())


def test_every_unit_that_can_be_enabled_has_its_scriptlets() -> None:
    spec = (PACKAGING / "bootc.spec").read_text()
    units = (PACKAGING.parent / "bootc" / "data" / "systemd").iterdir()
    for unit in units:
        if "[Install]" in unit.read_text():
            for macro in ("post", "preun", "postun"):
                assert re.search(rf"^%systemd_{macro} .*\b{re.escape(unit.name)}\b", spec, re.M), (
                    unit
                )


def test_missing_program_names_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "dnf"
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(srpm.SrpmError, match="rpmbuild is not installed") as caught:
        srpm.need_program("rpmbuild", packages={"apt-get": "rpm", "dnf": "rpm-build"})
    assert caught.value.hint == "dnf install -y rpm-build"


def test_folder_without_git_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(srpm.SrpmError, match="not the top of a git checkout") as caught:
        srpm.plan_source(tmp_path)
    assert "clone" in caught.value.hint


def test_every_vendored_wheel_is_pinned_with_a_hash(tmp_path: Path) -> None:
    pins = vendor.read_pins(PACKAGING / "vendor.txt")
    assert {"hatchling", "zstandard"} <= set(pins)
    assert all(re.search(r"==\S+ .*--hash=sha256:[0-9a-f]{64}", pin) for pin in pins.values())
    loose = tmp_path / "loose.txt"
    loose.write_text("# why\nhatchling>=1\n")
    with pytest.raises(vendor.VendorError, match="not pinned with a hash: hatchling>=1"):
        vendor.read_pins(loose)


def test_vendored_pins_are_the_versions_that_the_checks_run_on() -> None:
    pins = vendor.read_pins(PACKAGING / "vendor.txt")
    tools = (PACKAGING / "requirements.txt").read_text().splitlines()
    for name in ("hatchling", "zstandard"):
        assert pins[name].split()[0] in tools


def test_vendor_archive_depends_on_names_and_contents_alone(tmp_path: Path) -> None:
    wheels = [tmp_path / "b.whl", tmp_path / "a.whl"]
    for wheel in wheels:
        wheel.write_bytes(wheel.name.encode())
    first = vendor.archive_bytes(wheels)
    wheels[0].chmod(0o600)
    assert vendor.archive_bytes(wheels[::-1]) == first
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(first))) as tar:
        assert tar.getnames() == ["vendor/a.whl", "vendor/b.whl"]
