# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Imports only point down, and nothing shadows the packages that the tools are made of."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]

# Each may import itself and what stands below it.
ORDER = (
    ("cli",),
    ("services",),
    ("status", "lint"),
    ("install",),
    ("deploy",),
    ("boot",),
    ("composefs", "ostree"),
    ("oci", "storage", "podman", "spec", "paths"),
    ("initramfs",),
    ("varlink",),
    ("process", "fs", "log", "jsonutil", "journal", "tree"),
    ("linux", "errors", "records"),
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def sources(folder: str) -> list[Path]:
    return sorted((TOP / folder).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name


@pytest.mark.parametrize("path", sources("bootc"), ids=lambda p: str(p.relative_to(TOP)))
def test_bootc_imports_point_down(path: Path) -> None:
    own = path.relative_to(TOP / "bootc").parts[0].removesuffix(".py")
    for name in imported(path):
        parts = name.split(".")
        assert parts[0] != "vmtests", f"{path}: the tool may not import the kit"
        if parts[0] != "bootc" or len(parts) < 2 or parts[1] not in RANK or own == "__init__":
            continue
        assert own in RANK, f"give {own} its place in ORDER"
        if parts[1] != own:
            assert RANK[own] <= RANK[parts[1]], f"{path} imports {name}, which stands above it"


@pytest.mark.parametrize("folder", ["packaging", "tmt"])
def test_folders_named_like_tools_are_no_packages(folder: str) -> None:
    assert list((TOP / folder).rglob("__init__.py")) == []


def test_modules_and_functions_stay_small() -> None:
    too_long = []
    for path in [*sources("bootc"), *sources("vmtests"), *sources("packaging"), *sources("tmt")]:
        text = path.read_text()
        if text.count("\n") > 600:
            too_long.append(f"{path}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size > 100:
                    too_long.append(f"{path}:{node.lineno} {node.name}: {size} lines")
    assert too_long == []


def test_no_checker_is_waived() -> None:
    """ruff and mypy hold for every line: what they can't follow is written so that they can."""
    marks = ("# " + "noqa", "# type: " + "ignore")
    found = [
        f"{path.relative_to(TOP)}:{number}"
        for folder in ("bootc", "vmtests", "tests", "tmt", "packaging")
        for path in sources(folder)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if any(mark in line for mark in marks)
    ]
    assert found == []
