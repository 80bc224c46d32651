# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Plans and tests from the fmf metadata under `tmt/`, as frozen records.

The metadata is tmt's (https://tmt.readthedocs.io/en/stable/spec/): a node with `execute` is a plan,
one with `test` is a test. We run a part of that specification and refuse the rest aloud, so that no
key is ever without effect:

plan   summary, description, discover {how: fmf, test, exclude}, execute {how: tmt}, environment,
       enabled, order, tag, tier, adjust, contact, author, id, link, context, extra-*
test   summary, description, test, path, framework: shell, duration, environment, require,
       recommend, enabled, order, tag, tier, result, adjust, contact, author, component, id, link,
       extra-*

What a plan says to this kit alone:

extra-machine  what machine it starts on: `memory` (the booted-memory cache will do), or `boot` (one
               that booted for it; the default)
extra-image    what image that has: `plain` (the default), or `podman`: with podman, and the machine
               has two more disks: `storage`, podman's storage with that image, and `spare`
extra-run      when it is run without a filter that names it: `always` (the default), or `full`:
               by `tmt-full` only
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import fmf

from bootc.errors import BootcError, FormatError
from bootc.jsonutil import Reader

DEFAULT_ORDER = 50
DEFAULT_DURATION = "5m"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

_COMMON_KEYS = {
    *("summary", "description", "environment", "enabled", "order", "tag", "tier", "adjust"),
    *("contact", "author", "id", "link"),
}
_PLAN_KEYS = _COMMON_KEYS | {"discover", "execute", "context"}
_TEST_KEYS = _COMMON_KEYS | {
    *("test", "path", "framework", "duration", "require", "recommend", "result", "component"),
}


class Start(StrEnum):
    """What machine a plan starts on."""

    MEMORY = "memory"
    BOOT = "boot"


class PlanImage(StrEnum):
    """What image a plan's machine runs."""

    PLAIN = "plain"
    PODMAN = "podman"


class When(StrEnum):
    """Which runs have a plan that no filter names."""

    ALWAYS = "always"
    FULL = "full"


class Interpret(StrEnum):
    """How a test's outcome counts: as it is, turned round, or set by the metadata."""

    RESPECT = "respect"
    XFAIL = "xfail"
    PASS = "pass"
    FAIL = "fail"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """One executable. `path` is the folder it runs in, from the tree's root; `limit` in seconds."""

    __test__ = False

    name: str
    summary: str
    command: str
    path: str
    limit: float
    environment: Mapping[str, str] = field(default_factory=dict)
    require: tuple[str, ...] = ()
    order: int = DEFAULT_ORDER
    tags: tuple[str, ...] = ()
    interpret: Interpret = Interpret.RESPECT
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Tests that share a machine, in the order in which they run."""

    name: str
    summary: str
    start: Start
    image: PlanImage = PlanImage.PLAIN
    when: When = When.ALWAYS
    tests: tuple[Test, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    order: int = DEFAULT_ORDER
    tags: tuple[str, ...] = ()
    source: str = ""


def parse_duration(text: str) -> float:
    """Seconds of a duration in tmt's way: `90`, `5m`, `1h 30m`, `2m*1.5`; else a ValueError."""
    total, factor = 0.0, 1.0
    rest = text.strip()
    if not rest:
        raise ValueError("an empty duration")
    while rest:
        match = re.match(
            r"\*\s*(\d+(?:\.\d+)?)(?![smhd.\d])\s*|(\d+)\s*([smhd]?)(?![.a-z])\s*", rest
        )
        if match is None:
            raise ValueError(f"{text!r} is not a duration such as 90, 5m or 1h 30m")
        if match[1]:
            factor *= float(match[1])
        else:
            total += int(match[2]) * _UNITS[match[3] or "s"]
        rest = rest[match.end() :]
    return float(math.ceil(total * factor))


