# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`bootc image …`: its command line, and what it says where there is no machine."""

from __future__ import annotations

import json

import pytest

from bootc.cli import commands, main, parser

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("argv", "verb", "values"),
    [
        (["list"], "image.list", {"type": "all", "format": "table"}),
        (["copy-to-storage"], "image.copy-to-storage", {"target": "localhost/bootc"}),
        (["set-unified", "--allow-copy"], "image.set-unified", {"allow_copy": True}),
        (["pull-from-default-storage", "x"], "image.pull-from-default-storage", {"image": "x"}),
        (
            ["cmd", "build", "-t", "x", "--help", "."],
            "image.cmd",
            {"command": "build", "words": ["-t", "x", "--help", "."]},
        ),
        (["cmd", "list", "--format=json"], "image.cmd", {"words": ["--format=json"]}),
        (["cmd", "push", "a", "b"], "image.cmd", {"command": "push", "words": ["a", "b"]}),
        (["cmd", "pull", "a", "b"], "image.cmd.pull", {"images": ["a", "b"]}),
    ],
)
def test_the_command_line(argv: list[str], verb: str, values: dict[str, object]) -> None:
    found = parser.parse(["image", *argv])
    assert found.verb == verb
    assert found.verb in commands.COMMANDS
    assert {key: getattr(found, key) for key in values} == values


@pytest.mark.parametrize(
    "argv",
    [
        ["image"],
        ["image", "frobnicate"],
        ["image", "list", "--type", "bound"],
        ["image", "cmd"],
        ["image", "cmd", "rm", "x"],
        ["image", "cmd", "pull"],
        ["image", "pull-from-default-storage"],
        ["switch", "--allow-copy", "quay.io/a/b"],
        ["install", "to-disk", "/dev/x", "--allow-copy"],
    ],
)
def test_usage_errors(argv: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(argv)
    assert caught.value.code == 2
    assert "usage: bootc" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["copy-to-storage"],
        ["set-unified"],
        ["pull-from-default-storage", "x"],
        ["cmd", "list"],
        ["cmd", "pull", "x"],
    ],
)
def test_a_container_has_no_storage_to_change(
    argv: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("container", "podman")
    assert main.main(["image", *argv]) == 1
    said = capsys.readouterr().err.splitlines()
    assert "requires a booted host system" in said[0]
    assert said[1] == "hint: run it on the machine itself"


def test_a_container_lists_logical_images_alone(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("container", "podman")
    assert main.main(["image", "list", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main.main(["image", "list"]) == 0
    assert capsys.readouterr().out == "REPOSITORY  TYPE\n"
    assert main.main(["image", "list", "--type", "host"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "error: a container has no images of the host",
        "hint: bootc image list --type logical",
    ]
