# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The version of a source tree, in the two spellings that packages need. Standard library only.

`bootc/__init__.py` names the version that the tree works towards. What a build of it is called
follows from git:

| commit                               | PEP 440                    | RPM                         |
|--------------------------------------|----------------------------|-----------------------------|
| tagged `vX.Y.Z`                      | `X.Y.Z`                    | `X.Y.Z`                     |
| N commits after the newest tag       | `X.Y.Z.devN+g1a2b3c4d5e`   | `X.Y.Z~devN^g1a2b3c4d5e`    |
| the same, with uncommitted changes   | `X.Y.Z.devN+g1a….dirty`    | `X.Y.Z~devN^g1a….dirty`     |

So a development build sorts below the release that it leads to and above the one before, in both
worlds. If the named version has already been released, its last number is counted up by one.
Without a tag, N counts every commit. A tag that is not `v` and the version in the file is refused.

A source archive has no git: there the file `.version` holds the PEP 440 form.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

STAMP = ".version"
VERSION_FILE = "bootc/__init__.py"
COMMIT_DIGITS = 10

_ASSIGNMENT = re.compile(r'^__version__ = "([^"]*)"$', re.MULTILINE)
_RELEASE = re.compile(r"[0-9]+(\.[0-9]+)*")
_PEP440 = re.compile(
    r"(?P<release>[0-9]+(?:\.[0-9]+)*)"
    r"(?:\.dev(?P<dev>[0-9]+)\+g(?P<commit>[0-9a-f]+)(?P<dirty>\.dirty)?)?"
)


class VersionError(Exception):
    """The tree has no version that could be told; `hint` is what to do about it."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """`release` alone is a release; with `dev` and `commit` it is a build on the way there."""

    release: str
    dev: int | None = None
    commit: str | None = None
    dirty: bool = False

    @property
    def pep440(self) -> str:
        if self.dev is None:
            return self.release
        return f"{self.release}.dev{self.dev}+g{self.commit}{'.dirty' if self.dirty else ''}"

    @property
    def rpm(self) -> str:
        if self.dev is None:
            return self.release
        return f"{self.release}~dev{self.dev}^g{self.commit}{'.dirty' if self.dirty else ''}"

    @classmethod
    def parse(cls, text: str) -> "Version":
        """The record of a PEP 440 text that `pep440` wrote."""
        found = _PEP440.fullmatch(text)
        if found is None:
            raise VersionError(f"{text!r} is not a version of the form X.Y.Z[.devN+gCOMMIT]")
        dev = found["dev"]
        return cls(
            release=found["release"],
            dev=None if dev is None else int(dev),
            commit=found["commit"],
            dirty=found["dirty"] is not None,
        )


def read_version(root: Path, *, ref: str = "HEAD", dirty: bool | None = None) -> Version:
    """The version of commit `ref` of the checkout at `root`, or of an unpacked source archive.

    `dirty` says whether uncommitted changes are part of what is built; `None` looks, and only
    when `ref` is what is checked out.
    """
    root = root.resolve()
    if not (root / ".git").exists():
        return _read_stamp(root)
    if dirty is None:
        dirty = ref == "HEAD" and bool(_text(root, "status", "--porcelain"))
    release = _named_release(_text(root, "show", f"{ref}:{VERSION_FILE}"), f"{ref}:{VERSION_FILE}")
    last, distance = _newest_tag(root, ref)
    if distance == 0 and not dirty:
        if last != release:
            raise VersionError(
                f"commit {ref} is tagged v{last}, but {VERSION_FILE} says {release}",
                hint=f"set __version__ to {last} and tag that commit, or delete the tag",
            )
        return Version(release=release)
    if last is not None and _numbers(last) >= _numbers(release):
        release = _counted_up(last)
    commit = _text(root, "rev-parse", f"{ref}^{{commit}}")[:COMMIT_DIGITS]
    return Version(release=release, dev=distance, commit=commit, dirty=dirty)


def stamped(text: str, version: str) -> str:
    """The text of `VERSION_FILE` with `version` in place of the one it names."""
    if len(_ASSIGNMENT.findall(text)) != 1:
        raise VersionError(f'{VERSION_FILE} has no single line of the form __version__ = "…"')
    return _ASSIGNMENT.sub(f'__version__ = "{version}"', text)


def run_git(root: Path, *args: str, data: bytes | None = None) -> bytes:
    """git's output; a checkout that belongs to another user (COPR's) is read all the same."""
    program = shutil.which("git")
    if program is None:
        raise VersionError("git is not installed", hint=f"{_installer()} git")
    argv = [program, "-c", f"safe.directory={root}", "-C", os.fspath(root), *args]
    done = subprocess.run(
        argv, input=data or b"", capture_output=True, check=False, timeout=120, env=_env()
    )
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise VersionError(f"git {' '.join(args)}: {said[-1] if said else 'failed'}")
    return done.stdout


def _text(root: Path, *args: str) -> str:
    return run_git(root, *args).decode("utf-8", "surrogateescape").strip()


def _installer() -> str:
    """The start of the command that installs a package on this machine."""
    return "dnf install -y" if shutil.which("dnf") else "apt-get install -y"


def _env() -> dict[str, str]:
    """Our environment without what would point git elsewhere or change its words."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {**kept, "LC_ALL": "C.UTF-8", "GIT_OPTIONAL_LOCKS": "0"}


