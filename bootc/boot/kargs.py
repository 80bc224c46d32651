# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Kernel arguments: the command line, the `composefs=` argument and `kargs.d` fragments.

A command line is split at white space; `"` switches quoting on and off, there are no escapes, and
quotes stay in the value. Of several arguments with one key the first counts.

`/usr/lib/bootc/kargs.d/*.toml`, in the order of their names:

    kargs = ["console=ttyS0", "quiet"]      # an array of strings
    match-architectures = ["x86_64"]        # optional; other machines skip the file

Any other key is an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from bootc.errors import FormatError
from bootc.records import dataclass

ARCHITECTURES = {"ppc64le": "powerpc64", "ppc64": "powerpc64", "armv7l": "arm", "i686": "x86"}
"""uname's names that differ from those in `match-architectures`."""

_DIGEST_ARG = r"v([12])-sha(256|512)-12:([0-9a-f]+)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposefsArg:
    """`composefs=<digest>`; `insecure` when a `?` says that verity may be missing."""

    digest: str
    insecure: bool

    def __str__(self) -> str:
        return f"composefs={'?' if self.insecure else ''}{self.digest}"


def split(cmdline: str) -> list[str]:
    """The arguments of a kernel command line."""
    found: list[str] = []
    word, quoted = "", False
    for char in cmdline:
        if char == '"':
            quoted = not quoted
        if char.isspace() and not quoted:
            if word:
                found.append(word)
            word = ""
        else:
            word += char
    return [*found, word] if word else found


def join(args: Iterable[str]) -> str:
    return " ".join(args)


def find(args: Iterable[str], key: str) -> str | None:
    """The value of the first argument `key=value`; `""` for a bare `key`; None without any."""
    for arg in args:
        name, _, value = arg.partition("=")
        if name == key:
            return value
    return None


def is_digest(text: str) -> bool:
    """Whether this is a digest of a composefs image in hexadecimal, as an argument has it."""
    return len(text) in (64, 128) and not text.strip("0123456789abcdef")


def find_composefs(args: Sequence[str]) -> ComposefsArg | None:
    """The image that the command line names: `composefs.digest=` first, then `composefs=`.

    Raises `FormatError` for a `composefs=` that is no digest.
    """
    for arg in args:
        name, _, value = arg.partition("=")
        if name == "composefs.digest":
            bare = value.removeprefix("?")
            match = re.fullmatch(_DIGEST_ARG, bare)
            if match and len(match[3]) * 4 == int(match[2]):
                return ComposefsArg(digest=match[3], insecure=value.startswith("?"))
    value = find(args, "composefs") or ""
    if not value:
        return None
    bare = value.removeprefix("?")
    if not is_digest(bare):
        raise FormatError("kernel command line", "composefs=", f"{value!r} is not a digest")
    return ComposefsArg(digest=bare, insecure=value.startswith("?"))


def without(args: Iterable[str], deletions: Sequence[str]) -> list[str]:
    """`args` less the deletions: a bare key takes every `key` and `key=…`, `key=value` itself."""
    exact = {item for item in deletions if "=" in item}
    keys = {item for item in deletions if "=" not in item}
    return [arg for arg in args if arg not in exact and arg.partition("=")[0] not in keys]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """What changes from one list of arguments to another."""

    added: tuple[str, ...]
    removed: tuple[str, ...]

    def apply(self, args: Iterable[str]) -> list[str]:
        """`args` less the removed ones (exact match), then the added ones that are not there."""
        kept = [arg for arg in args if arg not in self.removed]
        return kept + [arg for arg in self.added if arg not in kept]


def diff(old: Sequence[str], new: Sequence[str]) -> Diff:
    """From the `kargs.d` arguments of one image to those of another."""
    return Diff(
        added=tuple(arg for arg in new if arg not in old),
        removed=tuple(arg for arg in old if arg not in new),
    )


def architecture(machine: str | None = None) -> str:
    """The machine's architecture by the names that `match-architectures` uses."""
    name = machine or os.uname().machine
    return ARCHITECTURES.get(name, name)


def parse_fragment(text: str, source: str, arch: str) -> list[str]:
    """The arguments of one `kargs.d` file for a machine of `arch`."""
    import tomllib  # start-up time: only who has such files needs it

    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FormatError(source, None, f"is not TOML: {error}") from error
    for key in table:
        if key not in ("kargs", "match-architectures"):
            raise FormatError(source, key, "is not known here (kargs, match-architectures)")
    wanted = _strings(table, "match-architectures", source)
    args = _strings(table, "kargs", source)
    if args is None:
        raise FormatError(source, "kargs", "is missing, expected an array of strings")
    return args if wanted is None or arch in wanted else []


def _strings(table: Mapping[str, object], key: str, source: str) -> list[str] | None:
    if key not in table:
        return None
    value = table[key]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise FormatError(source, key, "expected an array of strings")
    return list(value)


def merge_fragments(files: Iterable[tuple[str, str]], arch: str) -> list[str]:
    """The arguments of all (name, text) of a `kargs.d`; files without `.toml` are skipped."""
    return list(_merged(files, arch))


def _merged(files: Iterable[tuple[str, str]], arch: str) -> Iterator[str]:
    for name, text in sorted(files):
        if name.endswith(".toml"):
            yield from parse_fragment(text, name, arch)
