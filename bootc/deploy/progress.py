# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What programs and people are told while an image is staged.

`ProgressWriter` writes version 0 of bootc's progress protocol to a pipe: one canonical JSON object
a line.

    {"type": "Start", "version": "0.1.0"}                   with the first of the others
    {"type": "ProgressBytes", "task": "pulling", …}         `id`: the manifest's digest; a step is a
                                                            layer, a subtask one that is on its way
    {"type": "ProgressSteps", "task": "importing", …}       0 of 1, 1 of 1
    {"type": "ProgressSteps", "task": "staging", …}         merging, deploying, cleanup; of an
                                                            install: preparing (before it is
                                                            pulled), deploying, finalizing

Of the bytes of an image `bytesTotal` counts those that have to be read, `bytesCached` those of
layers that are in the repository. Lines in the middle of a task come five times a second at most,
and not at all while nobody reads; its first and its last line are always written. When the reader
goes away that is said once, and the work goes on. Readers must take types and fields that they
don't know. Source: progress-v0.schema.json.
"""

from __future__ import annotations

import logging
import os
import select
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from bootc import fs
from bootc.closing import Closing
from bootc.composefs.progress import Done, Event, Progress, Skipped, Started
from bootc.errors import BootcError
from bootc.jsonutil import Json, canonical
from bootc.log import show_size
from bootc.oci.layout import ImageSource
from bootc.oci.model import read_config, read_manifest

_log = logging.getLogger(__name__)
VERSION = "0.1.0"
_INTERVAL = 0.2
"""Seconds between two lines that may be lost."""
_TOLD_EVERY = 5.0
_STANDARD = 2


class Stage(StrEnum):
    """What staging does, one after the other."""

    PULLING = "pulling"
    IMPORTING = "importing"
    MERGING = "merging"
    DEPLOYING = "deploying"
    CLEANUP = "cleanup"
    PREPARING = "preparing"
    FINALIZING = "finalizing"


UPDATING = (Stage.MERGING, Stage.DEPLOYING, Stage.CLEANUP)
"""The steps of staging."""
INSTALLING = (Stage.PREPARING, Stage.DEPLOYING, Stage.FINALIZING)
"""The steps of an install, but for the pull."""
_TEXTS = {
    Stage.PREPARING: "Preparing the target",
    Stage.FINALIZING: "Finalizing the file systems",
    Stage.MERGING: "Merging Image",
    Stage.DEPLOYING: "Deploying Image",
    Stage.CLEANUP: "Removing old images",
}


class Observer:
    """Told what happens; this one doesn't care. Nothing it does may fail."""

    def begin(self, source: ImageSource) -> None:
        """This image is going to be pulled."""

    def stage(self, stage: Stage) -> None:
        """This begins, so what was before has ended."""

    def report(self, event: Event) -> None:
        """An event of the pull."""

    def end(self) -> None:
        """All of it is done."""


class Observers(Observer):
    """Tells several others."""

    def __init__(self, others: Sequence[Observer]) -> None:
        self._others = tuple(others)

    def begin(self, source: ImageSource) -> None:
        for one in self._others:
            one.begin(source)

    def stage(self, stage: Stage) -> None:
        for one in self._others:
            one.stage(stage)

    def report(self, event: Event) -> None:
        for one in self._others:
            one.report(event)

    def end(self) -> None:
        for one in self._others:
            one.end()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    digest: str
    size: int


@dataclass(slots=True, kw_only=True)
class Pulled:
    """How far a pull is. Layers are known by their diff ids."""

    digest: str = ""
    layers: dict[str, _Layer] = field(default_factory=dict)
    fetched: dict[str, int] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, source: ImageSource) -> Pulled:
        """Before it begins. A layer that an image has twice is read once."""
        manifest = read_manifest(source.manifest, "manifest")
        ids: Sequence[str] = [layer.digest for layer in manifest.layers]
        if manifest.is_container:
            ids = read_config(source.config, "config").diff_ids
        return cls(
            digest=source.manifest_digest,
            layers={
                name: _Layer(digest=layer.digest, size=layer.size)
                for name, layer in zip(ids, manifest.layers, strict=False)
            },
        )

    def add(self, event: Event) -> bool:
        """Take an event in; whether a layer ended by it."""
        match event:
            case Started(id=name):
                self.fetched.setdefault(name, 0)
            case Progress(id=name, fetched=fetched):
                self.fetched[name] = fetched
            case Skipped(id=name):
                self.skipped.add(name)
                return True
            case Done(id=name):
                self.fetched[name] = self._size(name)
                self.done.add(name)
                return True
            case _:
                pass
        return False

    def _size(self, name: str) -> int:
        layer = self.layers.get(name)
        return layer.size if layer else 0

    @property
    def total(self) -> int:
        """Bytes that have to be read."""
        return sum(layer.size for name, layer in self.layers.items() if name not in self.skipped)

    @property
    def bytes(self) -> int:
        return min(sum(self.fetched.values()), self.total)

    def to_json(self, *, just_ended: str | None = None) -> dict[str, Json]:
        running = [name for name in self.fetched if name not in self.done or name == just_ended]
        subtasks: list[Json] = [
            {
                "subtask": "composefs_layer",
                "description": "Layer",
                "id": self.layers[name].digest,
                "bytesCached": 0,
                "bytes": self.fetched[name],
                "bytesTotal": self.layers[name].size,
            }
            for name in running
            if name in self.layers
        ]
        return {
            "type": "ProgressBytes",
            "task": Stage.PULLING.value,
            "description": "Pulling Image",
            "id": self.digest,
            "bytesCached": sum(self._size(name) for name in self.skipped),
            "bytes": self.bytes,
            "bytesTotal": self.total,
            "stepsCached": len(self.skipped),
            "steps": len(self.done),
            "stepsTotal": len(self.layers) - len(self.skipped),
            "subtasks": subtasks,
        }


