# SPDX-License-Identifier: Apache-2.0 OR MIT
"""docs/composefs.md with the examples that need root, and its Python under the type checker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docblocks import TOP, WELL_TYPED, check_printed, python_code, told_by_mypy

DOCUMENT = TOP / "docs/composefs.md"


@pytest.mark.root
def test_all_examples_print_what_the_document_says(tmp_path: Path) -> None:
    check_printed(DOCUMENT, tmp_path, root=True)


def test_the_examples_are_well_typed(tmp_path: Path) -> None:
    """As a program of somebody else's sees the types, strictly."""
    assert told_by_mypy(python_code(DOCUMENT.read_text()), tmp_path) == WELL_TYPED
    code = "from bootc.composefs import Directory, nonsense\nDirectory(1)\n"
    assert 'has no attribute "nonsense"' in told_by_mypy(code, tmp_path)[1]
    code = "from bootc.composefs import *\n\nDirectory(1)\n"
    assert "incompatible type" in told_by_mypy(code, tmp_path)[1]
