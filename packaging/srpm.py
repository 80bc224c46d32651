# SPDX-License-Identifier: Apache-2.0 OR MIT
"""From a git tree to a source RPM, the same bytes each time. Standard library only: COPR, Packit
and the project's own tasks run this one file.

    commit ──plan_source──▶ Source ──write_archive──▶ bootc-VERSION.tar.gz ─┐
                               └────spec_text────▶ bootc.spec ──────────────┴─rpmbuild -bs─▶ SRPM

The archive (PAX tar, gzip):

* one folder `bootc-VERSION/`, VERSION in its RPM form; members sorted by name, no folder members;
* owner and group 0 without names; mode 0644, or 0755 if git says executable; every time is the
  commit's; gzip's header carries neither a time nor a name;
* the files of the tree as git stores them, and two that know the version: `.version` (see
  `version.py`) and `bootc/__init__.py`, whose `__version__` is the PEP 440 form;
* a submodule is refused, for its files are not in the tree.

The SRPM's own header is pinned by rpmbuild's reproducibility settings (`_DEFINES`). It is the same
wherever it is made by the same versions of Python's zlib and of rpm.

A tree with uncommitted changes is refused, for its build could not be told from the commit's. With
`allow_dirty` the work tree is packed as it is, untracked files that git does not ignore included,
and the version says `.dirty`.
"""

import argparse
import gzip
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Protocol, cast

NAME = "bootc"
SPEC = "packaging/bootc.spec"
VERSION_FILE = "bootc/__init__.py"
STAMP = ".version"
PACKAGER = "bootc developers <bootc@localhost>"

_DEFINES: dict[str, str] = {
    "_buildhost": "reproducible",
    "use_source_date_epoch_as_buildtime": "1",
    "clamp_mtime_to_source_date_epoch": "1",
    "build_mtime_policy": "clamp_to_source_date_epoch",
    "source_date_epoch_from_changelog": "0",
    "_srcdefattr": "(-,root,root)",
    "_source_payload": "w9.gzdio",
    "_source_filedigest_algorithm": "8",
    "dist": "%{nil}",
}


class SrpmError(Exception):
    """No source package can be made; `hint` is what to do about it."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class HintedError(Exception):
    """The shape of `version.py`'s `VersionError`."""

    hint: str | None


class Version(Protocol):
    """What `version.py` hands out."""

    @property
    def pep440(self) -> str: ...
    @property
    def rpm(self) -> str: ...


