# SPDX-License-Identifier: Apache-2.0 OR MIT
"""UEFI firmware for machines, found by the descriptors that distributions ship.

The format is QEMU's `docs/interop/firmware.json`: one JSON file for each build, in (by falling
priority) `$XDG_CONFIG_HOME/qemu/firmware`, `/etc/qemu/firmware` and `/usr/share/qemu/firmware`. Of
files with one name the first folder's counts (an empty one hides the others), and files are tried
in the order of their names. What we read of it:

    interface-types  must hold "uefi"
    mapping          {"device": "flash", "executable": {"filename", "format"},
                      "nvram-template": {"filename", "format"}}
    targets          [{"architecture": "x86_64", "machines": ["pc-q35-*", …]}, …]
    features         "secure-boot", "requires-smm", "enrolled-keys", …

A format is "raw" or "qcow2" (Fedora's and CentOS's 4 MB builds). A plain build is taken before one
of qcow2, which is made plain in the cache: so machines, and their saved memory, know one form.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bootc.errors import BootcError, FormatError
from bootc.jsonutil import Reader, read_object
from vmtests import paths
from vmtests.domain import DiskFormat, Uefi
from vmtests.qcow2 import convert_to_raw


@dataclass(frozen=True, slots=True, kw_only=True)
class Firmware:
    """One firmware build: its code, and the template of the variables each machine copies."""

    code: Path
    vars_template: Path
    secure: bool
    """Built with Secure Boot, and therefore needs SMM."""
    enrolled: bool
    """The template holds its vendor's keys."""
    descriptor: Path
    format: DiskFormat
    """Of both files."""


def descriptor_folders() -> list[Path]:
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return [
        Path(home, "qemu/firmware"),
        Path("/etc/qemu/firmware"),
        Path("/usr/share/qemu/firmware"),
    ]


def iter_firmware(folders: Sequence[Path] | None = None) -> Iterator[Firmware]:
    """Every usable x86-64 UEFI build, best first. Descriptors that we cannot read are passed by."""
    chosen: dict[str, Path] = {}
    for folder in descriptor_folders() if folders is None else folders:
        for path in sorted(folder.glob("*.json")):
            chosen.setdefault(path.name, path)
    for _name, path in sorted(chosen.items()):
        try:
            text = path.read_bytes()
            found = _parse(read_object(text, str(path)), path) if text.strip() else None
        except (OSError, FormatError):
            continue
        if found is not None and found.code.exists() and found.vars_template.exists():
            yield found


def _parse(reader: Reader, path: Path) -> Firmware | None:
    mapping = reader.table("mapping")
    if "uefi" not in reader.texts("interface-types") or mapping.text("device") != "flash":
        return None
    if mapping.optional_text("mode") not in (None, "split"):
        return None
    targets = list(reader.tables("targets"))
    if not any(_fits(target) for target in targets):
        return None
    executable, template = mapping.table("executable"), mapping.table("nvram-template")
    form = executable.text("format")
    if form != template.text("format") or form not in list(DiskFormat):
        return None
    features = reader.texts("features")
    return Firmware(
        code=Path(executable.text("filename")),
        vars_template=Path(template.text("filename")),
        secure="secure-boot" in features,
        enrolled="enrolled-keys" in features,
        descriptor=path,
        format=DiskFormat(form),
    )


def _fits(target: Reader) -> bool:
    q35 = any(machine.startswith("pc-q35") for machine in target.texts("machines"))
    return target.text("architecture") == "x86_64" and q35


def find_firmware(*, secure: bool, folders: Sequence[Path] | None = None) -> Firmware | None:
    """A build with Secure Boot and no keys yet, or one without Secure Boot; a plain one if any."""
    fitting = [
        found for found in iter_firmware(folders) if found.secure == secure and not found.enrolled
    ]
    # Stable: within a format the distribution's order stays.
    return min(fitting, key=lambda found: found.format is not DiskFormat.RAW, default=None)


def need_firmware(*, secure: bool, folders: Sequence[Path] | None = None) -> Firmware:
    """What `find_firmware` finds, as raw files. Raises `BootcError` if there is none."""
    found = find_firmware(secure=secure, folders=folders)
    if found is None:
        kind = "with" if secure else "without"
        raise BootcError(
            f"there is no UEFI firmware {kind} Secure Boot for QEMU's q35",
            hint="Debian: apt-get install ovmf; Fedora: dnf install edk2-ovmf",
        )
    if found.format is DiskFormat.RAW:
        return found
    code, template = _as_raw(found.code), _as_raw(found.vars_template)
    return replace(found, code=code, vars_template=template, format=DiskFormat.RAW)


def _as_raw(image: Path) -> Path:
    """The raw form of a qcow2 file, made once for each version of it."""
    found = image.stat()
    key = hashlib.sha256(f"{image}\n{found.st_size}\n{found.st_mtime_ns}".encode()).hexdigest()
    raw = paths.CACHE / "firmware" / f"{key[:16]}-{image.stem}.fd"
    if not raw.exists():
        raw.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=raw.parent) as scratch:
            fresh = Path(scratch, raw.name)
            convert_to_raw(image, fresh)
            fresh.rename(raw)
    return raw


def prepare_uefi(folder: Path, *, secure: bool = False) -> Uefi:
    """UEFI for one machine, with a copy of the variables in its own `folder`."""
    firmware = need_firmware(secure=secure)
    own = folder / "efivars.fd"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(firmware.vars_template, own)
    own.chmod(0o600)
    return Uefi(code=firmware.code, vars=own, secure=secure)
