# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The runner against a guest that is a folder on this machine; commands run as local programs."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from bootc import process
from bootc.errors import BootcError
from bootc.process import Completed
from vmtests import report
from vmtests.machine import Machine
from vmtests.plans import Plan
from vmtests.readiness import MachineStuck, Stage
from vmtests.results import Outcome, RunResult, TestResult, Verdict
from vmtests.runner import GuestMachine, Provide, Settings, run_plans

CHECKOUT = Path(__file__).resolve().parents[2]


def fits_the_real_machine(machine: Machine) -> GuestMachine:
    """mypy's proof that the runner can use `vmtests.machine`."""
    return machine


class LocalGuest:
    """A guest that is the folder `base`. A file `dead` in it means that it went away."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.reboots: list[str] = []
        self.timings: Mapping[str, float] = {"process": 0.0, "kernel": 1.5, "ready": 4.0}
        self.sticky = False
        self.interrupt_at: str | None = None
        base.mkdir(parents=True)
        (base / "boot_id").write_text("boot 0\n")

    def run(self, command: str, *, timeout: float, check: bool) -> Completed:
        if self.interrupt_at and self.interrupt_at in command:
            raise KeyboardInterrupt
        done = process.run(["bash", "-c", command], timeout=timeout, check=check)
        if (self.base / "dead").exists():
            return Completed(status=-1, stdout="", stderr="")
        return done

    def put(self, source: Path, target: str) -> None:
        shutil.copytree(source, target)

    def get(self, source: str, target: Path) -> None:
        shutil.copytree(source, target)

    def reboot(self, command: str = "systemctl reboot") -> Mapping[str, float]:
        self.reboots.append(command)
        if not self.sticky:
            (self.base / "boot_id").write_text(f"boot {len(self.reboots)}\n")
        return {"process": 0.0, "ready": 0.1}

    def console_tail(self, count: int = 20) -> str:
        return "console line"


class Bench:
    """A tree of tests, a guest for them and where the results go."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        self.out = folder / "out"
        self.guest = LocalGuest(folder / "guest")
        self.asked: list[Plan] = []
        for name in (".fmf", "tmt/plans", "tmt/tests"):
            (self.root / name).mkdir(parents=True)
        (self.root / ".fmf/version").write_text("1\n")
        shutil.copytree(CHECKOUT / "tmt/scripts", self.root / "tmt/scripts")
        plan = "execute: {how: tmt}\ndiscover: {how: fmf}\nenvironment: {FROM_PLAN: yes please}\n"
        (self.root / "tmt/plans/all.fmf").write_text(plan)
        self.settings = Settings(
            base=str(self.guest.base / "tmt"),
            boot_mark=f"cat {self.guest.base}/boot_id",
            grace=10.0,
        )

    def add(self, name: str, script: str, *keys: str) -> None:
        """A test that is a bash script; `keys` are further lines of metadata."""
        program = self.root / f"tmt/tests/{name}.sh"
        program.write_text(f"#!/bin/bash\n{script}\n")
        program.chmod(0o755)
        with (self.root / "tmt/tests/main.fmf").open("a") as file:
            file.write(f"/{name}:\n    test: ./{name}.sh\n")
            file.writelines(f"    {key}\n" for key in keys)

    @contextmanager
    def provide(self, plan: Plan) -> Iterator[GuestMachine]:
        self.asked.append(plan)
        yield self.guest

    def run(self, *filters: str, provide: Provide | None = None) -> RunResult:
        return run_plans(
            filters,
            provide or self.provide,
            self.out,
            root=self.root,
            context={"distro": "debian-13"},
            settings=self.settings,
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def is_alive(pid: int) -> bool:
    """Whether the process runs: a zombie that nobody reaps does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def only(run: RunResult) -> TestResult:
    (test,) = run.tests
    return test


@pytest.mark.parametrize(
    ("script", "outcome", "note"),
    [
        ("exit 0", "pass", None),
        ("exit 1", "fail", None),
        ("exit 2", "error", "exit status 2"),
        ("false | true; exit 0", "pass", None),
        ("kill -SEGV $$", "error", "signal 11"),
    ],
)
def test_exit_status_decides(bench: Bench, script: str, outcome: str, note: str | None) -> None:
    bench.add("one", f"echo hello\n{script}")
    run = bench.run()
    test = only(run)
    assert test.outcome == outcome
    assert test.notes == (() if note is None else (note,))
    assert test.output == "hello\n"
    assert test.logs == ("all/01-tmt-tests-one/output.txt",)
    assert (bench.out / test.logs[0]).read_text() == "hello\n"
    assert run.plans[0].verdict is (None if outcome == "pass" else Verdict.TEST)


def test_command_runs_with_errexit_and_pipefail(bench: Bench) -> None:
    with (bench.root / "tmt/tests/main.fmf").open("w") as file:
        file.write("/pipe:\n    test: false | cat; true\n")
    assert only(bench.run()).outcome is Outcome.FAIL


def test_environment_is_that_of_tmt(bench: Bench) -> None:
    bench.add("one", "pwd; echo $0; env | sort", "environment: {FROM_TEST: indeed}")
    lines = only(bench.run()).output.splitlines()
    base = bench.settings.base
    assert lines[0] == f"{base}/tree/tmt/tests"
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    assert values["FROM_TEST"] == "indeed"
    assert values["FROM_PLAN"] == "yes please"
    assert values["TMT_TREE"] == f"{base}/tree"
    assert values["TMT_SCRIPTS_DIR"] == f"{base}/scripts"
    assert values["TMT_PLAN_DATA"] == f"{base}/run/all/data"
    assert values["TMT_TEST_DATA"] == f"{base}/run/all/01-tmt-tests-one/data"
    assert values["TMT_TEST_NAME"] == "/tmt/tests/one"
    assert values["TMT_TEST_SERIAL_NUMBER"] == "1"
    for name in ("TMT_REBOOT_COUNT", "REBOOTCOUNT", "RSTRNT_REBOOTCOUNT"):
        assert values[name] == "0"


def test_a_variable_left_for_later_tests(bench: Bench) -> None:
    bench.add("a", "echo 'LEFT=over' >> $TMT_PLAN_ENVIRONMENT_FILE")
    bench.add("b", '[ "$LEFT" = over ]')
    assert [test.outcome for test in bench.run().tests] == ["pass", "pass"]


def test_a_hanging_test_is_ended_with_all_it_started(bench: Bench) -> None:
    pids = bench.guest.base / "pids"
    script = f"""trap '' TERM
(trap '' TERM; setsid sleep 300 & echo $! >{pids}; setsid sleep 300) &
echo $$ >>{pids}; sleep 300; sleep 300"""
    bench.add("a-hang", script, "duration: 1s")
    bench.add("b-next", "exit 0")
    start = time.monotonic()
    run = bench.run()
    assert time.monotonic() - start < 30
    hang, following = run.tests
    assert hang.outcome is Outcome.ERROR
    assert hang.notes[0] == "no end after 1 s"
    assert following.outcome is Outcome.PASS
    assert run.plans[0].verdict is Verdict.TEST
    assert run.exit_status == 2
    for pid in pids.read_text().split():
        assert not is_alive(int(pid)), "a process of the test is still there"


def test_reboot_runs_the_same_test_again(bench: Bench) -> None:
    bench.add("a", "echo count $TMT_REBOOT_COUNT; [ $TMT_REBOOT_COUNT -ge 2 ] || tmt-reboot")
    bench.add("b", "echo $TMT_REBOOT_COUNT")
    first, second = bench.run().tests
    assert first.outcome is Outcome.PASS
    assert first.output == "count 0\ncount 1\ncount 2\n"
    assert first.reboots == 2
    assert bench.guest.reboots == ["systemctl reboot"] * 2
    names = [phase.name for phase in first.phases]
    assert names[:3] == ["run 1", "reboot 1", "reboot 1: process"]
    assert names[-1] == "run 3"
    assert second.output == "0\n"


@pytest.mark.parametrize(
    ("arguments", "command"),
    [("-s", "systemctl soft-reboot"), ("-c 'my \"own\" \\reboot' -t 60", 'my "own" \\reboot')],
)
def test_reboot_by_other_commands(bench: Bench, arguments: str, command: str) -> None:
    bench.add("a", f"[ $TMT_REBOOT_COUNT = 1 ] || tmt-reboot {arguments}")
    assert only(bench.run()).outcome is Outcome.PASS
    assert bench.guest.reboots == [command]


def test_code_after_tmt_reboot_never_runs(bench: Bench) -> None:
    script = "trap 'echo trapped' TERM; [ $TMT_REBOOT_COUNT = 1 ] || tmt-reboot; echo went on"
    bench.add("a", script)
    assert only(bench.run()).output.count("went on") == 1


# The request arrives while Popen holds its lock, between two of its instructions: once in some
# hundred reboots without this.
_LATE_SIGNAL = """
import os, signal, subprocess, time
made = subprocess.Popen.__init__

class Lock:
    def __init__(self, lock, request):
        self.lock, self.request, self.sent = lock, request, False
    def acquire(self, blocking=True):
        held = self.lock.acquire(blocking)
        if held and not self.sent and os.path.exists(self.request):
            self.sent = True
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0)
        return held
    def release(self):
        self.lock.release()
    def __enter__(self):
        self.acquire()
    def __exit__(self, *_):
        self.release()

