# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What runs between us and podman: it makes podman's surroundings, then becomes podman.

    python -I -c "…" TOP launch PARENT ALIAS STORAGE_FD RUNROOT_FD PROGRAM ARGUMENT…

1. When PARENT, a process id, ends, podman is killed: PR_SET_PDEATHSIG stays over the exec.
2. In a mount namespace of its own the folder STORAGE_FD is bound to the path ALIAS. podman writes
   the path of a storage into its database, so that has to be the same wherever the storage lies.
3. The folder RUNROOT_FD becomes descriptor 3, for the same reason: podman is told that its run root
   is /proc/self/fd/3.

4. Variables that would lead podman elsewhere are dropped: LISTEN_FDS, from which it would take
   descriptor 3 for a socket, those that make it talk to another podman, and those of a storage.

It is a program, and nothing that a forked copy of us does, because a fork of a process that has
threads may only exec. Standard library only. Source: prctl(2), mount_namespaces(7).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

DROPPED = (
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "CONTAINER_HOST",
    "CONTAINER_CONNECTION",
    "STORAGE_DRIVER",
    "STORAGE_OPTS",
)
RUNROOT = 3
"""The descriptor that podman finds its run root at."""
_STOLEN = 127


def launch_argv(
    parent: int, alias: str, storage_fd: int, runroot_fd: int, argv: Sequence[str]
) -> list[str]:
    """The command line that starts `argv` (its program a path) by way of this module."""
    import bootc

    top = os.path.dirname(os.path.dirname(os.path.abspath(bootc.__file__)))
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); "
        "from bootc.podman.launch import main; main(sys.argv[2:])"
    )
    words = [str(parent), alias, str(storage_fd), str(runroot_fd)]
    return [sys.executable, "-I", "-c", code, top, "launch", *words, *argv]


def main(argv: Sequence[str]) -> None:
    """Become the program. An error is one line on stderr and the exit status 127."""
    from bootc.linux import libc

    parent, alias, storage_fd, runroot_fd = int(argv[0]), argv[1], int(argv[2]), int(argv[3])
    program = list(argv[4:])
    try:
        libc.set_parent_death_signal(signal.SIGKILL)
        if os.getppid() != parent:
            # It ended before we asked to be told.
            os._exit(_STOLEN)
        # Of what is open only the working folder comes along into the namespace.
        os.fchdir(storage_fd)
        libc.unshare(libc.CLONE_NEWNS)
        libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
        libc.mount(".", alias, None, libc.MS_BIND)
        os.chdir("/")
        os.dup2(runroot_fd, RUNROOT, inheritable=True)
        os.close(storage_fd)
        kept = {key: value for key, value in os.environ.items() if key not in DROPPED}
        os.execve(program[0], program, kept)
    except OSError as error:
        sys.stderr.write(f"cannot start podman: {error}\n")
        sys.stderr.flush()
        os._exit(_STOLEN)
