# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Packaging with the real git, make, rpmbuild, rpmlint and pip, on a commit of this work tree.

A missing tool is a failure that names it, never a skip. The rebuild uses data/macros.pyproject-shim
where there is no Fedora: it proves the spec's syntax and file lists, not Fedora's macros.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from bootc import process

ROOT = Path(__file__).resolve().parents[2]
SHIM = Path(__file__).parent / "data" / "macros.pyproject-shim"
TOOLS = {
    "git": "git",
    "make": "make",
    "rpmbuild": "rpm",
    "rpm2cpio": "rpm2cpio",
    "cpio": "cpio",
    "rpmlint": "rpmlint",
}
IDENTITY = {
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_AUTHOR_DATE": "1700000000 +0000",
    "GIT_COMMITTER_DATE": "1700000000 +0000",
}
NOBODY = 65534
PACKAGES = ["bootc", "bootc-cfsctl", "bootc-dracut", "bootc-dracut-config", "python3-bootc"]


@pytest.fixture(scope="session", autouse=True)
def tools() -> None:
    missing = sorted(name for name in TOOLS if process.find_program(name) is None)
    if missing:
        packages = " ".join(TOOLS[name] for name in missing)
        pytest.fail(f"{', '.join(missing)} missing; install with: apt-get install -y {packages}")


def git(root: Path, *args: str) -> str:
    return process.run(["git", "-C", str(root), *args], env=IDENTITY).stdout.strip()


