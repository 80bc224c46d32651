# SPDX-License-Identifier: Apache-2.0 OR MIT
"""How long `bootc status --json` takes on a mock machine with ten deployments.

All that the command does is done, from the parser to the document, but for finding out where the
machine's parts are. The limit is absolute and holds on an idle machine, see rows_cli.
"""

from __future__ import annotations

import functools
import sys

from tests.bench.frame import Make, Row, Side
from tests.bench.sample import Setup
from tests.sysroots import ImageContent, MockMachine

DEPLOYMENTS = 10
SECONDS_MAX = 0.06
_PROGRAM = """
import sys
from bootc import log
from bootc.cli import commands, parser, render
arguments = parser.parse(["status", "--json"])
log.setup()
from bootc.deploy.sysroot import Sysroot
from bootc.status import describe
names = ("root", "esp", "run", "current", "booted")
sysroot = Sysroot(**dict(zip(names, sys.argv[1:])), insecure=True)
render.say_exactly(render.host_json(describe(sysroot, selinux=False)))
"""


def rows(setup: Setup) -> dict[str, Make]:
    """The rows of this module."""
    return {f"bootc status --json, {DEPLOYMENTS} deployments": functools.partial(_status, setup)}


def _status(setup: Setup) -> Row:
    machine = MockMachine(setup.folder / "status")
    for number in range(DEPLOYMENTS):
        content = ImageContent(str(number), extra={f"usr/{number}": b"x" * 1000})
        machine.install(machine.image(str(number), content))
    sysroot = machine.sysroot
    parts = (sysroot.root, sysroot.need_esp(), sysroot.run, sysroot.current, sysroot.need_booted())
    env = {"PYTHONPYCACHEPREFIX": str(setup.folder / "pyc"), "PYTHONDONTWRITEBYTECODE": ""}
    return Row(
        ours=Side(label="status", argv=(sys.executable, "-c", _PROGRAM, *parts), env=env),
        theirs=Side(label="python3 -c pass", argv=(sys.executable, "-c", "pass"), env=env),
        value_max=SECONDS_MAX,
    )
