# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Feeds one target with bad data, in this process: our own engine, and atheris.

A target is a module `target_NAME` here:

    SIZE_MAX   bytes of its largest input
    check      takes an input; returns None when it was accepted, or the BootcError that refused it;
               raises for whatever must not happen
    mutate     (input, random generator, other inputs) → another input, wrong in a likely way
    seeds      good inputs to begin with

The files of `corpus/NAME/` are what was found to be different, good or bad.

Our own engine keeps the inputs that were refused for a reason, or accepted in a size, that it has
not seen yet, and prefers small ones. atheris (https://github.com/google/atheris) keeps those that
reach new code. It is no part of the project's environment: `nox -s fuzz` installs it.
"""

from __future__ import annotations

import importlib
import json
import random
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bootc.errors import BootcError
from tests.fuzz.mutator import Mutate

HERE = Path(__file__).resolve().parent
SECONDS = 5.0
"""Of processor time, for one input."""
MEMORY = 1 << 30
"""Bytes of address space that the inputs may take, all together."""
KEPT = 400
_REPORT_EVERY = 1 << 14
_VALUES = re.compile(r"b?'(?:[^'\\]|\\.)*'|b?\"(?:[^\"\\]|\\.)*\"|0x[0-9a-f]+|-?[0-9]+|\[.*\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One reader, ready to be fed."""

    name: str
    size_max: int
    check: Callable[[bytes], BootcError | None]
    mutate: Mutate
    seeds: list[bytes]
    corpus: list[bytes] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a run came to; `shapes`: kinds of outcomes that were met (our own engine knows them)."""

    runs: int = 0
    accepted: int = 0
    shapes: int = 0
    seconds: float = 0.0


class FindingError(Exception):
    """An input that made a reader do what it must not do; the cause says what."""

    def __init__(self, name: str, data: bytes) -> None:
        super().__init__(f"{name}: an input of {len(data)} bytes")
        self.data = data


class TooSlowError(BaseException):
    """An input took too much time. Nothing may catch it by catching `Exception`."""


def target_names() -> list[str]:
    return sorted(path.stem.removeprefix("target_") for path in HERE.glob("target_*.py"))


def load_target(name: str) -> Target:
    """Raises `BootcError` for a name that isn't one."""
    if name not in target_names():
        raise BootcError(f"no target {name!r}", hint=f"the targets are {', '.join(target_names())}")
    module = importlib.import_module(f"tests.fuzz.target_{name}")
    kept = sorted((HERE / "corpus" / name).glob("*"))
    return Target(
        name=name,
        size_max=module.SIZE_MAX,
        check=module.check,
        mutate=module.mutate,
        seeds=module.seeds(),
        corpus=[path.read_bytes() for path in kept],
    )


def limit_process() -> None:
    """Bound the memory of this process from here on."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _too_slow(number: int, frame: FrameType | None) -> NoReturn:
    raise TooSlowError(f"more than {SECONDS:g} s of processor time")


def run_own(target: Target, *, runs: int, seed: int) -> Outcome:
    """Our own engine. The same seed gives the same inputs. Raises `FindingError`."""
    rng = random.Random(f"{target.name} {seed}")
    outcome = Outcome()
    before = signal.signal(signal.SIGVTALRM, _too_slow)
    start = time.monotonic()
    try:
        _feed(target, runs, rng, outcome)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    outcome.seconds = time.monotonic() - start
    return outcome


def _feed(target: Target, runs: int, rng: random.Random, outcome: Outcome) -> None:
    pool = [*target.seeds, *target.corpus]
    kept = len(pool)
    shapes: set[str] = set()
    for number in range(runs):
        if number < kept:
            data = pool[number]
        else:
            base = pool if number % 2 else target.seeds
            smaller = min(rng.choice(base), rng.choice(base), key=len)
            data = target.mutate(smaller, rng, pool)[: target.size_max]
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            refusal = target.check(data)
        except BaseException as error:
            raise FindingError(target.name, data) from error
        outcome.runs += 1
        if refusal is None:
            outcome.accepted += 1
            shape = f"accepted {len(data).bit_length()}"
        else:
            shape = _VALUES.sub("#", refusal.message)
        if shape not in shapes:
            shapes.add(shape)
            if len(pool) < KEPT:
                pool.append(data)
            else:
                pool[rng.randrange(kept, KEPT)] = data
    outcome.shapes = len(shapes)


def run_atheris(name: str, *, runs: int, seed: int, folder: Path, report: Path) -> NoReturn:
    """atheris; it ends the process. Corpus and findings are left in `folder`.

    How far it came is written to `report` (see `Outcome`) now and then, and at the end.
    """
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["bootc"]):
        target = load_target(name)
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate((*target.seeds, *target.corpus)):
        (corpus / f"seed-{number:03d}").write_bytes(data)
    limit_process()
    outcome = Outcome()
    start = time.monotonic()

    def one_input(data: bytes) -> None:
        outcome.accepted += target.check(data) is None
        outcome.runs += 1
        if outcome.runs % _REPORT_EVERY == 0 or outcome.runs == runs:
            outcome.seconds = time.monotonic() - start
            report.write_text(json.dumps(asdict(outcome)))

    def change(data: bytes, size_max: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.3:
            made: bytes = atheris.Mutate(data, size_max)
            return made
        return target.mutate(data, rng, target.seeds)[:size_max]

    options = {
        "runs": runs,
        "seed": seed % (1 << 32) or 1,
        "max_len": target.size_max,
        "timeout": int(SECONDS),
        "rss_limit_mb": 0,  # the address space is limited, see `limit_process`
        "artifact_prefix": f"{folder}/",
        "verbosity": 0,
    }
    argv = [sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(corpus)]
    atheris.Setup(argv, one_input, custom_mutator=change)
    atheris.Fuzz()
    raise SystemExit(0)
