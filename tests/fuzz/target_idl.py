# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Interface files of varlink: what the parser takes is written from its types and read again."""

from __future__ import annotations

import random
from collections.abc import Sequence

from bootc.errors import BootcError, FormatError
from bootc.varlink.idl import Interface, parse
from bootc.varlink.standard import SERVICE, TRANSPORT
from tests.fuzz import mutator
from tests.varlinks import TEXT

SIZE_MAX = 4096
_WORDS = (
    *("interface", "method", "type", "error", "->", "(", ")", ":", ",", "?", "[]", "[string]"),
    *("bool", "int", "float", "string", "object", "any", "A", "Tree", "a", "a_b", "_", "\n", "#"),
    *("org.example.x", "x--y.z", "()", "(a: ?A)", "(one, two)", "\ntype A (a: ", "\nmethod M"),
)


def _written(interface: Interface) -> str:
    lines = [f"interface {interface.name}"]
    lines += [f"type {name} {kind}" for name, kind in interface.types.items()]
    for name, method in interface.methods.items():
        lines.append(f"method {name} {method.parameters} -> {method.reply}")
    lines += [f"error {name} {kind}" for name, kind in interface.errors.items()]
    return "\n".join(lines)


def check(data: bytes) -> BootcError | None:
    """Why the text was refused, or None. Raises for anything that must not happen."""
    text = data.decode("utf-8", "replace")
    try:
        interface = parse(text, "input")
    except FormatError as error:
        return error
    assert interface.text == text
    written = _written(interface)
    again = parse(written, "again")
    assert _written(again) == written
    return None


def mutate(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Words taken out, put in and exchanged, and now and then other bytes."""
    how = rng.random()
    if how < 0.3:
        return mutator.mutate(data, rng, others)
    places = [place for place, byte in enumerate(data) if byte in b" ():,?\n"] or [0]
    at = rng.choice(places)
    word = rng.choice(_WORDS).encode()
    if how < 0.6:
        return data[:at] + word + data[at:]
    end = min((place for place in places if place > at), default=len(data))
    return data[:at] + (word if how < 0.85 else b"") + data[end:]


def seeds() -> list[bytes]:
    texts = [TEXT, SERVICE.text, TRANSPORT.text]
    texts.append("interface a.b-c\n#c\ntype A (x: ?[][string]?(y: object, z: (u, v)), w: any)\n")
    return [text.encode() for text in texts]
