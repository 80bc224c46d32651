# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Typed getters for JSON from outside, and JSON the way that we write it.

A getter's error names the file and the path to the bad field (`meta.json at .features.compatible`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from bootc.errors import FormatError
from bootc.records import dataclass

# `typing` is not imported when the program runs: start-up time is felt.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Json = dict[str, Any] | list[Any] | str | int | float | bool | None
else:
    Json = object


@dataclass(frozen=True, slots=True)
class Reader:
    """A JSON object and where it came from. Each getter checks the type of what it returns."""

    value: Mapping[str, Any]
    source: str
    path: str = ""

    def _bad(self, key: str, want: str) -> FormatError:
        found = self.value.get(key)
        said = "is missing" if key not in self.value else f"is {type(found).__name__}"
        return FormatError(self.source, f"{self.path}.{key}", f"{said}, expected {want}")

    def has(self, key: str) -> bool:
        return self.value.get(key) is not None

    def text(self, key: str) -> str:
        found = self.value.get(key)
        if not isinstance(found, str):
            raise self._bad(key, "a string")
        return found

    def optional_text(self, key: str) -> str | None:
        return self.text(key) if self.has(key) else None

    def integer(self, key: str) -> int:
        found = self.value.get(key)
        if not isinstance(found, int) or isinstance(found, bool):
            raise self._bad(key, "an integer")
        return found

    def boolean(self, key: str, *, default: bool | None = None) -> bool:
        found = self.value.get(key, default)
        if not isinstance(found, bool):
            raise self._bad(key, "true or false")
        return found

    def table(self, key: str) -> Reader:
        found = self.value.get(key)
        if not isinstance(found, dict):
            raise self._bad(key, "an object")
        return Reader(found, self.source, f"{self.path}.{key}")

    def optional_table(self, key: str) -> Reader | None:
        return self.table(key) if self.has(key) else None

    def tables(self, key: str) -> Iterator[Reader]:
        found = self.value.get(key)
        if not isinstance(found, list):
            raise self._bad(key, "an array")
        for index, item in enumerate(found):
            if not isinstance(item, dict):
                raise FormatError(self.source, f"{self.path}.{key}[{index}]", "expected an object")
            yield Reader(item, self.source, f"{self.path}.{key}[{index}]")

    def texts(self, key: str) -> list[str]:
        found = self.value.get(key)
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise self._bad(key, "an array of strings")
        return list(found)


def read_object(text: str | bytes, source: str) -> Reader:
    """Parse `text`, which must be one JSON object; `source` names it in errors.

    Refused, too: half a surrogate pair, which could not be written again, and NaN and the like.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        if "\\u" in text if isinstance(text, str) else b"\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except ValueError as error:
        raise FormatError(source, None, f"is not JSON: {error}") from error
    except RecursionError:
        raise FormatError(source, None, "is not JSON: it is nested too deeply") from None
    if not isinstance(value, dict):
        raise FormatError(source, None, "is not a JSON object")
    return Reader(value, source)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def canonical(value: Json) -> str:
    """Canonical JSON: keys sorted, no blanks, no newline at the end."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def pretty(value: Json) -> str:
    """JSON for people and files: two blanks of indent and a newline at the end."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