class VersionModule(Protocol):
    """What is used of `version.py`."""

    VersionError: type[HintedError]

    def read_version(self, root: Path, *, ref: str, dirty: bool | None) -> Version: ...
    def stamped(self, text: str, version: str) -> str: ...
    def run_git(self, root: Path, *args: str, data: bytes | None = None) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One file of the archive; a symbolic link's `data` is its target."""

    name: str
    data: bytes
    executable: bool = False
    symlink: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is packed: a commit, or the work tree on top of it."""

    members: tuple[Member, ...]
    version: Version
    commit: str
    time: int

    @property
    def folder(self) -> str:
        return f"{NAME}-{self.version.rpm}"

    def read(self, name: str) -> str:
        """The text of a member."""
        for member in self.members:
            if member.name == name and not member.symlink:
                return member.data.decode()
        raise SrpmError(f"{name} is not in the tree of commit {self.commit[:10]}")


def build_srpm(
    root: Path,
    outdir: Path,
    *,
    ref: str = "HEAD",
    allow_dirty: bool = False,
    spec: Path | None = None,
    vendor: Path | None = None,
) -> Path:
    """Make the source RPM of commit `ref` of the checkout `root` in `outdir`; its path.

    `spec` is used in place of the commit's own, `vendor` (an archive made by `vendor.py`) becomes
    Source1 and turns on the build without network. Raises `SrpmError`.
    """
    rpmbuild = need_program("rpmbuild", packages={"apt-get": "rpm", "dnf": "rpm-build"})
    source = plan_source(root, ref=ref, allow_dirty=allow_dirty)
    outdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bootc-srpm-") as name:
        work = Path(name)
        sources = work / "SOURCES"
        sources.mkdir()
        write_sources(source, sources, spec=spec, vendor=vendor)
        made = _run_rpmbuild(rpmbuild, work, source.time)
        return _publish(made, outdir)


def plan_source(root: Path, *, ref: str = "HEAD", allow_dirty: bool = False) -> Source:
    """Read what is to be packed; refuses uncommitted changes unless `allow_dirty`."""
    root = root.resolve()
    if not (root / ".git").exists():
        raise SrpmError(
            f"{root} is not the top of a git checkout", hint="run this in a clone of the repository"
        )
    need_program("git", packages={"apt-get": "git", "dnf": "git-core"})
    changed = _changed_paths(root) if ref == "HEAD" else ()
    if changed and not allow_dirty:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise SrpmError(
            f"the work tree differs from HEAD: {', '.join(changed[:3])}{more}",
            hint="commit, or pack the work tree as it is with --allow-dirty",
        )
    if allow_dirty and ref != "HEAD":
        raise SrpmError(
            f"--allow-dirty packs the work tree, --ref {ref} a commit", hint="name one of the two"
        )
    commit = _git(root, "rev-parse", "--verify", f"{ref}^{{commit}}").decode().strip()
    version = _read_version(root, ref, dirty=bool(changed))
    read = _work_tree(root) if changed else _commit_tree(root, commit)
    members = {member.name: member for member in read}
    return Source(
        members=_stamp(members, version),
        version=version,
        commit=commit,
        time=int(_git(root, "show", "--no-patch", "--format=%ct", commit)),
    )


def write_sources(
    source: Source, folder: Path, *, spec: Path | None = None, vendor: Path | None = None
) -> Path:
    """Put the archive, the spec that fits it and the vendor archive into `folder`; the archive."""
    archive = folder / f"{source.folder}.tar.gz"
    _write_file(archive, archive_bytes(source))
    template = source.read(SPEC) if spec is None else spec.read_text(encoding="utf-8")
    text = spec_text(template, source, vendored=vendor is not None)
    _write_file(folder / f"{NAME}.spec", text.encode())
    if vendor is not None:
        _write_file(folder / f"{source.folder}-vendor.tar.gz", vendor.read_bytes())
    return archive


def archive_bytes(source: Source) -> bytes:
    """The compressed archive."""
    out = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=out, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for member in sorted(source.members, key=lambda member: member.name.encode()):
            info = tarfile.TarInfo(f"{source.folder}/{member.name}")
            info.mtime = source.time
            info.mode = 0o755 if member.executable else 0o644
            if member.symlink:
                info.type = tarfile.SYMTYPE
                info.mode = 0o777
                info.linkname = os.fsdecode(member.data)
                tar.addfile(info)
            else:
                info.size = len(member.data)
                tar.addfile(info, io.BytesIO(member.data))
    return out.getvalue()


def spec_text(template: str, source: Source, *, vendored: bool = False) -> str:
    """The spec of `source`: its version, its changelog entry, its vendored wheels if it has any."""
    # Not strftime, which writes the day in the language of whoever builds.
    day, number, month, year, *_ = formatdate(source.time, usegmt=True).replace(",", "").split()
    date = f"{day} {month} {number} {year}"
    entry = f"* {date} {PACKAGER} - {source.version.rpm}-1\n- Build of commit {source.commit}\n"
    text = _replace_once(r"^(Version: +).*$", rf"\g<1>{source.version.rpm}", template)
    text = _replace_once(r"^%changelog\n", f"%changelog\n{entry}", text)
    if vendored:
        text = _replace_once(r"^%bcond_with vendor$", "%bcond_without vendor", text)
    return text


def need_program(name: str, *, packages: Mapping[str, str]) -> str:
    """The path of `name`, or a refusal with the command of this machine that installs it."""
    found = shutil.which(name)
    if found is not None:
        return found
    commands = [
        f"{manager} install -y {package}"
        for manager, package in packages.items()
        if shutil.which(manager)
    ] or [f"{manager} install -y {package}" for manager, package in packages.items()]
    raise SrpmError(f"{name} is not installed", hint=" or ".join(commands))


def _replace_once(pattern: str, replacement: str, text: str) -> str:
    text, count = re.subn(pattern, replacement, text, count=1, flags=re.MULTILINE)
    if count != 1:
        raise SrpmError(f"the spec has no line that matches {pattern}")
    return text


def _write_file(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o644)  # the modes of the sources are part of an SRPM, whatever our umask is


def _run_rpmbuild(rpmbuild: str, work: Path, moment: int) -> Path:
    """Make the one SRPM of what lies in `work/SOURCES`."""
    # An SRPM's header holds the spec with its macros expanded, and so these names: they have to be
    # the same in whatever folder we work. mock redefines _topdir, so each one is named.
    here = "/proc/self/cwd"
    folders = {
        "_topdir": here,
        "_sourcedir": f"{here}/SOURCES",
        "_specdir": f"{here}/SOURCES",
        "_srcrpmdir": f"{here}/SRPMS",
        "_rpmdir": f"{here}/RPMS",
        "_builddir": f"{here}/BUILD",
        "_buildrootdir": f"{here}/BUILDROOT",
        "_tmppath": here,
    }
    defines = [
        argument
        for name, value in {**_DEFINES, **folders}.items()
        for argument in ("--define", f"{name} {value}")
    ]
    # HOME keeps the builder's own macros out.
    env = {"SOURCE_DATE_EPOCH": str(moment), "TZ": "UTC", "HOME": os.fspath(work)}
    _run([rpmbuild, "-bs", "--nodeps", *defines, f"{here}/SOURCES/{NAME}.spec"], env=env, cwd=work)
    made = sorted((work / "SRPMS").glob("*.src.rpm"))
    if len(made) != 1:
        raise SrpmError(f"rpmbuild made {len(made)} source packages in place of one")
    return made[0]


def _publish(made: Path, outdir: Path) -> Path:
    """Move `made` to `outdir` so that no half of it is ever seen there."""
    target = outdir / made.name
    with tempfile.NamedTemporaryFile(dir=outdir, prefix=".srpm-", delete=False) as partial:
        try:
            partial.write(made.read_bytes())
            os.fchmod(partial.fileno(), 0o644)
            os.replace(partial.name, target)
        except BaseException:
            os.unlink(partial.name)
            raise
    return target


def _read_version(root: Path, ref: str, *, dirty: bool) -> Version:
    try:
        return _VERSION.read_version(root, ref=ref, dirty=dirty)
    except _VERSION.VersionError as error:
        raise SrpmError(str(error), hint=error.hint) from error


def _git(root: Path, *args: str, data: bytes | None = None) -> bytes:
    try:
        return _VERSION.run_git(root, *args, data=data)
    except _VERSION.VersionError as error:
        raise SrpmError(str(error), hint=error.hint) from error


def _changed_paths(root: Path) -> tuple[str, ...]:
    """What `git status` names: changed, added, deleted, or neither tracked nor ignored."""
    entries = iter(_git(root, "status", "--porcelain", "-z").split(b"\0"))
    paths = []
    for entry in entries:
        if entry:
            paths.append(os.fsdecode(entry[3:]))
            if entry[:1] in b"RC":
                next(entries, None)  # the name before the renaming
    return tuple(paths)


def _commit_tree(root: Path, commit: str) -> Iterator[Member]:
    """The files of a commit, as git stores them."""
    listed: list[tuple[str, str, str]] = []
    for entry in _git(root, "ls-tree", "-r", "-z", "--full-tree", commit).split(b"\0"):
        if entry:
            meta, path = entry.split(b"\t", 1)
            mode, _kind, blob = meta.decode("ascii").split()
            listed.append((mode, blob, os.fsdecode(path)))
    wanted = "".join(f"{blob}\n" for _, blob, _ in listed).encode("ascii")
    blobs = io.BytesIO(_git(root, "cat-file", "--batch", data=wanted))
    for mode, blob, name in listed:
        if mode == "160000":
            raise SrpmError(f"{name} is a submodule: its files are not part of this tree")
        size = int(blobs.readline().split()[2])
        data = blobs.read(size)
        if len(data) != size or blobs.read(1) != b"\n":
            raise SrpmError(f"git cat-file ended inside {name} (blob {blob})")
        yield Member(name=name, data=data, executable=mode == "100755", symlink=mode == "120000")


def _work_tree(root: Path) -> Iterator[Member]:
    """The files of the work tree that git does not ignore."""
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in sorted({os.fsdecode(raw) for raw in listed.split(b"\0")} - {""}):
        path = root / name
        if path.is_symlink():
            yield Member(name=name, data=os.fsencode(os.readlink(path)), symlink=True)
        elif path.is_file():
            executable = bool(path.stat().st_mode & 0o100)
            yield Member(name=name, data=path.read_bytes(), executable=executable)
        elif path.is_dir():
            raise SrpmError(
                f"{name} is a repository of its own: its files are not part of this one"
            )


def _stamp(members: dict[str, Member], version: Version) -> tuple[Member, ...]:
    """The members with the two files that know the version."""
    if VERSION_FILE not in members:
        raise SrpmError(f"{VERSION_FILE} is not in the tree")
    text = _VERSION.stamped(members[VERSION_FILE].data.decode(), version.pep440)
    stamp = f"{version.pep440}\n".encode("ascii")
    stamped = {
        VERSION_FILE: Member(name=VERSION_FILE, data=text.encode()),
        STAMP: Member(name=STAMP, data=stamp),
    }
    return tuple({**members, **stamped}.values())


def _run(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> None:
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=300,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C.UTF-8", **env},
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
        raise SrpmError(
            f"{Path(argv[0]).name} failed with status {done.returncode}: {' | '.join(said[-5:])}"
        )


def _load_version() -> VersionModule:
    """`version.py` beside this file; no package is there to import it from."""
    spec = importlib.util.spec_from_file_location(
        "bootc_packaging_version", Path(__file__).with_name("version.py")
    )
    if spec is None or spec.loader is None:
        raise SrpmError("packaging/version.py cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast(VersionModule, module)


_VERSION = _load_version()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the source RPM of this checkout.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--outdir", type=Path, help="the folder for the source RPM")
    where.add_argument(
        "--sources",
        type=Path,
        help="put only the archive and the spec into this folder (for Packit)",
    )
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--spec", type=Path, help=f"a spec in place of the commit's {SPEC}")
    parser.add_argument(
        "--ref", default="HEAD", help="the commit (default: HEAD, and the work tree must equal it)"
    )
    parser.add_argument(
        "--allow-dirty", action="store_true", help="pack the work tree with what is not committed"
    )
    parser.add_argument("--vendor", type=Path, help="the archive that packaging/vendor.py made")
    options = parser.parse_args(argv)
    try:
        print(_apply(options))
    except (SrpmError, OSError) as error:
        hint = getattr(error, "hint", None)
        print(f"srpm: {error}{f' (try: {hint})' if hint else ''}", file=sys.stderr)
        return 1
    return 0


def _apply(options: argparse.Namespace) -> Path:
    root: Path = options.root.resolve()
    spec: Path | None = options.spec
    if spec is not None and not spec.exists():
        spec = root / spec
    if options.sources is None:
        outdir: Path = options.outdir
        return build_srpm(
            root,
            outdir,
            ref=options.ref,
            allow_dirty=options.allow_dirty,
            spec=spec,
            vendor=options.vendor,
        )
    folder: Path = options.sources
    source = plan_source(root, ref=options.ref, allow_dirty=options.allow_dirty)
    folder.mkdir(parents=True, exist_ok=True)
    return write_sources(source, folder, spec=spec, vendor=options.vendor)


if __name__ == "__main__":
    sys.exit(main())