def load_plans(root: Path, context: Mapping[str, str | Sequence[str]]) -> tuple[Plan, ...]:
    """Every enabled plan below `root`, in order, adjusted for `context` (`distro`, `variant` …).

    Raises `FormatError` naming the file and the key of what is malformed.
    """
    root = root.resolve()
    tree = _grow(root)
    try:
        tree.adjust(fmf.Context(**context))
    except fmf.utils.GeneralError as error:
        raise FormatError(str(root), "adjust", str(error)) from error
    tests: list[Test] = []
    off: set[str] = set()
    plans: list[tuple[Plan, Reader]] = []
    for node in tree.prune():
        reader = _reader(node, root)
        if "test" in reader.value:
            test = _read_test(node.name, reader)
            tests.append(test)
            if not reader.boolean("enabled", default=True):
                off.add(test.name)
        elif "execute" in reader.value:
            plans.append((_read_plan(node.name, reader), reader))
    complete = [
        replace(plan, tests=_discover(reader, tests, off))
        for plan, reader in plans
        if reader.boolean("enabled", default=True)
    ]
    return tuple(sorted(complete, key=lambda plan: (plan.order, plan.name)))


def select_plans(
    plans: Sequence[Plan], filters: Sequence[str], *, full: bool = False
) -> tuple[Plan, ...]:
    """The plans whose name contains one of `filters`; of other plans, the tests whose name does.

    No filter selects everything, without `full` all but the plans for full runs. A filter that
    selects nothing is refused, and so is an outcome with no test at all.
    """
    names = [plan.name for plan in plans] + [test.name for plan in plans for test in plan.tests]
    for text in filters:
        if not any(text in name for name in names):
            raise BootcError(
                f"no plan and no test has {text!r} in its name",
                hint="plans: " + (", ".join(plan.name for plan in plans) or "none at all"),
            )
    chosen = []
    for plan in plans:
        tests = plan.tests
        if not filters and plan.when is When.FULL and not full:
            continue
        if filters and not any(text in plan.name for text in filters):
            tests = tuple(test for test in tests if any(text in test.name for text in filters))
        if tests:
            chosen.append(replace(plan, tests=tests))
    if not chosen:
        raise BootcError(
            "no test is selected: nothing would run",
            hint="plans without an enabled test: " + (", ".join(p.name for p in plans) or "none"),
        )
    return tuple(chosen)


def _grow(root: Path) -> Any:
    if not (root / ".fmf" / "version").is_file():
        raise BootcError(
            f"{root} has no .fmf/version, so it is no tree of tests",
            hint="give the folder that holds .fmf and tmt/",
        )
    try:
        return fmf.Tree(str(root))
    except fmf.utils.GeneralError as error:
        raise FormatError(str(root), None, f"bad fmf metadata: {error}") from error


def _reader(node: Any, root: Path) -> Reader:
    """The node's keys, with the file that they come from."""
    sources = [Path(source) for source in node.sources]
    last = sources[-1] if sources else root
    shown = last.relative_to(root) if last.is_relative_to(root) else last
    data: dict[str, Any] = node.get()
    return Reader(data, f"{shown} ({node.name})")


def _refuse_unknown(reader: Reader, known: Iterable[str], why: str) -> None:
    known = set(known)
    for key in reader.value:
        if key not in known and not key.startswith("extra-"):
            raise FormatError(reader.source, f"{reader.path}.{key}", why)


def _text_list(reader: Reader, key: str) -> tuple[str, ...]:
    """A string or a list of strings; absent is empty."""
    if not reader.has(key):
        return ()
    if isinstance(reader.value[key], str):
        return (reader.text(key),)
    return tuple(reader.texts(key))


def _environment(reader: Reader) -> dict[str, str]:
    table = reader.optional_table("environment")
    if table is None:
        return {}
    for name, value in table.value.items():
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise FormatError(table.source, f"{table.path}.{name}", "must be a string")
    return {str(name): str(value) for name, value in table.value.items()}


def _order(reader: Reader) -> int:
    return reader.integer("order") if reader.has("order") else DEFAULT_ORDER


