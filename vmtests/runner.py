# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Runs plans on machines, as `tmt run` would, without tmt, rsync or a writable /usr in the guest.

In the guest, below /var/lib/tmt (`GuestPaths`):

    tree/                 a copy of `.fmf` and `tmt/` ($TMT_TREE); tests run in their folder of it
    scripts/              the programs of `tmt/scripts` ($TMT_SCRIPTS_DIR), first on the tests' PATH
    run/PLAN/data/        $TMT_PLAN_DATA
    run/PLAN/NN-TEST/     one test: output.txt, data/ ($TMT_TEST_DATA)

`scripts/run-test` keeps a test's time limit inside the guest, so a hanging test is ended with all
that it started and the next one goes on. A reboot: `tmt-reboot` leaves a request, `run-test` ends
the test and hands the request over, the runner reboots the machine, checks that it really is
another boot, and runs the same test with TMT_REBOOT_COUNT one higher. A test's limit counts the
time that it runs, not the reboots.

What ends a plan early: the machine does not come up (verdict boot or infra), or is lost while a
test runs (that test is an error, the verdict is infra), or `tmt-abort`. Tests that did not get
their turn are `pending`.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from bootc.errors import BootcError, FormatError, chain_text
from bootc.jsonutil import Reader, read_object
from bootc.log import step
from vmtests import dossier, report
from vmtests.plans import Plan, Test, load_plans, select_plans
from vmtests.readiness import MachineStuck, Stage
from vmtests.results import (
    Outcome,
    Phase,
    PlanResult,
    RunResult,
    SubResult,
    TestResult,
    Verdict,
    interpret,
    worst,
)

_log = logging.getLogger(__name__)

OUTPUT = "output.txt"
_OUTPUT_TAIL = 64 * 1024


class CommandAnswer(Protocol):
    """What a command in the guest said; `status` is -1 when the guest went away meanwhile."""

    @property
    def status(self) -> int: ...
    @property
    def stdout(self) -> str: ...
    @property
    def stderr(self) -> str: ...


class GuestMachine(Protocol):
    """What the runner needs of a machine. A `BootcError` from any of it means that it is lost.

    `vmtests.machine.Machine` is one.
    """

    @property
    def timings(self) -> Mapping[str, float]:
        """When each stage of coming up began, in seconds, in order; the last one is the end."""
        ...

    def run(self, command: str, *, timeout: float, check: bool) -> CommandAnswer:
        """Run a shell command as root."""
        ...

    def put(self, source: Path, target: str) -> None:
        """Copy a folder into the guest so that `target` is it."""
        ...

    def get(self, source: str, target: Path) -> None:
        """Copy a folder out of the guest so that `target` is it."""
        ...

    def reboot(self, command: str = ...) -> Mapping[str, float]:
        """Boot again by `command`; returns the timings when root can log in again."""
        ...

    def console_tail(self, count: int = ...) -> str:
        """The last lines of the serial console."""
        ...


