# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The descriptors that travel with a splitdirfdstream, and how they are cut into batches.

Whoever gives a layer away passes these, in one or several messages, in this order:

    [ the pipe's read end | DIR_COUNT slots of directories | lifetime descriptors ]

* `directory index` of the stream counts slots. Not every slot is a directory of the layer: a
  receiver must use the index that it is told, so there is always at least one *dummy* (/dev/null or
  an empty memory file) at a place that differs from layer to layer.
* Lifetime descriptors mean nothing but their existence: the receiver holds all of them until it has
  imported the layer, then closes them. One is the write end of a pipe whose end of file tells the
  giver so; the others, if any, are dummies.
* A message carries at most `BATCH_MAX` descriptors (the kernel takes 253). How many messages there
  are follows from the layer, too, so that a receiver has to put them together.

The receiver computes none of this. It puts the batches together, takes DIR_COUNT from any reply,
and must not care what a slot is that no chunk names. Source: composefs' splitdirfdstream.

The order is computed from `seed`, the first eight bytes (little-endian) of the sha256 of the
layer's name in the store: n directories get `(seed >> 8) % (n + 1) + 1` dummies, `(seed >> 16) % 3`
lifetime descriptors are dummies, and there are `max(3, seed % (all + 1))` batches, of at most one
for each descriptor, and no fewer than needed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack

from bootc.closing import Closing
from bootc.errors import BootcError
from bootc.records import dataclass

BATCH_MAX = 240
"""Descriptors in one message."""
_BATCHES_MIN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything goes. `slots[i]` is the slot of real directory i, ascending."""

    slots: tuple[int, ...]
    directories: int
    """The number of slots."""
    extras: int
    """Lifetime descriptors that are dummies."""
    seed: int

    @property
    def total(self) -> int:
        return 1 + self.directories + 1 + self.extras

    def batches(self) -> tuple[int, ...]:
        """The sizes of the batches; their sum is `total`."""
        total = self.total
        count = min(max(_BATCHES_MIN, self.seed % (total + 1)), total)
        count = max(count, -(-total // BATCH_MAX))
        size, larger = divmod(total, count)
        return tuple(size + (number < larger) for number in range(count))


def plan_layout(identity: str, directories: int) -> Layout:
    """The layout for a layer that the store calls `identity`, of so many directories."""
    # start-up time: who receives needs neither
    import hashlib
    import random

    digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).digest()
    seed = int.from_bytes(digest[:8], "little")
    slots = directories + (seed >> 8) % (directories + 1) + 1
    chosen = random.Random(seed).sample(range(slots), directories)
    return Layout(
        slots=tuple(sorted(chosen)),
        directories=slots,
        extras=(seed >> 16) % 3,
        seed=seed,
    )


class Outgoing(Closing):
    """What a giver needs: the descriptors to pass, and its own two pipe ends. A context manager;
    what was not taken is closed at its end.

    `stream` is the pipe's write end, `released` becomes readable (end of file) when nobody holds
    the lifetime descriptors any more.
    """

    def __init__(self, layout: Layout, directories: Sequence[int]) -> None:
        """Borrows `directories`, as many as the layout has slots for, and duplicates them."""
        self.layout = layout
        with ExitStack() as stack:
            read_end, self.stream = _pipe(stack)
            self.released, keepalive = _pipe(stack)
            slots = dict(zip(layout.slots, directories, strict=True))
            self.fds: list[int] = [read_end]
            for slot in range(layout.directories):
                if slot in slots:
                    fd = os.dup(slots[slot])
                    stack.callback(os.close, fd)
                else:
                    fd = _dummy(stack, slot)
                self.fds.append(fd)
            lifetime = [keepalive, *(_dummy(stack, number) for number in range(layout.extras))]
            # Which of them is the keepalive is nobody's business.
            first = layout.seed % len(lifetime)
            self.fds += lifetime[first:] + lifetime[:first]
            stack.pop_all()

    def take(self, count: int) -> list[int]:
        """The next `count` descriptors to pass; they are the caller's now."""
        taken, self.fds = self.fds[:count], self.fds[count:]
        return taken

    def take_ends(self) -> tuple[int, int]:
        """`stream` and `released`; they are the caller's now."""
        ends = self.stream, self.released
        self.stream = self.released = -1
        return ends

    def close(self) -> None:
        for fd in (*self.fds, self.stream, self.released):
            if fd >= 0:
                os.close(fd)
        self.fds = []
        self.stream = self.released = -1


class Incoming(Closing):
    """What a receiver was given, told apart; a context manager that closes all of it at its end."""

    def __init__(self, fds: Sequence[int], dir_count: int) -> None:
        """Takes over `fds`, all batches put together. Raises `BootcError`, with everything closed,
        if there are fewer than the pipe, the directories and one lifetime descriptor."""
        self._fds = list(fds)
        if dir_count < 1 or len(fds) < dir_count + 2:
            self.close()
            raise BootcError(
                f"got {len(fds)} descriptors for a layer of {dir_count} directories",
                hint="ask whoever sends the layer to follow the order of descriptors",
            )
        self.stream = self._fds[0]
        self.directories = tuple(self._fds[1 : dir_count + 1])
        self.lifetime = tuple(self._fds[dir_count + 1 :])

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


def _pipe(stack: ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for fd in ends:
        stack.callback(os.close, fd)
    return ends


def _dummy(stack: ExitStack, number: int) -> int:
    null = not number % 2
    fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) if null else os.memfd_create("dummy")
    stack.callback(os.close, fd)
    return fd
