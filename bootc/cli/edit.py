# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`bootc edit`: the Host document in an editor, of which only `spec` counts.

Read back is what an editor leaves of our own YAML, and not YAML as a whole:

    spec:
      image:                     or `image: null`
        image: quay.io/a/b:1
        transport: registry
        signature: containerPolicy
      bootOrder: default

Block mappings indented by blanks; scalars plain, 'single' or "double" quoted (as in JSON); comments
that have their line for themselves. Everything outside of `spec:` is passed over. JSON is taken,
too. An unknown key, or anything else below `spec:`, is a `FormatError` with its line.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import replace

from bootc import jsonutil, process
from bootc.cli import render
from bootc.errors import BootcError, FormatError, advised
from bootc.oci.reference import CONTAINER_POLICY, ImageReference, parse_imgref
from bootc.spec import BootOrder, Host, HostSpec

EDITORS = ("/usr/bin/nano", "/usr/bin/vim", "/usr/bin/vi")
CANCELLED = "Edit cancelled, no changes made."
_LINE = re.compile(r"( *)([A-Za-z]+):(?: +(.*))?")
_DOCUMENT_MAX = 1 << 20


def edited_text(host: Host, filename: str | None) -> str:
    """What `filename` holds, or what an editor makes of the document."""
    if filename is not None:
        return _read(filename)
    argv = find_editor()
    with tempfile.TemporaryDirectory(prefix="bootc-edit-") as folder:
        path = f"{folder}/host.yaml"
        with open(path, "w", encoding="utf-8") as file:
            file.write(render.host_yaml(host))
        with (
            advised("there is no document", "nothing was changed; EDITOR names another editor"),
            process.running([*argv, path], stdin=0) as editor,
        ):
            status = editor.wait()
        if status != 0:
            raise BootcError(
                f"the editor ({shlex.join(argv)}) ended with status {status}",
                hint="nothing was changed; EDITOR names another one",
            )
        return _read(path)


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(_DOCUMENT_MAX + 1)
    except OSError as error:
        raise BootcError(
            f"cannot read {path}: {error.strerror}",
            hint="--filename names a document like that of `bootc status --format yaml`",
        ) from error
    if len(data) > _DOCUMENT_MAX:
        raise FormatError(path, None, "is larger than any Host document")
    return data.decode("utf-8", "replace")


def find_editor() -> list[str]:
    """`$EDITOR`, or the first of a few. Raises `BootcError` when there is none."""
    told = os.environ.get("EDITOR")
    if told:
        return shlex.split(told)
    for path in EDITORS:
        if os.access(path, os.X_OK):
            return [path]
    raise BootcError("there is no editor", hint="set EDITOR, or use bootc edit --filename FILE")


def read_spec(text: str, source: str) -> HostSpec:
    """The `spec` of a document. Raises `FormatError`."""
    table = jsonutil.read_object(text, source) if text.lstrip().startswith("{") else None
    if table is None:
        table = jsonutil.Reader(_read_yaml(text, source), source)
    spec = table.table("spec")
    _check_keys(spec, ("image", "bootOrder"))
    order = spec.optional_text("bootOrder") or BootOrder.DEFAULT.value
    if order not in {item.value for item in BootOrder}:
        raise FormatError(source, ".spec.bootOrder", f"{order!r} is neither default nor rollback")
    image = spec.optional_table("image")
    return HostSpec(
        image=None if image is None else _read_image(image), boot_order=BootOrder(order)
    )


def _read_image(table: jsonutil.Reader) -> ImageReference:
    _check_keys(table, ("image", "transport", "signature"))
    image = parse_imgref(f"{table.text('transport')}:{table.text('image')}")
    signature = table.optional_text("signature")
    if signature not in (None, CONTAINER_POLICY, "insecure"):
        raise FormatError(
            table.source, f"{table.path}.signature", f"is neither {CONTAINER_POLICY} nor insecure"
        )
    return replace(image, signature=CONTAINER_POLICY if signature == CONTAINER_POLICY else None)


def _check_keys(table: jsonutil.Reader, known: tuple[str, ...]) -> None:
    for key in table.value:
        if key not in known:
            raise FormatError(table.source, f"{table.path}.{key}", f"is none of {', '.join(known)}")


def _read_yaml(text: str, source: str) -> dict[str, object]:
    """`{"spec": …}` of a document in block style."""
    top: dict[str, object] = {}
    open_maps: list[tuple[int, dict[str, object]]] = [(-1, top)]
    for number, line in _lines_of_spec(text):
        match = _LINE.fullmatch(line)
        if match is None:
            raise FormatError(source, f"line {number}", f"{line.strip()!r} is not `key: value`")
        indent, key, value = len(match[1]), match[2], (match[3] or "").strip()
        while indent <= open_maps[-1][0]:
            open_maps.pop()
        table = open_maps[-1][1]
        if key in table:
            raise FormatError(source, f"line {number}", f"{key} is there twice")
        if value:
            table[key] = _scalar(value, source, number)
        else:
            below: dict[str, object] = {}
            table[key] = below
            open_maps.append((indent, below))
    if not isinstance(top.get("spec"), dict):
        raise FormatError(source, "spec", "is missing", hint="leave the document's form as it was")
    return top


def _lines_of_spec(text: str) -> Iterator[tuple[int, str]]:
    inside = False
    for number, line in enumerate(text.splitlines(), start=1):
        bare = line.rstrip()
        if not bare or bare.lstrip().startswith("#"):
            continue
        if not bare.startswith(" "):
            inside = bare == "spec:"
        if inside:
            yield number, bare


def _scalar(text: str, source: str, number: int) -> str | None:
    if text in ("null", "~"):
        return None
    if text.startswith("'") and text.endswith("'") and len(text) > 1:
        return text[1:-1].replace("''", "'")
    if text.startswith('"'):
        try:
            return str(json.loads(text))
        except ValueError as error:
            raise FormatError(source, f"line {number}", f"{text} is no string") from error
    if text[0] in "[{&*!|>%@`":
        raise FormatError(source, f"line {number}", f"{text!r} is more than a plain value")
    return text


def decide_edit(old: HostSpec, new: HostSpec) -> str | None:
    """ "image", "order", or None when nothing was changed. Raises `BootcError` for both at once."""
    image, order = old.image != new.image, old.boot_order is not new.boot_order
    if image and new.image is None:
        raise BootcError("spec.image cannot be removed", hint="name the image that is to run")
    if image and order:
        raise BootcError(
            "the image and the boot order cannot be changed at once",
            hint="change one, then the other",
        )
    return "image" if image else "order" if order else None