def make(self, *args, **keys):
    made(self, *args, **keys)
    request = (keys.get("env") or {}).get("TMT_REBOOT_REQUEST")
    if request:
        self._waitpid_lock = Lock(self._waitpid_lock, request)

subprocess.Popen.__init__ = make
"""


def test_a_request_at_any_moment_is_a_request(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(_LATE_SIGNAL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    # No signal but the late one.
    script = "[ $TMT_REBOOT_COUNT = 1 ] || { echo '{}' >$TMT_REBOOT_REQUEST; sleep 60; }"
    bench.add("a", script, "duration: 15")
    test = only(bench.run())
    assert test.notes == ()
    assert (test.outcome, test.reboots) == (Outcome.PASS, 1)


def test_endless_reboots_end(bench: Bench) -> None:
    bench.settings = Settings(
        base=bench.settings.base, boot_mark=bench.settings.boot_mark, most_reboots=2
    )
    bench.add("a", "tmt-reboot")
    test = only(bench.run())
    assert test.outcome is Outcome.ERROR
    assert test.notes == ("asked for a reboot after 2 reboots",)


def test_a_reboot_that_was_none_is_noticed(bench: Bench) -> None:
    bench.guest.sticky = True
    bench.add("a", "tmt-reboot")
    run = bench.run()
    assert run.plans[0].verdict is Verdict.INFRA
    assert "in the same boot" in only(run).notes[0]


def test_subresults(bench: Bench) -> None:
    script = """tmt-report-result "first part:" PASS
