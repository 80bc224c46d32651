# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What the drop-ins for composefs' C tools share: options as getopt_long(3) takes them, and errors.

Options may stand behind operands, be cut short as long as they stay unique, and have their value
behind `=` or as the next argument; `--` ends them. Errors are one line on stderr that begins with
the program's name, and exit status 1, also for wrong usage. `--help` is the exception to the
original: it prints the usage on stdout and is no error.
"""

from __future__ import annotations

import errno
import getopt
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from bootc import fs
from bootc.errors import BootcError, chain_text

Write = Callable[[bytes | memoryview], None]


class UsageError(BootcError):
    """The command line makes no sense."""


class HelpWanted(Exception):
    """The caller asked for the usage."""


def split_options(
    argv: Sequence[str], names: Sequence[str]
) -> tuple[list[tuple[str, str]], list[str]]:
    """(options with their values, operands); an option that takes a value ends in `=`."""
    try:
        options, operands = getopt.gnu_getopt(list(argv), "h", [*names, "help"])
    except getopt.GetoptError as error:
        raise UsageError(error.msg) from None
    if any(name in ("-h", "--help") for name, _ in options):
        raise HelpWanted
    return options, operands


def run(
    program: str, usage: str, work: Callable[[Sequence[str]], None], argv: Sequence[str]
) -> int:
    """Run `work` and turn what it raises into a message and the exit status."""
    try:
        work(argv)
        sys.stdout.flush()
    except HelpWanted:
        print(usage, end="")
    except UsageError as error:
        print(f"{program}: {error}\n{usage}", end="", file=sys.stderr)
        return 1
    except BootcError as error:
        print(f"{program}: {chain_text(error)}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1
    except OSError as error:
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        print(f"{program}: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    return 0


def script(main: Callable[[Sequence[str]], int]) -> None:
    """The body of a console script: as other filters do, end silently when nobody reads on."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))


@contextmanager
def output(path: str, *, standard: bool = False) -> Iterator[Write]:
    """A function that writes to the file `path`, which appears, whole, when the block ends well.

    What isn't a regular file (a pipe, a link such as /proc/self/fd/3) is written to as it is; with
    `standard`, `-` is the standard output, which must not be a terminal.
    """
    if standard and path == "-":
        if sys.stdout.isatty():
            raise BootcError(
                "an image isn't written to a terminal", hint="redirect the output to a file"
            )
        sys.stdout.flush()
        yield lambda data: fs.write_all(sys.stdout.fileno(), data)
        return
    try:
        whole = not stat.S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:
        whole = False
    place = path if whole else os.path.join(os.path.dirname(path), fs.temporary_name(".tmp-image-"))
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if whole else os.O_EXCL)
    try:
        fd = os.open(place, flags, 0o644)
    except OSError as error:
        raise BootcError(f"cannot write {path}: {error.strerror}") from None
    try:
        yield lambda data: fs.write_all(fd, data)
        if not whole:
            os.rename(place, path)
    except BaseException as error:
        if not whole:
            with suppress(OSError):
                os.unlink(place)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise BootcError(f"cannot write {path}: {error.strerror}") from error
        raise
    finally:
        os.close(fd)
