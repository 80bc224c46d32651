# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Repositories on file systems that the host may not have: with fs-verity, without O_TMPFILE.

A small library (data/file_system.c, compiled for the tests) is preloaded into a program and makes
the file system what its environment says. A real kernel with verity judges the same things in the
booted tests.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from bootc import process
from bootc.composefs.digest import Algorithm, digest_bytes
from bootc.composefs.objects import object_path

TOP = Path(__file__).resolve().parents[2]
CONTENT = b"some content" * 1000
DIGEST = digest_bytes(CONTENT, Algorithm.SHA256)
VERITY = {"FAKE_VERITY": "1"}
HEAD = """
import io, json, os, sys
from bootc.composefs import Algorithm, Repository
from bootc.composefs.fsck import check_repository
from bootc.composefs.gc import collect_garbage
from bootc.errors import BootcError, chain_text
from bootc.linux import fsverity
SHA256 = Algorithm.SHA256
path, source = sys.argv[1:]
content = b"some content" * 1000

def init(secure=True):
    return Repository.init(path, algorithm=SHA256, secure=secure)

def has_verity(name):
    fd = os.open(name, os.O_RDONLY)
    try:
        return fsverity.measure(fd) is not None
    finally:
        os.close(fd)

def files():
    found = []
    for folder, _, names in os.walk(path):
        found += [os.path.relpath(os.path.join(folder, name), path) for name in names]
    return sorted(name for name in found if not os.path.islink(os.path.join(path, name)))

def fsck(repo):
    return [str(each) for each in check_repository(repo, workers=1).findings]

def say(**what):
    print(json.dumps(what))
"""


class World:
    """Runs programs on such a file system, on one repository."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.path = folder / "repo"
        self.source = folder / "source"
        self.source.write_bytes(CONTENT)
        self._library = library

    def run(self, script: str, **fake: str) -> dict[str, object]:
        """What the script says, a JSON object."""
        env: Mapping[str, str] = {"LD_PRELOAD": str(self._library), "PYTHONPATH": str(TOP), **fake}
        argv = [sys.executable, "-c", HEAD + script, str(self.path), str(self.source)]
        said = json.loads(process.run(argv, env=env, timeout=120).stdout)
        assert isinstance(said, dict)
        return said


@pytest.fixture
def world(tmp_path: Path, file_system_library: Path) -> World:
    return World(tmp_path, file_system_library)


EVERY_ROUTE = """
with init(SECURE) as repo:
    small = repo.ensure_object(b"small" * 20)
    repo.ensure_object_from(io.BytesIO(content))
    again = repo.ensure_object(content)
    with open(source, "rb") as file:
        repo.import_object(file.fileno())
    empty = repo.ensure_object(b"")
    repo.write_stream("x", repo.read_object(small))
    say(
        secure=repo.secure,
        digest=again.hex(),
        verity=all(has_verity(os.path.join(path, name)) for name in files()),
        files=files(),
        new=repo.counts().new,
        existing=repo.counts().existing,
    )
"""


@pytest.mark.parametrize("secure", [True, False])
@pytest.mark.parametrize("extra", [{}, {"FAKE_BUSY": "3"}, {"FAKE_NO_TMPFILE": "1"}], ids=str)
def test_every_route_enables_verity(world: World, secure: bool, extra: dict[str, str]) -> None:
    said = world.run(EVERY_ROUTE.replace("SECURE", str(secure)), **VERITY, **extra)
    names = [object_path(digest_bytes(data, Algorithm.SHA256)) for data in (b"", b"small" * 20)]
    objects = [f"objects/{name}" for name in (*names, object_path(DIGEST))]
    assert said["digest"] == DIGEST.hex()
    assert said["files"] == sorted(["meta.json", *objects])
    assert (said["new"], said["existing"]) == (3, 3)
    assert said["secure"] is secure
    # Of a repository that isn't secure meta.json alone has none.
    assert said["verity"] is secure
    assert all("user.fake-verity" in os.listxattr(world.path / name) for name in objects)


def test_writer_that_does_not_go_away_makes_a_copy(world: World) -> None:
    """Verity can't be had for a file that somebody may still write to: the object is another."""
    said = world.run(
        """
with init(False) as repo:
    repo.writable_objects()
    digest = repo.ensure_object_from(io.BytesIO(content))
    say(digest=digest.hex(), files=files(), sound=repo.read_object(digest) == content)
""",
        **VERITY,
        # More than the patience for one file.
        FAKE_BUSY="60",
    )
    assert said == {
        "digest": DIGEST.hex(),
        "files": sorted(["meta.json", f"objects/{object_path(DIGEST)}"]),
        "sound": True,
    }