Provide = Callable[[Plan], AbstractContextManager[GuestMachine]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How plans are run. `boot_mark` is a command whose answer differs from boot to boot."""

    base: str = "/var/lib/tmt"
    boot_mark: str = (
        "cat /proc/sys/kernel/random/boot_id;"
        " systemctl show --property=SoftRebootsCount 2>/dev/null || :"
    )
    grace: float = 30.0
    """Seconds that a machine may be silent beyond a test's limit before it counts as lost."""
    most_reboots: int = 10
    rerun: str = "./dev nox -s tmt -- {plan}"
    host_versions: Mapping[str, str] = field(default_factory=dict)


class MachineLost(BootcError):
    """The machine stopped answering."""


def run_plans(
    filters: Sequence[str],
    provide: Provide,
    out_dir: Path,
    *,
    root: Path,
    context: Mapping[str, str | Sequence[str]],
    settings: Settings | None = None,
    full: bool = False,
) -> RunResult:
    """Run the selected plans below `root` one after the other, and write the reports to `out_dir`.

    `out_dir` is made anew (`report.fresh_folder`). The reports are also written when the run is
    interrupted.
    """
    settings = settings or Settings()
    plans = select_plans(load_plans(root, context), filters, full=full)
    with report.fresh_folder(out_dir):
        started, clock = datetime.now(UTC), time.monotonic()
        runs = [_PlanRun(plan, out_dir, settings) for plan in plans]
        try:
            with tempfile.TemporaryDirectory(prefix="booted-tests-") as scratch:
                tree = Path(scratch) / "tree"
                _copy_tree(root, tree)
                for run in runs:
                    with step(f"plan {run.plan.name}"):
                        run.go(provide, tree)
        finally:
            result = RunResult(
                started=started,
                seconds=time.monotonic() - clock,
                plans=tuple(run.result() for run in runs),
                context=context,
            )
            report.write_reports(result, out_dir)
    return result


def _copy_tree(root: Path, target: Path) -> None:
    """What the guest needs of the checkout: the metadata and the tests, nothing else."""
    for name in (".fmf", "tmt"):
        shutil.copytree(
            root / name, target / name, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True
        )


def slug(name: str) -> str:
    """A name as one component of a path."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.") or "unnamed"


def _short(name: str) -> str:
    return slug(re.sub(r"^/?tmt/(plans|tests/booted)/", "", name))


def boot_verdict(error: BaseException) -> Verdict:
    """Whether a machine that did not come up was ours to blame (infra) or did not boot."""
    if isinstance(error, MachineStuck) and error.stage is not Stage.PROCESS:
        return Verdict.BOOT
    return Verdict.INFRA


def _stages(prefix: str, timings: Mapping[str, float]) -> list[Phase]:
    """How long each stage took, from when it began."""
    marks = sorted(timings.items(), key=lambda item: item[1])
    return [
        Phase(name=f"{prefix}: {name}", seconds=following - began)
        for (name, began), (_, following) in pairwise(marks)
    ]


@contextmanager
def _timed(phases: list[Phase], name: str) -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    finally:
        phases.append(Phase(name=name, seconds=time.monotonic() - start))


class _PlanRun:
    """One plan's run; `result` can be asked at any time."""

    def __init__(self, plan: Plan, out_dir: Path, settings: Settings) -> None:
        self.plan = plan
        self.settings = settings
        self.out_dir = out_dir
        self.folder = out_dir / _short(plan.name)
        self.phases: list[Phase] = []
        self.tests: list[TestResult] = []
        self.notes: list[str] = []
        self.verdict: Verdict | None = None
        self.console = ""
        self.facts: dict[str, str] = {}

    def go(self, provide: Provide, tree: Path) -> None:
        """Get the machine, run the tests, give it back. Failures become part of the result."""
        self.folder.mkdir(parents=True)
        try:
            with ExitStack() as stack:
                start = time.monotonic()
                try:
                    machine = stack.enter_context(provide(self.plan))
                except BootcError as error:
                    self.phases.append(Phase(name="machine", seconds=time.monotonic() - start))
                    self._fail(boot_verdict(error), f"no machine: {chain_text(error)}")
                    if isinstance(error, MachineStuck):
                        self.console = error.console
                    return
                self._note_boot(machine, time.monotonic() - start)
                try:
                    self._use(machine, tree)
                finally:
                    self._look_back(machine)
        except BootcError as error:
            self._fail(Verdict.INFRA, f"the machine could not be given back: {chain_text(error)}")

    def _fail(self, verdict: Verdict, note: str) -> None:
        _log.warning("%s: %s", self.plan.name, note)
        self.verdict = self.verdict or verdict
        self.notes.append(note)

    def _note_boot(self, machine: GuestMachine, seconds: float) -> None:
        stages = _stages("boot", machine.timings)
        other = seconds - sum(stage.seconds for stage in stages)
        self.phases += [Phase(name="machine", seconds=max(0.0, other)), *stages]

    def _use(self, machine: GuestMachine, tree: Path) -> None:
        try:
            with _timed(self.phases, "copy tests"):
                guest = _Guest(machine, self.plan, self.settings)
                guest.prepare(tree)
            with _timed(self.phases, "tests"):
                self._run_tests(guest)
        except BootcError as error:
            self._fail(Verdict.INFRA, chain_text(error))

    def _run_tests(self, guest: _Guest) -> None:
        for serial, test in enumerate(self.plan.tests, 1):
            done, lost = guest.run_test(test, serial, self.folder)
            self.tests.append(replace(done, logs=self._relative(done.logs)))
            said = f" ({'; '.join(done.notes)})" if done.notes else ""
            _log.info("  %-5s %s %.1f s%s", done.outcome, test.name, done.seconds, said)
            if lost is not None:
                self._fail(Verdict.INFRA, f"the machine was lost in {test.name}: {lost}")
                return
            if guest.aborted:
                self.notes.append(f"{test.name} asked for an end of the plan")
                return

    def _relative(self, logs: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"{self.folder.name}/{log}" for log in logs)

    def _look_back(self, machine: GuestMachine) -> None:
        """Keep the console, and after a failure what the machine says about itself."""
        start = time.monotonic()
        try:
            self.console = machine.console_tail(2000)
        except BootcError as error:
            self.console = f"(no console: {chain_text(error)})"
        bad = any(test.outcome.is_bad for test in self.tests)
        if bad or self.verdict:
            self.facts = dossier.ask_guest(machine)
        self.phases.append(Phase(name="logs", seconds=time.monotonic() - start))

    def result(self) -> PlanResult:
        """What is known so far; tests without a result are pending."""
        done = {test.name for test in self.tests}
        rest = [
            TestResult(
                name=test.name,
                serial=serial,
                summary=test.summary,
                outcome=Outcome.PENDING,
                original=Outcome.PENDING,
                notes=("did not get its turn",),
            )
            for serial, test in enumerate(self.plan.tests, 1)
            if test.name not in done
        ]
        verdict = self.verdict
        if verdict is None and any(test.outcome.is_bad for test in self.tests):
            verdict = Verdict.TEST
        result = PlanResult(
            name=self.plan.name,
            summary=self.plan.summary,
            start=self.plan.start,
            tests=(*self.tests, *rest),
            verdict=verdict,
            notes=tuple(self.notes),
            phases=tuple(self.phases),
            console=self.console,
        )
        logs: list[str] = []
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.console:
            (self.folder / "console.txt").write_text(self.console)
            logs.append("console.txt")
        if verdict is None:
            return replace(result, logs=self._relative(logs))
        text = dossier.write(
            result,
            facts=self.facts,
            rerun=self.settings.rerun.format(plan=self.plan.name),
            host_versions=self.settings.host_versions,
        )
        (self.folder / "dossier.txt").write_text(text)
        return replace(result, logs=self._relative(["dossier.txt", *logs]), dossier=text)


@dataclass(slots=True)
class _Report:
    """What `run-test` said."""

    status: int | None
    seconds: float
    timed_out: bool
    left_over: int
    aborted: bool
    problem: str | None
    reboot: Reader | None

    @classmethod
    def read(cls, text: str) -> _Report:
        reader = read_object(text, "the answer of run-test")
        seconds = reader.value.get("seconds")
        return cls(
            status=reader.integer("status") if reader.has("status") else None,
            seconds=float(seconds) if isinstance(seconds, (int, float)) else 0.0,
            timed_out=reader.boolean("timed-out"),
            left_over=reader.integer("left-over"),
            aborted=reader.boolean("aborted", default=False),
            problem=reader.optional_text("problem"),
            reboot=reader.optional_table("reboot"),
        )


class _Guest:
    """The tests' side of a machine."""

    def __init__(self, machine: GuestMachine, plan: Plan, settings: Settings) -> None:
        self.machine = machine
        self.plan = plan
        self.settings = settings
        self.scripts = f"{settings.base}/scripts"
        self.tree = f"{settings.base}/tree"
        self.run_dir = f"{settings.base}/run/{_short(plan.name)}"
        self.missing: set[str] = set()
        self.aborted = False

    def call(self, command: str, timeout: float = 60.0) -> str:
        """The stdout of a command that must succeed."""
        answer = self.machine.run(command, timeout=timeout, check=False)
        if answer.status == -1:
            raise MachineLost("the machine went away")
        if answer.status != 0:
            said = (answer.stderr or answer.stdout).strip()[-500:]
            raise BootcError(f"in the guest, {command!r} ended with {answer.status}: {said}")
        return answer.stdout

    def prepare(self, tree: Path) -> None:
        """Put the tests and our programs there, and ask for the packages that the tests require."""
        base, run_dir = shlex.quote(self.settings.base), shlex.quote(self.run_dir)
        self.call(f"rm -rf {base}/tree {base}/scripts {run_dir} && mkdir -p {base}")
        self.machine.put(tree, self.tree)
        self.machine.put(tree / "tmt" / "scripts", self.scripts)
        self.call(
            f"mkdir -p {run_dir}/data && : >{run_dir}/environment"
            f" && chmod +x {shlex.quote(self.scripts)}/*"
        )
        wanted = sorted({name for test in self.plan.tests for name in test.require})
        for name in wanted:
            quoted = shlex.quote(name)
            there = (
                f"dpkg-query -W {quoted} >/dev/null 2>&1 || rpm -q {quoted} >/dev/null 2>&1"
                f" || command -v {quoted} >/dev/null"
            )
            if self.machine.run(there, timeout=60.0, check=False).status != 0:
                self.missing.add(name)

    def environment(self, test: Test, serial: int, invocation: str, reboots: int) -> dict[str, str]:
        """The variables that tmt gives to a test."""
        path = f"{self.scripts}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {
            "PATH": path,
            **test.environment,
            **self.plan.environment,
            "TMT_TREE": self.tree,
            "TMT_SOURCE_DIR": self.tree,
            "TMT_SCRIPTS_DIR": self.scripts,
            "TMT_PLAN_DATA": f"{self.run_dir}/data",
            "TMT_PLAN_ENVIRONMENT_FILE": f"{self.run_dir}/environment",
            "TMT_TEST_NAME": test.name,
            "TMT_TEST_SERIAL_NUMBER": str(serial),
            "TMT_TEST_INVOCATION_PATH": invocation,
            "TMT_TEST_DATA": f"{invocation}/data",
            "TMT_TEST_SUBMITTED_FILES": f"{invocation}/submitted-files.log",
            "TMT_TEST_PIDFILE": f"{invocation}/pidfile",
            "TMT_TEST_PIDFILE_LOCK": f"{invocation}/pidfile.lock",
            "TMT_TEST_RESTART_COUNT": "0",
            "TMT_REBOOT_REQUEST": f"{invocation}/reboot-request",
            "TMT_REBOOT_COUNT": str(reboots),
            "REBOOTCOUNT": str(reboots),
            "RSTRNT_REBOOTCOUNT": str(reboots),
        }

    def run_test(
        self, test: Test, serial: int, folder: Path
    ) -> tuple[TestResult, BootcError | None]:
        """Run one test to its end, reboots included; the error is set when the machine was lost."""
        name = f"{serial:02}-{_short(test.name)}"
        invocation = f"{self.run_dir}/{name}"
        result = TestResult(
            name=test.name,
            serial=serial,
            summary=test.summary,
            outcome=Outcome.ERROR,
            original=Outcome.ERROR,
        )
        lacking = sorted(self.missing.intersection(test.require))
        if lacking:
            note = f"the image has no {', '.join(lacking)}, which the test requires"
            return replace(result, notes=(note,)), None
        phases: list[Phase] = []
        reboots = 0
        begin = time.monotonic()
        try:
            while True:
                left = test.limit - sum(p.seconds for p in phases if p.name.startswith("run"))
                said = self._run_once(test, serial, invocation, reboots, max(1.0, left))
                phases.append(Phase(name=f"run {reboots + 1}", seconds=said.seconds))
                if said.reboot is None or said.timed_out or said.problem:
                    break
                if reboots == self.settings.most_reboots:
                    said.problem = f"asked for a reboot after {reboots} reboots"
                    break
                reboots += 1
                phases += self._reboot(said.reboot, f"reboot {reboots}")
            logs = self._fetch(invocation, folder / name)
        except BootcError as error:
            seconds = time.monotonic() - begin
            # It may be the test that was lost, and the machine tells of it still.
            with suppress(BootcError, OSError):
                self._fetch(invocation, folder / name)
            lost = replace(
                result,
                notes=(f"machine lost: {chain_text(error)}",),
                phases=tuple(phases),
                seconds=seconds,
                reboots=reboots,
                output=_tail(folder / name / OUTPUT),
            )
            return lost, error
        self.aborted = said.aborted
        outcome, notes = _judge_status(said, test)
        subresults, problem = _read_subresults(folder / name)
        original = worst([outcome, *(sub.outcome for sub in subresults)])
        if problem:
            original, notes = Outcome.ERROR, [*notes, problem]
        outcome, more = interpret(original, test.interpret)
        done = replace(
            result,
            outcome=outcome,
            original=original,
            notes=(*notes, *more),
            phases=tuple(phases),
            seconds=sum(phase.seconds for phase in phases),
            reboots=reboots,
            logs=tuple(f"{name}/{log}" for log in logs),
            subresults=tuple(
                replace(sub, logs=tuple(f"{folder.name}/{name}/data/{log}" for log in sub.logs))
                for sub in subresults
            ),
            output=_tail(folder / name / OUTPUT),
        )
        return done, None

    def _run_once(
        self, test: Test, serial: int, invocation: str, reboots: int, limit: float
    ) -> _Report:
        job = {
            "command": test.command,
            "folder": self.tree + test.path.rstrip("/"),
            "invocation": invocation,
            "environment": self.environment(test, serial, invocation, reboots),
            "limit": limit,
        }
        command = f"{shlex.quote(self.scripts)}/run-test {shlex.quote(json.dumps(job))}"
        return _Report.read(self.call(command, limit + self.settings.grace))

    def _reboot(self, request: Reader, label: str) -> list[Phase]:
        """Carry out a request of tmt-reboot; returns what took how long."""
        problem = request.optional_text("problem")
        if problem:
            raise BootcError(f"bad reboot request: {problem}")
        if request.has("timeout"):
            _log.info("tmt-reboot -t is not used: each stage of the boot has its own limit")
        soft = request.boolean("systemd-soft-reboot", default=False)
        usual = "systemctl soft-reboot" if soft else "systemctl reboot"
        before = self.call(self.settings.boot_mark)
        start = time.monotonic()
        stages = _stages(label, self.machine.reboot(request.optional_text("command") or usual))
        if self.call(self.settings.boot_mark) == before:
            raise MachineLost("the machine came back from its reboot in the same boot")
        rest = time.monotonic() - start - sum(stage.seconds for stage in stages)
        return [Phase(name=label, seconds=max(0.0, rest)), *stages]

    def _fetch(self, invocation: str, target: Path) -> list[str]:
        """Copy a test's files to `target`; returns the logs among them, the output first."""
        self.machine.get(invocation, target)
        submitted = target / "submitted-files.log"
        names = submitted.read_text(errors="replace").split("\n") if submitted.is_file() else []
        kept = [f"data/{name}" for name in names if name and (target / "data" / name).is_file()]
        return [OUTPUT, *kept] if (target / OUTPUT).is_file() else kept


