# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Work on the files of containers, where they can be read.

As root that is everywhere. The files of a user's containers belong to subordinate ids, and an image
is mounted in podman's own namespaces only: there a process of the kit does the work.

    podman unshare python -m vmtests.unshared MODULE:FUNCTION ARGUMENT …

It writes one JSON object: {} or, if that is refused, {"error": …, "hint": …}.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence

from bootc import process
from bootc.errors import BootcError, chain_text, find_hint
from bootc.jsonutil import read_object
from vmtests import paths, podman

_LIMIT = 1800.0
"""Seconds."""


def call_unshared(work: Callable[..., None], *arguments: str) -> None:
    """Call `work`, a function of a module's top, with `arguments`; raises what that raises."""
    if os.geteuid() == 0:
        work(*arguments)
        return
    name = f"{work.__module__}:{work.__qualname__}"
    argv = ["podman", "unshare", sys.executable, "-m", __name__, name, *arguments]
    done = process.run(argv, env=podman.environment(), cwd=paths.CHECKOUT, timeout=_LIMIT)
    said = read_object(done.stdout, name)
    error = said.optional_text("error")
    if error is not None:
        raise BootcError(error, hint=said.optional_text("hint"))


def main(argv: Sequence[str]) -> None:
    """The process in podman's namespaces; SIGTERM ends what it does in good order."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    module, _, function = argv[0].partition(":")
    said = {}
    try:
        getattr(importlib.import_module(module), function)(*argv[1:])
    except BootcError as error:
        said = {"error": chain_text(error), "hint": find_hint(error)}
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
