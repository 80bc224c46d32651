# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The command line: exit statuses, messages, options that exclude each other, start-up."""

import json
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

from bootc import __version__, process
from bootc.cli import commands, main, parser
from bootc.cli.build_id import build_id
from bootc.errors import BootcError

IMAGE = ["--source-imgref", "oci:/nowhere"]
INSTALL = ["install", "to-disk", "/dev/x", *IMAGE]
Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(flag: str, capsys: Capture) -> None:
    assert main.main([flag]) == 0
    assert capsys.readouterr().out == f"bootc {__version__}\n"


def test_version_needs_no_parser() -> None:
    code = (
        "import sys; from bootc.cli.main import main; main(['--version']);"
        "print('argparse' in sys.modules)"
    )
    assert process.run([sys.executable, "-c", code]).stdout.splitlines()[-1] == "False"


def test_status_needs_neither_install_nor_network() -> None:
    code = (
        "import sys; from bootc.cli.main import main; main(['status', '--json']);"
        "print();"
        "print([n for n in sys.modules if n.startswith(('bootc.install.run', 'http', 'ssl'))])"
    )
    assert process.run([sys.executable, "-c", code]).stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", ["container", "loader-entries"])
def test_verbs_not_written_yet(verb: str, capsys: Capture) -> None:
    assert main.main([verb, "--whatever", "x"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"error: `bootc {verb}` is not yet in this release"
    assert said[1].startswith("hint: ")


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["status", "--nonsense"],
        ["status", "--format", "xml"],
        ["install"],
        ["install", "to-disk"],
        ["install", "to-disk", "/dev/x", "--filesystem", "zfs"],
        ["install", "to-disk", "/dev/x", "--bootloader", "lilo"],
        ["install", "to-disk", "/dev/x", "--target-transport", "oci"],
        ["upgrade", "--check", "--apply"],
        ["upgrade", "--check", "--soft-reboot", "auto"],
        ["upgrade", "--check", "--download-only"],
        ["upgrade", "--check", "--from-downloaded"],
        ["update", "--download-only", "--apply"],
        ["upgrade", "--from-downloaded", "--download-only"],
        ["upgrade", "--soft-reboot", "maybe"],
        ["upgrade", "quay.io/a/b"],
        ["switch"],
        ["switch", "--transport", "floppy", "a"],
        ["delete-deployment"],
        ["composefs-finalize-staged", "now"],
    ],
)
def test_usage_errors(argv: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(argv)
    assert caught.value.code == 2
    assert "usage: bootc" in capsys.readouterr().err


def test_every_verb_has_a_function() -> None:
    for verb in (
        "status",
        "install to-disk /dev/x",
        "install to-filesystem /mnt",
        "install print-configuration",
        "internals build-id",
        "internals fsverity measure x",
        "internals fsverity enable x",
    ):
        assert parser.parse(verb.split()).verb in commands.COMMANDS


def test_status_off_a_bootc_host(capsys: Capture) -> None:
    assert main.main(["status", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["status"]["booted"] is None
    assert main.main(["status", "--format", "humanreadable"]) == 0
    assert capsys.readouterr().out == "System is not deployed via bootc.\n"
    assert main.main(["status"]) == 0
    assert capsys.readouterr().out.startswith("apiVersion: org.containers.bootc/v1\n")


def test_status_format_version(capsys: Capture) -> None:
    assert main.main(["status", "--format-version", "2"]) == 1
    assert "there is no format version 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [
        "--disable-selinux",
        "--bound-images=pull",
        "--stateroot=x",
        "--uki-addon=a",
    ],
)
def test_options_that_are_not_honoured_are_refused(option: str, capsys: Capture) -> None:
    argv = ["install", "to-disk", "/dev/x", "--composefs-backend", *IMAGE, option]
    assert main.main(argv) == 1
    said = capsys.readouterr().err
    assert "cannot be done yet" in said
    assert option.partition("=")[0] in said


@pytest.mark.parametrize("verb", parser.NOT_YET_INSTALL)
def test_installs_that_are_not_there_say_so(verb: str, capsys: Capture) -> None:
    assert main.main(["install", verb, "--experimental", "/target"]) == 1
    assert f"`bootc install {verb}` is not yet in this release" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "name a VERB"),
        (["--nope"], "unrecognized arguments: --nope"),
        ([*INSTALL, "--run-fetch-check", "--skip-fetch-check"], "not allowed with"),
    ],
)
def test_what_is_wrong_with_a_command_line_is_named(
    argv: list[str], said: str, capsys: Capture
) -> None:
    with pytest.raises(SystemExit) as stop:
        main.main(argv)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_an_empty_target_is_refused(capsys: Capture) -> None:
    assert main.main(["switch", ""]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "error: TARGET is empty",
        "hint: bootc switch quay.io/example/os:latest follows that image",
    ]


