# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`cfsctl varlink`: serve org.composefs.Repository and org.composefs.Oci.

With `--address PATH` a socket is made there, for its owner only, and removed at the end (SIGTERM,
SIGINT). Without, the sockets are those that systemd, or `varlinkctl exec:cfsctl`, started us with.
Started in this way, `cfsctl` without any command serves, too. Nothing is printed on stdout.

The global options about how repositories are opened hold for all that clients open. A repository
that they name is handle 0, so that a client need not open it.
"""

from __future__ import annotations

import argparse
import os
from contextlib import suppress

from bootc.composefs.cli.common import Group, add_command, repository_path
from bootc.errors import BootcError

IDLE = 30.0
"""Seconds without a client after which a server that a socket started ends; the next one starts it
again."""


def _serve(args: argparse.Namespace) -> None:
    # Start-up time: the other commands of `cfsctl oci` don't need these.
    from bootc.composefs.services.handles import Options
    from bootc.composefs.services.serving import run
    from bootc.varlink import bind, from_environment, is_activated

    named = args.repo is not None or args.user or args.system
    options = Options(
        erofs_version=args.erofs_version,
        insecure=args.insecure,
        upgrade=not args.no_upgrade,
        require_verity=args.require_verity,
        hash=args.hash,
        default=os.path.abspath(repository_path(args)) if named else None,
    )
    if is_activated():
        if args.address is not None:
            raise BootcError(
                "there are sockets from systemd and an --address", hint="leave --address out"
            )
        run([found.socket() for found in from_environment()], options, idle=IDLE)
        return
    if args.address is None:
        raise BootcError(
            "there is no socket to serve on",
            hint="name one with --address PATH, or start this with systemd or `varlinkctl exec:`",
        )
    path = str(args.address).removeprefix("unix:")
    try:
        listener = bind(path)
    except OSError as error:
        raise BootcError(
            f"cannot listen on {path}: {error.strerror or error}",
            hint="name a path of at most 107 bytes in a folder that exists, and that no other"
            " server uses",
        ) from error
    try:
        run([listener], options)
    finally:
        if not path.startswith("@"):
            with suppress(FileNotFoundError):
                os.unlink(path)


def register(commands: Group) -> None:
    made = add_command(commands, "varlink", _serve, "Serve clients over varlink.")
    made.add_argument(
        "--address", metavar="PATH", help="a socket to make; default: those from systemd"
    )
