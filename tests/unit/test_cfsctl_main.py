# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`cfsctl` as it is called: its names, its exit statuses, what it loads, where its output goes."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from bootc import __version__, composefs, process
from bootc.composefs.cli import main
from bootc.composefs.digest import Algorithm
from bootc.composefs.repository import Repository

TOP = Path(__file__).resolve().parents[2]
ENTRY = "import sys; from bootc.composefs.cli.main import entry; "
Capture = pytest.CaptureFixture[str]


def run(*argv: str, name: str = "cfsctl", code: str = "entry()") -> process.Completed:
    """The program in a process of its own, called `name`."""
    script = f"{ENTRY}sys.argv[0] = '/usr/bin/{name}'; {code}"
    return process.run(
        [sys.executable, "-c", script, *argv], env={"PYTHONPATH": str(TOP)}, check=False
    )


@pytest.fixture
def where(tmp_path: Path) -> str:
    path = tmp_path / "repo"
    with Repository.init(path, algorithm=Algorithm.SHA256, secure=False):
        return str(path)


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_cfsctl_version(flag: str, capsys: Capture) -> None:
    assert main.main([flag]) == 0
    assert capsys.readouterr().out == f"cfsctl {__version__}\n"


def loaded(*argv: str) -> set[str]:
    """The modules that are imported when the program ends."""
    listing = "import atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
    done = run(*argv, code=listing + "entry()")
    return set(done.stderr.split())


def test_cfsctl_version_loads_nothing() -> None:
    found = loaded("--version")
    assert {name for name in found if name.startswith("bootc")} == {
        "bootc",
        "bootc.composefs",
        "bootc.composefs.cli",
        "bootc.composefs.cli.main",
    }
    assert not found & {"argparse", "logging", "json", "subprocess", "re"}


def test_cfsctl_loads_the_module_of_the_command_only(where: str) -> None:
    found = loaded("--repo", where, "images")
    assert "bootc.composefs.cli.repository" in found
    assert not found & {
        "bootc.composefs.cli.trees",
        "bootc.composefs.cli.mount",
        "bootc.composefs.cli.oci",
        "bootc.composefs.erofs_writer",
        "bootc.oci.layout",
        "zstandard",
        "tomllib",
    }


def test_cfsctl_knows_the_module_of_each_command() -> None:
    """Else a command works, but only after everything was loaded."""
    for name in main.MODULES:
        _, group = main.make_parser((name,))
        for command in group.choices:
            assert main.COMMANDS.get(command, main.MODULES[0]) == name, command


