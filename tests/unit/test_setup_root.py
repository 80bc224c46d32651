# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The initrd program's decisions: what the command line and the configuration ask for.

The mounts themselves are proved in machines.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bootc import process
from bootc.initramfs import cmdline, setup_root
from bootc.initramfs.setup_root import SetupError

SHA512 = "ab" * 64
SHA256 = "cd" * 32


def test_command_line_words_keep_quoted_blanks() -> None:
    text = 'root="LABEL=my root" a  b\tc="x y" rd.shell\n'
    assert cmdline.split(text) == ["root=LABEL=my root", "a", "b", "c=x y", "rd.shell"]


def test_last_value_wins_as_in_the_kernel() -> None:
    words = ["root=/dev/vda", "rootflags=x", "root=/dev/vdb"]
    assert cmdline.last(words, "root") == "/dev/vdb"
    assert cmdline.last(words, "roo") is None
    assert cmdline.values(words, "root") == ["/dev/vda", "/dev/vdb"]


@pytest.mark.parametrize(
    ("word", "name", "insecure"),
    [
        (f"composefs={SHA512}", SHA512, False),
        (f"composefs=?{SHA512}", SHA512, True),
        (f"composefs={SHA256.upper()}", SHA256, False),
        (f"composefs.digest=v1-sha512-12:{SHA512}", SHA512, False),
        (f"composefs.digest=?v1-sha512-12:{SHA512}", SHA512, True),
        (f"composefs.digest=v2-sha256-12:{SHA256}", SHA256, False),
    ],
)
def test_image_is_named_by_any_of_the_arguments(word: str, name: str, insecure: bool) -> None:
    (wanted,) = setup_root.wanted_images(["quiet", word, "rw"])
    assert (wanted.name, wanted.insecure) == (name, insecure)


def test_versioned_argument_comes_first() -> None:
    words = [f"composefs={SHA256}", f"composefs.digest=v1-sha512-12:{SHA512}"]
    assert [one.name for one in setup_root.wanted_images(words)] == [SHA512, SHA256]


@pytest.mark.parametrize(
    "word",
    [
        "composefs=",
        "composefs=??" + SHA512,
        "composefs=" + SHA512[:-1],
        "composefs=" + "g" * 128,
        "composefs=../../../etc/passwd",
        f"composefs.digest={SHA512}",
        f"composefs.digest=v3-sha512-12:{SHA512}",
        f"composefs.digest=v1-sha256-12:{SHA512}",
        f"composefs.digest=v1-sha512-16:{SHA512}",
    ],
)
def test_malformed_image_argument_is_refused_by_name(word: str) -> None:
    with pytest.raises(SetupError, match=r"^composefs") as caught:
        setup_root.wanted_images([word])
    assert word.split("=")[1] in str(caught.value)


def test_no_image_argument_is_refused() -> None:
    with pytest.raises(SetupError, match="no composefs="):
        setup_root.wanted_images(["root=/dev/vda", "composefsx=1"])


def _config(tmp_path: Path, text: str, words: list[str] | None = None) -> tuple[bool, str, str]:
    path = tmp_path / "conf.toml"
    path.write_text(text)
    config = setup_root.read_config(str(path), words or [])
    return config.transient_root, config.etc, config.var


def test_configuration_defaults_to_the_deployments_state(tmp_path: Path) -> None:
    config = setup_root.read_config(str(tmp_path / "none"), [])
    assert (config.transient_root, config.etc, config.var) == (False, "bind", "bind")
    assert _config(tmp_path, "[other]\nkey = 1\n[root]\nunknown = true\n") == (
        False,
        "bind",
        "bind",
    )


def test_configuration_mount_wins_over_transient(tmp_path: Path) -> None:
    text = (
        '[root]\ntransient = true\n[etc]\ntransient = true\n[var]\ntransient = true\nmount="bind"\n'
    )
    assert _config(tmp_path, text) == (True, "transient", "bind")


