# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The same plans by our runner and by the real tmt, on the same machine, compared test by test.

tmt reaches the machine by `provision --how connect`. What it needs there:

* rsync in the image: it copies both ways with it and cannot install it below a read-only /usr;
* a folder of the same path as its work folder here, hence below /var/tmp. The work folder's name is
  long on purpose: from 84 letters on tmt gives up SSH multiplexing, which otherwise costs it three
  waits of 30 s;
* a package manager that can install: its prepare step always wants the package of /usr/bin/flock,
  and on Debian it first installs apt-file to find that out, without a look at what is there. So
  the guest gets an `apt` and an `apt-file` (`prepare_guest`) that know the installed packages only:
  they succeed when there is nothing to do.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from bootc import process
from bootc.errors import BootcError, FormatError, ProcessError
from bootc.jsonutil import Reader
from bootc.log import step
from vmtests.plans import Plan
from vmtests.results import PlanResult, RunResult
from vmtests.runner import GuestMachine, Settings, run_plans

TMT = "tmt==1.78.0"
"""What `nox -s interop` installs; the version these semantics were compared with."""
_LONG = "bootc-interop-" + "x" * 70 + "-"
_RUN_TIMEOUT = 3600.0
_SHIMS = r"""set -e
command -v dpkg-query >/dev/null || exit 0
folder=/var/lib/bootc-interop
mkdir -p $folder
cat >$folder/apt <<'END'
#!/bin/sh
# Only what is installed can be "installed": this machine is an image.
[ "$1" != --version ] || exec /usr/bin/apt --version
[ "$1" = install ] || exit 0
shift
for package; do
    case $package in
        -* | apt-file) ;;
        *) dpkg-query --show "$package" || exit 100 ;;
    esac
done
END
cat >$folder/apt-file <<'END'
#!/bin/sh
# apt-file update; apt-file search --package-only PATH, among the installed packages.
[ "$1" = search ] || exit 0
for path; do :; done
dpkg-query --search "$path" | cut -d: -f1
END
chmod +x $folder/apt $folder/apt-file
touch /etc/environment
sed -i '/^PATH=.*bootc-interop/d' /etc/environment
usual=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
echo "PATH=$folder:$usual" >>/etc/environment
"""
"""pam_env reads /etc/environment for every login, so the two programs come first on tmt's PATH."""


class ConnectedMachine(GuestMachine, Protocol):
    """A machine whose SSH server listens on a port of 127.0.0.1."""

    @property
    def port(self) -> int: ...


class ProvideConnected(Protocol):
    def __call__(self, plan: Plan, /) -> AbstractContextManager[ConnectedMachine]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TheirResult:
    """One test by tmt."""

    name: str
    outcome: str
    subresults: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Our run, tmt's results by plan, and each difference as a line; no line, same results."""

    ours: RunResult
    theirs: Mapping[str, tuple[TheirResult, ...]]
    differences: tuple[str, ...]


def compare_plans(
    filters: Sequence[str],
    provide: ProvideConnected,
    out_dir: Path,
    *,
    root: Path,
    context: Mapping[str, str | Sequence[str]],
    key: Path,
    settings: Settings | None = None,
) -> Comparison:
    """Run the selected plans by our runner, each then by tmt on the same machine, and compare."""
    process.need_program("tmt", hint=f"pip install {TMT}, or run ./dev nox -s interop")
    theirs: dict[str, tuple[TheirResult, ...]] = {}

    @contextmanager
    def provide_for_both(plan: Plan) -> Iterator[GuestMachine]:
        with provide(plan) as machine:
            yield machine
            prepare_guest(machine)
            theirs[plan.name] = run_tmt(plan, machine.port, key, root=root, context=context)

    ours = run_plans(
        filters, provide_for_both, out_dir, root=root, context=context, settings=settings
    )
    differences = [line for plan in ours.plans for line in compare(plan, theirs.get(plan.name, ()))]
    return Comparison(ours=ours, theirs=theirs, differences=tuple(differences))


