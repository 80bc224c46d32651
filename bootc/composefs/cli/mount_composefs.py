# SPDX-License-Identifier: Apache-2.0 OR MIT
r"""`mount.composefs IMAGE MOUNTPOINT -o OPTIONS`: the C tool's, also as the helper of mount(8).

Options are separated by `,`; in a value `\` takes the next character as it is. `basedir` is
divided at each `:` after that, so a directory with a colon in its name cannot be given. Later
options win. `digest` implies `verity`. All failures, those of the command line as well, exit with
status 1 and a line on stderr.

Beyond the C tool: `-f` (do all but mount) and the ignored `-n`, `-s` and `-v`, which mount(8) hands
to its helpers. `tryverity` asks the file systems of the object directories: the kernel would mount
it on any, and then fail every read.
"""

from __future__ import annotations

import getopt
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from bootc import fs
from bootc.composefs.mount import MountOptions, Verity, make_mount
from bootc.linux import fsverity, newmount

NAME = "mount.composefs"
USAGE = """usage: mount.composefs [-t type] [-o opt[,opts..]] IMAGE MOUNTPOINT
Example:
  mount.composefs -o basedir=/composefs/objects exampleimage.cfs /mnt/exampleimage
or, as a mount helper:
  mount -t composefs -o basedir=/composefs/objects exampleimage.cfs /mnt/exampleimage

Supported options:
  basedir=PATH[:PATH]    Where the objects are; several are searched in order
  digest=DIGEST          The fs-verity digest that the image must have; implies verity
  idmap=PATH             A user namespace whose mapping of owners is used
  verity                 Each object must have the fs-verity digest that the image says
  tryverity              Like verity, where the file system of the objects has fs-verity
  ro                     Read only
  rw                     Read/write
  upperdir=PATH          Upper directory of the overlay
  workdir=PATH           Work directory of the overlay
"""

_VALUED = ("basedir", "digest", "upperdir", "workdir", "idmap")
_FLAGS = ("verity", "tryverity", "ro", "rw")
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class UsageError(Exception):
    """What is wrong with the command line; with `usage`, that is shown, too."""

    def __init__(self, message: str, *, usage: bool = False) -> None:
        super().__init__(message)
        self.usage = usage


class MountError(Exception):
    """Why nothing was mounted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A parsed command line."""

    image: str
    target: str
    options: dict[str, str]
    fake: bool = False


def split_options(text: str) -> list[tuple[str, str | None]]:
    r"""(name, value or None) of each option; a `\` that escapes is removed from values only."""
    found: list[tuple[str, str | None]] = []
    raw: list[str] = [""]
    escaped = False
    for char in text:
        if char == "," and not escaped:
            raw.append("")
            continue
        raw[-1] += char
        escaped = char == "\\" and not escaped
    for option in raw:
        name, equals, value = option.partition("=")
        found.append((name, _unescape(value) if equals else None))
    return found


def _unescape(value: str) -> str:
    plain: list[str] = []
    rest = iter(value)
    for char in rest:
        plain.append(next(rest, "") if char == "\\" else char)
    return "".join(plain)


def parse(arguments: Sequence[str]) -> Request:
    """Raises `UsageError`."""
    try:
        given, words = getopt.gnu_getopt(list(arguments), "ht:o:fnsv")
    except getopt.GetoptError as error:
        letter = error.opt if len(error.opt) == 1 else "-"
        wrong = (
            "option requires an argument" if error.msg.endswith("argument") else "invalid option"
        )
        raise UsageError(f"{NAME}: {wrong} -- '{letter}'", usage=True) from error
    text: str | None = None
    for option, value in given:
        if option == "-h":
            raise UsageError("", usage=True)
        if option == "-t" and value != "composefs":
            raise UsageError(f"{NAME}: Unsupported fs type '{value}'")
        if option == "-o":
            text = value
    for number, what in enumerate(("source", "mount")):
        if len(words) <= number:
            raise UsageError(f"No {what} path specified", usage=True)
    options: dict[str, str] = {}
    for name, setting in [] if text is None else split_options(text):
        if name not in _VALUED and name not in _FLAGS:
            raise UsageError(f"{NAME}: Unsupported option {name}")
        if name in _VALUED and setting is None:
            raise UsageError(f"{NAME}: No value specified for {name} option")
        if name in ("ro", "rw"):
            options.pop("rw" if name == "ro" else "ro", None)
        options[name] = setting or ""
    if "basedir" not in options:
        raise UsageError("No object dirs specified", usage=True)
    if "" in options["basedir"].split(":"):
        raise UsageError(f"{NAME}: Value for basedir option has incorrect format")
    if ("upperdir" in options) != ("workdir" in options):
        raise UsageError(f"{NAME}: Both workdir and upperdir must be specified if used")
    fake = ("-f", "") in given
    return Request(image=words[0], target=words[1], options=options, fake=fake)


def check_digest(image: int, wanted: str, shown: str) -> None:
    """Compare the digest that the kernel enforces with the hexadecimal `wanted`."""
    try:
        digest = bytes.fromhex(wanted)
    except ValueError:
        digest = b""
    if not digest:
        raise MountError(f"Failed to mount composefs {shown}: Invalid argument")
    measured = fsverity.measure(image)
    if measured is None:
        raise MountError(f"Failed to mount composefs {shown}: Image has no fs-verity")
    if measured[1] != digest:
        raise MountError(f"Failed to mount composefs {shown}: Image has wrong fs-verity")


def mount(request: Request) -> None:
    """Do it. Raises `MountError`."""
    options = request.options
    with ExitStack() as stack:

        def opened(path: str, flags: int, what: str) -> int:
            try:
                fd = os.open(path, flags | os.O_CLOEXEC)
            except OSError as error:
                raise MountError(f"{what}: {error.strerror}") from error
            stack.callback(os.close, fd)
            return fd

        failed = f"Failed to mount composefs {request.image}"
        idmap = options.get("idmap")
        namespace = None
        if idmap is not None:
            namespace = opened(idmap, os.O_RDONLY, f"Failed to open userns {idmap}")
        image = opened(request.image, os.O_RDONLY, f"Failed to open {request.image}")
        if options.get("digest"):
            check_digest(image, options["digest"], request.image)
        objects = [opened(path, _FOLDER, failed) for path in options["basedir"].split(":")]
        want = "verity" in options or "digest" in options
        if "tryverity" in options and not want:
            want = all(_has_verity(path) for path in options["basedir"].split(":"))
        settings = MountOptions(
            objects=tuple(objects),
            verity=Verity.REQUIRE if want else Verity.OFF,
            upper=options.get("upperdir"),
            work=options.get("workdir"),
            read_write="ro" not in options and "upperdir" in options,
            user_namespace=namespace,
        )
        try:
            fd = make_mount(image, settings)
            stack.callback(os.close, fd)
            if not request.fake:
                newmount.attach(fd, request.target)
        except OSError as error:
            raise MountError(f"{failed}: {error.strerror}") from error


def _has_verity(path: str) -> bool:
    with fs.open_directory(path) as folder:
        return fsverity.is_available(folder)


def main(arguments: Sequence[str]) -> int:
    """The program; returns its exit status."""
    try:
        mount(parse(arguments))
    except UsageError as error:
        if str(error):
            print(error, file=sys.stderr)
        if error.usage:
            print(USAGE, end="", file=sys.stderr)
        return 1 if str(error) else 0
    except MountError as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 1
    return 0


def entry() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))
