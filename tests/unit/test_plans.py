# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Plans and tests from fmf metadata: our own tree, and trees that are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootc.errors import BootcError, FormatError
from vmtests.plans import (
    Interpret,
    PlanImage,
    Start,
    When,
    load_plans,
    parse_duration,
    select_plans,
)

CHECKOUT = Path(__file__).resolve().parents[2]
CONTEXT = {"distro": "debian-13", "filesystem": "ext4"}

PLANS = """
execute:
    how: tmt
/slow:
    summary: Slow things
    order: 90
    environment:
        COLOUR: blue
    discover:
        how: fmf
        test: ^/tests/
        exclude: /broken$
/quick:
    extra-machine: memory
    discover:
        how: fmf
        test: [/second, /first]
"""

TESTS = """
test: ./run.sh
/first:
    duration: 1m
    order: 2
/second:
    order: 1
    require: rsync
    result: xfail
    tag: [one, two]
    environment:
        DEPTH: 3
/broken:
    test: ./broken.sh
/away:
    adjust:
      - enabled: false
        when: distro == debian
"""


def make_tree(root: Path, plans: str = PLANS, tests: str = TESTS) -> Path:
    for name, text in ((".fmf/version", "1\n"), ("plans.fmf", plans), ("tests/main.fmf", tests)):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_records(tmp_path: Path) -> None:
    quick, slow = load_plans(make_tree(tmp_path), CONTEXT)
    assert (quick.name, quick.start) == ("/plans/quick", Start.MEMORY)
    # The order of `discover.test` comes before each test's own order.
    assert [test.name for test in quick.tests] == ["/tests/second", "/tests/first"]
    assert (slow.name, slow.start, slow.summary) == ("/plans/slow", Start.BOOT, "Slow things")
    assert slow.environment == {"COLOUR": "blue"}
    assert [test.name for test in slow.tests] == ["/tests/second", "/tests/first"]
    second = slow.tests[0]
    assert second.command == "./run.sh"
    assert second.path == "/tests"
    assert second.limit == 300
    assert second.require == ("rsync",)
    assert second.interpret is Interpret.XFAIL
    assert second.tags == ("one", "two")
    assert second.environment == {"DEPTH": "3"}
    assert slow.tests[1].limit == 60


def test_adjust_follows_the_context(tmp_path: Path) -> None:
    root = make_tree(tmp_path)
    for distro, there in (("debian-13", False), ("fedora-43", True)):
        slow = load_plans(root, {"distro": distro})[1]
        assert ("/tests/away" in [test.name for test in slow.tests]) is there


def test_our_own_tree() -> None:
    plans = {plan.name: plan for plan in load_plans(CHECKOUT, CONTEXT)}
    assert plans["/tmt/plans/readonly"].start is Start.MEMORY
    assert plans["/tmt/plans/reboot"].start is Start.BOOT
    assert len(plans["/tmt/plans/readonly"].tests) >= 10
    for plan in plans.values():
        for test in plan.tests:
            program = CHECKOUT / test.path.lstrip("/") / test.command.split()[0]
            assert program.is_file(), test.command
            assert program.stat().st_mode & 0o111, f"{program} is not executable"


def test_xfs_has_no_verity_test() -> None:
    readonly = load_plans(CHECKOUT, {**CONTEXT, "filesystem": "xfs"})[0]
    assert not [test for test in readonly.tests if test.name.endswith("/objects")]


def test_select(tmp_path: Path) -> None:
    plans = load_plans(make_tree(tmp_path), CONTEXT)
    assert [plan.name for plan in select_plans(plans, [])] == ["/plans/quick", "/plans/slow"]
    assert [plan.name for plan in select_plans(plans, ["slow"])] == ["/plans/slow"]
    by_test = select_plans(plans, ["tests/first"])
    assert [[test.name for test in plan.tests] for plan in by_test] == [["/tests/first"]] * 2


def test_a_plan_for_full_runs_has_to_be_named(tmp_path: Path) -> None:
    plans = load_plans(make_tree(tmp_path, PLANS + "    extra-run: full\n"), CONTEXT)
    assert [plan.when for plan in plans] == [When.FULL, When.ALWAYS]
    assert [plan.name for plan in select_plans(plans, [])] == ["/plans/slow"]
    assert len(select_plans(plans, [], full=True)) == 2
    assert [plan.name for plan in select_plans(plans, ["quick"])] == ["/plans/quick"]


