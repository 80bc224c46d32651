# SPDX-License-Identifier: Apache-2.0 OR MIT
"""How the kit's commands end: an answer on stdout, or one line of error and one of advice.

A failed system call (`OSError`) is such an error too: a full disk is no bug of ours. Where it
happened is told by `BOOTC_LOG=debug`. Any other exception is a bug, and shows its traceback.

Exit status: 0 done, 1 refused or failed, 130 interrupted; `nox -s tmt` adds its own (see results).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bootc import log
from bootc.errors import BootcError, chain_text
from bootc.jsonutil import Json, pretty

_WHERE = "see what was being done: set BOOTC_LOG=debug and try again"


@contextmanager
def reported(*, quiet: bool = False) -> Iterator[None]:
    """Run a command's work: progress on stderr, a failure as one line and a non-zero exit."""
    log.setup(level="warning" if quiet else None)
    try:
        yield
    except BrokenPipeError:
        # The reader has seen enough (`| head`). Python's own last flush must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except (BootcError, OSError) as error:
        logging.getLogger(__name__).debug("where it happened", exc_info=error)
        print(f"error: {chain_text(error)}", file=sys.stderr)
        hint = error.hint if isinstance(error, BootcError) else _WHERE
        if hint:
            print(f"hint: {hint}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("error: interrupted; nothing is left running", file=sys.stderr)
        raise SystemExit(130) from None


def answer(*lines: str) -> None:
    """Print the answer."""
    for line in lines:
        print(line)


def answer_json(value: Json) -> None:
    """Print the answer for a program."""
    print(pretty(value), end="")
