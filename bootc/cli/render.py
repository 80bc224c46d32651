# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Everything that goes to stdout: texts, JSON, YAML and the human form of the Host document.

The human form: one block a deployment in the order staged, booted, rollback, others, with a blank
line between. A block is a header and rows whose names are right-aligned to the header's label:

    ● Booted image: quay.io/example/os:latest
            Digest: sha256:… (amd64)
           Version: 13 (2026-09-30T19:22:16Z)
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator

from bootc.errors import chain_text, find_hint
from bootc.jsonutil import Json, canonical
from bootc.spec import BootEntry, Host, ImageStatus, UsrOverlay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bootc.deploy.etc_merge import MergePlan

NOT_DEPLOYED = "System is not deployed via bootc."


def say(text: str) -> None:
    """Print `text` and a newline."""
    print(text, flush=True)


def say_exactly(text: str) -> None:
    """Print `text` without a newline of our own."""
    sys.stdout.write(text)
    sys.stdout.flush()


def complain(error: BaseException) -> None:
    """An error on stderr: one line, and one for the hint."""
    red, plain = ("\x1b[31m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
    line = " ".join(chain_text(error).split("\n"))
    print(f"{red}error:{plain} {line}", file=sys.stderr)
    hint = find_hint(error)
    if hint:
        print(f"hint: {hint}", file=sys.stderr, flush=True)


def is_utf8() -> bool:
    """Whether stdout takes more than ASCII."""
    encoding = sys.stdout.encoding or "ascii"
    return encoding.lower().replace("-", "") == "utf8"


def host_json(host: Host) -> str:
    return canonical(host.to_json())


def host_yaml(host: Host) -> str:
    return to_yaml(host.to_json())


def host_human(host: Host, *, verbose: bool = False, utf8: bool = True) -> str:
    """The human form; for a machine that bootc does not manage, one sentence."""
    status = host.status
    mark = "●" if utf8 else "*"
    slots: list[tuple[str, BootEntry | None, bool]] = [
        ("  Staged", status.staged, True),
        (f"{mark} Booted", status.booted, False),
        ("  Rollback", status.rollback, False),
        *(("   Other", entry, False) for entry in status.others),
    ]
    blocks = [
        "\n".join(
            _block(
                label,
                entry,
                staged=staged,
                overlay=status.usr_overlay if entry is status.booted else None,
                verbose=verbose,
            )
        )
        for label, entry, staged in slots
        if entry is not None
    ]
    if not blocks:
        return NOT_DEPLOYED + "\n"
    return "\n\n".join(blocks) + "\n"


def _block(
    label: str, entry: BootEntry, *, staged: bool, overlay: UsrOverlay | None, verbose: bool
) -> Iterator[str]:
    if entry.image is None:
        yield from _bare_block(label, entry)
        return
    head = f"{label} image"
    yield f"{head}: {entry.image.image}"
    rows = [
        *_image_rows(entry, entry.image),
        *_overlay_rows(overlay),
        *(_verbose_rows(entry, staged=staged) if verbose else ()),
    ]
    for name, value in rows:
        yield f"{name.rjust(len(head))}: {value}"


def _bare_block(label: str, entry: BootEntry) -> Iterator[str]:
    """A deployment whose image nobody knows any more."""
    if entry.composefs is not None:
        head, commit = f"{label} composefs", entry.composefs.verity
    elif entry.ostree is not None:
        head, commit = f"{label} ostree", entry.ostree.checksum
    else:
        yield f"{label}: State is unknown"
        return
    yield head
    yield f"{'Commit'.rjust(len(head))}: {commit}"


def _image_rows(entry: BootEntry, image: ImageStatus) -> Iterator[tuple[str, str]]:
    yield "Digest", f"{image.digest} ({image.architecture})"
    if entry.composefs is not None:
        yield "Verity", entry.composefs.verity
    stamp = timestamp(image.timestamp) if image.timestamp else None
    if image.version is not None:
        yield "Version", f"{image.version} ({stamp})" if stamp else image.version
    elif stamp is not None:
        yield "Timestamp", stamp
    if entry.pinned:
        yield "Pinned", "yes"
    update = entry.cached_update
    if update is not None and update.digest != image.digest:
        new = timestamp(update.timestamp) if update.timestamp else None
        if update.version is not None:
            yield "UpdateVersion", f"{update.version} ({new})" if new else update.version
        else:
            yield "Update Available", new or "yes"
        yield "UpdateDigest", update.digest


def _overlay_rows(overlay: UsrOverlay | None) -> Iterator[tuple[str, str]]:
    if overlay is not None:
        kind = "persistent" if overlay.persistent else "transient"
        yield "/usr overlay", f"{kind}, {'read-only' if overlay.read_only else 'read/write'}"


def _verbose_rows(entry: BootEntry, *, staged: bool) -> Iterator[tuple[str, str]]:
    if entry.ostree is not None:
        yield "StateRoot", entry.ostree.stateroot
        yield "Deploy serial", str(entry.ostree.deploy_serial)
    yield "Staged", "yes" if staged else "no"
    if entry.ostree is not None:
        yield "Commit", entry.ostree.checksum
    if entry.image is not None and entry.image.image.signature is not None:
        yield "Signature", entry.image.image.signature
    yield "Soft-reboot", "yes" if entry.soft_reboot_capable else "no"
    if entry.composefs is not None:
        allowed = entry.composefs.missing_verity_allowed
        yield "FsVerity", "Not Enforced" if allowed else "Enforced"
    if staged:
        yield "Download-only", "yes" if entry.download_only else "no"


def timestamp(text: str) -> str:
    """An RFC 3339 time to whole seconds in UTC; what cannot be read stays as it is."""
    from datetime import UTC, datetime  # start-up time: only people see it this way

    try:
        found = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
    except ValueError:
        return text
    if found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    return found.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def etc_changes(plan: MergePlan, *, color: bool = False) -> str:
    """A line for each change of /etc: the word, and the path as Rust's `{:?}` quotes it."""
    kinds = (
        ("Added", "32", plan.added),
        ("Modified", "33", plan.modified),
        ("Removed", "31", plan.removed),
        ("Unmergable", "31", tuple(conflict.path for conflict in plan.conflicts)),
    )
    return "".join(
        f"{_colored(word, code) if color else word} {debug_quoted(path)}\n"
        for word, code, found in kinds
        for path in found
    )


def _colored(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[39m"


def debug_quoted(path: str) -> str:
    """A path in double quotes, on one line: what is no text, or no character to see, escaped."""
    escapes = {"\t": "\\t", "\r": "\\r", "\n": "\\n", "\0": "\\0", '"': '\\"', "\\": "\\\\"}
    found = []
    for char in path:
        if char in escapes:
            found.append(escapes[char])
        elif "\udc80" <= char <= "\udcff":
            found.append(f"\\x{ord(char) - 0xDC00:02X}")
        elif char.isprintable():
            found.append(char)
        else:
            found.append(f"\\u{{{ord(char):x}}}")
    return '"' + "".join(found) + '"'


_PLAIN = r"[A-Za-z_/.][A-Za-z0-9_/.@+=,() -]*(:[A-Za-z0-9_/.@+=,()-]+)*"
_WORDS = {"", "true", "false", "null", "yes", "no", "on", "off", "y", "n", "~", ".nan", ".inf"}


def to_yaml(value: Json, *, indent: int = 0) -> str:
    """Block-style YAML: arrays at their key's own indent, strings quoted where YAML wants it."""
    pad = " " * indent
    lines: list[str] = []
    if isinstance(value, dict) and value:
        for key, item in value.items():
            if isinstance(item, dict) and item:
                lines.append(f"{pad}{key}:\n{to_yaml(item, indent=indent + 2)}")
            elif isinstance(item, list) and item:
                lines.append(f"{pad}{key}:\n{to_yaml(item, indent=indent)}")
            else:
                lines.append(f"{pad}{key}: {_scalar(item)}\n")
    elif isinstance(value, list) and value:
        for item in value:
            if isinstance(item, (dict, list)) and item:
                inner = to_yaml(item, indent=indent + 2)
                lines.append(f"{pad}- {inner[indent + 2 :]}")
            else:
                lines.append(f"{pad}- {_scalar(item)}\n")
    else:
        return f"{pad}{_scalar(value)}\n"
    return "".join(lines)


def _scalar(value: Json) -> str:
    if isinstance(value, str):
        if value.lower() not in _WORDS and re.fullmatch(_PLAIN, value) and value == value.strip():
            return value
        if "\n" not in value and value.isprintable():
            return "'" + value.replace("'", "''") + "'"
    return json.dumps(value, ensure_ascii=False)