def _one_of(reader: Reader, key: str, default: str, allowed: Iterable[str]) -> str:
    value = reader.text(key) if reader.has(key) else default
    if value not in allowed:
        raise FormatError(
            reader.source, f"{reader.path}.{key}", f"is {value!r}, must be {' or '.join(allowed)}"
        )
    return value


def _read_test(name: str, reader: Reader) -> Test:
    _refuse_unknown(reader, _TEST_KEYS, "is not a key of a test that this runner knows")
    _one_of(reader, "framework", "shell", ["shell"])
    duration = str(reader.value.get("duration", DEFAULT_DURATION))
    try:
        limit = parse_duration(duration)
    except ValueError as error:
        raise FormatError(reader.source, ".duration", str(error)) from error
    if limit <= 0:
        raise FormatError(reader.source, ".duration", "must be longer than nothing")
    own = str(Path("/") / Path(reader.source.split(" (")[0]).parent)
    path = reader.text("path") if reader.has("path") else own
    if not path.startswith("/") or ".." in Path(path).parts:
        raise FormatError(reader.source, ".path", f"{path!r} must start at the tree's root, with /")
    interpret = _one_of(reader, "result", "respect", [str(item) for item in Interpret])
    return Test(
        name=name,
        summary=reader.optional_text("summary") or "",
        command=reader.text("test"),
        path=path,
        limit=limit,
        environment=_environment(reader),
        require=_text_list(reader, "require"),
        order=_order(reader),
        tags=_text_list(reader, "tag"),
        interpret=Interpret(interpret),
        source=reader.source,
    )


def _read_plan(name: str, reader: Reader) -> Plan:
    _refuse_unknown(reader, _PLAN_KEYS, "is not a key of a plan that this runner knows")
    execute = reader.table("execute")
    _one_of(execute, "how", "tmt", ["tmt"])
    _refuse_unknown(execute, {"how"}, "is not supported: name tests by discover")
    start = _one_of(reader, "extra-machine", Start.BOOT, [str(item) for item in Start])
    image = _one_of(reader, "extra-image", PlanImage.PLAIN, [str(item) for item in PlanImage])
    when = _one_of(reader, "extra-run", When.ALWAYS, [str(item) for item in When])
    if image != PlanImage.PLAIN and start != Start.BOOT:
        raise FormatError(
            reader.source,
            ".extra-image",
            f"{image} needs a machine that boots: extra-machine: boot",
        )
    return Plan(
        name=name,
        summary=reader.optional_text("summary") or "",
        start=Start(start),
        image=PlanImage(image),
        when=When(when),
        tests=(),
        environment=_environment(reader),
        order=_order(reader),
        tags=_text_list(reader, "tag"),
        source=reader.source,
    )


def _discover(reader: Reader, tests: Sequence[Test], off: set[str]) -> tuple[Test, ...]:
    """The plan's enabled tests: in the order of `discover.test`, then by `order` and name."""
    discover = reader.table("discover")
    _one_of(discover, "how", "fmf", ["fmf"])
    _refuse_unknown(discover, {"how", "test", "exclude"}, "is not supported: use test and exclude")
    wanted = _text_list(discover, "test") or (".",)
    exclude = _text_list(discover, "exclude")
    ordered = sorted(tests, key=lambda test: (test.order, test.name))
    found: dict[str, Test] = {}
    for pattern in wanted:
        matches = [test for test in ordered if _matches(pattern, test.name, discover)]
        if not matches:
            raise FormatError(discover.source, ".discover.test", f"{pattern!r} matches no test")
        found.update({test.name: test for test in matches if test.name not in found})
    return tuple(
        test
        for test in found.values()
        if test.name not in off and not any(_matches(p, test.name, discover) for p in exclude)
    )


def _matches(pattern: str, name: str, reader: Reader) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        problem = f"{pattern!r} is not a regular expression: {error}"
        raise FormatError(reader.source, ".discover", problem) from error
