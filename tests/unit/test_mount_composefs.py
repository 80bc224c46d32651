# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The command line of mount.composefs. The statuses and messages are those of the C tool 1.0.8."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootc import fs
from bootc.composefs.cli import mount_composefs as tool
from bootc.linux import fsverity

Capture = pytest.CaptureFixture[str]
USAGE = tool.USAGE.splitlines()[0]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("ro", [("ro", None)]),
        ("basedir=a,ro", [("basedir", "a"), ("ro", None)]),
        (r"basedir=a\,b,ro", [("basedir", "a,b"), ("ro", None)]),
        (r"basedir=a\\,ro", [("basedir", "a\\"), ("ro", None)]),
        (r"basedir=a\\\,b", [("basedir", "a\\,b")]),
        (r"basedir=ob\js", [("basedir", "objs")]),
        ("basedir=a=b", [("basedir", "a=b")]),
        (r"basedir=a\=b", [("basedir", "a=b")]),
        ("basedir=a\\", [("basedir", "a")]),
        (r"base\dir=a", [("base\\dir", "a")]),
        (",ro,", [("", None), ("ro", None), ("", None)]),
        ("", [("", None)]),
        ("digest=", [("digest", "")]),
    ],
)
def test_mount_options_are_split(text: str, options: list[tuple[str, str | None]]) -> None:
    assert tool.split_options(text) == options


def test_mount_command_line_is_taken_in_any_order() -> None:
    wanted = tool.Request(image="i", target="t", options={"basedir": "a", "ro": ""})
    for argv in (
        ["i", "t", "-o", "basedir=a,ro"],
        ["-obasedir=a,ro", "--", "i", "t"],
        ["-t", "composefs", "i", "-o", "basedir=a,ro", "t", "more"],
        ["i", "t", "-n", "-s", "-v", "-o", "rw,basedir=a,ro"],
    ):
        assert tool.parse(argv) == wanted


def test_mount_later_options_win() -> None:
    request = tool.parse(["i", "t", "-o", "basedir=a,ro,basedir=b:c,rw"])
    assert request.options == {"basedir": "b:c", "rw": ""}


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], "No source path specified"),
        (["i"], "No mount path specified"),
        (["i", "t"], "No object dirs specified"),
        (["i", "t", "-o", "ro"], "No object dirs specified"),
        (["--long", "i", "t"], "mount.composefs: invalid option -- '-'"),
        (["-x", "i", "t"], "mount.composefs: invalid option -- 'x'"),
        (["i", "t", "-o"], "mount.composefs: option requires an argument -- 'o'"),
    ],
)
def test_mount_wrong_command_lines_show_the_usage(
    argv: list[str], line: str, capsys: Capture
) -> None:
    assert tool.main(argv) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[:2] == [line, USAGE]


def test_mount_help_is_the_usage(capsys: Capture) -> None:
    assert tool.main(["-h"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", tool.USAGE)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("bogus", "Unsupported option bogus"),
        ("basedir=a,bogus=1", "Unsupported option bogus"),
        ("basedir=a,,ro", "Unsupported option "),
        (r"base\dir=a", r"Unsupported option base\dir"),
        ("basedir", "No value specified for basedir option"),
        ("basedir=a,digest", "No value specified for digest option"),
        ("basedir=a,upperdir", "No value specified for upperdir option"),
        ("basedir=a,workdir", "No value specified for workdir option"),
        ("basedir=a,idmap", "No value specified for idmap option"),
        ("basedir=", "Value for basedir option has incorrect format"),
        ("basedir=a:", "Value for basedir option has incorrect format"),
        ("basedir=a::b", "Value for basedir option has incorrect format"),
        ("basedir=a,upperdir=u", "Both workdir and upperdir must be specified if used"),
        ("basedir=a,workdir=w", "Both workdir and upperdir must be specified if used"),
    ],
)
def test_mount_wrong_options_are_named(options: str, problem: str, capsys: Capture) -> None:
    assert tool.main(["i", "t", "-o", options]) == 1
    assert capsys.readouterr().err == f"mount.composefs: {problem}\n"


def test_mount_another_type_is_refused(capsys: Capture) -> None:
    assert tool.main(["i", "t", "-t", "erofs", "-o", "basedir=a"]) == 1
    assert capsys.readouterr().err == "mount.composefs: Unsupported fs type 'erofs'\n"


@pytest.mark.parametrize(
    ("image", "options", "problem"),
    [
        ("none", "basedir=DIR", "Failed to open none: No such file or directory"),
        ("IMAGE", "basedir=/none", "Failed to mount composefs IMAGE: No such file or directory"),
        (
            *("IMAGE", "basedir=DIR,idmap=/none"),
            "Failed to open userns /none: No such file or directory",
        ),
        ("IMAGE", "basedir=DIR,digest=zz", "Failed to mount composefs IMAGE: Invalid argument"),
        ("IMAGE", "basedir=DIR,digest=000", "Failed to mount composefs IMAGE: Invalid argument"),
        (
            *("IMAGE", f"basedir=DIR,digest={'00' * 32}"),
            "Failed to mount composefs IMAGE: Image has no fs-verity",
        ),
    ],
)
def test_mount_failures_are_named(
    tmp_path: Path, image: str, options: str, problem: str, capsys: Capture
) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"nothing")

    def real(text: str) -> str:
        return text.replace("IMAGE", str(path)).replace("DIR", str(tmp_path))

    assert tool.main([real(image), str(tmp_path), "-o", real(options)]) == 1
    assert capsys.readouterr().err == f"mount.composefs: {real(problem)}\n"


def test_file_system_without_verity_is_told_by_an_ioctl() -> None:
    # A tmpfs has none, on any kernel.
    with fs.open_directory("/dev/shm") as folder:
        assert not fsverity.is_available(folder)