@pytest.fixture(scope="session")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose one commit holds this work tree as it is."""
    top = tmp_path_factory.mktemp("committed") / "src"
    top.mkdir()
    listed = process.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "-c", "-o", "--exclude-standard"]
    ).stdout
    for name in sorted(set(listed.split("\0")) - {""}):
        if (ROOT / name).is_file():
            target = top / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target, follow_symlinks=False)
    git(top, "init", "-q", "-b", "main")
    git(top, "add", "-A")
    git(top, "commit", "-q", "-m", "all")
    return top


@pytest.fixture
def checkout(committed: Path, tmp_path: Path) -> Path:
    """A clone that a test may change."""
    clone = tmp_path / "clone"
    process.run(["git", "clone", "-q", str(committed), str(clone)])
    return clone


def srpm(
    root: Path, *args: str, env: dict[str, str] | None = None, check: bool = True
) -> process.Completed:
    argv = [sys.executable, str(root / "packaging" / "srpm.py"), *args]
    return process.run(argv, env=env, check=check, cwd="/")


def made(done: process.Completed) -> Path:
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def built(committed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(srpm(committed, "--outdir", str(tmp_path_factory.mktemp("built"))))


def sources_of(package: Path, folder: Path) -> Path:
    """Unpack an SRPM; the folder."""
    folder.mkdir()
    shell = 'rpm2cpio "$1" | cpio -idm --quiet'
    process.run(["sh", "-ec", shell, "sh", str(package)], cwd=folder)
    return folder


def unpacked(archive: Path, folder: Path) -> Path:
    """Unpack a source archive; its one folder."""
    folder.mkdir()
    process.run(["tar", "--no-same-owner", "-xf", str(archive), "-C", str(folder)])
    (top,) = folder.iterdir()
    return top


def test_source_package_holds_archive_and_spec_of_one_version(built: Path, tmp_path: Path) -> None:
    folder = sources_of(built, tmp_path / "sources")
    (archive,) = folder.glob("*.tar.gz")
    version = archive.name.removeprefix("bootc-").removesuffix(".tar.gz")
    assert re.fullmatch(r"0\.1\.0~dev1\^g[0-9a-f]{10}", version)
    assert built.name == f"bootc-{version}-1.src.rpm"
    assert sorted(entry.name for entry in folder.iterdir()) == [archive.name, "bootc.spec"]
    assert f"\nVersion:        {version}\n" in (folder / "bootc.spec").read_text()


def test_unpacked_archive_knows_its_version_without_git(built: Path, tmp_path: Path) -> None:
    (archive,) = sources_of(built, tmp_path / "sources").glob("*.tar.gz")
    top = unpacked(archive, tmp_path / "tree")
    asked = [sys.executable, str(top / "packaging" / "version.py")]
    pep440 = process.run(asked).stdout.strip()
    assert f"bootc-{process.run([*asked, '--rpm']).stdout.strip()}" == top.name
    assert f'__version__ = "{pep440}"' in (top / "bootc" / "__init__.py").read_text()
    assert pep440 == (top / ".version").read_text().strip()


def test_archive_holds_exactly_the_files_of_the_commit(
    built: Path, committed: Path, tmp_path: Path
) -> None:
    (archive,) = sources_of(built, tmp_path / "sources").glob("*.tar.gz")
    top = unpacked(archive, tmp_path / "tree")
    tracked = git(committed, "ls-files").splitlines()
    packed = sorted(str(path.relative_to(top)) for path in top.rglob("*") if not path.is_dir())
    assert packed == sorted([*tracked, ".version"])
    differ = [
        name for name in tracked if (top / name).read_bytes() != (committed / name).read_bytes()
    ]
    assert differ == ["bootc/__init__.py"]
    assert os.access(top / "bootc", os.X_OK)


def test_same_bytes_from_another_folder_user_umask_and_clock(
    built: Path, checkout: Path, tmp_path: Path
) -> None:
    if os.geteuid() == 0:
        process.run(["chown", "-R", str(NOBODY), str(checkout)])
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".rpmmacros").write_text("%dist .evil\n%_buildhost evil\n")
    shell = 'umask 077; exec "$1" "$2" --outdir "$3"'
    script = str(checkout / "packaging" / "srpm.py")
    done = process.run(
        ["sh", "-ec", shell, "sh", sys.executable, script, str(tmp_path / "out" / "new")],
        env={
            "HOME": str(tmp_path / "home"),
            "TMPDIR": str(tmp_path),
            "TZ": "Asia/Tokyo",
            "SOURCE_DATE_EPOCH": "5",
        },
        cwd=tmp_path,
    )
    again = made(done)
    assert again.name == built.name
    assert again.read_bytes() == built.read_bytes()
    assert again.stat().st_mode & 0o777 == 0o644
    left = sorted(entry.name for entry in tmp_path.iterdir())
    assert left == ["clone", "home", "out"], "nothing stays behind in TMPDIR"


def test_uncommitted_changes_are_refused_and_packed_when_asked(
    checkout: Path, tmp_path: Path
) -> None:
    (checkout / "bootc" / "new.py").write_text("NEW = 1\n")
    (checkout / "README.md").unlink()
    refused = srpm(checkout, "--outdir", str(tmp_path / "out"), check=False)
    assert refused.status == 1
    assert refused.stdout == ""
    assert refused.stderr == (
        "srpm: the work tree differs from HEAD: README.md, bootc/new.py "
        "(try: commit, or pack the work tree as it is with --allow-dirty)\n"
    )
    dirty = made(srpm(checkout, "--outdir", str(tmp_path / "out"), "--allow-dirty"))
    assert ".dirty-1.src.rpm" in dirty.name
    (archive,) = sources_of(dirty, tmp_path / "sources").glob("*.tar.gz")
    top = unpacked(archive, tmp_path / "tree")
    assert (top / "bootc" / "new.py").read_text() == "NEW = 1\n"
    assert not (top / "README.md").exists()
    # A commit by name is packed whatever the work tree holds.
    head = git(checkout, "rev-parse", "HEAD")
    assert ".dirty" not in made(srpm(checkout, "--outdir", str(tmp_path), "--ref", head)).name


def test_version_follows_tags_and_rises(checkout: Path) -> None:
    ask = [sys.executable, str(checkout / "packaging" / "version.py"), "--rpm"]
    seen = [process.run(ask).stdout.strip()]
    git(checkout, "tag", "v0.1.0")
    seen.append(process.run(ask).stdout.strip())
    assert seen[-1] == "0.1.0"
    git(checkout, "commit", "-q", "--allow-empty", "-m", "on")
    seen.append(process.run(ask).stdout.strip())
    assert seen[-1].startswith("0.1.1~dev1^g")
    git(checkout, "commit", "-q", "--allow-empty", "-m", "on")
    seen.append(process.run(ask).stdout.strip())
    for low, high in itertools.pairwise(seen):
        compared = f'%{{lua: print(rpm.vercmp("{low}", "{high}"))}}'
        assert process.run(["rpm", "--eval", compared]).stdout.strip() == "-1", (low, high)
    git(checkout, "tag", "v9.9.9")
    wrong = process.run(ask, check=False)
    assert wrong.status == 1
    assert "is tagged v9.9.9, but bootc/__init__.py says 0.1.0" in wrong.stderr


def test_shallow_clone_is_refused_for_its_commits_cannot_be_counted(
    checkout: Path, tmp_path: Path
) -> None:
    git(checkout, "commit", "-q", "--allow-empty", "-m", "two")
    shallow = tmp_path / "shallow"
    process.run(["git", "clone", "-q", "--depth=1", f"file://{checkout}", str(shallow)])
    done = srpm(shallow, "--outdir", str(tmp_path), check=False)
    assert done.status == 1
    assert "this clone is shallow" in done.stderr
    assert "(try: git fetch --unshallow --tags)" in done.stderr


def test_missing_rpmbuild_is_one_line_with_the_command(checkout: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("git", "apt-get"):
        (programs / name).symlink_to(
            process.need_program(name, hint="") if name == "git" else "/bin/true"
        )
    argv = ["env", f"PATH={programs}", sys.executable]
    script = str(checkout / "packaging" / "srpm.py")
    done = process.run([*argv, script, "--outdir", str(tmp_path)], check=False)
    assert done.status == 1
    assert done.stderr == "srpm: rpmbuild is not installed (try: apt-get install -y rpm)\n"


def test_copr_makefile_works_as_copr_runs_it(built: Path, checkout: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        process.run(["chown", "-R", str(NOBODY), str(checkout)])
    for spec in ("", str(checkout / "packaging" / "bootc.spec"), "packaging/bootc.spec"):
        outdir = tmp_path / f"out{len(spec)}"
        outdir.mkdir()
        argv = ["make", "-f", f"{checkout}/.copr/Makefile", "srpm", f"outdir={outdir}"]
        process.run([*argv, f"spec={spec}", f"python={sys.executable}"], cwd=tmp_path)
        (package,) = outdir.iterdir()
        assert package.name == built.name
        assert package.read_bytes() == built.read_bytes()


def test_packit_actions_make_archive_and_spec(checkout: Path) -> None:
    actions = YAML(typ="safe").load(checkout / ".packit.yaml")["actions"]
    (count,) = actions["get-current-version"]
    version = process.run(shlex.split(count), cwd=checkout).stdout.strip()
    (make,) = actions["create-archive"]
    for _ in range(2):  # the second time the work tree holds what the first one wrote
        last = process.run(shlex.split(make), cwd=checkout).stdout.splitlines()[-1]
        assert last == f"packaging/bootc-{version}.tar.gz"
        assert (checkout / last).is_file()
        assert f"Version:        {version}\n" in (checkout / "packaging/bootc.spec").read_text()
        assert version == process.run(shlex.split(count), cwd=checkout).stdout.strip()


def rebuild(package: Path, top: Path, *, under: Sequence[str] = ()) -> list[Path]:
    """Build the binary packages of an SRPM with the shim, `under` a command; their paths."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    defines = {"_topdir": str(top), "__python3": sys.executable, "python3_version": version}
    # Not --load: since 4.20 a build for noarch reads the macros of the path again, and only those.
    shown = re.search(r"^Macro path: (.+)$", process.run(["rpmbuild", "--showrc"]).stdout, re.M)
    assert shown is not None
    argv = [*under, "rpmbuild", "--rebuild", "--nodeps", f"--macros={shown[1]}:{SHIM}"]
    for name, value in defines.items():
        argv += ["--define", f"{name} {value}"]
    process.run([*argv, str(package)])
    return sorted((top / "RPMS").rglob("*.rpm"))