def compare(ours: PlanResult, theirs: Sequence[TheirResult]) -> list[str]:
    """Each difference as `TEST: ours OUTCOME, tmt's OUTCOME`, sub-results included."""
    found = []
    there = {result.name: result for result in theirs}
    for test in ours.tests:
        other = there.pop(test.name, None)
        if other is None:
            found.append(f"{test.name}: ours {test.outcome}, tmt's nothing")
            continue
        if other.outcome != test.outcome:
            found.append(f"{test.name}: ours {test.outcome}, tmt's {other.outcome}")
        mine = [(sub.name, str(sub.outcome)) for sub in test.subresults]
        if list(other.subresults) != mine:
            found.append(f"{test.name}: sub-results ours {mine}, tmt's {list(other.subresults)}")
    found += [f"{name}: ours nothing, tmt's {other.outcome}" for name, other in there.items()]
    return found


def prepare_guest(machine: GuestMachine) -> None:
    """Make tmt's prepare step work in a guest whose /usr is read-only, reboots included."""
    if machine.run("command -v rsync", timeout=30.0, check=False).status != 0:
        raise BootcError(
            "the guest has no rsync, which the real tmt needs",
            hint="add rsync to the image's packages and build it again",
        )
    machine.run(_SHIMS, timeout=30.0, check=True)


def run_tmt(
    plan: Plan,
    port: int,
    key: Path,
    *,
    root: Path,
    context: Mapping[str, str | Sequence[str]],
) -> tuple[TheirResult, ...]:
    """The plan by `tmt run … provision --how connect`; its results in the order of its file."""
    with tempfile.TemporaryDirectory(prefix=_LONG, dir="/var/tmp") as scratch:
        tree, work = Path(scratch) / "tree", Path(scratch) / "run"
        for name in (".fmf", "tmt"):
            shutil.copytree(
                root / name,
                tree / name,
                ignore=shutil.ignore_patterns("__pycache__"),
                symlinks=True,
            )
        dimensions = [
            argument
            for name, value in context.items()
            for argument in (
                "--context",
                f"{name}={value if isinstance(value, str) else ','.join(value)}",
            )
        ]
        argv = ["tmt", "--root", str(tree), *dimensions, "run", "--all", "--id", str(work)]
        argv += ["--environment", f"TMT_SCRIPTS_DIR={Settings().base}/scripts"]
        argv += ["provision", "--how", "connect", "--guest", "127.0.0.1", "--port", str(port)]
        argv += ["--key", str(key), "--user", "root", "plan", "--name", f"^{plan.name}$"]
        env = {
            "TMT_SCRIPTS_DIR": f"{Settings().base}/scripts",
            "TMT_WORKDIR_ROOT": scratch,
            "NO_COLOR": "1",
        }
        with step(f"tmt runs {plan.name}"):
            done = process.run(argv, timeout=_RUN_TIMEOUT, check=False, env=env)
        # tmt leaves its tests pending, and says why on stderr, when a step before them failed.
        results = work / plan.name.lstrip("/") / "execute" / "results.yaml"
        if not results.is_file():
            raise ProcessError(argv, done.status, done.stderr or done.stdout)
        found = read_results(results)
        if done.status not in (0, 1) and all(item.outcome == "pending" for item in found):
            raise ProcessError(argv, done.status, done.stderr or done.stdout)
        return found


def read_results(path: Path) -> tuple[TheirResult, ...]:
    """tmt's `results.yaml`."""
    try:
        items = YAML(typ="safe").load(path.read_text())
    except YAMLError as error:
        raise FormatError(str(path), None, f"is not YAML: {error}") from error
    return tuple(
        TheirResult(
            name=item.text("name"),
            outcome=item.text("result"),
            subresults=tuple(
                (sub.text("name"), sub.text("result"))
                for sub in (item.tables("subresult") if item.has("subresult") else ())
            ),
        )
        for item in Reader({"results": items}, str(path)).tables("results")
    )