def test_secure_repository_refuses_objects_without_or_of_other_verity(world: World) -> None:
    said = world.run(
        """
with init() as repo:
    one, two, three = (repo.ensure_object(letter * 500) for letter in (b"1", b"2", b"3"))
    repo.write_image(b"no image", "name")
    names = [os.path.join(path, "objects", d.hex()[:2], d.hex()[2:]) for d in (one, two, three)]
    os.setxattr(names[1], "user.fake-verity", os.getxattr(names[0], "user.fake-verity"))
    os.removexattr(names[0], "user.fake-verity")
    refused = []
    for digest in (one, two):
        try:
            repo.read_object(digest)
        except BootcError as error:
            refused.append(chain_text(error))
    kinds = [each.split(": ")[1] for each in fsck(repo)]
    # Storing them again replaces both.
    repo.ensure_object(b"1" * 500)
    repo.ensure_object_from(io.BytesIO(b"2" * 500))
    healed = [each.split(": ")[1] for each in fsck(repo)]
    say(refused=refused, kinds=sorted(kinds), healed=healed, name=names[0][-20:])
""",
        **VERITY,
    )
    refused = said["refused"]
    assert isinstance(refused, list)
    assert "the object has no fs-verity" in refused[0]
    assert "the content has the digest" in refused[1]
    assert said["kinds"] == ["image-invalid", "object-digest-mismatch", "object-verity-missing"]
    assert said["healed"] == ["image-invalid"]


def test_insecure_repository_gives_verity_to_what_has_none(world: World) -> None:
    script = """
with init(False) as repo:
    digest = repo.ensure_object(content)
    say(counts=repo.counts().existing)
"""
    assert world.run(script) == {"counts": 0}
    name = world.path / "objects" / object_path(DIGEST)
    assert os.listxattr(name) == []
    world.run(
        script.replace("ensure_object(content)", "ensure_object_from(io.BytesIO(content))"),
        **VERITY,
    )
    assert os.listxattr(name) == ["user.fake-verity"]


def test_old_secure_repository_is_upgraded_to_a_secure_one(world: World) -> None:
    said = world.run(
        """
with init() as repo:
    repo.ensure_object(content)
os.unlink(os.path.join(path, "meta.json"))
with Repository.open(path, upgrade=True) as repo:
    say(secure=repo.secure, meta=has_verity(os.path.join(path, "meta.json")), fsck=fsck(repo))
""",
        **VERITY,
    )
    assert said == {"secure": True, "meta": True, "fsck": []}


def test_init_of_another_security_is_refused(world: World) -> None:
    said = world.run(
        """
init(False).close()
try:
    init(True)
except BootcError as error:
    say(error=str(error), hint=error.hint)
""",
        **VERITY,
    )
    assert "an insecure one" in str(said["error"])
    assert said["hint"]


def test_hard_link_gives_the_source_verity(world: World) -> None:
    said = world.run(
        """
with init() as repo, open(source, "rb") as file:
    digest = repo.import_object(file.fileno(), zerocopy=True)
    again = repo.import_object(file.fileno(), zerocopy=True)
    counts = repo.counts()
    shared = os.stat(source).st_nlink
    say(
        digest=digest.hex(),
        same=digest == again,
        ways=counts.reflinked + counts.hardlinked,
        linked=counts.hardlinked == 1 and shared == 2 and has_verity(source),
        reflinked=counts.reflinked == 1 and shared == 1 and not has_verity(source),
        fsck=fsck(repo),
    )
""",
        **VERITY,
    )
    assert (said["digest"], said["same"], said["ways"]) == (DIGEST.hex(), True, 1)
    assert said["linked"] is not said["reflinked"]
    assert said["fsck"] == []