def test_error_is_one_line_and_a_hint(capsys: Capture) -> None:
    assert (
        main.main(["install", "to-disk", "/dev/x", "--filesystem", "ext4", "--root-size", "9Q"])
        == 1
    )
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["error: '9Q' is not a size", "hint: write it like 512M, 20G or 1T"]


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupted(arguments: parser.Namespace) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(commands.COMMANDS, "status", interrupted)
    assert main.main(["status"]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_build_id_follows_every_source_file(tmp_path: Path, capsys: Capture) -> None:
    package = tmp_path / "bootc"
    (package / "sub").mkdir(parents=True)
    (package / "a.py").write_text("x")
    (package / "sub/b.py").write_text("y")
    (package / "data.txt").write_text("1")
    first = build_id(str(package))
    (package / "data.txt").write_text("2")
    assert build_id(str(package)) == first
    (package / "sub/b.py").write_text("z")
    second = build_id(str(package))
    (package / "sub/b.py").rename(package / "sub/c.py")
    assert len({first, second, build_id(str(package))}) == 3
    assert main.main(["internals", "build-id"]) == 0
    assert re.fullmatch(r"[0-9a-f]{64}\n", capsys.readouterr().out)


def test_measure_without_verity(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    assert main.main(["internals", "fsverity", "measure", str(file)]) == 1
    assert "has no fs-verity" in capsys.readouterr().err
    assert main.main(["internals", "fsverity", "measure", str(tmp_path / "none")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_errors_of_verbs_carry_their_hint(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def fail(arguments: parser.Namespace) -> None:
        try:
            raise BootcError("inner", hint="do this")
        except BootcError as error:
            raise BootcError("outer\nsecond") from error

    monkeypatch.setitem(commands.COMMANDS, "status", fail)
    assert main.main(["status"]) == 1
    assert capsys.readouterr().err == "error: outer second: inner\nhint: do this\n"


@pytest.mark.parametrize("verb", [["upgrade"], ["switch", "quay.io/a/b"], INSTALL])
@pytest.mark.parametrize(
    ("number", "problem"),
    [("2", "must be a descriptor above 2"), ("987", "Bad file descriptor")],
)
def test_progress_goes_to_a_pipe(
    verb: list[str], number: str, problem: str, capsys: Capture
) -> None:
    assert main.main([*verb, "--progress-fd", number]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"error: --progress-fd {number}: {problem}")
    assert said[1].startswith("hint: ")


@pytest.mark.parametrize(
    "argv",
    [
        ["upgrade"],
        ["upgrade", "--check"],
        ["switch", "quay.io/a/b"],
        ["rollback"],
        ["delete-deployment", "0" * 128],
        ["composefs-finalize-staged"],
    ],
)
def test_verbs_of_a_machine_in_a_container(
    argv: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("container", "podman")
    assert main.main(argv) == 1
    said = capsys.readouterr().err.splitlines()
    assert "requires a booted host system, and this is a container" in said[0]
    assert said[1] == "hint: run it on the machine itself"


def test_verbs_in_other_modules_exist() -> None:
    assert len(commands.LATER) > 10
    for module, name in commands.LATER:
        assert callable(getattr(import_module(f"bootc.cli.{module}"), name)), (module, name)
