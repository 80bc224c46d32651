# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`cfsctl`: a composefs repository from the command line, and the C tools' names for parts of it.

It is made to be driven by programs as well: stdout is the answer (JSON, where `--json` asks for it)
and nothing else; stderr has one line `error: …`, and where there is something to do about it a
second one, `hint: …`. Exit status:

| status | meaning |
|---|---|
| 0 | done |
| 1 | refused or failed |
| 2 | the command line is not understood |
| 130 | interrupted |
| 141 | the reader of stdout went away; silent, as for a program that SIGPIPE ends |

Started by a socket (`LISTEN_FDS`) and without a command, it serves as `varlink` does.

The name under which it is called, or else the first argument, may be one of `PROGRAMS`, each with
the options, the messages and the exit statuses of the C tool.

Start-up is most of the time that a small command takes, so a module is imported when it is known to
be needed: only the one of the command, all of them for the help and for errors, none for --version.
"""

from __future__ import annotations

import io
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from bootc.composefs.cli.common import Group

PROGRAMS = {
    "mkcomposefs": "mkcomposefs",
    "composefs-info": "composefs_info",
    "composefs-dump": "composefs_dump",
    "mount.composefs": "mount_composefs",
}
"""Other tools by name: the module here whose `main(arguments)` returns the exit status."""

MODULES = ("repository", "trees", "mount", "oci", "varlink")
"""The modules with `register(commands)`, in the order of the help."""

COMMANDS = {
    "create-image": "trees",
    "compute-id": "trees",
    "compute-karg": "trees",
    "create-dumpfile": "trees",
    "mount": "mount",
    "diff": "mount",
    "oci": "oci",
    "varlink": "varlink",
}
"""The module of a command that isn't one of `repository`."""

NOT_OFFERED = {
    "ostree": "convert the commit to an OCI image with `ostree container encapsulate`, and pull it",
    "fetch": "pull the image from a registry with `cfsctl oci pull docker://…`",
}
"""Commands of the original that are not here, and what to do instead."""

_VALUED = ("--repo", "--hash", "--erofs-version")
_BROKEN_PIPE = 128 + 13


def find_command(argv: Sequence[str]) -> str | None:
    """The command in a command line: the first word that is neither an option nor its value."""
    rest = iter(argv)
    for word in rest:
        if word in _VALUED:
            next(rest, None)
        elif not word.startswith("-"):
            return word
        elif word in ("-h", "--help"):
            return None
    return None


def make_parser(modules: Sequence[str] = MODULES) -> tuple[argparse.ArgumentParser, Group]:
    """The parser with the commands of `modules`, and the group that they are in."""
    import argparse  # not for --version

    parser = argparse.ArgumentParser(
        prog="cfsctl", description="Manage a composefs repository.", allow_abbrev=False
    )
    parser.add_argument("-V", "--version", action="version", version=_version())
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--repo", metavar="PATH", help="the repository")
    where.add_argument("--user", action="store_true", help="~/.var/lib/composefs")
    where.add_argument("--system", action="store_true", help="/sysroot/composefs")
    parser.add_argument(
        "--no-repo", action="store_true", help="ask no repository; for commands that store nothing"
    )
    parser.add_argument(
        "--hash", choices=["sha256", "sha512"], help="refuse a repository with the other one"
    )
    parser.add_argument(
        "--erofs-version",
        type=int,
        choices=[0, 1, 2],
        help="of the images that this command makes, in place of the repository's",
    )
    parser.add_argument("--insecure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--require-verity", action="store_true", help="refuse a repository without fs-verity"
    )
    parser.add_argument(
        "--no-upgrade", action="store_true", help="refuse a repository of the old format"
    )
    # Naming the program here keeps argparse from formatting a usage, and from importing for that.
    commands = parser.add_subparsers(metavar="COMMAND", required=True, prog="cfsctl")
    for name in modules:
        _load(name).register(commands)
    return parser, commands


def _is_activated() -> bool:
    """Whether a socket started us: then we serve, whatever there is no command for."""
    # The package would import more than a command line without a command is worth.
    return os.environ.get("LISTEN_PID") == str(os.getpid())


def _load(name: str) -> ModuleType:
    from importlib import import_module  # which module it is depends on the command

    return import_module(f"bootc.composefs.cli.{name}")


def _version() -> str:
    from bootc import __version__

    return f"cfsctl {__version__}"


def main(argv: Sequence[str]) -> int:
    """Run one command and return the exit status."""
    if argv and argv[0] in ("--version", "-V"):
        print(_version())
        return 0
    command = find_command(argv)
    if command == "help":
        argv = [*(word for word in argv if word != "help"), "--help"]
        command = find_command(argv)
    if command in NOT_OFFERED:
        print(f"error: `cfsctl {command}` is not offered", file=sys.stderr)
        print(f"hint: {NOT_OFFERED[command]}", file=sys.stderr)
        return 1
    if command is None and not {"-h", "--help"} & set(argv) and _is_activated():
        argv, command = [*argv, "varlink"], "varlink"
    modules = MODULES if command is None else (COMMANDS.get(command, MODULES[0]),)
    parser, commands = make_parser(modules)
    if command is not None and command not in commands.choices:
        parser, _ = make_parser()
    args = parser.parse_args(argv)
    return _report(lambda: args.run(args))


def _report(run: Callable[[], int | None]) -> int:
    """Run a command; its errors become lines on stderr and an exit status."""
    from bootc import log
    from bootc.errors import BootcError, chain_text

    log.setup()
    try:
        return run() or 0
    except (BootcError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            raise
        print(_one_line(f"error: {chain_text(error)}"), file=sys.stderr)
        if isinstance(error, BootcError) and error.hint:
            print(_one_line(f"hint: {error.hint}"), file=sys.stderr)
        return 1


def _one_line(text: str) -> str:
    """The text with the newlines of names in it made visible."""
    return text.replace("\n", "\\n")


def run_program(argv: Sequence[str]) -> int:
    """Run what `argv`, with the program's own name, asks for; returns the exit status."""
    name, arguments = os.path.basename(argv[0]), list(argv[1:])
    if name not in PROGRAMS and arguments and arguments[0] in PROGRAMS:
        name = arguments.pop(0)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names are written as they were given
    run: Callable[[Sequence[str]], int] = _load(PROGRAMS[name]).main if name in PROGRAMS else main
    try:
        try:
            status = run(arguments)
        except SystemExit as error:  # argparse, after the help or an error
            status = error.code if isinstance(error.code, int) else 2
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        # The interpreter would try to write the rest once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            return _BROKEN_PIPE
        print(f"error: cannot write to stdout: {error.strerror}", file=sys.stderr)
        return 1
    return status


def _reader_is_gone() -> bool:
    """Whether stdout is a pipe that nobody reads any more."""
    import select  # for this error only

    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def entry() -> None:
    """The console script, under any of its names."""
    sys.exit(run_program(sys.argv))


if __name__ == "__main__":
    entry()
