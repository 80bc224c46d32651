# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Spec §14, 21: message ids have 128 bits, and docs/journal.md lists each of them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
_ID = re.compile(r"[0-9a-f]{32}")


def ids_in_code() -> list[str]:
    found = []
    for path in sorted((TOP / "bootc").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                value = node.value.value
                if isinstance(value, str) and _ID.fullmatch(value):
                    found.append(value)
    return found


def test_each_is_listed_once() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \|$", (TOP / "docs/journal.md").read_text(), re.M)
    listed = [row[0] for row in rows]
    assert sorted(listed) == sorted(ids_in_code())
    assert len(set(listed)) == len(listed)


def test_message_ids_are_given_by_name() -> None:
    """No other form of an id goes to the journal: each use is one of those constants."""
    for path in sorted((TOP / "bootc").rglob("*.py")):
        for value in re.findall(r'"MESSAGE_ID": ([^},\n]+)', path.read_text()):
            assert not value.startswith('"'), f"{path}: {value}"
