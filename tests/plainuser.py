# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A user who isn't root, with subordinate ids: what happens without root. Needs root."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bootc import process

USER, FIRST, COUNT = 41500, 4_200_000, 65_536
"""The user's id, and the first and number of the subordinate ones."""
CHECKOUT = "checkout"
_PYTHON = "python"
_TOP = Path(__file__).resolve().parents[1]
_RUN = "import sys; sys.path.insert(0, sys.argv.pop(1))\n"


@contextmanager
def ordinary_user() -> Iterator[Path]:
    """A folder that everybody may enter, and a user with subordinate ids in our own /etc.

    What the user still runs at the end (podman keeps a process) is ended then. The checkout and
    the interpreter are in the folder too, for reading: they may lie below /root.
    """
    with tempfile.TemporaryDirectory(prefix="bootc-user-") as name:
        top = Path(name)
        top.chmod(0o755)
        files = {
            "passwd": f"root:x:0:0::/root:/bin/sh\ntester:x:{USER}:{USER}::{top}:/bin/sh\n",
            "group": f"root:x:0:\ntester:x:{USER}:\n",
            "subuid": f"other:1:5\ntester:{FIRST}:{COUNT}\n",
            "subgid": f"tester:{FIRST}:{COUNT}\n",
        }
        bound: list[str] = []

        def bind(source: str, target: str) -> None:
            process.run(["mount", "-o", "bind,ro", source, target])
            bound.append(target)

        try:
            for file, text in files.items():
                (top / file).write_text(text)
                Path("/etc", file).touch()
                bind(str(top / file), f"/etc/{file}")
            for path, name in ((str(_TOP), CHECKOUT), (sys.prefix, _PYTHON)):
                (top / name).mkdir()
                bind(path, str(top / name))
            yield top
        finally:
            for pid in processes_of_user():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            # podman keeps its locks in memory that outlives the user.
            Path(f"/dev/shm/libpod_rootless_lock_{USER}").unlink(missing_ok=True)
            for path in reversed(bound):
                process.run(["umount", path])


def as_user(place: Path, code: str, *argv: str) -> list[str]:
    """The command line with which the user runs Python `code`, that finds our packages."""
    ids = ("--reuid", str(USER), "--regid", str(USER), "--clear-groups")
    python = place / _PYTHON / "bin" / os.path.basename(sys.executable)
    return ["setpriv", *ids, "--", str(python), "-c", _RUN + code, str(place / CHECKOUT), *argv]


def processes_of_user() -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == USER:
                found.append(int(name))
    return found