def test_cfsctl_help_has_all_commands() -> None:
    done = run("--help")
    assert done.status == 0
    for command in ("init", "images", "mount", "create-image", "compute-karg", "oci", "diff"):
        assert f"\n    {command} " in done.stdout
    assert run("help").stdout == done.stdout
    assert run("help", "mount").stdout == run("mount", "--help").stdout != done.stdout


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["frobnicate"],
        ["--frobnicate"],
        ["--repo"],
        ["--hash", "md5", "images"],
        ["--user", "--system", "images"],
        ["images", "--frobnicate"],
        ["--vers"],
        ["--erofs-version", "3", "images"],
    ],
)
def test_cfsctl_usage_is_on_stderr_with_status_2(argv: list[str]) -> None:
    done = run(*argv)
    assert (done.status, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: cfsctl")
    assert "\ncfsctl" in done.stderr


@pytest.mark.parametrize(
    "argv",
    [["ostree", "pull", "x"], ["--repo", "images", "fetch", "x"]],
)
def test_cfsctl_says_what_is_not_offered(argv: list[str]) -> None:
    done = run(*argv)
    assert (done.status, done.stdout) == (1, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("error: `cfsctl ")
    assert first.endswith("is not offered")
    assert second.startswith("hint: ")


@pytest.mark.parametrize("option", [["--fuse"], ["--fuse=yes"], ["--foreground"]])
def test_cfsctl_says_that_fuse_is_not_offered(where: str, option: list[str]) -> None:
    done = run("--repo", where, "mount", "name", "/mnt", *option)
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr.startswith("error: FUSE is not offered")


def test_cfsctl_errors_are_one_line_and_a_hint(where: str) -> None:
    done = run("--repo", f"{where}/no\nwhere", "images")
    assert (done.status, done.stdout) == (1, "")
    first, second = done.stderr.splitlines()
    assert first.startswith(f"error: cannot open the repository {where}/no\\nwhere: ")
    assert second.startswith("hint: ")
    done = run("--repo", where, "mount", "name", "/mnt")
    assert (done.status, done.stdout) == (1, "")
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]


def test_cfsctl_is_silent_when_its_reader_goes_away() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    script = f"{ENTRY}import os; os.dup2({writing}, 1); entry()"
    try:
        done = process.run(
            [sys.executable, "-c", script, "--help"],
            env={"PYTHONPATH": str(TOP)},
            check=False,
            pass_fds=(writing,),
        )
    finally:
        os.close(writing)
    assert (done.status, done.stderr) == (141, "")


def test_cfsctl_says_that_stdout_is_full(where: str) -> None:
    code = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1); entry()"
    done = run("--repo", where, "images", code=code)
    assert done.status == 1
    assert done.stderr.startswith("error: ")
    assert "No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_cfsctl_writes_names_as_they_were_given(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff"
    script = f"{ENTRY}sys.exit(entry())"
    argv = [sys.executable, "-c", script, "--repo", os.fsdecode(path), "init", "--insecure"]
    out = tmp_path / "out"
    with (
        open(out, "wb") as file,
        process.running(argv, env={"PYTHONPATH": str(TOP), "LC_ALL": "C"}, stdout=file) as child,
    ):
        assert child.wait(60) == 0
    assert b"repository at " + path + b"\n" in out.read_bytes()


def is_locked(path: str) -> bool:
    """Whether somebody has the repository open."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def test_cfsctl_says_that_it_was_interrupted(where: str, tmp_path: Path) -> None:
    # A parent may have set SIGINT to be ignored, which is inherited.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    argv = [sys.executable, "-c", f"{ENTRY}{code}entry()", "--repo", where, "transaction"]
    with (
        open(tmp_path / "said", "wb") as said,
        process.running(argv, env={"PYTHONPATH": str(TOP)}, stdout=said, stderr=said) as child,
    ):
        while not is_locked(where):
            assert child.poll() is None
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130
    assert (tmp_path / "said").read_text() == "error: interrupted\n"


@pytest.mark.parametrize("name", list(main.PROGRAMS))
def test_cfsctl_answers_to_the_names_of_the_c_tools(name: str) -> None:
    by_name = run("-h", name=name)
    by_argument = run(name, "-h")
    assert by_name == by_argument
    assert by_name.status == 0
    assert name in by_name.stdout + by_name.stderr
    assert "cfsctl" not in by_name.stdout + by_name.stderr


def test_cfsctl_command_is_found_behind_the_options() -> None:
    assert main.find_command(["--repo", "mount", "--hash=sha256", "--user", "gc", "x"]) == "gc"
    assert main.find_command(["--help", "gc"]) is None
    assert main.find_command(["--repo"]) is None


def test_every_name_of_the_api_is_there() -> None:
    for name in dir(composefs):
        assert getattr(composefs, name) is not None
    text = Path(composefs.__file__ or "").read_text()
    for home, names in composefs._HOMES.items():
        for name in names:
            assert f"from {home} import {name} as {name}\n" in text
    assert text.count(" as ") == sum(len(names) for names in composefs._HOMES.values())
    with pytest.raises(AttributeError, match="no attribute 'frobnicate'"):
        composefs.__getattr__("frobnicate")
    code = "from bootc.composefs import *; print(*globals())"
    done = process.run([sys.executable, "-c", code], env={"PYTHONPATH": str(TOP)})
    assert set(composefs._HOME_OF) <= set(done.stdout.split())


def test_the_api_costs_nothing_until_it_is_used() -> None:
    code = "import sys, bootc.composefs; print(*sys.modules)"
    done = process.run([sys.executable, "-c", code], env={"PYTHONPATH": str(TOP)})
    names = {name for name in done.stdout.split() if name.startswith("bootc")}
    assert names == {"bootc", "bootc.composefs"}
