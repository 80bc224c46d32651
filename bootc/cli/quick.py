# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The command lines of `bootc status` that programs repeat, read without argparse.

Loading argparse and building a parser take as long as all else that `bootc status --json` does.
What isn't here word for word is the parser's, and so are all errors.
"""

from __future__ import annotations

from collections.abc import Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

_FLAGS = {"--json": "json", "--booted": "booted", "--verbose": "verbose", "-v": "verbose"}


class _Arguments:
    """As `argparse.Namespace`: options are attributes."""

    def __init__(self) -> None:
        self.verb = "status"
        self.json = False
        self.booted = False
        self.verbose = False
        self.format: str | None = None
        self.format_version: int | None = None
        self.sysroot: str | None = None


if TYPE_CHECKING:

    def find_arguments(argv: Sequence[str]) -> Namespace | None: ...

else:

    def find_arguments(argv):
        """What `parser.parse` says of `bootc status` with flags alone; None for anything else."""
        if not argv or argv[0] != "status":
            return None
        found = _Arguments()
        for word in argv[1:]:
            if word not in _FLAGS:
                return None
            setattr(found, _FLAGS[word], True)
        return found
