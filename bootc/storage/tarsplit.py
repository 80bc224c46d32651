# SPDX-License-Identifier: Apache-2.0 OR MIT
"""tar-split: what a tar has besides the contents of its files.

A gzip (or zstd) file of lines of JSON, in the order of the tar:

    {"type": 2, "payload": BASE64, "position": N}    bytes of the tar: headers, padding, the end
    {"type": 1, "name": …, "size": …, "payload": BASE64, "position": N}
                                                     a member follows its header; where it has a
                                                     size, its content is in the file `name` and
                                                     `payload` is that content's CRC-64 (8 bytes,
                                                     big-endian); `name_raw` (BASE64) if the name
                                                     is no UTF-8

The padding after a content is in the next line of type 2, before the next header. Source: read
from stores of podman 4.3, 5.4 and 5.8; the format is github.com/vbatts/tar-split's.

Nothing here is trusted. `FormatError`s name the file and the line: what isn't such a line, a name
with `..` or a zero byte, positions that don't count up, more members than there is room for
headers, a line longer than `LINE_MAX`, a file that ends in the middle.
"""

from __future__ import annotations

import binascii
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

from bootc.errors import FormatError

LINE_MAX = 24 << 20
"""Bytes; a line is in memory as a whole. Extension headers have 1 MiB, so it is not tight."""
_BLOCK = 512
_EXTRA_LINES = 64
_SIZE_MAX = 1 << 62
_ZSTD = b"\x28\xb5\x2f\xfd"
_GZIP = b"\x1f\x8b"
_WINDOW_MAX = 128 << 20
_BUFFER = 1 << 17
_SEGMENT, _FILE = 2, 1
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Member:
    """A content of `size` > 0 bytes that lies in the file `name`, a path relative to the layer."""

    name: bytes
    size: int
    crc: int
    line: int


def read_tarsplit(file: BinaryIO, source: str) -> Iterator[bytes | Member]:
    """The pieces of a tar; `source` names `file` in errors."""
    lines = raw = 0
    with _decompressed(file, source) as stream:
        while line := _line(stream, source, lines):
            lines += 1
            entry = _entry(line, source, lines)
            found = _piece(entry, source, lines)
            if isinstance(found, bytes):
                raw += len(found)
            # A member needs a header of 512 bytes, and few lines have less than that.
            if lines > 2 * (raw // _BLOCK) + _EXTRA_LINES:
                raise FormatError(source, _at(lines), "more members than headers")
            if found:
                yield found


def _at(line: int) -> str:
    return f"line {line}"


def _decompressed(file: BinaryIO, source: str) -> BinaryIO:
    start = file.read(4)
    file.seek(0)
    if start.startswith(_GZIP):
        # A buffer of C's: GzipFile's own `readline` is Python.
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, gzip.open(file)), _BUFFER))
    if start == _ZSTD:
        import zstandard  # podman writes gzip: start-up time

        unpack = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX)
        reader = unpack.stream_reader(file, read_across_frames=True)
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, reader), _BUFFER))
    raise FormatError(source, 0, "is neither gzip nor zstd")


def _line(stream: BinaryIO, source: str, lines: int) -> bytes:
    try:
        line = stream.readline(LINE_MAX + 1)
    except EOFError:
        raise FormatError(source, _at(lines + 1), "the file is cut off") from None
    except (OSError, zlib.error) as error:
        raise FormatError(source, _at(lines + 1), f"cannot be unpacked: {error}") from error
    except Exception as error:
        if type(error).__name__ != "ZstdError":
            raise
        raise FormatError(source, _at(lines + 1), f"cannot be unpacked: {error}") from error
    if len(line) > LINE_MAX:
        raise FormatError(source, _at(lines + 1), f"is longer than {LINE_MAX >> 20} MiB")
    return line


def _entry(line: bytes, source: str, number: int) -> dict[str, object]:
    try:
        # `json.loads` takes three times as long to find out what the encoding is.
        text = line.decode()
        entry, end = _DECODER.raw_decode(text)
        if text[end:] not in ("\n", ""):
            raise ValueError("something follows the object")
    except (ValueError, RecursionError) as error:
        raise FormatError(source, _at(number), f"is not JSON: {error}") from None
    if not isinstance(entry, dict):
        raise FormatError(source, _at(number), "is no JSON object")
    if entry.get("position", number - 1) != number - 1:
        raise FormatError(source, _at(number), f"has the position {entry['position']!r}")
    return entry


def _piece(entry: dict[str, object], source: str, number: int) -> bytes | Member:
    """The bytes, or the member; of a member without content, no bytes."""
    kind = entry.get("type")
    if kind == _SEGMENT:
        return _base64(entry.get("payload"), source, number, "payload")
    if kind != _FILE:
        raise FormatError(source, _at(number), f"has the unknown type {kind!r}")
    size = entry.get("size") or 0
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < _SIZE_MAX:
        raise FormatError(source, _at(number), f"has the bad size {size!r}")
    if not size:
        return b""
    crc = _base64(entry.get("payload"), source, number, "payload")
    if len(crc) != 8:
        raise FormatError(source, _at(number), f"has a CRC of {len(crc)} bytes")
    return Member(_name(entry, source, number), size, int.from_bytes(crc, "big"), number)


def _name(entry: dict[str, object], source: str, number: int) -> bytes:
    """The member's name as a path below the layer's folder, wherever it may begin."""
    if entry.get("name_raw"):
        name = _base64(entry["name_raw"], source, number, "name_raw")
    else:
        text = entry.get("name")
        if not isinstance(text, str):
            raise FormatError(source, _at(number), "a content without a name")
        try:
            name = text.encode()
        except UnicodeEncodeError:
            raise FormatError(source, _at(number), "the name is no text") from None
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if not parts or b".." in parts or b"\0" in name or len(name) > 4096:
        raise FormatError(source, _at(number), f"the name {name[:80]!r} is not one of a file")
    return b"/".join(parts)


def _base64(value: object, source: str, number: int, what: str) -> bytes:
    if value is None:
        return b""
    try:
        if not isinstance(value, str):
            raise ValueError("is no string")
        return binascii.a2b_base64(value, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(source, _at(number), f"the {what} is no base64: {error}") from None