def test_what_image_a_plan_wants(tmp_path: Path) -> None:
    text = PLANS.replace("extra-machine: memory", "extra-image: podman")
    assert [plan.image for plan in load_plans(make_tree(tmp_path, text), CONTEXT)] == [
        PlanImage.PODMAN,
        PlanImage.PLAIN,
    ]


@pytest.mark.parametrize("filters", [["nothing"], ["slow", "nothing"]])
def test_a_filter_that_selects_nothing(tmp_path: Path, filters: list[str]) -> None:
    plans = load_plans(make_tree(tmp_path), CONTEXT)
    with pytest.raises(BootcError, match="no plan and no test has 'nothing'") as caught:
        select_plans(plans, filters)
    assert caught.value.hint == "plans: /plans/quick, /plans/slow"


def test_nothing_enabled(tmp_path: Path) -> None:
    root = make_tree(tmp_path, tests="test: ./run.sh\nenabled: false\n/first: {}\n/second: {}\n")
    with pytest.raises(BootcError, match="nothing would run"):
        select_plans(load_plans(root, CONTEXT), [])


@pytest.mark.parametrize(
    ("plans", "tests", "problem"),
    [
        (PLANS, TESTS + "/typo:\n    durration: 1m\n", r"tests/main.fmf \(/tests/typo\) at .durra"),
        (PLANS, TESTS + "/odd:\n    duration: soon\n", r"/tests/odd\) at .duration: 'soon' is not"),
        (PLANS, TESTS + "/odd:\n    duration: 0s\n", "at .duration: must be longer"),
        (PLANS, TESTS + "/odd:\n    path: ../away\n", "at .path: '../away' must start"),
        (PLANS, TESTS + "/odd:\n    framework: beakerlib\n", "at .framework: is 'beakerlib'"),
        (PLANS, TESTS + "/odd:\n    result: custom\n", "at .result: is 'custom', must be respect"),
        (PLANS, TESTS + "/odd:\n    test: [1]\n", "at .test: is list, expected a string"),
        (PLANS, TESTS + "/odd:\n    order: first\n", "at .order: is str, expected an integer"),
        (PLANS, TESTS + "/odd:\n    enabled: maybe\n", "at .enabled: is str, expected true"),
        (PLANS, TESTS + "/odd:\n    environment:\n        A: [1]\n", r"at .environment.A: must"),
        (PLANS, TESTS + "/odd:\n    adjust: 3\n", "adjust"),
        (PLANS.replace("memory", "cloud"), TESTS, r"at .extra-machine: is 'cloud', must be memory"),
        (PLANS + "    extra-image: podman\n", TESTS, "at .extra-image: podman needs a machine"),
        (PLANS + "    extra-image: docker\n", TESTS, "at .extra-image: is 'docker', must be plain"),
        (PLANS + "    extra-run: never\n", TESTS, "at .extra-run: is 'never', must be always"),
        (PLANS.replace("/second,", "'[',"), TESTS, "is not a regular expression"),
        (PLANS.replace("/second,", "/third,"), TESTS, "'/third' matches no test"),
        (PLANS.replace("how: tmt", "how: upgrade"), TESTS, "at .execute.how: is 'upgrade'"),
        (
            PLANS + "    prepare:\n        how: install\n",
            TESTS,
            r"quick\) at .prepare: is not a key",
        ),
        (PLANS.replace("exclude:", "filter:"), TESTS, "at .discover.filter: is not supported"),
        (PLANS + "\t:", TESTS, "bad fmf metadata"),
    ],
)
def test_malformed(tmp_path: Path, plans: str, tests: str, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        load_plans(make_tree(tmp_path, plans, tests), CONTEXT)


def test_no_tree(tmp_path: Path) -> None:
    with pytest.raises(BootcError, match=r"has no .fmf/version") as caught:
        load_plans(tmp_path, CONTEXT)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("5m", 300), ("1h 30m", 5400), ("1h30m", 5400), ("2m*1.5", 180), ("*2 3m", 360)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5 minutes", "-3", "1.5h", "m", "3m!"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)