def _read_stamp(root: Path) -> Version:
    try:
        text = (root / STAMP).read_text(encoding="ascii")
    except FileNotFoundError:
        raise VersionError(
            f"{root} is neither a git checkout nor a source archive (no .git, no {STAMP})",
            hint="clone the repository, or unpack the archive that packaging/srpm.py made",
        ) from None
    return Version.parse(text.strip())


def _named_release(text: str, source: str) -> str:
    found = _ASSIGNMENT.search(text)
    if found is None or _RELEASE.fullmatch(found[1]) is None:
        raise VersionError(f'{source} names no release: it needs a line __version__ = "X.Y.Z"')
    return found[1]


def _newest_tag(root: Path, ref: str) -> tuple[str | None, int]:
    """The newest release tag reachable from `ref` without its `v`, and the commits since."""
    try:
        described = _text(
            root, "describe", "--tags", "--long", "--match", "v[0-9]*", f"{ref}^{{commit}}"
        )
    except VersionError:
        if _text(root, "rev-parse", "--is-shallow-repository") == "true":
            raise VersionError(
                "this clone is shallow and reaches no release tag: its commits cannot be counted",
                hint="git fetch --unshallow --tags",
            ) from None
        return None, int(_text(root, "rev-list", "--count", ref))
    tag, distance, _commit = described.rsplit("-", 2)
    last = tag.removeprefix("v")
    if _RELEASE.fullmatch(last) is None:
        raise VersionError(f"tag {tag} is not of the form vX.Y.Z", hint=f"git tag -d {tag}")
    return last, int(distance)


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in release.split("."))


def _counted_up(release: str) -> str:
    *front, last = _numbers(release)
    return ".".join(str(number) for number in (*front, last + 1))


def main() -> int:
    parser = argparse.ArgumentParser(description="Print the version of this source tree.")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--rpm", action="store_true", help="the RPM form (default: PEP 440)")
    form.add_argument("--pep440", action="store_true", help="the PEP 440 form")
    parser.add_argument("--ref", default="HEAD", help="the commit (default: HEAD)")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    options = parser.parse_args()
    try:
        version = read_version(options.root, ref=options.ref)
    except VersionError as error:
        hint = f" (try: {error.hint})" if error.hint else ""
        print(f"version: {error}{hint}", file=sys.stderr)
        return 1
    print(version.rpm if options.rpm else version.pep440)
    return 0


if __name__ == "__main__":
    sys.exit(main())