def payload(packages: list[Path], folder: Path) -> Path:
    folder.mkdir()
    for package in packages:
        shell = 'rpm2cpio "$1" | cpio -idmu --quiet'
        process.run(["sh", "-ec", shell, "sh", str(package)], cwd=folder)
    return folder


@pytest.fixture(scope="session")
def rebuilt(built: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return rebuild(built, tmp_path_factory.mktemp("rebuilt"))


def test_rebuild_makes_noarch_packages(rebuilt: list[Path]) -> None:
    names = [re.sub(r"-0\.1\.0.*", "", package.name) for package in rebuilt]
    assert names == PACKAGES
    assert all(package.name.endswith(".noarch.rpm") for package in rebuilt)


def test_payload_of_the_packages_runs(rebuilt: list[Path], tmp_path: Path) -> None:
    root = payload(rebuilt, tmp_path / "root")
    (site,) = root.glob("usr/lib/python3*/site-packages")
    stamp = re.search(r'__version__ = "(.*)"', (site / "bootc" / "__init__.py").read_text())
    assert stamp is not None
    command = root / "usr/bin/bootc"
    assert command.read_text().splitlines()[0].startswith("#!/usr/bin/python3")
    env = {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    done = process.run([sys.executable, str(command), "--version"], env=env, cwd="/")
    assert stamp[1] in done.stdout
    process.run([sys.executable, str(root / "usr/bin/cfsctl"), "--help"], env=env, cwd="/")


def test_payload_has_units_and_dracut_module_in_place(rebuilt: list[Path], tmp_path: Path) -> None:
    root = payload(rebuilt, tmp_path / "root")
    for data, place in (
        ("systemd", "usr/lib/systemd/system"),
        ("dracut/51bootc", "usr/lib/dracut/modules.d/51bootc"),
        ("dracut", "usr/lib/dracut/dracut.conf.d"),
    ):
        folder = ROOT / "bootc" / "data" / data
        files = [path for path in folder.iterdir() if path.is_file()]
        expected = {path.name: path.read_bytes() for path in files if path.name != "build.sh"}
        assert expected, f"{folder} is empty"
        there = [path for path in (root / place).iterdir() if path.is_file()]
        assert {path.name: path.read_bytes() for path in there} == expected
    units = root / "usr/lib/systemd/system"
    enabled = []
    for target in ("multi-user", "sockets"):
        found = sorted((units / f"{target}.target.wants").iterdir())
        assert found, f"no unit is turned on in {target}.target"
        enabled += found
    for link in enabled:
        assert os.readlink(link) == f"../{link.name}"
        assert (units / link.name).is_file()
    assert os.access(root / "usr/lib/dracut/modules.d/51bootc/module-setup.sh", os.X_OK)


def test_rpmlint_has_nothing_to_say(built: Path, rebuilt: list[Path], committed: Path) -> None:
    config = committed / "packaging" / "rpmlint.toml"
    spec = committed / "packaging" / "bootc.spec"
    done = process.run(
        ["rpmlint", "-c", str(config), *map(str, [built, *rebuilt, spec])], check=False
    )
    assert " checked; 0 errors, 0 warnings, " in done.stdout, done.stdout
    assert done.status == 0


def test_vendored_wheels_build_and_install_without_network(checkout: Path, tmp_path: Path) -> None:
    """Needs a package index for the download; the rest runs in a network namespace of its own."""
    vendor = [sys.executable, str(checkout / "packaging" / "vendor.py"), "--outdir", str(tmp_path)]
    python = f"--python={sys.version_info.major}.{sys.version_info.minor}"
    machine = f"--machine={os.uname().machine}"
    archive = Path(process.run([*vendor, python, machine]).stdout.strip())
    wheels = unpacked(archive, tmp_path / "wheels")

    offline = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
    venv = tmp_path / "venv"
    process.run([sys.executable, "-m", "venv", "--without-pip", str(venv)])
    pip = [*offline, sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python")]
    # These wheels alone, whatever the machine's own configuration of pip offers.
    env = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    dist = tmp_path / "dist"
    process.run([*pip, "wheel", "-q", "--no-deps", "-w", str(dist), str(checkout)], env=env)
    (wheel,) = dist.iterdir()
    process.run([*pip, "install", "-q", str(wheel)], env=env)
    done = process.run([*offline, str(venv / "bin" / "bootc"), "--version"])
    assert "0.1.0" in done.stdout

    # The same wheels as Source1 of a package that builds with nothing but Python and pip.
    small = Path(process.run([*offline, *vendor, "--build-only"], env=env).stdout.strip())
    package = made(srpm(checkout, "--outdir", str(tmp_path / "out"), "--vendor", str(small)))
    names = {path.name for path in sources_of(package, tmp_path / "sources").iterdir()}
    assert len([name for name in names if name.endswith("-vendor.tar.gz")]) == 1
    assert len(rebuild(package, tmp_path / "rebuilt", under=offline)) == len(PACKAGES)
