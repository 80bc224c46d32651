# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A reader for the YAML that `bootc status` writes, since the guest has no YAML library.

Block mappings and sequences, indented by blanks; scalars null, ~, true, false, decimal integers,
`[]`, `{}`, 'single' and "double" quoted, or plain. Anything else is a ValueError with its line.
"""

import json
import re
from typing import Any

_KEY = re.compile(
    r"""("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^\s'"\[{#&*!|>%@`-][^:#]*?|-[^\s:]+):(?:\s+(.*))?$"""
)
_WORDS = {"null": None, "~": None, "": None, "true": True, "false": False}


def load(text: str) -> Any:
    """The value of one document."""
    lines = [
        (number, len(line) - len(line.lstrip(" ")), line.strip(" "))
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip(" ") and line.strip(" ") != "---" and not line.lstrip().startswith("#")
    ]
    if not lines:
        return None
    value, rest = _block(lines, lines[0][1])
    if rest:
        raise ValueError(f"line {rest[0][0]}: unexpected indent")
    return value


_Lines = list[tuple[int, int, str]]


def _scalar(text: str, number: int) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if text in ("[]", "{}"):
        return [] if text == "[]" else {}
    if text.startswith('"'):
        return json.loads(text)
    if text.startswith("'") and text.endswith("'") and len(text) > 1:
        return text[1:-1].replace("''", "'")
    if text[0] in "[{&*!|>%@`":
        raise ValueError(f"line {number}: {text!r} is not plain YAML")
    return int(text) if re.fullmatch(r"-?[0-9]+", text) else text


def _block(lines: _Lines, indent: int) -> "tuple[Any, _Lines]":
    number, _, text = lines[0]
    if text == "-" or text.startswith("- "):
        return _sequence(lines, indent)
    if _KEY.match(text):
        return _mapping(lines, indent)
    return _scalar(text, number), lines[1:]


def _sequence(lines: _Lines, indent: int) -> "tuple[list[Any], _Lines]":
    items: list[Any] = []
    while lines and lines[0][1] == indent and (lines[0][2] + " ").startswith("- "):
        number, _, text = lines[0]
        inner = text[1:].lstrip(" ")
        if inner:
            lines = [(number, indent + len(text) - len(inner), inner), *lines[1:]]
            value, lines = _block(lines, lines[0][1])
        elif len(lines) > 1 and lines[1][1] > indent:
            value, lines = _block(lines[1:], lines[1][1])
        else:
            value, lines = None, lines[1:]
        items.append(value)
    return items, lines


def _mapping(lines: _Lines, indent: int) -> "tuple[dict[str, Any], _Lines]":
    table: dict[str, Any] = {}
    while lines and lines[0][1] == indent:
        number, _, text = lines[0]
        match = _KEY.match(text)
        if match is None:
            break
        key = str(_scalar(match[1], number))
        if key in table:
            raise ValueError(f"line {number}: {key} appears twice")
        if match[2]:
            table[key], lines = _scalar(match[2].strip(), number), lines[1:]
            continue
        lines = lines[1:]
        nested = lines and (
            lines[0][1] > indent or (lines[0][1] == indent and lines[0][2].startswith("-"))
        )
        table[key], lines = _block(lines, lines[0][1]) if nested else (None, lines)
    return table, lines
