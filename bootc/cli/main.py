# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The console script `bootc`: the only place that exits.

Exit status: 0; 1 for a failure (`error: …` and, when there is one, `hint: …` on stderr); 2 for a
wrong command line; 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Run the command line `argv` (without the program's name) and return the exit status."""
    from bootc import __version__

    if list(argv) in (["--version"], ["-V"]):
        sys.stdout.write(f"bootc {__version__}\n")
        return 0
    # argparse and everything behind it cost tens of milliseconds: only for who needs them.
    from bootc.cli import commands, parser, render
    from bootc.errors import BootcError

    arguments = parser.parse(argv)
    try:
        commands.run(arguments)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except (BootcError, OSError) as error:
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