def _judge_status(said: _Report, test: Test) -> tuple[Outcome, list[str]]:
    if said.problem:
        return Outcome.ERROR, [said.problem]
    if said.timed_out:
        notes = [f"no end after {test.limit:.0f} s"]
        if said.left_over:
            notes.append(f"{said.left_over} of its processes had to be killed")
        return Outcome.ERROR, notes
    if said.status is None:
        return Outcome.ERROR, ["it was ended"]
    outcome = Outcome.of_status(said.status)
    if outcome is not Outcome.ERROR:
        return outcome, []
    return outcome, [f"signal {-said.status}" if said.status < 0 else f"exit status {said.status}"]


def _read_subresults(folder: Path) -> tuple[list[SubResult], str | None]:
    """What `tmt-report-result` collected, and what is wrong with it if anything is."""
    path = folder / "data" / "tmt-report-results.yaml"
    if not path.is_file():
        return [], None
    try:
        items = YAML(typ="safe").load(path.read_text())
        reader = Reader({"results": items}, path.name)
        return [
            SubResult(
                name=item.text("name"),
                outcome=Outcome(item.text("result")),
                logs=tuple(item.texts("log")) if item.has("log") else (),
                ended=item.optional_text("end-time"),
            )
            for item in reader.tables("results")
        ], None
    except (YAMLError, ValueError, FormatError) as error:
        return [], f"its sub-results cannot be read: {error}"


def _tail(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - _OUTPUT_TAIL))
        return file.read().decode(errors="replace")
