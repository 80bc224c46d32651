# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Varlink messages: every one is answered once, by what its interface says, or ends its connection.

The input is what a client sends. A call that is answered well is made again from what was read,
and gets the same answer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from bootc.errors import BootcError
from bootc.varlink.call import ClientGoneError, Connection
from bootc.varlink.message import FdList, VarlinkError, decode, encode
from bootc.varlink.standard import SERVICE, TRANSPORT
from bootc.varlink.wire import Frame
from tests.fuzz import mutator
from tests.varlinks import INTERFACE, Handlers

SIZE_MAX = 2048
T = "org.example.test"
_SERVICE = Handlers().service()
_ERRORS = {
    f"{interface.name}.{name}": kind
    for interface in (SERVICE, TRANSPORT, INTERFACE)
    for name, kind in interface.errors.items()
}
_METHODS = {
    f"{interface.name}.{name}": method
    for interface in (SERVICE, INTERFACE)
    for name, method in interface.methods.items()
}
_SLOW = ("Wait", "Count", "Open", "Shout")
_VALUES: tuple[bytes, ...] = (
    b"0",
    b"-1",
    b"1.5",
    b"1e400",
    b"9223372036854775807",
    b"99999999999999999999",
    b"true",
    b"null",
    b"[]",
    b"{}",
    b'""',
    b'"one"',
    b'"\\u0000\\ud83d\\ude00"',
    b'"\\ud800"',
    b"NaN",
    b"[" * 120,
    b'{"name":"","branches":[]}',
)
_FLAGS = (b"more", b"oneway", b"upgrade", b"method", b"parameters", b"nonsense")


def _answer(message: bytes) -> list[dict[str, Any]]:
    """The replies. Raises `VarlinkError` when the connection would end."""
    replies: list[dict[str, Any]] = []

    def send(data: bytes, fds: FdList) -> None:
        assert data.endswith(b"\0")
        assert data.count(b"\0") == 1
        replies.append(decode(data[:-1]))

    _SERVICE.answer(Connection(), Frame(message, FdList()), send)
    return replies


def check(data: bytes) -> BootcError | None:
    """Why one of the messages was refused, or None. Raises for what must not happen."""
    refused: BootcError | None = None
    for message in data.split(b"\0")[:-1]:
        if any(f".{name}".encode() in message for name in _SLOW):
            continue
        try:
            replies = _answer(message)
        except ClientGoneError as error:
            raise AssertionError("nobody is gone") from error
        except VarlinkError as error:
            _judge({"error": error.name, "parameters": error.parameters}, "")
            return error
        call = decode(message)
        if call.get("oneway") is True:
            assert replies == []
            continue
        assert len(replies) == 1
        _judge(replies[0], call["method"])
        if "error" in replies[0]:
            name, parameters = replies[0]["error"], replies[0]["parameters"]
            # Kinds of outcomes are told apart, not each value.
            refused = refused or VarlinkError(name, dict.fromkeys(parameters, "#"))
        else:
            assert _answer(encode(call)[:-1]) == replies
    return refused


def _judge(reply: dict[str, Any], method: str) -> None:
    """Whether the reply is what an interface says."""
    if "error" in reply:
        _ERRORS[reply["error"]].check(reply["parameters"])
        assert not reply["error"].endswith("transport.Failed") or method == f"{T}.Fail"
    else:
        assert reply.keys() == {"parameters"}
        _METHODS[method].reply.check(reply["parameters"])


def mutate(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Other values at the places of values, other members, and now and then other bytes."""
    how = rng.random()
    if how < 0.3:
        return mutator.mutate(data, rng, others)
    if how < 0.7:
        places = [place for place, byte in enumerate(data) if byte in b":,["]
        if places:
            at = rng.choice(places) + 1
            end = at
            while end < len(data) and data[end] not in b",}]\0":
                end += 1
            return data[:at] + rng.choice(_VALUES) + data[end:]
    if how < 0.85:
        at = data.find(b"{") + 1
        value = rng.choice((b"true", b"false", rng.choice(_VALUES)))
        return data[:at] + b'"' + rng.choice(_FLAGS) + b'":' + value + b"," + data[at:]
    return data + rng.choice(others)


def seeds() -> list[bytes]:
    """Good calls."""
    tree = {"name": "a", "branches": [{"name": "b", "branches": []}]}
    calls: list[dict[str, Any]] = [
        {"method": "org.varlink.service.GetInfo"},
        {"method": "org.varlink.service.GetInfo", "parameters": {}, "more": False},
        {
            "method": "org.varlink.service.GetInterfaceDescription",
            "parameters": {"interface": "org.varlink.service"},
        },
        {"method": f"{T}.Echo", "parameters": {"text": "a"}},
        {"method": f"{T}.Echo", "parameters": {"text": "\u00e9", "kind": "one", "tree": tree}},
        {"method": f"{T}.Echo", "parameters": {"text": "a"}, "more": True},
        {"method": f"{T}.Echo", "parameters": {"text": "a"}, "oneway": True},
    ]
    return [encode(call) for call in calls] + [encode(calls[3]) + encode(calls[4])]