def test_source_that_is_being_written_is_not_linked(world: World) -> None:
    """A writer keeps verity away, so the file could change under its digest."""
    said = world.run(
        """
with init(False) as repo:
    with open(source, "rb") as file:
        digest = repo.import_object(file.fileno(), hardlink=True)
    say(links=os.stat(source).st_nlink, hardlinked=repo.counts().hardlinked, digest=digest.hex())
""",
        **VERITY,
        FAKE_BUSY="55",
    )
    assert said == {"links": 1, "hardlinked": 0, "digest": DIGEST.hex()}


@pytest.mark.parametrize("head", [(1, 1, 10, 0), (1, 1, 12, 32)], ids=["small blocks", "a salt"])
def test_source_that_was_sealed_in_another_way_is_not_linked(
    world: World, head: tuple[int, ...]
) -> None:
    """What the kernel measures of it is not the digest that names an object."""
    descriptor = bytes(head) + bytes(4) + len(CONTENT).to_bytes(8, "little") + bytes(240)
    os.setxattr(world.source, "user.fake-verity", descriptor)
    said = world.run(
        """
with init() as repo:
    with open(source, "rb") as file:
        digest = repo.import_object(file.fileno(), hardlink=True)
    sealed = has_verity(source)
    links, hardlinked = os.stat(source).st_nlink, repo.counts().hardlinked
    say(sealed=sealed, links=links, hardlinked=hardlinked, digest=digest.hex(), fsck=fsck(repo))
""",
        **VERITY,
    )
    digest = DIGEST.hex()
    assert said == {"sealed": True, "links": 1, "hardlinked": 0, "digest": digest, "fsck": []}


@pytest.mark.parametrize("flags", [{}, {"FAKE_NO_FLAGS": "1"}], ids=["flags", "no flags"])
@pytest.mark.parametrize("verity", [{}, VERITY], ids=["plain", "verity"])
def test_file_system_without_unnamed_files(
    world: World, flags: dict[str, str], verity: dict[str, str]
) -> None:
    said = world.run(
        """
with init(False) as repo:
    digest = repo.ensure_object_from(io.BytesIO(content))
    repo.ensure_object(b"bytes" * 50)
    repo.ensure_object_from(io.BytesIO(content))
    # One that is damaged is replaced.
    name = os.path.join(path, "objects", digest.hex()[:2], digest.hex()[2:])
    os.unlink(name)
    open(name, "w").close()
    with open(source, "rb") as file:
        repo.import_object(file.fileno())
    try:
        repo.ensure_object_from(io.BytesIO(b"short"), 6)
    except BootcError:
        pass
    say(files=files(), sound=repo.read_object(digest) == content, fsck=fsck(repo))
""",
        FAKE_NO_TMPFILE="1",
        **flags,
        **verity,
    )
    other = object_path(digest_bytes(b"bytes" * 50, Algorithm.SHA256))
    assert said == {
        "files": sorted(["meta.json", f"objects/{object_path(DIGEST)}", f"objects/{other}"]),
        "sound": True,
        "fsck": [],
    }


def test_named_temporary_files_of_a_killed_writer_are_collected(world: World) -> None:
    script = """
with init(False) as repo:
    store = repo.writable_objects()
    os.write(store.create(), b"half")
    say(left=[name for name in files() if "tmp" in name])
    sys.stdout.flush()
    os._exit(0)
"""
    left = world.run(script, FAKE_NO_TMPFILE="1")["left"]
    assert isinstance(left, list)
    assert len(left) == 1
    assert left[0].startswith("objects/.tmp-object-")
    said = world.run(
        "with Repository.open(path) as repo:\n collect_garbage(repo)\n say(files=files())",
        FAKE_NO_TMPFILE="1",
    )
    assert said == {"files": ["meta.json"]}


def test_insecure_opening_of_a_secure_repository_puts_up_with_missing_verity(world: World) -> None:
    said = world.run(
        """
with init() as repo:
    digest = repo.ensure_object(content)
name = os.path.join(path, "objects", digest.hex()[:2], digest.hex()[2:])
os.removexattr(name, "user.fake-verity")
found = []
for insecure in (False, True):
    with Repository.open(path, insecure=insecure) as repo:
        try:
            found.append(repo.read_object(digest) == content)
        except BootcError:
            found.append(None)
        found.append(len(fsck(repo)))
say(found=found)
""",
        **VERITY,
    )
    assert said == {"found": [None, 1, True, 0]}
