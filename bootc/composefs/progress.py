# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What a long operation tells while it works: a closed set of events, and who gets them.

`id` names a thing on its way: the diff id of a layer, the digest of an artifact's blob. Each is
either `Skipped`, or `Started`, any number of times `Progress` (`fetched` grows), then `Done`; one
that fails ends without. Bytes are those of the blob as it is transferred, not what it unpacks to.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import StrEnum

from bootc.records import dataclass


class Unit(StrEnum):
    """What `total` and `fetched` count."""

    BYTES = "Bytes"
    ITEMS = "Items"


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    id: str
    total: int | None = None
    unit: Unit = Unit.BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    id: str
    fetched: int
    total: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """It was there already."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    id: str
    transferred: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A sentence for people."""

    text: str


Event = Started | Progress | Skipped | Done | Message
OnProgress = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Nobody wants to know."""


def one_at_a_time(report: OnProgress | None) -> OnProgress:
    """`report`, safe to be called from several threads: its calls never overlap."""
    if report is None:
        return ignore
    lock = threading.Lock()
    wanted = report

    def locked(event: Event) -> None:
        with lock:
            wanted(event)

    return locked
