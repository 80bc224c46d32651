# SPDX-License-Identifier: Apache-2.0 OR MIT
"""docs/composefs.md prints what it says (but for what needs root: tests/host has that).

`UPDATE_GOLDENS=1` writes what the examples print into the document.
"""

from __future__ import annotations

from pathlib import Path

from tests.docblocks import TOP, Examples, check_printed, python_code, read_blocks

DOCUMENT = TOP / "docs/composefs.md"


def test_examples_of_the_document_print_what_it_says(tmp_path: Path) -> None:
    check_printed(DOCUMENT, tmp_path, root=False)


def test_a_wrong_example_is_noticed(tmp_path: Path) -> None:
    good = (
        "```python\nprint(1)\n```\n\n```text\n1\n```\n\n```console\n$ echo a b\na …\n$ true\n```\n"
    )
    assert Examples(tmp_path, root=False).rewritten(good) == good
    bad = good.replace("\n1\n", "\n2\n").replace("a …", "c").replace("$ true\n", "$ true\nx\n")
    (tmp_path / "again").mkdir()
    fixed = Examples(tmp_path / "again", root=False).rewritten(bad)
    assert fixed == good.replace("a …", "a b")


def test_root_is_needed_for_few_examples() -> None:
    blocks = read_blocks(DOCUMENT.read_text())
    assert sum(block.root for block in blocks) <= 2 < len(blocks) - 15
    assert "mount_image" in python_code(DOCUMENT.read_text())
