# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Type 1 entries of the Boot Loader Specification (uapi-group.org/specifications, BLS).

    title Debian GNU/Linux 13 (trixie)      one `key value` a line; `#` starts a comment line
    version 13                              required here
    linux /EFI/Linux/…/vmlinuz              either `linux`, with `initrd` any number of times,
    initrd /EFI/Linux/…/initrd              or `efi`, or `uki`
    options rw composefs=…
    machine-id, sort-key, any other key     kept in their order

Written in this order: title, version, (efi | uki) or (linux, initrd…, options), machine-id,
sort-key, the rest. Several `options` lines are one, joined by a blank.
"""

from __future__ import annotations

from collections.abc import Iterable

from bootc.boot import kargs
from bootc.errors import FormatError
from bootc.records import dataclass

_ONCE = ("title", "version", "linux", "efi", "uki", "machine-id", "sort-key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One boot menu entry. Exactly one of `linux`, `efi` and `uki` is set."""

    version: str
    title: str | None = None
    linux: str | None = None
    initrd: tuple[str, ...] = ()
    options: str | None = None
    efi: str | None = None
    uki: str | None = None
    machine_id: str | None = None
    sort_key: str | None = None
    extras: tuple[tuple[str, str], ...] = ()

    def to_text(self) -> str:
        """The file's content."""
        lines: list[tuple[str, str | None]] = [("title", self.title), ("version", self.version)]
        if self.linux is not None:
            lines += [("linux", self.linux), *(("initrd", path) for path in self.initrd)]
            lines += [("options", self.options)]
        else:
            lines += [("efi", self.efi), ("uki", self.uki), ("options", self.options)]
        lines += [("machine-id", self.machine_id), ("sort-key", self.sort_key), *self.extras]
        return "".join(f"{key} {value}\n" for key, value in lines if value is not None)

    @property
    def arguments(self) -> list[str]:
        """The kernel arguments."""
        return kargs.split(self.options or "")


def parse(text: str, source: str) -> Entry:
    """Read an entry; `source` names the file in a `FormatError`."""
    seen: dict[str, str] = {}
    initrd: list[str] = []
    options: list[str] = []
    extras: list[tuple[str, str]] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        key, *rest = line.split(None, 1)
        value = rest[0] if rest else ""
        if key == "initrd":
            initrd.append(value)
        elif key == "options":
            options.append(value)
        elif key in _ONCE:
            if key in seen:
                raise FormatError(source, f"line {number}", f"{key} is there twice")
            seen[key] = value
        else:
            extras.append((key, value))
    if "version" not in seen:
        raise FormatError(source, "version", "is missing")
    kinds = [key for key in ("linux", "efi", "uki") if key in seen]
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none of them"
        raise FormatError(source, None, f"wants one of linux, efi and uki, but has {found}")
    return Entry(
        version=seen["version"],
        title=seen.get("title"),
        linux=seen.get("linux"),
        initrd=tuple(initrd),
        options=" ".join(options) if options else None,
        efi=seen.get("efi"),
        uki=seen.get("uki"),
        machine_id=seen.get("machine-id"),
        sort_key=seen.get("sort-key"),
        extras=tuple(extras),
    )


def menu_order(entries: Iterable[tuple[str, Entry]]) -> list[tuple[str, Entry]]:
    """(file name, entry) in the order of systemd-boot's menu.

    Entries with a sort key come first, by that key ascending; then the version, newest first;
    then the file name, descending.
    """
    by_name = sorted(entries, key=lambda item: item[0], reverse=True)
    by_version = sorted(by_name, key=lambda item: _version_key(item[1].version), reverse=True)
    return sorted(by_version, key=lambda item: (item[1].sort_key is None, item[1].sort_key or ""))


def _version_key(version: str) -> tuple[tuple[int, int | str], ...]:
    """Runs of digits compare as numbers and are newer than letters."""
    parts: list[tuple[int, int | str]] = []
    run = ""
    for char in [*version, "\0"]:
        if run and (char.isdigit() != run[-1].isdigit() or not char.isalnum()):
            parts.append((1, int(run)) if run.isdigit() else (0, run))
            run = ""
        if char.isalnum():
            run += char
    return tuple(parts)
