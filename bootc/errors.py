# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The exceptions of the whole project: one root, three kinds that a caller can tell apart.

* `BootcError`: we refuse, with a reason and, as `hint`, an action the reader can take now;
* `ProcessError`: a program that we ran failed (argv, exit status, the end of its stderr);
* `FormatError`: data that somebody handed us is bad (where: a file, and an offset or a field).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_SHOWN = 240
"""Characters of a failed command that its message shows."""


class BootcError(Exception):
    """A failure that is reported as one line, plus one line of advice."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ProcessError(BootcError):
    """A program exited with a failure, could not be started, or ran out of its time.

    `status` is the exit status, negative for a signal, `None` when it timed out or did not start.
    """

    def __init__(
        self,
        argv: Sequence[str],
        status: int | None,
        stderr: str = "",
        *,
        reason: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.argv = tuple(argv)
        self.status = status
        self.stderr = stderr
        said = reason or (f"exit status {status}" if status is not None else "did not finish")
        tail = " | ".join(line for line in stderr.strip().splitlines()[-5:] if line.strip())
        import shlex  # start-up time, which is felt where nothing failed

        line = shlex.join(self.argv)
        if len(line) > _SHOWN:
            line = f"{line[: _SHOWN - 20]} … {line[-18:]}"
        super().__init__(f"{line}: {said}{': ' + tail if tail else ''}", hint=hint)


class FormatError(BootcError):
    """Bad data: `source` names the file or stream, `where` the offset or the field in it."""

    def __init__(
        self, source: str, where: str | int | None, problem: str, *, hint: str | None = None
    ) -> None:
        self.source = source
        self.where = where
        place = "" if where is None else f" at {'offset ' if isinstance(where, int) else ''}{where}"
        super().__init__(f"{source}{place}: {problem}", hint=hint)


@contextmanager
def advised(message: str, hint: str) -> Iterator[None]:
    """Give a `BootcError` of the block that has no advice some, and what it was about."""
    try:
        yield
    except BootcError as error:
        if find_hint(error) is not None:
            raise
        raise BootcError(message, hint=hint) from error


def find_hint(error: BaseException | None) -> str | None:
    """The advice of an error, or of the one that it was raised from."""
    while error is not None:
        if isinstance(error, BootcError) and error.hint:
            return error.hint
        error = error.__cause__
    return None


def chain_text(error: BaseException) -> str:
    """The one line a person reads: the error and the causes it was raised from, joined by `: `."""
    parts: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen) or type(seen).__name__
        told = isinstance(seen, OSError) and seen.strerror and seen.strerror in "".join(parts)
        if not told and (not parts or text not in parts[-1]):
            parts.append(text)
        seen = seen.__cause__
    return ": ".join(parts)
