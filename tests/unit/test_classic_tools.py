# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The drop-ins for the C tools: option rules, formats and exit statuses that scripts rely on.

The texts and digests that are expected here were printed by the C tools, version 1.0.8.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from bootc.composefs.cli import composefs_dump, composefs_info, mkcomposefs
from bootc.composefs.cli.classic import output
from bootc.errors import BootcError

DUMPS = Path(__file__).parent.parent / "golden" / "dumps"
SPECIAL = str(DUMPS / "special.dump")
SPECIAL_V0 = "6fae72a66167ef8d5830fa15647263ef1b535681aa91fdf195fa3d6f5e3ae15e\n"
SPECIAL_V1 = "1d268f8bc7609b4f8f8467e98565f45300f9e192c0e6ef2d05820d3ea41d4515\n"
DIGEST = "ab" * 32
LINKED = f"""\
/ 0 40755 9 0 0 0 5.6 - - - trusted.overlay.foo=1
/b 0 40755 7 0 0 0 5.6 - - -
/b/inl 4 100644 3 3 4 0 7.8 - \\n\\x20=x -
/b/real 100 100644 7 3 4 0 7.8 ab/cd - {DIGEST} user.x=\\x00\\x3d
/a 0 @100644 - - - - 0.0 /b/real - -
/c 0 @100644 1 1 1 1 0.0 /b/inl - -
/dash 1 120777 1 0 0 0 0.0 \\x2d - -
/d\\x20e\\n 0 40755 2 0 0 0 0.0 - - -
/d\\x20e\\n/ln 3 120777 1 0 0 0 0.0 x\\x20y - -
/onlydig 100 100644 1 3 4 0 7.8 - - {DIGEST}
/sparse 100 100644 1 3 4 0 7.8 - - -
/w 0 20600 1 0 0 0 0.0 - - -
"""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], SPECIAL_V1),
        (["--min-version=0"], SPECIAL_V0),
        (["--max-version=0"], SPECIAL_V0),
        (["--max-version=1"], SPECIAL_V1),
        (["--min-version", "1"], SPECIAL_V1),
        (["--min-version=0", "--max-version=1"], SPECIAL_V1),
        (["--min-version=1", "--max-version=0"], SPECIAL_V1),
        (["--thr=3", "--skip-devices", "--user-xattrs", "--use-epoch"], SPECIAL_V1),
    ],
)
def test_mkcomposefs_version_rule(
    options: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv in (
        [*options, "--from-file", "--print-digest-only", SPECIAL],
        [SPECIAL, *options, "--from", "--print-digest-o"],
    ):
        assert mkcomposefs.main(argv) == 0
        assert capsys.readouterr() == (expected, "")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no SOURCE"),
        (["a"], "no IMAGE"),
        (["a", "b", "c"], "more operands"),
        (["--print-digest-only", "a", "b"], "leave it out"),
        (["--print", "a"], "--print not a unique prefix"),
        (["--from-file=1", "a", "b"], "--from-file must not have an argument"),
        (["--nope", "a"], "--nope not recognized"),
        (["--min-version=x", "a", "b"], "--min-version=x: not a number"),
        (["--max-version=0x1", "a", "b"], "--max-version=0x1: not a number"),
        (["--threads=0", "a", "b"], "--threads=0"),
        (["--skip-xattrs", "--user-xattrs", "a", "b"], "contradict"),
        (["--min-version=2", "--from-file", SPECIAL, "b"], "versions 0 and 1"),
        (["--max-version=2", "--from-file", SPECIAL, "b"], "versions 0 and 1"),
        (["--min-version=-1", "--from-file", SPECIAL, "b"], "versions 0 and 1"),
        (["/nonexistent", "b"], "/nonexistent"),
        ([SPECIAL, "b"], "is not a directory"),
        (["--from-file", "/nonexistent", "b"], "/nonexistent"),
        (["--from-file", SPECIAL, "/nonexistent/b"], "cannot write /nonexistent/b"),
    ],
)
def test_mkcomposefs_refuses(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mkcomposefs.main(argv) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("mkcomposefs: ")
    assert message in printed.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", sorted(DUMPS.glob("should-fail-*.dump")), ids=lambda p: p.stem)
def test_mkcomposefs_bad_dump(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"old")
    assert mkcomposefs.main(["--from-file", str(path), str(image)]) == 1
    assert capsys.readouterr().err.startswith(f"mkcomposefs: {path} at line ")
    assert image.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["image"]


@pytest.mark.parametrize(
    ("tool", "first"),
    [
        (mkcomposefs.main, "usage: mkcomposefs [OPTIONS] SOURCE IMAGE"),
        (composefs_info.main, "usage: composefs-info [OPTIONS] COMMAND IMAGE..."),
        (composefs_dump.main, "usage: composefs-dump SOURCE DESTINATION"),
    ],
)
def test_help(
    tool: Callable[[list[str]], int], first: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool(["--help"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == first


def test_mkcomposefs_writes_to_a_file_and_to_a_link(tmp_path: Path) -> None:
    image, link = tmp_path / "image", tmp_path / "link"
    assert mkcomposefs.main(["--from-file", SPECIAL, str(image)]) == 0
    assert hashlib.sha256(image.read_bytes()).hexdigest() == (
        "2b1dfb9ffe6938cb3134c339059572e38cbd8cc515d54758fdff55cad5a37427"
    )
    link.symlink_to("target")
    assert mkcomposefs.main(["--from-file", SPECIAL, str(link)]) == 0
    assert link.is_symlink()
    assert (tmp_path / "target").read_bytes() == image.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["image", "link", "target"]
    assert not stat.S_IMODE(image.stat().st_mode) & 0o111


def make_image(folder: Path, text: str, *options: str) -> str:
    source, image = folder / "text", folder / "image"
    source.write_text(text)
    assert mkcomposefs.main(["--from-file", *options, str(source), str(image)]) == 0
    return str(image)


def info(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert composefs_info.main(argv) == 0
    return capsys.readouterr().out


def test_info_ls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = make_image(tmp_path, LINKED)
    lines = [
        "/a\t@ ab/cd",
        "/b/\t",
        "/b/inl",
        "/b/real",
        "/c",
        "/d e\\n/\t",
        "/d e\\n/ln\t-> x\\x20y",
        "/dash\t-> -",
        "/onlydig",
        "/sparse",
        "/w",
    ]
    assert info(["ls", image], capsys).splitlines() == lines
    assert info(["ls", image, image], capsys).splitlines() == lines + lines
    some = ["/b/\t", "/b/inl", "/b/real\t@ ab/cd", "/w"]
    assert info(["--filter=b", "ls", image, "--filter", "w"], capsys).splitlines() == some
    assert info(["ls", image, "--filter=inl"], capsys) == ""


def test_info_dump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = make_image(tmp_path, LINKED)
    root = (
        "/ 4096 40755 4 0 0 0 5.6 - - -"
        " trusted.overlay.foo=1 trusted.overlay.opaque=x user.overlay.opaque=x"
    )
    lines = [
        root,
        f"/a 100 100644 7 3 4 0 7.8 ab/cd - {DIGEST} user.x=\\x00\\x3d",
        "/b 58 40755 2 0 0 0 5.6 - - -",
        "/b/inl 4 100644 3 3 4 0 7.8 - \\n\\x20=x -",
        f"/b/real 100 @100644 7 3 4 0 7.8 /a - {DIGEST} user.x=\\x00\\x3d",
        "/c 4 @100644 3 3 4 0 7.8 /b/inl \\n\\x20=x -",
        "/d\\x20e\\n 41 40755 2 0 0 0 0.0 - - -",
        "/d\\x20e\\n/ln 3 120777 1 0 0 0 0.0 x\\x20y - -",
        "/dash 1 120777 1 0 0 0 0.0 \\x2d - -",
        f"/onlydig 100 100644 1 3 4 0 7.8 - - {DIGEST}",
        "/sparse 100 100644 1 3 4 0 7.8 - - -",
        "/w 0 20600 1 0 0 0 0.0 - - -",
    ]
    assert info(["dump", image], capsys).splitlines() == lines
    assert info(["dump", "--filter=w", image], capsys).splitlines() == [root, lines[-1]]
    assert info(["dump", "--filter=x", image], capsys).splitlines() == [root]


def test_info_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = LINKED + f"/z 9 100644 1 0 0 0 0.0 00/x - {DIGEST}\n"
    image = make_image(tmp_path, more)
    assert info(["objects", image, image], capsys) == "00/x\nab/cd\n"
    assert info(["objects", image, "--filter=z"], capsys) == "00/x\n"
    assert info(["missing-objects", image], capsys) == "00/x\nab/cd\n"
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "cd").touch()
    assert info(["--basedir", str(tmp_path), "missing-objects", image], capsys) == "00/x\n"


def test_info_measure_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = make_image(tmp_path, Path(SPECIAL).read_text(), "--max-version=0")
    (tmp_path / "empty").touch()
    assert info(["measure-file", image, str(tmp_path / "empty")], capsys) == (
        SPECIAL_V0 + "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95\n"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no COMMAND"),
        (["ls"], "no IMAGE"),
        (["nope", "x"], "no command 'nope'"),
        (["ls", "/nonexistent"], "/nonexistent"),
        (["ls", os.devnull], "the file is empty"),
        (["dump", SPECIAL], "not a composefs image"),
        (["--filter=a/b", "ls", SPECIAL], "--filter=a/b"),
        (["measure-file", "/"], "/"),
        (["-x", "ls", SPECIAL], "-x"),
    ],
)
def test_info_refuses(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert composefs_info.main(argv) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("composefs-info: ")
    assert message in printed.err


@pytest.mark.parametrize("version", ["0", "1"])
def test_dump_reproduces_the_image(version: str, tmp_path: Path) -> None:
    image = make_image(tmp_path, Path(SPECIAL).read_text(), f"--min-version={version}")
    assert composefs_dump.main([image, str(tmp_path / "again")]) == 0
    assert (tmp_path / "again").read_bytes() == Path(image).read_bytes()


@pytest.mark.parametrize("argv", [[], [SPECIAL], [SPECIAL, "a", "b"], [SPECIAL, "a"]])
def test_dump_refuses(argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert composefs_dump.main(argv) == 1
    assert list(tmp_path.iterdir()) == []


def test_dump_round_trip_through_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = make_image(tmp_path, Path(SPECIAL).read_text())
    before = Path(image).read_bytes()
    text = info(["dump", image], capsys)
    assert Path(make_image(tmp_path, text)).read_bytes() == before


def test_output_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def half() -> None:
        with output(str(tmp_path / "image")) as write:
            write(b"half")
            raise BootcError("stop")

    with pytest.raises(BootcError, match="stop"):
        half()
    assert list(tmp_path.iterdir()) == []
