# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The benchmarks' frame: what is measured and judged, and that nothing is missing in silence."""

import json
import random
import sys
import zlib
from pathlib import Path

import pytest

from bootc.errors import BootcError, ProcessError
from tests.bench import bench
from tests.bench.frame import Result, Row, Run, Side, measure, run_side, table
from tests.bench.rows_digest import openssl_speed
from tests.bench.sample import Setup, make_contents, make_tree, retire


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def result(row: Row, ours: list[float], theirs: list[float], rss: float = 30) -> Result:
    return Result(
        name="row",
        row=row,
        ours=tuple(Run(value=value, rss=rss, output="") for value in ours),
        theirs=tuple(Run(value=value, rss=20, output="") for value in theirs),
    )


def test_bench_judges_the_median_of_the_pairs() -> None:
    side = Side(label="x", argv=())
    row = Row(ours=side, theirs=side, ratio_max=1.2, rss_max=100)
    assert result(row, [1, 9, 1.1], [1, 1, 1]).misses == []
    slow = result(row, [1.3, 1.3, 0.1], [1, 1, 1], rss=150)
    assert slow.misses == ["1.30x, demanded <= 1.2x", "150 MiB, demanded <= 100 MiB"]
    assert "MISSED" in table([slow])
    assert slow.to_json()["ratio"] == 1.3
    least = Row(ours=side, theirs=side, ratio_min=0.8, unit="MB/s")
    assert result(least, [7], [10]).misses == ["0.70x, demanded >= 0.8x"]
    alone = Row(ours=side, value_max=0.03)
    assert result(alone, [0.04], []).misses == ["0.040 s, demanded <= 0.03"]
    assert result(alone, [0.02], []).ratio is None


def test_bench_measures_memory_and_values_of_the_child() -> None:
    small = run_side(Side(label="small", argv=python("pass")))
    large = run_side(Side(label="large", argv=python("x = b'x' * (200 << 20)")))
    assert large.rss > 200 > small.rss > 0
    assert run_side(Side(label="v", argv=python("print(42)"), value=float)).value == 42
    assert run_side(Side(label="s", argv=python("import time; time.sleep(0.3)"))).value > 0.3
    assert openssl_speed("+R:1:sha256:1.0\n+F:25:sha256:1118270060.61\n") == 1118.27006061


def test_bench_counts_only_the_memory_of_the_child() -> None:
    ours = b"x" * (300 << 20)
    small = run_side(Side(label="small", argv=python("pass")))
    assert small.rss < 100 < len(ours)


def test_bench_says_which_command_failed() -> None:
    with pytest.raises(ProcessError, match="that was bad") as failed:
        run_side(Side(label="bad", argv=python("import sys; sys.exit('that was bad')")))
    assert failed.value.status == 1
    with pytest.raises(ProcessError, match="no-such-program"):
        run_side(Side(label="none", argv=("no-such-program",)))


def test_retired_trees_take_no_room_and_keep_their_inodes(tmp_path: Path) -> None:
    for number in range(2):
        tree = tmp_path / "repo"
        (tree / "folder").mkdir(parents=True)
        (tree / "folder/file").write_bytes(b"x" * 5000)
        inode = (tree / "folder/file").stat().st_ino
        retire(tree)
        assert not tree.exists()
        left = [p for p in (tmp_path / "retired").rglob("file") if p.stat().st_ino == inode]
        assert [p.stat().st_size for p in left] == [0], number
    retire(tmp_path / "nothing")


def test_bench_prepares_each_run_and_compares_outputs(tmp_path: Path) -> None:
    file = tmp_path / "count"
    file.write_text("")

    def prepare() -> None:
        file.write_text(file.read_text() + "x")

    side = Side(label="a", argv=python("print(1)"), prepare=prepare)
    row = Row(ours=side, theirs=Side(label="b", argv=python("print(1)")), same_output=True)
    assert len(measure("row", row, pairs=2).ours) == 2
    assert file.read_text() == "xxx"
    other = Row(ours=side, theirs=Side(label="b", argv=python("print(2)")), same_output=True)
    with pytest.raises(BootcError, match="the two sides differ"):
        measure("row", other, pairs=2)


def test_bench_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    status = bench.main(["--only", "fs-verity sha256, one", "--scratch", str(tmp_path), "--json"])
    out, err = capsys.readouterr()
    assert status == 1
    assert json.loads(out) == []
    assert "openssl is not on PATH (try: apt-get install -y openssl" in err
    assert bench.main(["--only", "no such row", "--scratch", str(tmp_path)]) == 1
    assert "no row's name contains" in capsys.readouterr().err


def test_bench_contents_pack_as_a_distributions_do() -> None:
    contents = make_contents(random.Random(1), 1 << 20)
    assert len(contents) == 1 << 20
    assert 0.4 < len(zlib.compress(contents, 6)) / len(contents) < 0.5


def test_bench_tree_is_made_equal_by_equal_seeds(tmp_path: Path) -> None:
    found: list[list[tuple[Path, int]]] = []
    for name in ("one", "two"):
        root = tmp_path / name
        make_tree(root, files=200)
        found.append(sorted((p.relative_to(root), p.lstat().st_size) for p in root.rglob("*")))
    assert found[0] == found[1]
    assert len(found[0]) > 200
    with pytest.raises(BootcError, match="is no directory"):
        Setup(folder=tmp_path, given=tmp_path / "none").tree()
