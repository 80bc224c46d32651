# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Our varlink server with systemd's `varlinkctl` and PyPI's `varlink` as clients, and under load.

    python -m tests.interop.compare_varlink [--count N] [--seed N]

`varlinkctl` is what VARLINKCTL names, else the one on PATH. N frames are fuzzed, N / 100 calls made
on one connection, and so on; the server must hold after each load what it held before. The loads
are those of `tests.varlink_soak`.
"""

from __future__ import annotations

import random
import resource
import sys
import tempfile
from pathlib import Path

import varlink

from tests import varlink_soak
from tests.interop import tally
from tests.interop.tally import Tally
from tests.varlink_soak import SOAKS
from tests.varlinkctl import CASES, check_texts, need_varlinkctl, program, run_case
from tests.varlinks import TEXT

COUNT = 1_000_000
MEMORY = 8 << 20
_PARTS = {
    "calls on one connection": 10,
    "clients at once": 200,
    "descriptors at random slots": 200,
    "one byte at a time": 1000,
    "clients that leave": 200,
    "fuzzed frames": 1,
}


def compare(found: Tally, rng: random.Random, count: int) -> None:
    with tempfile.TemporaryDirectory(prefix="bootc-varlink-") as name:
        _systemd(found, Path(name))
    _pypi(found, rng, min(count, 20_000))
    _loads(found, count)


def _systemd(found: Tally, folder: Path) -> None:
    varlinkctl = need_varlinkctl()
    address = program(folder)
    for name, case in CASES.items():
        found.compare("varlinkctl", run_case(varlinkctl, address, case), "", name)
    found.compare("varlinkctl", check_texts(varlinkctl, address, folder), [], "interfaces")


def _pypi(found: Tally, rng: random.Random, count: int) -> None:
    with varlink_soak.server() as scene, varlink.Client(f"unix:{scene.address}") as client:
        with client.open("org.example.test") as connection:
            for number in range(count):
                text = "".join(rng.choices('a"\\\u00e9\0\n\U0001f600', k=rng.randrange(20)))
                kind = rng.choice(("one", "two", None))
                # Their client leaves out what is None.
                given = {"text": text} if kind is None else {"text": text, "kind": kind}
                found.compare("PyPI varlink", connection.Echo(**given), given, f"call {number}")
        with client.open("org.varlink.service") as connection:
            told = connection.GetInterfaceDescription("org.example.test")
            found.compare("PyPI varlink", told["description"], TEXT, "the interface")


def _loads(found: Tally, count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))
    try:
        with varlink_soak.server() as scene:
            for name, soak in SOAKS.items():
                rounds = max(10, count // _PARTS[name])
                if name == "clients at once":
                    rounds = min(rounds, 5000)
                first = min(rounds, 5000)
                before, after = varlink_soak.measured(scene, soak, rounds, first=first)
                print(f"{name}: {rounds:,} rounds, {before} -> {after}", flush=True)
                kept = after.is_kept(before, MEMORY)
                found.compare("loads", kept, True, f"{name}: {before} became {after}")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


if __name__ == "__main__":
    sys.exit(tally.main("compare_varlink", compare, count=COUNT))
