# SPDX-License-Identifier: Apache-2.0 OR MIT
"""docs/composefs.md with the examples that need root, and its Python under the type checker."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bootc import process
from tests.docblocks import TOP, Examples, python_code

DOCUMENT = TOP / "docs/composefs.md"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="this isn't root")
def test_all_examples_print_what_the_document_says(tmp_path: Path) -> None:
    document = DOCUMENT.read_text()
    found = Examples(tmp_path, root=True).rewritten(document)
    if os.environ.get("UPDATE_GOLDENS"):
        DOCUMENT.write_text(found)
    assert found == document


def test_the_examples_are_well_typed(tmp_path: Path) -> None:
    """As a program of somebody else's sees the types, strictly."""
    path = tmp_path / "examples.py"
    path.write_text(python_code(DOCUMENT.read_text()))
    argv = [sys.executable, "-m", "mypy", "--strict", "--config-file=", str(path)]
    done = process.run(argv, cwd=TOP, env={"MYPYPATH": str(TOP)}, check=False)
    assert (done.status, done.stdout) == (0, "Success: no issues found in 1 source file\n")
    path.write_text("from bootc.composefs import Directory, nonsense\nDirectory(1)\n")
    done = process.run(argv, cwd=TOP, env={"MYPYPATH": str(TOP)}, check=False)
    assert 'has no attribute "nonsense"' in done.stdout
    path.write_text("from bootc.composefs import *\n\nDirectory(1)\n")
    done = process.run(argv, cwd=TOP, env={"MYPYPATH": str(TOP)}, check=False)
    assert "incompatible type" in done.stdout
