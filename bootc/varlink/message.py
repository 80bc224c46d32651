# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What travels: file descriptors with an owner, replies, errors, and strict JSON.

A message is a JSON object in UTF-8 that ends with a NUL byte. A call has `method`, `parameters` and
the flags `more`, `oneway`, `upgrade`; a reply has `parameters`, `continues`, or `error`.

Refused: bytes that aren't UTF-8, half a surrogate pair, two members of the same name, NaN and the
like, nesting deeper than `DEPTH_MAX`, more than `BRACKETS_MAX` arrays and objects (the brackets
are counted, also those in strings): they cost far more memory than bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping

from bootc.closing import Closing
from bootc.errors import BootcError

# `typing` is not imported when the program runs: start-up time is felt.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Parameters = Mapping[str, Any]
else:
    Parameters = Mapping

DEPTH_MAX = 100
BRACKETS_MAX = 1 << 18


class VarlinkError(BootcError):
    """An error of an interface: its full name (`org.example.thing.NotFound`) and its parameters.

    Raised by a handler it is the reply; raised by the client it is what the server replied.
    """

    def __init__(
        self, name: str, parameters: Parameters | None = None, *, hint: str | None = None
    ) -> None:
        self.name = name
        self.parameters: dict[str, Any] = dict(parameters or {})
        told = ", ".join(f"{key}: {_short(item)}" for key, item in self.parameters.items())
        super().__init__(f"{name}{f' ({told})' if told else ''}", hint=hint)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 400 else f"{text[:400]}…"


class FdList(Closing):
    """File descriptors that we own until they are taken; `close` closes the others.

    Indexing looks at one and keeps it here. A context manager; closing twice is allowed.
    """

    __slots__ = ("_fds",)

    def __init__(self, fds: Iterable[int] = ()) -> None:
        self._fds: list[int | None] = list(fds)

    def __len__(self) -> int:
        """How many there were, those that were taken included: indices don't move."""
        return len(self._fds)

    def __getitem__(self, index: int) -> int:
        fd = self._fds[index] if 0 <= index < len(self._fds) else None
        if fd is None:
            raise IndexError(f"there is no file descriptor {index} among {len(self._fds)}")
        return fd

    def __iter__(self) -> Iterator[int]:
        """Those that weren't taken."""
        return (fd for fd in self._fds if fd is not None)

    def __repr__(self) -> str:
        return f"FdList({self._fds})"

    def take(self, index: int) -> int:
        """Hand one over: from now on the caller closes it. Raises `IndexError`."""
        fd = self[index]
        self._fds[index] = None
        return fd

    def take_all(self) -> list[int]:
        """Hand over all that are left, in their order."""
        taken = list(self)
        self._fds = [None] * len(self._fds)
        return taken

    def close(self) -> None:
        for fd in self.take_all():
            os.close(fd)


class Reply(Closing):
    """A reply: parameters (a JSON object), file descriptors, and whether more replies follow.

    The server gives the descriptors away: it closes them when they are sent, and also when they
    can't be. Who receives a reply owns its `fds`.
    """

    __slots__ = ("continues", "fds", "parameters")

    def __init__(
        self,
        parameters: Parameters | None = None,
        fds: FdList | Iterable[int] = (),
        *,
        continues: bool = False,
    ) -> None:
        self.parameters: Any = dict(parameters or {})
        self.fds = fds if isinstance(fds, FdList) else FdList(fds)
        self.continues = continues

    def __repr__(self) -> str:
        return f"Reply({self.parameters!r}, {self.fds!r}, continues={self.continues})"

    def close(self) -> None:
        self.fds.close()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the member {key[:80]!r} is there twice")
            seen.add(key)
    return made


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def decode(data: bytes) -> dict[str, Any]:
    """Read one message, without its NUL. Raises `ValueError`: what is wrong with it."""
    brackets = data.count(b"{") + data.count(b"[")
    if brackets > BRACKETS_MAX:
        raise ValueError(f"more than {BRACKETS_MAX} arrays and objects")
    try:
        text = data.decode()
        value = _decoder.decode(text)
        if "\\u" in text:
            _encoder.encode(value).encode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair is no character") from None
    except RecursionError:
        raise ValueError(f"nested deeper than {DEPTH_MAX}") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    if brackets > DEPTH_MAX and _is_deep(value):
        raise ValueError(f"nested deeper than {DEPTH_MAX}")
    return value


def _is_deep(value: object) -> bool:
    level: list[Any] = [value]
    for _ in range(DEPTH_MAX):
        below = [
            item
            for holder in level
            for item in (holder.values() if type(holder) is dict else holder)
            if type(item) is dict or type(item) is list
        ]
        if not below:
            return False
        level = below
    return True


def encode(value: Parameters) -> bytes:
    """One message with its NUL. Raises `ValueError` or `TypeError`: it has no form in JSON."""
    try:
        return _encoder.encode(value).encode() + b"\0"
    except RecursionError:
        raise ValueError(f"nested deeper than {DEPTH_MAX}") from None
