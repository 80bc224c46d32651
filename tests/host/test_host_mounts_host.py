# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A process in a mount namespace of its own, like a container's, gets folders of the host. Root.

What is the host here is a process namespace of ours: process 1 of this machine may not let us in.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bootc import process

pytestmark = pytest.mark.root
TOP = Path(__file__).resolve().parents[2]
HOST = ("unshare", "--mount", "--pid", "--fork", "--mount-proc")
PROGRAM = """
import os, sys
from bootc.errors import BootcError
from bootc.install.host_mounts import share_host_mounts
os.chdir("/usr")
try:
    share_host_mounts(sys.argv[1:])
except BootcError as error:
    sys.exit(f"error: {error}, hint: {error.hint}")
for path in sys.argv[1:]:
    print(sorted(os.listdir(path)))
print(os.getcwd(), os.path.exists("/only-here"))
"""


def shared(container: str, *paths: Path) -> list[str]:
    """What the program prints where `container`, a shell's words, is what starts it."""
    script = f'{container} "$@"; exit $?'
    argv = [*HOST, "sh", "-c", script, "sh", sys.executable, "-c", PROGRAM, *map(str, paths)]
    done = process.run(argv, env={"PYTHONPATH": str(TOP)}, check=False)
    return [done.stderr.strip()] if done.status else done.stdout.splitlines()


def in_namespace(setup: str) -> str:
    return f"unshare --mount sh -c 'set -e; {setup}; exec \"$@\"' sh"


def test_folders_of_the_host_are_seen(tmp_path: Path) -> None:
    hidden, same, none = tmp_path / "hidden", tmp_path / "same", tmp_path / "none"
    for one in (hidden, same):
        one.mkdir()
        (one / "of-the-host").touch()
    setup = f"mount -t tmpfs none {tmp_path}; mkdir {hidden} {none}; touch {hidden}/other"
    setup += f"; mkdir {same}"
    expected = ["['of-the-host']", "['of-the-host']", "[]", "/usr False"]
    assert shared(in_namespace(setup), hidden, same, none) == expected
    assert sorted(os.listdir(tmp_path)) == ["hidden", "same"]
    assert os.listdir(hidden) == ["of-the-host"]


def test_the_root_stays_what_it_was(tmp_path: Path) -> None:
    """Also where an engine has changed the root, and not made it the namespace's."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "of-the-host").touch()
    root = tmp_path / "root"
    root.mkdir()
    setup = (
        f"mount -t tmpfs none {root}; mkdir {root}/upper {root}/work {root}/all; mount -t overlay"
        f" none {root}/all -o lowerdir=/,upperdir={root}/upper,workdir={root}/work;"
        f" touch {root}/all/only-here; rm {root}/all{folder}/of-the-host;"
        f' mount --rbind /proc {root}/all/proc; set -- chroot {root}/all "$@"'
    )
    assert shared(in_namespace(setup), folder) == ["['of-the-host']", "/usr True"]


def test_a_container_with_processes_of_its_own() -> None:
    [said] = shared("exec", Path("/mnt"))
    assert "this is process 1 of its container, hint: add --pid=host" in said
    [said] = shared("env", Path("/mnt"))
    assert "process 1 is this container's own, not the host's, hint: add --pid=host" in said