echo details >log; tmt-report-result -o log '/second "part"' warn
tmt-report-result / skip"""
    bench.add("a", script)
    test = only(bench.run())
    assert [(sub.name, sub.outcome) for sub in test.subresults] == [
        ("/first part", "pass"),
        ('/second "part"', "warn"),
        ("/tmt/tests/a", "skip"),
    ]
    assert test.outcome is Outcome.WARN
    (log,) = test.subresults[1].logs
    assert (bench.out / log).read_text() == "details\n"


def test_a_crash_outweighs_the_subresults(bench: Bench) -> None:
    bench.add("a", "tmt-report-result part pass; exit 3")
    test = only(bench.run())
    assert (test.outcome, test.notes) == (Outcome.ERROR, ("exit status 3",))


@pytest.mark.parametrize("arguments", ["one", "one nonsense", "--odd one pass"])
def test_bad_calls_of_report_result(bench: Bench, arguments: str) -> None:
    bench.add("a", f"tmt-report-result {arguments}")
    test = only(bench.run())
    assert test.outcome in (Outcome.FAIL, Outcome.ERROR)
    assert test.subresults == ()


def test_broken_subresults(bench: Bench) -> None:
    bench.add("a", "echo '- {name: x, result: excellent}' >$TMT_TEST_DATA/tmt-report-results.yaml")
    test = only(bench.run())
    assert test.outcome is Outcome.ERROR
    assert "excellent" in test.notes[0]


def test_submitted_files(bench: Bench) -> None:
    bench.add("a", "echo kept >/$TMT_PLAN_DATA/mine; tmt-file-submit -l $TMT_PLAN_DATA/mine")
    test = only(bench.run())
    assert (bench.out / test.logs[1]).read_text() == "kept\n"


def test_scripts_outside_of_a_test() -> None:
    for name in ("tmt-reboot", "tmt-report-result", "tmt-file-submit", "tmt-abort"):
        done = process.run([str(CHECKOUT / "tmt/scripts" / name), "a", "pass"], check=False)
        assert done.status == 1, name
        assert "inside a running test" in done.stderr, name


def test_expected_failure(bench: Bench) -> None:
    bench.add("a", "exit 1", "result: xfail")
    test = only(bench.run())
    assert (test.outcome, test.original) == (Outcome.PASS, Outcome.FAIL)


def test_missing_requirement(bench: Bench) -> None:
    bench.add("a", "exit 0", "require: [bash, no-such-package-at-all]")
    assert only(bench.run()).notes == (
        "the image has no no-such-package-at-all, which the test requires",
    )


def test_abort(bench: Bench) -> None:
    bench.add("a", "tmt-abort; exit 1")
    bench.add("b", "exit 0")
    assert [test.outcome for test in bench.run().tests] == ["fail", "pending"]


def test_a_lost_machine(bench: Bench) -> None:
    bench.add("a", "exit 0")
    bench.add("b", f"touch {bench.guest.base}/dead")
    bench.add("c", "exit 0")
    run = bench.run()
    assert [test.outcome for test in run.tests] == ["pass", "error", "pending"]
    (plan,) = run.plans
    assert plan.verdict is Verdict.INFRA
    assert plan.notes == ("the machine was lost in /tmt/tests/b: the machine went away",)
    assert run.exit_status == 2
    text = (bench.out / "all/dossier.txt").read_text()
    assert "verdict    infra" in text
    assert "again      ./dev nox -s tmt -- /tmt/plans/all" in text
    assert "console line" in text


def test_a_machine_that_does_not_boot(bench: Bench) -> None:
    bench.add("a", "exit 0")

    def provide(plan: Plan) -> AbstractContextManager[GuestMachine]:
        raise MachineStuck("vm", Stage.INITRD, 40.0, "last words")

    run = bench.run(provide=provide)
    (plan,) = run.plans
    assert plan.verdict is Verdict.BOOT
    assert plan.console == "last words"
    assert only(run).outcome is Outcome.PENDING
    assert run.exit_status == 2
    assert "stuck in initrd for 40 s" in (bench.out / "all/dossier.txt").read_text()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_machine_that_cannot_be_had_or_given_back(bench: Bench, when: str) -> None:
    bench.add("a", "exit 0")

    @contextmanager
    def provide(plan: Plan) -> Iterator[GuestMachine]:
        if when == "before":
            raise BootcError("no space left")
        yield bench.guest
        raise BootcError("no space left")

    run = bench.run(provide=provide)
    assert run.plans[0].verdict is Verdict.INFRA
    assert only(run).outcome == {"before": "pending", "after": "pass"}[when]
    assert run.exit_status == 2


def test_an_interrupted_run_leaves_reports(bench: Bench) -> None:
    bench.add("a", "exit 0")
    bench.add("b", "exit 0")

    bench.guest.interrupt_at = "02-"
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    document = json.loads((bench.out / "results.json").read_text())
    assert [test["result"] for test in document["plans"][0]["tests"]] == ["pass", "pending"]


def test_times_and_console(bench: Bench) -> None:
    bench.add("a", "sleep 0.3")
    (plan,) = bench.run().plans
    seconds = {phase.name: phase.seconds for phase in plan.phases}
    assert seconds["boot: process"] == 1.5
    assert seconds["boot: kernel"] == 2.5
    assert list(seconds) == [
        *("machine", "boot: process", "boot: kernel", "copy tests", "tests", "logs")
    ]
    assert 0.3 <= plan.tests[0].seconds < 5
    assert (bench.out / "all/console.txt").read_text() == "console line"
    assert not (bench.out / "all/dossier.txt").exists()


def test_no_plan_selected_is_refused(bench: Bench) -> None:
    bench.add("a", "exit 0")
    with pytest.raises(BootcError, match="'reboot'"):
        bench.run("reboot")
    assert bench.asked == []
    assert not bench.out.exists()


def test_results_of_the_last_run_are_replaced(bench: Bench) -> None:
    bench.add("a", "exit 0")
    bench.run()
    (bench.out / "stale").write_text("")
    shutil.rmtree(bench.guest.base / "tmt")
    bench.run()
    assert not (bench.out / "stale").exists()


KILLED = """
import os, sys
from contextlib import contextmanager
from pathlib import Path
from vmtests.runner import run_plans
@contextmanager
def provide(plan):
    os.kill(os.getpid(), 9)
    yield
