# SPDX-License-Identifier: Apache-2.0 OR MIT
"""meta.json: what is accepted is written again and reads as the same metadata."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from bootc.composefs.digest import Algorithm
from bootc.composefs.metadata import Metadata, read_metadata
from bootc.errors import BootcError, FormatError
from tests.fuzz import mutator

SIZE_MAX = 4096


def check(data: bytes) -> BootcError | None:
    """Why the file was refused, or None. Raises for anything that must not happen."""
    try:
        metadata = read_metadata(data, "meta.json")
    except FormatError as error:
        return error
    text = metadata.to_json().encode()
    assert read_metadata(text, "again") == metadata
    assert read_metadata(text, "again").to_json().encode() == text
    return None


_VALUES: tuple[bytes, ...] = (
    *(
        b"1",
        b"2",
        b"0",
        b"-1",
        b"1.0",
        b"1e9",
        b"1e999",
        b"true",
        b"null",
        b'""',
        b"[]",
        b"{}",
        b"NaN",
    ),
    *(b'"fsverity-sha256-12"', b'"fsverity-sha512-12"', b'"fsverity-sha512-16"', b'"v1_erofs"'),
    *(
        b'["v1_erofs"]',
        b'["v1_erofs", "other"]',
        b"[1]",
        b"[0, 2]",
        b"[2, 2, 1]",
        b"[true]",
        b"[[]]",
    ),
    *(
        b'"\\ud800"',
        b'["\\ud800"]',
        b'["\\u0000"]',
        b"9" * 20,
        b"9" * 5000,
        b"-0",
        b'"\xff"',
        b"[null]",
    ),
    *(b"[" * 3000, b'{"a":' * 700, b'{"default": 1}', b'{"default": 2, "extra": [1]}', b"Infinity"),
)
_KEYS = (
    b"version",
    b"algorithm",
    b"features",
    b"erofs_formats",
    b"default",
    b"extra",
    b"compatible",
)
_KEYS_RARE = (b"read-only-compatible", b"incompatible", b"unknown")


def mutate(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Other values, other keys, and now and then other bytes."""
    how = rng.random()
    if how < 0.3:
        return mutator.mutate(data, rng, others)
    tokens = _split(data)
    if len(tokens) < 2:
        return data + rng.choice(_VALUES)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(tokens))
        pick = rng.random()
        if pick < 0.5:
            tokens[at] = rng.choice(_VALUES)
        elif pick < 0.65:
            tokens[at] = b'"' + rng.choice((*_KEYS, *_KEYS_RARE)) + b'"'
        elif pick < 0.75:
            tokens.insert(at, rng.choice((b",", b":", b"{", b"}", b"[", b"]", b" ")))
        elif pick < 0.9:
            tokens[at] = tokens[rng.randrange(len(tokens))]
        else:
            tokens[at] = b""
    return b"".join(tokens)


def _split(data: bytes) -> list[bytes]:
    """JSON's tokens, roughly."""
    for mark in (b"{", b"}", b"[", b"]", b":", b","):
        data = data.replace(mark, b"\x00" + mark + b"\x00")
    return [token for token in data.split(b"\x00") if token]


def seeds() -> list[bytes]:
    """New files and old ones."""
    found = [
        Metadata.fresh(algorithm, default=default, extra=extra).to_json().encode()
        for algorithm in Algorithm
        for default, extra in ((1, ()), (2, (1,)), (0, ()))
    ]
    old = {"version": 1, "algorithm": "fsverity-sha256-12"}
    return [*found, json.dumps(old).encode(), json.dumps({**old, "features": {}}).encode()]
