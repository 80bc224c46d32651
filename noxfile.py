# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The checks, one call each. `./dev nox` runs what a contributor must pass; `nox --list` tells all.

Sessions run in the environment that `./dev` made (`.venv`): there is one set of pins.
"""

import os
import sys

import nox
from nox.command import CommandFailed

TMT = "tmt==1.78.0"
# zstandard as packaging/requirements.txt pins it.
FUZZ = ("atheris==3.0.0", "zstandard==0.25.0")
# How thorough the cases about power cuts are in tmt-full; alone they do less.
POWER_CUTS = {"POWER_CUTS": "20", "POWER_CUT_POINTS": "500", "POWER_CUT_BOOTS": "10"}

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "tests", "host", "docs", "srpm", "tmt", "cuts"]
nox.options.error_on_missing_interpreters = False


@nox.session
def lint(session: nox.Session) -> None:
    """Style: ruff's rules and format."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """mypy strict, tests included."""
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Unit tests: they need nothing."""
    session.run("pytest", "-q", *(session.posargs or ["tests/unit"]))


@nox.session
def host(session: nox.Session) -> None:
    """Tests that need root or tools of the host (podman, rpmbuild, skopeo, mke2fs)."""
    # The source RPM has a session of its own.
    own = ["tests/host", "--ignore=tests/host/test_srpm_host.py"]
    session.run("pytest", "-q", *(session.posargs or own))


@nox.session
def docs(session: nox.Session) -> None:
    """Generated parts of the documentation are up to date."""
    session.run("python", "-m", "vmtests.explain", *(session.posargs or ["--check"]))


@nox.session
def srpm(session: nox.Session) -> None:
    """The SRPM: twice the same bytes, rpmlint clean, rebuilt to RPMs whose payload runs."""
    session.run("pytest", "-q", "tests/host/test_srpm_host.py", *session.posargs)


@nox.session
def tmt(session: nox.Session) -> None:
    """Booted tests: build the image, install it, boot it, run the plans (nox -s tmt -- FILTER)."""
    session.run("python", "-m", "vmtests.main", "tmt", *session.posargs)


@nox.session
def cuts(session: nox.Session) -> None:
    """Power cuts during updates: three machines are killed; tmt-full has more, and replays."""
    case = "test_cut_at_any_time_leaves_the_old_or_the_new_system"
    session.run("pytest", "-q", f"vmtests/cases/test_power_cut.py::{case}", *session.posargs)


@nox.session(name="tmt-full")
def tmt_full(session: nox.Session) -> None:
    """Every plan, those about boots on every combination, and the machine cases."""
    session.run("python", "-m", "vmtests.main", "tmt-full", *session.posargs)
    if not session.posargs:
        env = {name: os.environ.get(name, value) for name, value in POWER_CUTS.items()}
        session.run("pytest", "-q", "vmtests/cases", env=env)


@nox.session(venv_backend="venv")
def interop(session: nox.Session) -> None:
    """Ours against programs of others: interop -- tmt [FILTER], interop -- composefs [PROGRAM]."""
    which, rest = session.posargs[:1], session.posargs[1:]
    if which not in ([], ["tmt"], ["composefs"]):
        session.error(f"compare with tmt or with composefs, not with {which[0]!r}")
    if which in ([], ["composefs"]):
        session.run(sys.executable, "-m", "tests.interop.compare", *rest, external=True)
    if which in ([], ["tmt"]):
        # tmt alone has an environment of its own: its requirements are no business of the kit's.
        session.install("--quiet", TMT)
        path = f"{os.environ['PATH']}{os.pathsep}{session.bin}"
        argv = [sys.executable, "-m", "vmtests.main", "interop", *rest]
        session.run(*argv, external=True, env={"PATH": path})


@nox.session(venv_backend="venv")
def fuzz(session: nox.Session) -> None:
    """The readers are fed with bad data (nox -s fuzz -- --runs N --seed S TARGET)."""
    # atheris has an environment of its own: it is made for few versions of Python and no checks
    # but this one need it. Without it our own engine does.
    python = sys.executable
    try:
        session.install("--quiet", *FUZZ)
        python = f"{session.bin}/python"
    except CommandFailed:
        session.warn(f"{FUZZ[0]} can't be installed here: our own engine feeds the readers")
    session.run(python, "-m", "tests.fuzz.fuzz", *session.posargs, external=True)


@nox.session
def bench(session: nox.Session) -> None:
    """Benchmarks: paired runs, median ratios, a table."""
    session.run("python", "-m", "tests.bench.bench", *session.posargs)
