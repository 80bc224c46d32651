# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Kernel arguments: splitting, the composefs argument, deletions, kargs.d."""

import pytest

from bootc.boot import kargs
from bootc.errors import FormatError

DIGEST = "ab" * 64


@pytest.mark.parametrize(
    ("cmdline", "expected"),
    [
        ("", []),
        ("  rw\tquiet\n", ["rw", "quiet"]),
        ('a="b c" d', ['a="b c"', "d"]),
        ('open="never closed x', ['open="never closed x']),
    ],
)
def test_split(cmdline: str, expected: list[str]) -> None:
    assert kargs.split(cmdline) == expected


def test_find_takes_the_first() -> None:
    assert kargs.find(["root=a", "root=b"], "root") == "a"
    assert kargs.find(["rw"], "rw") == ""
    assert kargs.find(["rootflags=x"], "root") is None


@pytest.mark.parametrize(("mark", "insecure"), [("", False), ("?", True)])
def test_find_composefs(mark: str, insecure: bool) -> None:
    found = kargs.find_composefs(["rw", f"composefs={mark}{DIGEST}"])
    assert found == kargs.ComposefsArg(digest=DIGEST, insecure=insecure)
    assert str(found) == f"composefs={mark}{DIGEST}"


def test_find_composefs_prefers_the_versioned_argument() -> None:
    other = "cd" * 64
    found = kargs.find_composefs([f"composefs={DIGEST}", f"composefs.digest=?v1-sha512-12:{other}"])
    assert found == kargs.ComposefsArg(digest=other, insecure=True)


def test_versioned_argument_of_the_wrong_length_is_skipped() -> None:
    found = kargs.find_composefs(["composefs.digest=v1-sha512-12:abcd", f"composefs={DIGEST}"])
    assert found is not None
    assert found.digest == DIGEST


def test_find_composefs_without_one() -> None:
    assert kargs.find_composefs(["rw", "quiet"]) is None


@pytest.mark.parametrize("value", ["?", "xyz", DIGEST[:-1], DIGEST.upper()])
def test_find_composefs_refuses_what_is_no_digest(value: str) -> None:
    with pytest.raises(FormatError, match="not a digest"):
        kargs.find_composefs([f"composefs={value}"])


def test_without() -> None:
    args = ["console=tty0", "console=ttyS0", "quiet", "console"]
    assert kargs.without(args, ["console=tty0", "quiet"]) == ["console=ttyS0", "console"]
    assert kargs.without(args, ["console"]) == ["quiet"]


def test_diff_adds_and_removes_exactly() -> None:
    change = kargs.diff(["a=1", "b"], ["b", "c"])
    assert change == kargs.Diff(added=("c",), removed=("a=1",))
    assert change.apply(["rw", "a=1", "a=12", "b"]) == ["rw", "a=12", "b", "c"]
    assert change.apply(["c", "b"]) == ["c", "b"]


def test_merge_fragments_by_name_and_architecture() -> None:
    files = [
        ("20-b.toml", 'kargs = ["b"]'),
        ("10-a.toml", 'kargs = ["a"]\nmatch-architectures = ["x86_64"]'),
        ("30-c.toml", 'kargs = ["c"]\nmatch-architectures = ["aarch64"]'),
        ("README", "not TOML"),
    ]
    assert kargs.merge_fragments(files, "x86_64") == ["a", "b"]
    assert kargs.merge_fragments(files, "aarch64") == ["b", "c"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kargs = [", "is not TOML"),
        ('kargs = "a"', "expected an array of strings"),
        ("kargs = [1]", "expected an array of strings"),
        ('kargs = []\nmatch_architectures = ["x"]', "is not known"),
        ("", "is missing"),
    ],
)
def test_bad_fragments(text: str, problem: str) -> None:
    with pytest.raises(FormatError, match=problem) as caught:
        kargs.parse_fragment(text, "10-x.toml", "x86_64")
    assert caught.value.source == "10-x.toml"


def test_architecture_names() -> None:
    assert kargs.architecture("x86_64") == "x86_64"
    assert kargs.architecture("ppc64le") == "powerpc64"