class ProgressWriter(Observer, Closing):
    """Writes the protocol to a pipe; a context manager. The calls must not overlap."""

    def __init__(
        self,
        fd: int,
        *,
        steps: tuple[Stage, ...] = UPDATING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes over `fd`, see `adopt_pipe`."""
        self._fd = fd
        self._steps = steps
        self._clock = clock
        self._last = float("-inf")
        self._started = False
        self._pulled = Pulled()
        self._stage: Stage | None = None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def begin(self, source: ImageSource) -> None:
        self._pulled = Pulled.of(source)

    def stage(self, stage: Stage) -> None:
        self._finish()
        self._stage = stage
        if stage is Stage.PULLING:
            self._write(self._pulled.to_json())
        elif stage is Stage.IMPORTING:
            self._write(self._importing(0))
        else:
            self._write(self._staging(stage, completed=False))

    def end(self) -> None:
        self._finish()
        self._stage = None

    def _finish(self) -> None:
        """The last line of the task, or of the step, that was on its way."""
        match self._stage:
            case None:
                return
            case Stage.PULLING:
                self._write(self._pulled.to_json())
            case Stage.IMPORTING:
                self._write(self._importing(1))
            case stage:
                self._write(self._staging(stage, completed=True))

    def report(self, event: Event) -> None:
        ended = self._pulled.add(event)
        name = getattr(event, "id", None)
        if ended and isinstance(event, Done):
            self._write(self._pulled.to_json(just_ended=name))
        elif isinstance(event, Progress | Started):
            self._write(self._pulled.to_json(), may_be_lost=True)

    def _importing(self, steps: int) -> dict[str, Json]:
        return {
            "type": "ProgressSteps",
            "task": Stage.IMPORTING.value,
            "description": "Importing Image",
            "id": self._pulled.digest,
            "stepsCached": 0,
            "steps": steps,
            "stepsTotal": 1,
            "subtasks": [],
        }

    def _staging(self, stage: Stage, *, completed: bool) -> dict[str, Json]:
        place = self._steps.index(stage)
        subtasks: list[Json] = [
            {
                "subtask": one.value,
                "description": _TEXTS[one],
                "id": one.value,
                "completed": completed or index < place,
            }
            for index, one in enumerate(self._steps[: place + 1])
        ]
        return {
            "type": "ProgressSteps",
            "task": "staging",
            "description": "Deploying Image",
            "id": self._pulled.digest,
            "stepsCached": 0,
            "steps": place + completed,
            "stepsTotal": len(self._steps),
            "subtasks": subtasks,
        }

    def _write(self, record: dict[str, Json], *, may_be_lost: bool = False) -> None:
        if self._fd < 0:
            return
        now = self._clock()
        if may_be_lost and (now - self._last < _INTERVAL or not self._is_read()):
            return
        self._last = now
        lines = [canonical(record)]
        if not self._started:
            lines.insert(0, canonical({"type": "Start", "version": VERSION}))
            self._started = True
        try:
            fs.write_all(self._fd, "".join(f"{line}\n" for line in lines).encode())
        except OSError as error:
            _log.warning("progress is not reported any more: %s", error.strerror)
            self.close()

    def _is_read(self) -> bool:
        """Whether there is room in the pipe."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(0))


def adopt_pipe(number: int) -> int:
    """The descriptor `number` that our caller left open for us, for a `ProgressWriter`.

    Raises `BootcError` unless it is a pipe above standard error.
    """
    if number <= _STANDARD:
        raise BootcError(
            f"--progress-fd {number}: must be a descriptor above {_STANDARD}",
            hint="bootc upgrade --progress-fd 3 3> >(reader)",
        )
    try:
        mode = os.fstat(number).st_mode
    except OSError as error:
        raise BootcError(
            f"--progress-fd {number}: {error.strerror}", hint="is it open in the caller?"
        ) from error
    if not stat.S_ISFIFO(mode):
        raise BootcError(
            f"--progress-fd {number}: is not a pipe",
            hint="a file cannot be told apart from a reader that went away; use a pipe",
        )
    os.set_inheritable(number, False)
    return number


class ProgressLog(Observer):
    """Tells people every few seconds how much of the layers was read."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._pulled = Pulled()

    def begin(self, source: ImageSource) -> None:
        self._pulled = Pulled.of(source)

    def stage(self, stage: Stage) -> None:
        if stage is Stage.IMPORTING:
            done, cached = len(self._pulled.done), len(self._pulled.skipped)
            size = show_size(self._pulled.bytes)
            _log.info("Layers: %d read (%s), %d were here", done, size, cached)

    def report(self, event: Event) -> None:
        self._pulled.add(event)
        now = self._clock()
        if now - self._last >= _TOLD_EVERY:
            self._last = now
            pulled = self._pulled
            percent = 100 * pulled.bytes // max(pulled.total, 1)
            _log.info(
                "  %d %%, %s of %s", percent, show_size(pulled.bytes), show_size(pulled.total)
            )
