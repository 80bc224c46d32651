# SPDX-License-Identifier: Apache-2.0 OR MIT
"""docs/varlink.md prints what it says, and says what is so.

`UPDATE_GOLDENS=1` writes what the examples print into the document.
"""

from __future__ import annotations

import re
from pathlib import Path

from bootc.varlink.standard import SERVICE, TRANSPORT
from bootc.varlink.wire import Limits
from tests.docblocks import TOP, WELL_TYPED, check_printed, python_code, told_by_mypy

DOCUMENT = TOP / "docs/varlink.md"


def test_examples_of_the_document_print_what_it_says(tmp_path: Path) -> None:
    check_printed(DOCUMENT, tmp_path, root=False)


def test_the_examples_are_well_typed(tmp_path: Path) -> None:
    assert told_by_mypy(python_code(DOCUMENT.read_text()), tmp_path) == WELL_TYPED


def test_all_errors_and_limits_are_told() -> None:
    document = DOCUMENT.read_text()
    table = set(re.findall(r"^\| `(\w+)` \|", document, re.M))
    assert table == set(TRANSPORT.errors)
    for name in SERVICE.errors:
        assert f"`{name}`" in document
    limits = Limits()
    for name in Limits.__slots__:
        assert f"Limits({name}=…)" in document
    told = (limits.message >> 20, limits.unfinished >> 20, limits.clients, limits.fds)
    assert told == (16, 256, 4096, 253)
    assert (limits.handlers, limits.send_seconds) == (128, 60)
