# SPDX-License-Identifier: Apache-2.0 OR MIT
"""From the environment and from flags to typed values, each with its source.

A flag beats a variable, a variable beats the default; an empty variable counts as unset. A name
that starts with `BOOTC_` and that nobody declared is a problem, and so is a value that its option
refuses. Problems are collected, so that a person mends all of them at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from bootc.errors import BootcError
from vmtests.variables import FOREIGN, REFUSED, Option, UnknownValue, nearest


class Origin(StrEnum):
    """Where a value comes from."""

    DEFAULT = "default"
    FOLLOWS = "follows"
    ENVIRONMENT = "environment"
    FLAG = "flag"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where one value comes from, and the name that it was given under."""

    origin: Origin
    name: str = ""

    def __str__(self) -> str:
        return f"{self.origin} {self.name}".strip()

    @property
    def explicit(self) -> bool:
        """Whether somebody asked for the value."""
        return self.origin in (Origin.ENVIRONMENT, Origin.FLAG)


DEFAULT = Source(origin=Origin.DEFAULT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """The values that were given and accepted, by field name; the rest keep their default."""

    values: Mapping[str, Any]
    sources: Mapping[str, Source]
    problems: tuple[BootcError, ...]


def read_values(
    options: Mapping[str, Option],
    environ: Mapping[str, str],
    overrides: Mapping[str, str],
    *,
    later: Mapping[tuple[str, str], str],
) -> Values:
    """Read the variables of `environ` and, above them, `overrides` (field name to text).

    `later` has the values (by field name) that are not supported yet, and what to set instead: a
    hint does not lead from a typing error to the next refusal.
    """
    problems = _name_problems(options, environ)
    given: dict[str, tuple[str, Source]] = {}
    for name, option in options.items():
        text = environ.get(option.variable)
        if text:
            source = Source(origin=Origin.ENVIRONMENT, name=option.variable)
            given[name] = (text, source)
    for name, text in overrides.items():
        if name in options:
            given[name] = (text, Source(origin=Origin.FLAG, name=options[name].flag))
        else:
            problems.append(BootcError(f"no option {name!r}", hint=_did_you_mean(name, options)))
    values: dict[str, Any] = {}  # Any: the type of each field is that of its option's parser
    for name, (text, source) in given.items():
        try:
            values[name] = options[name].parse(text)
        except ValueError as error:
            problems.append(_value_problem(name, options[name], text, source, error, later))
    sources = {name: given[name][1] for name in values}
    return Values(values=values, sources=sources, problems=tuple(problems))


def raise_all(problems: Iterable[BootcError]) -> None:
    """Raise the problems as one error, if there are any."""
    found = list(problems)
    if len(found) == 1:
        raise found[0]
    if found:
        hints = dict.fromkeys(one.hint for one in found if one.hint is not None)
        raise BootcError("; ".join(one.message for one in found), hint="; ".join(hints))


def _name_problems(options: Mapping[str, Option], environ: Mapping[str, str]) -> list[BootcError]:
    ours = {option.variable for option in options.values()}
    problems = []
    for name in sorted(environ):
        if not name.startswith("BOOTC_") or name in ours or name in FOREIGN:
            continue
        if name not in REFUSED:
            hint = _did_you_mean(name, [*ours, *FOREIGN])
            problems.append(BootcError(f"{name}: unknown variable", hint=hint))
        elif environ[name]:
            reason, action = REFUSED[name]
            problems.append(BootcError(f"{name}={environ[name]}: {reason}", hint=action))
    return problems


def _value_problem(
    name: str,
    option: Option,
    text: str,
    source: Source,
    error: ValueError,
    later: Mapping[tuple[str, str], str],
) -> BootcError:
    message = f"{source.name}={text}: {error}"
    if isinstance(error, UnknownValue):
        close = nearest(error.word, error.choices)
        now = [one for one in error.choices if (name, one) not in later]
        if close is None:
            return BootcError(message, hint=f"set {source.name} to {' or '.join(now)}")
        if (name, close) not in later:
            return BootcError(message, hint=f"did you mean {close}? set {source.name}={close}")
        instead = f"{source.name}={later[name, close]}"
        hint = f"did you mean {close}? That is not supported yet: set {instead}"
        return BootcError(message, hint=hint)
    return BootcError(message, hint=f"set {source.name} to {option.values}, or unset it")


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = nearest(name, known)
    if close is not None:
        return f"did you mean {close}?"
    return f"unset {name} (docs/variables.md lists the known ones)"
