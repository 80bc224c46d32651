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
from bootc.composefs.cli.common import (
    Group,
    add_command,
    attach_image,
    mount_options,
    open_repository,
    refuse_fuse,
)
from bootc.composefs.diff import Change, Difference, diff_trees
from bootc.composefs.dumpfile import escape
from bootc.composefs.erofs_reader import read_image
from bootc.composefs.repository import Repository
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
    refuse_fuse(args)
    with open_repository(args) as repo:
        attach_image(args, repo, args.name)


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
    mount_options(made)
    made = add_command(commands, "diff", _diff, "Tell in what two images differ.")
    made.add_argument("before", metavar="A", help="an image: its digest or a reference")
    made.add_argument("after", metavar="B")
    made.add_argument("--json", action="store_true")
