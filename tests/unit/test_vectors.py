# SPDX-License-Identifier: Apache-2.0 OR MIT
"""composefs' own dump files through the drop-ins for its tools: the images that they pin.

`golden/dumps` has NAME.dump and NAME.dump.sha256 (of the image), NAME.dump.version (the lowest and
the highest version that it is made for, where it isn't left open) and should-fail-NAME.dump. The
fs-verity digests of the images were measured with composefs-info.
"""

import hashlib
from pathlib import Path

import pytest

from bootc.composefs.cli import composefs_dump, composefs_info, mkcomposefs

DUMPS = Path(__file__).parent.parent / "golden" / "dumps"
PINNED = sorted(path.stem.removesuffix(".dump") for path in DUMPS.glob("*.dump.sha256"))
VERITY = {
    "bigfile-xattr": "96477776a78abab3bf28c57b16dd0c47ed41a05774a2352ecf15c3ac15108b3f",
    "bigfile": "160c71227628d810604ad305e5d4a912e01a5964866b9bec9f8fddc55e352bfb",
    "honggfuzz-bigfile-with-acl": (
        "062b7c9e88806d8fe267287a35ba7abfa8faf70460b2dd8294781d6f26d64912"
    ),
    "honggfuzz-chardev-nonzero-size": (
        "efdef54b5e204b11f2590a41cde5d01c57622393e2a428af4fa4cfaac18c4575"
    ),
    "honggfuzz-long-symlink": "d7894fc7641b935efec393392e36dfab0ffbcc20d29a4c684aebde71b8c38005",
    "honggfuzz-longlink-unterminated": (
        "fe675c995eb476c165ec5af1001bd9289f57bacf58d55373a5695b67f421bebe"
    ),
    "longlink": "32f1351322d32ebed1bde5fd72e2d218435c4aada13a359f1b1d1f1e126815a6",
    "no-newline": "4aa51e1805ee1c2d3bd8d9ba2f2740948c2ee4de7c3cbfcef863982e456f46fe",
    "special": "6fae72a66167ef8d5830fa15647263ef1b535681aa91fdf195fa3d6f5e3ae15e",
    "special_v1": "1d268f8bc7609b4f8f8467e98565f45300f9e192c0e6ef2d05820d3ea41d4515",
}
SHOULD_FAIL = sorted(DUMPS.glob("should-fail-*.dump"))


def dump_of(name: str) -> Path:
    # Upstream's special_v1 is a link to special: one tree, another version.
    return DUMPS / f"{name.removesuffix('_v1')}.dump"


def versions_of(name: str) -> list[str]:
    path = DUMPS / f"{name}.dump.version"
    if not path.exists():
        return []
    version = path.read_text().strip()
    return [f"--min-version={version}", f"--max-version={version}"]


def test_vectors_are_complete() -> None:
    assert sorted(VERITY) == PINNED
    assert len(SHOULD_FAIL) >= 12


@pytest.mark.parametrize("name", PINNED)
def test_vector(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, again, text = (str(tmp_path / part) for part in ("image", "again", "text"))
    versions = versions_of(name)
    argv = ["--from-file", "--print-digest", *versions, str(dump_of(name)), image]
    assert mkcomposefs.main(argv) == 0
    assert capsys.readouterr().out == f"{VERITY[name]}\n"
    data = Path(image).read_bytes()
    digest = (DUMPS / f"{name}.dump.sha256").read_text().strip()
    assert hashlib.sha256(data).hexdigest() == digest
    # Written again, from the image and from its text, it is the same.
    assert composefs_dump.main([image, again]) == 0
    assert Path(again).read_bytes() == data
    assert composefs_info.main(["dump", image]) == 0
    Path(text).write_text(capsys.readouterr().out)
    assert mkcomposefs.main(["--from-file", *versions, text, again]) == 0
    assert Path(again).read_bytes() == data


@pytest.mark.parametrize("path", SHOULD_FAIL, ids=lambda path: path.stem)
def test_vector_that_should_fail(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mkcomposefs.main(["--from-file", str(path), str(tmp_path / "image")]) == 1
    assert capsys.readouterr().err.startswith("mkcomposefs: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "attribute", ["a" * 65536 + "=x", "user.x=" + "a" * 65536, "user.x=\\x", "user.x"]
)
def test_vector_of_an_attribute_that_is_too_long(attribute: str, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    dump.write_text(f"/ 4096 40755 2 0 0 0 0.0 - - -\n/a 0 100644 1 0 0 0 0.0 - - - {attribute}\n")
    assert mkcomposefs.main(["--from-file", str(dump), str(tmp_path / "image")]) == 1
    assert not (tmp_path / "image").exists()
