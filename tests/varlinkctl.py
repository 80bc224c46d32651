# SPDX-License-Identifier: Apache-2.0 OR MIT
"""systemd's `varlinkctl` against our server: what it prints for each kind of call."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from bootc import process
from bootc.errors import BootcError
from bootc.varlink.standard import SERVICE, TRANSPORT
from tests.varlinks import TEXT

PROGRAM = "VARLINKCTL"
"""The variable that names the program, if it isn't the one on PATH."""
TOP = Path(__file__).resolve().parents[1]
T = "org.example.test"
_SERVER = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(TOP)!r})
from bootc.varlink import from_environment, serve
from tests.varlinks import Handlers
serve(Handlers().service(), [each.socket() for each in from_environment()])
"""


def find_varlinkctl() -> str | None:
    return os.environ.get(PROGRAM) or process.find_program("varlinkctl")


def need_varlinkctl() -> str:
    """Raises `BootcError` that says how to get it."""
    found = find_varlinkctl()
    if found is None:
        hint = f"it comes with systemd 255 and newer; {PROGRAM} may name it"
        raise BootcError("varlinkctl is not on PATH", hint=hint)
    return found


def program(folder: Path) -> str:
    """A server that is made to be started by `exec:`; its address."""
    path = folder / "server"
    path.write_text(_SERVER)
    path.chmod(0o755)
    return f"exec:{path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A command line without the address (`@` stands for it), and what has to come out.

    `stdout` is a text, or a list of JSON values, one after another; `stderr` a part of it.
    """

    argv: tuple[str, ...]
    stdout: str | list[object] | None = None
    stderr: str = ""
    good: bool = True


def _call(method: str, parameters: object, *options: str, out: list[object] | None = None) -> Case:
    argv = ("call", "--json=short", *options, "@", f"{T}.{method}", json.dumps(parameters))
    return Case(argv=argv, stdout=out)


def _error(method: str, parameters: object, error: str) -> Case:
    argv = ("call", "@", method if "." in method else f"{T}.{method}", json.dumps(parameters))
    return Case(argv=argv, stderr=error, good=False)


_TREE = {"name": "\u00e9", "branches": [{"name": "b", "branches": []}]}
_ECHO: dict[str, object] = {"text": "hello", "kind": "two", "tree": _TREE}
CASES = {
    "info": Case(
        argv=("info", "--json=short", "@"),
        stdout=[
            {
                "vendor": "Example",
                "product": "Test",
                "version": "1",
                "url": "https://example.org/",
                "interfaces": ["org.varlink.service", T],
            }
        ],
    ),
    "interfaces": Case(argv=("list-interfaces", "@"), stdout=f"{T}\norg.varlink.service\n"),
    "echo": _call("Echo", _ECHO, out=[_ECHO]),
    "long": _call("Echo", {"text": "x" * 100_000}, out=[{"text": "x" * 100_000}]),
    "more": _call("Count", {"to": 3}, "--more", out=[{"number": n} for n in (1, 2, 3)]),
    "not more": _call("Count", {"to": 3}, out=[{"number": 3}]),
    "oneway": _call("Count", {"to": 3}, "--oneway", out=[]),
    "own error": _error("Fail", {"how": "refused"}, f"{T}.Refused"),
    "bug": _error("Fail", {"how": "wrong type"}, "containers.bootc.transport.Failed"),
    "parameter": _error("Echo", {"text": 1}, "org.varlink.service.InvalidParameter"),
    "unknown": _error("Echo", {"text": "", "x": 1}, "org.varlink.service.InvalidParameter"),
    "method": _error("Nope", {}, "org.varlink.service.MethodNotFound"),
    "missing": _error("Missing", {}, "org.varlink.service.MethodNotImplemented"),
    "interface": _error("org.nowhere.X", {}, "org.varlink.service.InterfaceNotFound"),
}


def run_case(varlinkctl: str, address: str, case: Case) -> str:
    """What is wrong with what came out; "" if nothing is."""
    argv = [varlinkctl, *(address if word == "@" else word for word in case.argv)]
    env = {"SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": "cat"}
    done = process.run(argv, env=env, timeout=60, check=False)
    said = f"{shlex.join(argv)[:200]}: status {done.status}, {done.stdout!r}, {done.stderr!r}"
    if (done.status == 0) != case.good or case.stderr not in done.stderr:
        return said
    if isinstance(case.stdout, str):
        return "" if done.stdout == case.stdout else said
    if case.stdout is None:
        return ""
    # JSON-SEQ has a record separator before each value.
    found = [json.loads(line.lstrip("\x1e")) for line in done.stdout.splitlines() if line]
    return "" if found == case.stdout else said


def check_texts(varlinkctl: str, address: str, folder: Path) -> list[str]:
    """Whether it takes our interface files, and reads the same from the server."""
    wrong: list[str] = []
    texts = {T: TEXT, SERVICE.name: SERVICE.text, TRANSPORT.name: TRANSPORT.text}
    env = {"SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": "cat"}
    for name, text in texts.items():
        path = folder / f"{name}.varlink"
        path.write_text(text)
        valid = process.run([varlinkctl, "validate-idl", str(path)], env=env, check=False)
        told = process.run([varlinkctl, "introspect", address, name], env=env, check=False)
        if valid.status or told.status or valid.stdout.strip() != told.stdout.strip():
            wrong.append(f"{name}: {valid.stderr!r}, {told.stderr!r}, {told.stdout!r}")
    return wrong
