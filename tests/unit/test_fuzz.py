# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A short run of the fuzzer on each target, always the same, and the fuzzer itself."""

from pathlib import Path

import pytest

from bootc.errors import BootcError, FormatError
from tests.fuzz import fuzz
from tests.fuzz.engine import FindingError, Target, load_target, run_own, target_names

CORPUS = Path(fuzz.__file__).parent / "corpus"
RUNS = {
    "dirfdstream": 4000,
    "dump": 4000,
    "idl": 4000,
    "image": 2500,
    "metadata": 4000,
    "splitstream": 4000,
    "tar": 2500,
    "varlink": 4000,
}


def test_fuzz_targets_are_all_run_here() -> None:
    assert target_names() == sorted(RUNS)


@pytest.mark.parametrize("name", sorted(RUNS))
def test_fuzz_short_run_finds_nothing(name: str) -> None:
    target = load_target(name)
    # Good input is accepted, or the fuzzer would never come past the first check.
    assert not [refusal for seed in target.seeds if (refusal := target.check(seed))]
    outcome = run_own(target, runs=RUNS[name], seed=2026)
    assert outcome.runs == RUNS[name]
    assert 20 < outcome.accepted < outcome.runs
    assert outcome.shapes > 10


def test_fuzz_corpus_stays_small() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == set(RUNS)
    assert sum(path.stat().st_size for path in files) <= 200_000


def broken_reader(data: bytes) -> BootcError | None:
    if b"!" in data:
        raise IndexError("the reader fell over")
    return FormatError("input", 0, "is no good") if b"x" in data else None


def test_fuzz_reports_what_escapes() -> None:
    target = Target(
        name="broken",
        size_max=8,
        check=broken_reader,
        mutate=lambda data, rng, others: data + bytes([rng.choice(b"xy!")]),
        seeds=[b"seed"],
    )
    with pytest.raises(FindingError) as caught:
        run_own(target, runs=1000, seed=1)
    assert b"!" in caught.value.data
    assert isinstance(caught.value.__cause__, IndexError)


def test_fuzz_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert fuzz.main(["--runs", "50", "--seed", "7", "--engine", "own", "metadata"]) == 0
    out, err = capsys.readouterr()
    assert "engine own, seed 7, 50 runs" in err
    assert out.splitlines()[1].split()[:2] == ["metadata", "50"]
    file = tmp_path / "input"
    file.write_bytes(b"{}")
    assert fuzz.main(["--input", str(file), "metadata"]) == 0
    assert "refused: meta.json at .version: is missing" in capsys.readouterr().out
    assert fuzz.main(["nothing"]) == 1
    assert "no target 'nothing' (try: the targets are dirfdstream, dump" in capsys.readouterr().err