def test_volatile_argument_leaves_var_to_systemd_unless_configured(tmp_path: Path) -> None:
    words = ["systemd.volatile=state"]
    assert _config(tmp_path, "", words) == (False, "bind", "none")
    assert _config(tmp_path, '[var]\nmount = "bind"\n', words) == (False, "bind", "bind")
    assert _config(tmp_path, "", ["systemd.volatile=no"]) == (False, "bind", "bind")


@pytest.mark.parametrize("text", ['[etc]\nmount = "bnid"\n', "[etc\n", "[var]\nmount = 3\n"])
def test_bad_configuration_names_the_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(SetupError, match=r"conf\.toml"):
        _config(tmp_path, text)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A physical root whose one image has no fs-verity."""
    objects = tmp_path / "composefs/objects/ab"
    objects.mkdir(parents=True)
    (objects / SHA512[2:]).write_bytes(b"image")
    images = tmp_path / "composefs/images"
    images.mkdir()
    (images / SHA512).symlink_to(f"../objects/ab/{SHA512[2:]}")
    (images / SHA256).symlink_to("/etc/passwd")
    return tmp_path / "composefs"


def _open(repository: Path, *words: str) -> bytes:
    fd = os.open(repository, os.O_PATH | os.O_DIRECTORY)
    try:
        image, _ = setup_root.open_image(fd, setup_root.wanted_images(list(words)))
    finally:
        os.close(fd)
    try:
        return os.read(image, 100)
    finally:
        os.close(image)


def test_image_without_verity_is_refused_unless_insecure(repository: Path) -> None:
    with pytest.raises(SetupError, match=f"images/{SHA512}: fs-verity is not enabled"):
        _open(repository, f"composefs={SHA512}")
    assert _open(repository, f"composefs=?{SHA512}") == b"image"


def test_missing_image_falls_through_to_the_next_argument(repository: Path) -> None:
    other = f"composefs.digest=?v1-sha512-12:{'0' * 128}"
    assert _open(repository, other, f"composefs=?{SHA512}") == b"image"
    with pytest.raises(SetupError, match=f"images/{'0' * 128}: no such image"):
        _open(repository, other)


def test_image_outside_of_the_repository_is_never_opened(repository: Path) -> None:
    with pytest.raises(OSError, match="cross-device"):
        _open(repository, f"composefs=?{SHA256}")


def test_program_says_one_line_and_fails() -> None:
    argv = [sys.executable, "-m", "bootc.initramfs.setup_root", "--cmdline", "composefs=1"]
    done = process.run(argv, check=False)
    assert done.status == 1
    assert done.stderr.startswith("bootc-setup-root: composefs=1: not a digest")
    assert done.stderr.count("\n") == 1


def test_program_refuses_unknown_options() -> None:
    assert setup_root.parse_arguments(["--sysroot=/a", "--cmdline", "x=y z"]) == {
        "--sysroot": "/a",
        "--cmdline": "x=y z",
    }
    for bad in (["--sysrot", "/a"], ["--target"]):
        with pytest.raises(SetupError, match=bad[0]):
            setup_root.parse_arguments(bad)


def test_program_imports_little() -> None:
    """What it imports is packed into every initrd and costs start-up time in every boot."""
    code = "import sys; before = set(sys.modules); import bootc.initramfs.tiny_init; "
    code += "print(*sorted(set(sys.modules) - before))"
    argv = [sys.executable, "-c", code]
    found = set(process.run(argv).stdout.split())
    heavy = {"argparse", "typing", "dataclasses", "subprocess", "pathlib", "logging", "tomllib"}
    heavy |= {"json", "tempfile", "contextlib", "enum", "re", "bootc.errors", "bootc.process"}
    assert not found & heavy
    assert {name for name in found if name.startswith("bootc.")} == {
        "bootc.initramfs",
        "bootc.initramfs.cmdline",
        "bootc.initramfs.rootdev",
        "bootc.initramfs.setup_root",
        "bootc.initramfs.tiny_init",
        "bootc.linux",
        "bootc.linux.fsverity",
        "bootc.linux.libc",
        "bootc.linux.newmount",
    }
