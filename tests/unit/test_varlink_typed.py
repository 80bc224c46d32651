# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The Python types of interfaces: what is made, and what a type checker says about its use."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from bootc import process
from bootc.varlink import VarlinkError, parse
from bootc.varlink.typed import main, python_types
from tests.varlinks import INTERFACE, TEXT

TOP = Path(__file__).resolve().parents[2]
ODD = """interface org.example.odd
type Any (x: int)
type Kind (one, two)
type Tree (left: ?Tree, kinds: []Kind, labels: [string]?string, class: bool)
type DoReply (from: string)
method Do (inner: (deep: []?(value: float, what: any)), raw: object, mode: (a, b)) -> (any: Any)
method Nothing () -> ()
error NotFoundHere (from: string, tree: ?Tree)
error Plain ()
"""
USE = """
from bootc.varlink import Call, Reply
from odd import DoParameters, DoReply_, Tree, not_found_here, plain

def do(call: Call) -> Reply:
    parameters: DoParameters = call.parameters
    first = parameters["inner"]["deep"][0]
    if first is None or parameters["mode"] == "a":
        raise not_found_here(from_="x", tree=None)
    value: float = first["value"]
    if value > 1:
        raise plain()
    tree: Tree = {"kinds": ["one"], "labels": {"a": None}, "class": True}
    print(tree.get("left"))
    reply: DoReply_ = {"any": {"x": 1}}
    return Reply(reply)
"""
WRONG = """
from odd import DoParameters, DoReply_, Tree, not_found_here

def wrong(parameters: DoParameters) -> None:
    reply: DoReply_ = {"any": {"x": "1"}}
    tree: Tree = {"kinds": ["three"], "labels": {}, "class": True}
    raise not_found_here(tree=None)
    parameters["nonsense"]

def also_wrong(parameters: DoParameters) -> bool:
    return parameters["mode"] == "c"
"""


def checked(folder: Path, text: str) -> str:
    path = folder / "use.py"
    path.write_text(text)
    argv = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--strict-equality"]
    env = {"MYPYPATH": f"{TOP}:{folder}"}
    return process.run([*argv, str(path)], cwd=folder, env=env, check=False).stdout


def test_a_type_checker_understands_them(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(python_types(parse(ODD)))
    assert checked(tmp_path, USE) == "Success: no issues found in 1 source file\n"
    said = checked(tmp_path, WRONG)
    for problem in (
        'expression has type "str", TypedDict item "x" has type "int"',
        "list-item",
        'Missing named argument "from_"',
        "Non-overlapping equality check",
    ):
        assert problem in said, said


def test_all_interfaces_of_the_tree_have_types(tmp_path: Path) -> None:
    paths = sorted((TOP / "bootc").rglob("*.varlink"))
    texts = [path.read_text() for path in paths]
    assert len(texts) >= 2
    for text in (*texts, TEXT):
        interface = parse(text)
        name = interface.name.replace(".", "_").replace("-", "_").lower()
        (tmp_path / f"{name}.py").write_text(python_types(interface))
    names = "".join(f"import {path.stem}\n" for path in sorted(tmp_path.glob("*.py")))
    assert checked(tmp_path, names) == "Success: no issues found in 1 source file\n"


def test_what_is_there_at_run_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "org.example.test.varlink"
    path.write_text(TEXT)
    assert main([str(path)]) == 0
    text = capsys.readouterr().out
    assert text == python_types(INTERFACE)
    (tmp_path / "made_types.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    made_types = importlib.import_module("made_types")
    error = made_types.refused(why="so")
    assert isinstance(error, VarlinkError)
    assert (error.name, error.parameters) == ("org.example.test.Refused", {"why": "so"})
    assert not hasattr(made_types, "EchoReply")
