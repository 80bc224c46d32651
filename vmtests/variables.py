# SPDX-License-Identifier: Apache-2.0 OR MIT
"""How one option is declared, and the `BOOTC_*` names that are not options.

`option(kind, …)` is the metadata of a dataclass field; the parser, the environment, the labels and
the docs are derived from it. A `Kind` turns text into a value and back;
its `parse` raises `ValueError` with the reason when it refuses.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar, cast
from urllib.parse import urlsplit

from vmtests.axes import Stage

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

METADATA_KEY = "option"
MIB = 1024 * 1024
_UNITS = {"K": 1024, "M": MIB, "G": 1024 * MIB, "T": 1024 * 1024 * MIB}
_SIZE = re.compile(r"(\d+)\s*(?:([KMGT])(?:I?B)?)?", re.IGNORECASE)
_IMAGE = re.compile(r"[A-Za-z0-9][\w./:@+-]*", re.ASCII)


class Shape(StrEnum):
    """How a flag takes its value."""

    VALUE = "value"
    SWITCH = "switch"
    REPEATED = "repeated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[T]):
    """A type of option. `values` tells a reader what is allowed."""

    values: str
    parse: Callable[[str], T]
    render: Callable[[T], str]
    choices: tuple[str, ...] = ()
    shape: Shape = Shape.VALUE


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One declared option, its kind's type erased."""

    variable: str
    flag: str
    summary: str
    values: str
    stage: Stage
    parse: Callable[[str], object]
    render: Callable[[object], str]
    choices: tuple[str, ...]
    shape: Shape


def option(
    kind: Kind[T],
    *,
    variable: str,
    summary: str,
    stage: Stage,
    flag: str | None = None,
) -> dict[str, Option]:
    """The metadata of a field that is an option; the flag is the variable's name by default."""
    made = Option(
        variable=variable,
        flag=flag or "--" + variable.removeprefix("BOOTC_").lower().replace("_", "-"),
        summary=summary,
        values=kind.values,
        stage=stage,
        parse=kind.parse,
        render=lambda value: kind.render(cast("T", value)),
        choices=kind.choices,
        shape=kind.shape,
    )
    return {METADATA_KEY: made}


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be; letter case does not matter."""
    by_lower = {one.lower().removeprefix("bootc_"): one for one in known}
    wanted = word.lower().removeprefix("bootc_")
    close = difflib.get_close_matches(wanted, by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


class UnknownValue(ValueError):
    """A word that is none of `choices`."""

    def __init__(self, word: str, choices: tuple[str, ...]) -> None:
        super().__init__(f"{word!r} is none of {', '.join(choices)}")
        self.word = word
        self.choices = choices


def one_of(values: type[E]) -> Kind[E]:
    """One member of a closed set."""
    names = tuple(str(one) for one in values)

    def parse(text: str) -> E:
        if text not in names:
            raise UnknownValue(text, names)
        return values(text)

    return Kind(values=", ".join(names), parse=parse, render=str, choices=names)


def some_of(values: type[E]) -> Kind[tuple[E, ...]]:
    """Members of a closed set, separated by commas; none, if empty."""
    one = one_of(values)

    def parse(text: str) -> tuple[E, ...]:
        found = [one.parse(word.strip()) for word in text.split(",") if word.strip()]
        return tuple(member for member in values if member in found)

    return Kind(
        values=f"comma list of {one.values}",
        parse=parse,
        render=lambda members: ",".join(str(member) for member in members),
    )


def image_reference() -> Kind[str]:
    """An image by its reference; not checked for existence."""

    def parse(text: str) -> str:
        if not _IMAGE.fullmatch(text):
            raise ValueError("is not an image reference (HOST/NAME[:TAG][@DIGEST])")
        return text

    return Kind(values="an image reference", parse=parse, render=str)


def kernel_arguments() -> Kind[tuple[str, ...]]:
    """Words, split and quoted as a shell does, without those that only the installer may set."""

    def parse(text: str) -> tuple[str, ...]:
        try:
            found = tuple(shlex.split(text))
        except ValueError as error:
            raise ValueError(f"cannot be split into words: {error}") from error
        for word in found:
            if word == "--":
                raise ValueError("has a '--', behind which the kernel reads nothing: not the root")
            if word.startswith("composefs="):
                raise ValueError(f"has {word}, which names the root: the installer sets it")
            if not word or not word.isprintable() or '"' in word:
                raise ValueError(f"has {word!r}, which no kernel command line can hold")
        return found

    return Kind(
        values="words, quoted as in a shell",
        parse=parse,
        render=shlex.join,
        shape=Shape.REPEATED,
    )


def whole_number(low: int, high: int) -> Kind[int]:
    """An integer between two limits, both allowed."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit():
            raise ValueError("is not a whole number")
        if not low <= int(text) <= high:
            raise ValueError(f"is not between {low} and {high}")
        return int(text)

    return Kind(values=f"{low} to {high}", parse=parse, render=str)


def _read_size(text: str, unit: str | None) -> int:
    match = _SIZE.fullmatch(text.strip())
    letter = (match.group(2) or unit or "") if match else ""
    if match is None or not letter:
        raise ValueError("is not a size (a number and M or G, such as 4G)")
    return int(match.group(1)) * _UNITS[letter.upper()]


