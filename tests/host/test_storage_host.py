# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Stores that podman makes, and those of users. Needs root, podman and newuidmap.

STORAGE_PODMANS names the podmans, separated by colons; without it, it is the one on PATH. See also
`tests/interop/compare_storage.py`, which compares more of them.
"""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootc import process
from tests.interop.compare_storage import compare_podman, podmans, scratch
from tests.interop.tally import Tally
from tests.ocibuild import END, folder, member
from tests.plainuser import FIRST, USER, as_user, ordinary_user, processes_of_user
from tests.storagebuild import StoreBuilder

pytestmark = pytest.mark.root

PULL = "from bootc.composefs.cli.main import entry; import sys; sys.exit(entry())"
HOLD = """
import os, sys, time
from bootc.storage.opener import Opener
with Opener() as opener:
    fd = opener.open_path(sys.argv[1], os.O_RDONLY)
    print(os.read(fd, 100).decode(), flush=True)
    time.sleep(600)
"""


def test_what_podman_stores_is_read_exactly() -> None:
    tally = Tally()
    with scratch() as top:
        for number, podman in enumerate(podmans()):
            compare_podman(tally, podman, top / str(number))
    assert [check.different for check in tally.checks.values()] == [[] for _ in tally.checks]
    assert all(check.same for check in tally.checks.values())


@pytest.fixture
def place() -> Iterator[Path]:
    with ordinary_user() as folder:
        yield folder


def rootless_store(top: Path) -> tuple[StoreBuilder, Path]:
    """A user's store, with a file and a folder that only subordinate ids may look into."""
    store = StoreBuilder(root=top / "store")
    tar = (
        folder(b"usr") + folder(b"etc") + folder(b"etc/secret") + member(b"etc/shadow", b"s" * 500)
    )
    tar += member(b"etc/secret/key", b"k" * 500) + member(b"etc/open", b"o" * 500) + END
    layer = store.add_layer(tar)
    store.add_image([tar], "localhost/rootless:1")
    store.write()
    for path in [store.root, *store.root.rglob("*")]:
        os.chown(path, USER, USER, follow_symlinks=False)
    files = store.diff(layer) / "etc"
    for name, mode, owner in (("shadow", 0o600, 5), ("secret/key", 0o600, 1), ("secret", 0o700, 1)):
        (files / name).chmod(mode)
        os.chown(files / name, FIRST + owner, FIRST + owner)
    return store, files / "shadow"


def wait_until_gone(deadline: float = 20.0) -> list[int]:
    end = time.monotonic() + deadline
    while (left := processes_of_user()) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def test_a_users_store(place: Path) -> None:
    store, secret = rootless_store(place)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    repo = place / "repo"
    repo.mkdir()
    os.chown(repo, USER, USER)
    made = as_user(place, PULL, "--repo", f"{repo}/r", "init", "--insecure")
    process.run(made, cwd="/")
    process.run(
        as_user(place, PULL, "--repo", f"{repo}/r", "oci", "pull", store.imgref("rootless:1"), "t"),
        cwd="/",
    )
    listed = process.run(
        as_user(place, PULL, "--repo", f"{repo}/r", "oci", "images"), cwd="/"
    ).stdout
    assert "t " in listed
    objects = sorted(path.read_bytes() for path in (repo / "r/objects").glob("??/*"))
    for content in (b"s" * 500, b"k" * 500, b"o" * 500):
        assert content in objects
    assert wait_until_gone() == []


def test_a_user_without_subordinate_ids_is_told(place: Path) -> None:
    store, _ = rootless_store(place)
    (place / "subuid").write_text("")
    repo = place / "repo"
    repo.mkdir()
    os.chown(repo, USER, USER)
    process.run(as_user(place, PULL, "--repo", f"{repo}/r", "init", "--insecure"), cwd="/")
    done = process.run(
        as_user(place, PULL, "--repo", f"{repo}/r", "oci", "pull", store.imgref("rootless:1"), "t"),
        cwd="/",
        check=False,
    )
    assert done.status == 1
    assert "error: tester has no subordinate ids in /etc/subuid\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert wait_until_gone() == []


def test_the_helper_ends_with_a_parent_that_is_killed(place: Path) -> None:
    _, secret = rootless_store(place)
    argv = as_user(place, HOLD, str(secret))
    with process.running(argv, stdout=process.PIPE, cwd="/") as child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == b"s" * 100
        assert len(processes_of_user()) >= 2
        os.kill(child.pid, signal.SIGKILL)
        child.wait(20)
        assert wait_until_gone() == []
