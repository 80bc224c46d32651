# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`cfsctl`'s commands about what is in an image: mount, and diff, which the original has not.

`diff A B` names two images of the repository, each by its digest or a reference. A line for each
name that differs: `+ PATH`, `- PATH`, or `~ PATH` and in what (see `diff.Aspect`), with the paths
escaped as in a dump file. `--json`: `{"differences": […]}`, each with `path`, `change` (added,
removed, changed), `aspects`, `before` and `after`; these two are null or have `type`, `mode`
(octal, as text), `uid`, `gid`, `mtime` and `mtime_nsec`, `xattrs` (names only), and what the type
has: `size`, `digest`, `target`, `rdev`. The exit status doesn't depend on what is found.
"""

from __future__ import annotations

import argparse
import stat

from bootc import jsonutil
from bootc.composefs.cli.common import Group, add_command, open_repository
from bootc.composefs.diff import Change, Difference, diff_trees
from bootc.composefs.dumpfile import escape
from bootc.composefs.erofs_reader import read_image
from bootc.composefs.mount import mount_image
from bootc.composefs.repository import Repository
from bootc.errors import BootcError
from bootc.jsonutil import Json
from bootc.tree import Device, Directory, External, Inline, Node, Sparse, Special, Symlink

_MARKS = {Change.ADDED: "+", Change.REMOVED: "-", Change.CHANGED: "~"}
_TYPES = {
    stat.S_IFREG: "regular",
    stat.S_IFLNK: "symlink",
    stat.S_IFBLK: "block",
    stat.S_IFCHR: "character",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def _mount(args: argparse.Namespace) -> None:
    if args.fuse == "yes" or args.foreground:
        raise BootcError(
            "FUSE is not offered: images are mounted by the kernel", hint="leave --fuse out"
        )
    with (
        open_repository(args) as repo,
        mount_image(
            repo,
            args.name,
            upper=args.upperdir,
            work=args.workdir,
            read_write=args.read_write,
        ) as mount,
    ):
        mount.attach(args.mountpoint)


def _read(repo: Repository, name: str) -> Directory:
    return read_image(repo.read_image(name), name)


def _diff(args: argparse.Namespace) -> None:
    with open_repository(args) as repo:
        found = diff_trees(_read(repo, args.before), _read(repo, args.after))
        if args.json:
            rows: list[Json] = [_row(difference) for difference in found]
            print(jsonutil.pretty({"differences": rows}), end="")
            return
        for difference in found:
            aspects = ", ".join(difference.aspects)
            path = escape(difference.path)
            print(f"{_MARKS[difference.change]} {path}{'  ' + aspects if aspects else ''}")


def _row(difference: Difference) -> Json:
    return {
        "path": escape(difference.path),
        "change": difference.change.value,
        "aspects": [aspect.value for aspect in difference.aspects],
        "before": None if difference.before is None else _describe(difference.before),
        "after": None if difference.after is None else _describe(difference.after),
    }


def _describe(node: Node) -> dict[str, Json]:
    about = node.stat
    found: dict[str, Json] = {
        "type": "directory" if isinstance(node, Directory) else _TYPES[node.kind],
        "mode": f"{about.mode:04o}",
        "uid": about.uid,
        "gid": about.gid,
        "mtime": about.mtime,
        "mtime_nsec": about.mtime_nsec,
        "xattrs": [escape(name, attribute=True) for name in sorted(about.xattrs)],
    }
    if isinstance(node, Directory):
        return found
    match node.content:
        case Inline(data=data):
            found["size"] = len(data)
        case External(size=size, digest=digest):
            found["size"] = size
            found["digest"] = None if digest is None else digest.hex()
        case Sparse(size=size):
            found["size"] = size
        case Symlink(target=target):
            found["target"] = escape(target)
        case Device(rdev=rdev):
            found["rdev"] = rdev
        case Special():
            pass
    return found


def register(commands: Group) -> None:
    made = add_command(commands, "mount", _mount, "Mount an image by the kernel; needs root.")
    made.add_argument("name", help="of the image: its digest or a reference")
    made.add_argument("mountpoint")
    made.add_argument("--upperdir", metavar="DIR", help="what is written goes here")
    made.add_argument("--workdir", metavar="DIR", help="an empty one, where --upperdir is")
    made.add_argument("--read-write", action="store_true", help="allow writing into --upperdir")
    made.add_argument(
        "--fuse",
        nargs="?",
        const="yes",
        default="auto",
        choices=["auto", "yes", "no"],
        help="FUSE is not offered: auto and no mean the kernel, yes is an error",
    )
    made.add_argument("--foreground", action="store_true", help=argparse.SUPPRESS)
    made = add_command(commands, "diff", _diff, "Tell in what two images differ.")
    made.add_argument("before", metavar="A", help="an image: its digest or a reference")
    made.add_argument("after", metavar="B")
    made.add_argument("--json", action="store_true")
