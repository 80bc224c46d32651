# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The console script `bootc`: the only place that exits.

Started without arguments by who hands over sockets, as systemd and `varlinkctl exec:` do, it serves
varlink on them (docs/varlink-bootc.md) and prints nothing on stdout.

Exit status: 0; 1 for a failure (`error: …` and, when there is one, `hint: …` on stderr); 2 for a
wrong command line; 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Run the command line `argv` (without the program's name) and return the exit status."""
    from bootc import __version__

    if list(argv) in (["--version"], ["-V"]):
        sys.stdout.write(f"bootc {__version__}\n")
        return 0
    if not argv and is_activated():
        return _guarded(serve)
    # argparse and everything behind it cost tens of milliseconds: only for who needs them.
    from bootc.cli import commands, parser

    arguments = parser.parse(argv)
    return _guarded(lambda: commands.run(arguments))


def is_activated() -> bool:
    """Whether somebody started this process with sockets to serve on; see sd_listen_fds(3)."""
    return os.environ.get("LISTEN_PID") == str(os.getpid())


def serve() -> None:
    """Serve varlink on the sockets that we were started with."""
    from bootc.services.server import serve_activated

    serve_activated()


def _guarded(run: Callable[[], None]) -> int:
    """The exit status; what went wrong is told."""
    from bootc.errors import BootcError

    try:
        run()
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except (BootcError, OSError) as error:
        from bootc.cli import render

        render.complain(error)
        return 1
    return 0


def entry() -> None:
    """The console script."""
    try:
        status = main(sys.argv[1:])
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.exit(status)


if __name__ == "__main__":
    entry()