run_plans((), provide, Path(sys.argv[1]), root=Path(sys.argv[2]), context={})
"""


def test_what_a_killed_run_left_is_replaced_and_told(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.add("a", "exit 0")
    argv = [sys.executable, "-c", KILLED, str(bench.out), str(bench.root)]
    assert process.run(argv, check=False, env={"PYTHONPATH": str(CHECKOUT)}).status == -9
    assert not (bench.out / "results.json").exists()
    (bench.out / "all").mkdir(exist_ok=True)
    (bench.out / "all/half").write_text("")
    bench.run()
    [said] = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert said == f"{bench.out}: what a run that was killed left there is removed"
    assert not (bench.out / "all/half").exists()
    assert (bench.out / "results.json").exists()
    assert not (bench.out / ".running").exists()


def test_results_of_other_runs_below_stay(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Those of each combination of a full run, which may not even have been one here before."""
    bench.add("a", "exit 0")
    for name in ("btrfs", "dracut"):
        (bench.out / name).mkdir(parents=True)
        (bench.out / name / "results.json").write_text("{}")
    bench.run()
    shutil.rmtree(bench.guest.base / "tmt")
    bench.run()
    assert (bench.out / "btrfs/results.json").read_text() == "{}"
    assert (bench.out / "dracut/results.json").exists()
    assert not [one for one in caplog.records if one.levelname == "WARNING"]


def test_the_results_of_a_run_that_goes_on_are_left_alone(bench: Bench) -> None:
    bench.add("a", "exit 0")
    with (
        report.fresh_folder(bench.out),
        pytest.raises(BootcError, match="another run is writing"),
    ):
        bench.run()
    assert bench.asked == []
    bench.run()


def test_a_foreign_folder_is_left_alone(bench: Bench) -> None:
    bench.add("a", "exit 0")
    bench.out.mkdir()
    (bench.out / "thesis.txt").write_text("years of work")
    with pytest.raises(BootcError, match="is not empty") as caught:
        bench.run()
    assert caught.value.hint
    assert (bench.out / "thesis.txt").exists()


def test_summary_of_a_run(bench: Bench) -> None:
    bench.add("a", "exit 1")
    text = report.summary(bench.run(), bench.out)
    assert "fail    /tmt/plans/all [test]" in text
    assert "1 plan, 1 fail in " in text
