# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Boot loader entries: reading, writing, order in the menu."""

import pytest

from bootc.boot import bls
from bootc.errors import FormatError

FULL = """\
title Debian GNU/Linux 13 (trixie)
version 13
linux /EFI/Linux/x/vmlinuz
initrd /EFI/Linux/x/initrd
initrd /EFI/Linux/x/extra
options rw quiet
machine-id 0123456789abcdef0123456789abcdef
sort-key bootc-debian-0
x-options-source-tuned isolcpus=1
"""


def test_text_survives_reading_and_writing() -> None:
    entry = bls.parse(FULL, "a.conf")
    assert entry.initrd == ("/EFI/Linux/x/initrd", "/EFI/Linux/x/extra")
    assert entry.arguments == ["rw", "quiet"]
    assert entry.extras == (("x-options-source-tuned", "isolcpus=1"),)
    assert entry.to_text() == FULL


def test_order_of_keys_comments_and_blanks_do_not_matter() -> None:
    shuffled = "\n# hello\n\n" + "\n".join(f"  {line}" for line in reversed(FULL.splitlines()))
    entry = bls.parse(shuffled, "a.conf")
    assert entry.title == "Debian GNU/Linux 13 (trixie)"
    assert entry.initrd == ("/EFI/Linux/x/extra", "/EFI/Linux/x/initrd")


def test_several_options_lines_are_one() -> None:
    entry = bls.parse("version 1\nlinux /k\noptions a\noptions b c\n", "a.conf")
    assert entry.options == "a b c"


def test_efi_entry() -> None:
    entry = bls.parse("version 1\nefi /EFI/Linux/x.efi\n", "a.conf")
    assert entry.efi == "/EFI/Linux/x.efi"
    assert entry.to_text() == "version 1\nefi /EFI/Linux/x.efi\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("linux /k\n", "version: is missing"),
        ("version 1\n", "has none of them"),
        ("version 1\nlinux /k\nefi /e\n", "has linux and efi"),
        ("version 1\nversion 2\nlinux /k\n", "line 2: version is there twice"),
    ],
)
def test_bad_entries(text: str, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        bls.parse(text, "a.conf")


def _entry(version: str, sort_key: str | None) -> bls.Entry:
    return bls.Entry(version=version, linux="/k", sort_key=sort_key)


def test_menu_order() -> None:
    entries = [
        ("z.conf", _entry("1", None)),
        ("old.conf", _entry("41", "bootc-fedora-1")),
        ("a.conf", _entry("9", "same")),
        ("b.conf", _entry("10", "same")),
        ("new.conf", _entry("40", "bootc-fedora-0")),
    ]
    names = [name for name, _ in bls.menu_order(entries)]
    assert names == ["new.conf", "old.conf", "b.conf", "a.conf", "z.conf"]


def test_menu_order_falls_back_to_the_file_name() -> None:
    entries = [("a.conf", _entry("1", "k")), ("b.conf", _entry("1", "k"))]
    assert [name for name, _ in bls.menu_order(entries)] == ["b.conf", "a.conf"]
