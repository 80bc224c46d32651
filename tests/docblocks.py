# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Runs the examples of a Markdown document and compares what they print with what it says.

* A block `python` is executed; a block `text` right after it is what it prints. All blocks of a
  document share their names, as if they were one program.
* In a block `console` each line that begins with `$ ` is run by sh, the lines after it are what it
  prints, standard error included.
* The word `root` after the language: the example needs root.

`…` in an output stands for any text in a line. All of it runs in one folder, which has
an OCI layout `os` with the tag `latest`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import types
from dataclasses import dataclass
from pathlib import Path

from bootc import process
from tests.ocibuild import system_tar, write_layout

TOP = Path(__file__).resolve().parents[1]
PROGRAMS = ("cfsctl", "mkcomposefs", "composefs-info", "composefs-dump", "mount.composefs")
_BLOCK = re.compile(r"^```(\w+)( root)?\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.M | re.S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """An example: `text` is its code, `said` what the document says that it prints."""

    language: str
    root: bool
    text: str
    said: str | None
    line: int


def read_blocks(document: str) -> list[Block]:
    """The `python` and `console` examples, in their order."""
    return [_block(match) for match in _BLOCK.finditer(document) if _runs(match)]


def _runs(match: re.Match[str]) -> bool:
    return match[1] in ("python", "console")


def _block(match: re.Match[str]) -> Block:
    line = match.string.count("\n", 0, match.start()) + 1
    root = match[2] is not None
    return Block(language=match[1], root=root, text=match[3], said=match[4], line=line)


def python_code(document: str) -> str:
    """All the Python examples as one module, for a type checker."""
    blocks = [block.text for block in read_blocks(document) if block.language == "python"]
    return "".join(f"{text}\n" for text in blocks)


class Examples:
    """The examples of a document, run in `folder`; those that need root only with `root`."""

    def __init__(self, folder: Path, *, root: bool) -> None:
        self._folder = folder / "work"
        self._root = root
        self._names: dict[str, object] = {"__name__": "__main__"}
        programs = folder / "bin"
        for path in (self._folder, programs):
            path.mkdir()
        for name in PROGRAMS:
            (programs / name).write_text(
                f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(TOP)!r})\n"
                "from bootc.composefs.cli.main import entry\nentry()\n"
            )
            (programs / name).chmod(0o755)
        # What the document calls `oci:os:latest`.
        write_layout(self._folder / "os", [system_tar(b"big" * 5000)])
        self._env = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(folder),
            "PYTHONPATH": str(TOP),
            # Byte code is kept for the many programs that run, and not in the checkout.
            "PYTHONPYCACHEPREFIX": str(folder / "pyc"),
            "PYTHONDONTWRITEBYTECODE": "",
        }

    def rewritten(self, document: str) -> str:
        """The document with what its examples print now; equal to it when all is as it says."""
        return _BLOCK.sub(self._rewrite, document)

    def _rewrite(self, match: re.Match[str]) -> str:
        if not _runs(match) or (match[2] and not self._root):
            return match[0]
        block = _block(match)
        head = f"```{match[1]}{match[2] or ''}\n"
        if block.language == "console":
            return f"{head}{self._console(block.text)}```\n"
        printed = self._python(block)
        if not printed and block.said is None:
            return match[0]
        said = _kept(block.said or "", printed)
        return f"{head}{block.text}```\n\n```text\n{said}```\n"

    def _python(self, block: Block) -> str:
        out = io.StringIO()
        # Line numbers as in the document, for whoever reads a traceback.
        code = compile("\n" * block.line + block.text, "the document", "exec")
        with contextlib.chdir(self._folder), contextlib.redirect_stdout(out):
            # The programs that an example runs are ours.
            before = dict(os.environ)
            os.environ.update(self._env)
            try:
                types.FunctionType(code, self._names)()
            finally:
                os.environ.clear()
                os.environ.update(before)
        return out.getvalue()

    def _console(self, text: str) -> str:
        made: list[str] = []
        for part in re.split(r"^(?=\$ )", text, flags=re.M):
            if not part:
                continue
            line, _, said = part.partition("\n")
            done = process.run(
                ["sh", "-c", f"umask 022\nexec 2>&1\n{line.removeprefix('$ ')}"],
                cwd=self._folder,
                env=self._env,
                check=False,
            )
            made.append(f"{line}\n{_kept(said, done.stdout)}")
        return "".join(made)


def _kept(said: str, printed: str) -> str:
    """What the document says if it fits, else what was printed."""
    pattern = ".*".join(re.escape(part) for part in said.split("…"))
    return said if re.fullmatch(pattern, printed) else printed


def check_printed(document: Path, folder: Path, *, root: bool) -> None:
    """The examples of `document` print what it says; UPDATE_GOLDENS=1 writes what they print."""
    text = document.read_text()
    found = Examples(folder, root=root).rewritten(text)
    if os.environ.get("UPDATE_GOLDENS"):
        document.write_text(found)
    assert found == text


def told_by_mypy(code: str, folder: Path) -> tuple[int, str]:
    """What the type checker says of a program of somebody else's: exit status and output."""
    path = folder / "examples.py"
    path.write_text(code)
    argv = [sys.executable, "-m", "mypy", "--strict", "--config-file=", str(path)]
    done = process.run(argv, cwd=TOP, env={"MYPYPATH": str(TOP)}, check=False)
    return done.status, done.stdout


WELL_TYPED = (0, "Success: no issues found in 1 source file\n")