def show_size(size: int) -> str:
    """A size in bytes as its shortest exact text: `4G`, `2560M`, `1000K`."""
    for letter in ("T", "G", "M"):
        if size and size % _UNITS[letter] == 0:
            return f"{size // _UNITS[letter]}{letter}"
    return f"{size // 1024}K"


def size(*, at_least: int, because: str) -> Kind[int]:
    """A size in bytes; K, M, G and T are powers of 1024, and a unit is needed."""

    def parse(text: str) -> int:
        found = _read_size(text, None)
        if found < at_least:
            raise ValueError(f"is too small: at least {show_size(at_least)}, because {because}")
        return found

    return Kind(values=f"a size, {show_size(at_least)} or more", parse=parse, render=show_size)


def mebibytes(*, at_least: int) -> Kind[int]:
    """A size in MiB: a plain number means MiB."""

    def parse(text: str) -> int:
        found = _read_size(text, "M")
        if found < at_least * MIB or found % MIB:
            raise ValueError(f"is not a number of MiB, {at_least} or more")
        return found // MIB

    return Kind(values=f"a number of MiB, {at_least} or more", parse=parse, render=str)


def switch() -> Kind[bool]:
    """On or off; an empty value is off."""
    said = {"1": True, "true": True, "yes": True, "on": True}
    said |= {"0": False, "false": False, "no": False, "off": False}

    def parse(text: str) -> bool:
        if text.lower() not in said:
            raise UnknownValue(text, tuple(said))
        return said[text.lower()]

    return Kind(
        values="1 or 0",
        parse=parse,
        render=lambda on: "1" if on else "0",
        shape=Shape.SWITCH,
    )


def libvirt_uri() -> Kind[str]:
    """A libvirt connection on this machine; disks and sockets are paths, so no other host."""

    def parse(text: str) -> str:
        parts = urlsplit(text)
        if parts.netloc:
            raise ValueError(f"names the host {parts.netloc}, and machines run on this one only")
        if parts.scheme not in ("qemu", "qemu+unix") or not parts.path.startswith("/"):
            raise ValueError("is not a QEMU connection of libvirt")
        return text

    return Kind(values="a libvirt URI such as qemu:///system", parse=parse, render=str)


def url() -> Kind[str]:
    """The address of a package mirror."""

    def parse(text: str) -> str:
        parts = urlsplit(text)
        if parts.scheme not in ("http", "https", "file") or not (parts.netloc or parts.path):
            raise ValueError("is not an address (http://…, https://… or file:///…)")
        return text.rstrip("/")

    return Kind(values="a URL", parse=parse, render=str)


def path() -> Kind[str]:
    """A path of this machine; a relative one starts at the checkout."""
    return Kind(values="a path", parse=str, render=str)


REFUSED: dict[str, tuple[str, str]] = {
    "BOOTC_BASE_IMAGE": (
        "is another name for what machines start from",
        "set BOOTC_base_img to start from another image, or BOOTC_base to build from one",
    ),
    "BOOTC_buildroot_base": (
        "has no meaning: nothing is compiled, so there is no build root",
        "unset BOOTC_buildroot_base",
    ),
    "BOOTC_extra_src": (
        "has no meaning: the image is built from this checkout",
        "unset BOOTC_extra_src",
    ),
    "BOOTC_no_auto_local_deps": (
        "has no meaning: there are no path dependencies",
        "unset BOOTC_no_auto_local_deps",
    ),
    "BOOTC_SKIP_PACKAGE": (
        "is not supported yet: an unchanged package is found by its content key",
        "unset BOOTC_SKIP_PACKAGE",
    ),
    "BOOTC_CI_RETRIES": (
        "is not supported yet: a fetch is tried once",
        "unset BOOTC_CI_RETRIES, and retry the command",
    ),
    "BOOTC_CI_DELAY": (
        "is not supported yet: a fetch is tried once",
        "unset BOOTC_CI_DELAY, and retry the command",
    ),
    "BOOTC_test_upgrade_image": (
        "is not supported yet: no plan upgrades to a second image",
        "set BOOTC_upgrade_image instead",
    ),
    "BOOTC_target": (
        "is not supported yet: no plan runs on CoreOS",
        "unset BOOTC_target",
    ),
    "BOOTC_BUILDER": (
        "is not supported yet: no test builds in another image",
        "unset BOOTC_BUILDER",
    ),
}
"""Names that others give a meaning, and we none: the reason, and what to do instead."""

FOREIGN: dict[str, str] = {
    "BOOTC_LOG": "how much is logged (debug, info, warning)",
    "BOOTC_DIRECT_IO": "bootc: loop devices use direct I/O",
    "BOOTC_LOOPBACK_CLEANUP_HELPER": "bootc: marks its loop device helper",
    "BOOTC_SETENFORCE0_FALLBACK": "bootc: SELinux may be set to permissive",
    "BOOTC_SKIP_UNSHARE": "bootc: no mount namespace of its own",
    "BOOTC_BOOTLOADER_DEBUG": "bootc: the bootloader's installer is verbose",
    "BOOTC_EXP_EXTERNAL_CONTAINER_TOOL": "bootc: another program in place of podman and skopeo",
    "BOOTC_REINSTALL_CONFIG": "system-reinstall-bootc: its configuration file",
    "_BOOTC_ORIG_EXE": "bootc: its own path before it re-executed itself",
    "SYSTEM_REINSTALL_BOOTC_INSTALL_PODMAN_PATH": "system-reinstall-bootc: how podman is installed",
}
"""Names of the product at run time: none of the kit's business, and let through."""
