# SPDX-License-Identifier: Apache-2.0 OR MIT
"""fs-verity digests: one core against OpenSSL's own loop, and a file against fsverity-utils."""

from __future__ import annotations

import functools
import sys

from bootc import process
from bootc.errors import BootcError
from tests.bench.frame import MIB, Make, Row, Side
from tests.bench.sample import Setup

DIGESTED = 256 * MIB
# Bytes a second of processor time, for a second or more; the data stay in the caches of no core.
_SPEED = """
import os, sys, time
from bootc.composefs.digest import Algorithm, digest_bytes
algorithm, data, done = Algorithm(sys.argv[1]), os.urandom(64 << 20), 0
digest_bytes(data, algorithm)
start = time.process_time()
while time.process_time() - start < 1:
    digest_bytes(data, algorithm)
    done += len(data)
print(done / (time.process_time() - start))
"""
_FILE = """
import sys
from bootc.composefs.digest import Algorithm, digest_fd
with open(sys.argv[1], "rb") as file:
    print(digest_fd(file.fileno(), Algorithm(sys.argv[2])).hex())
"""


def rows(setup: Setup) -> dict[str, Make]:
    """The rows of this module."""
    found: dict[str, Make] = {}
    for algorithm, least in (("sha256", 0.8), ("sha512", 0.9)):
        found[f"fs-verity {algorithm}, one core"] = functools.partial(_speed, algorithm, least)
    for algorithm in ("sha256", "sha512"):
        found[f"fs-verity {algorithm}, a file of {DIGESTED // MIB} MiB"] = functools.partial(
            _file, setup, algorithm
        )
    return found


def _speed(algorithm: str, least: float) -> Row:
    openssl = process.need_program(
        "openssl", hint="apt-get install -y openssl (Fedora: dnf install -y openssl)"
    )
    speed = (openssl, "speed", "-mr", "-evp", algorithm, "-bytes", "4096", "-seconds", "1")
    return Row(
        ours=Side(
            label="digest_bytes",
            argv=(sys.executable, "-c", _SPEED, algorithm),
            value=lambda text: float(text) / 1e6,
        ),
        theirs=Side(label="openssl speed, 4 KiB", argv=speed, value=openssl_speed),
        unit="MB/s",
        ratio_min=least,
    )


def openssl_speed(text: str) -> float:
    """MB/s in what `openssl speed -mr` prints: `+F:INDEX:ALGORITHM:BYTES`."""
    for line in text.splitlines():
        if line.startswith("+F:"):
            return float(line.rsplit(":", 1)[1]) / 1e6
    raise BootcError(f"openssl speed printed no result: {text[:200]!r}")


def _file(setup: Setup, algorithm: str) -> Row:
    hint = "apt-get install -y fsverity (Fedora: dnf install -y fsverity-utils)"
    tool = process.need_program("fsverity", hint=hint)
    file = str(setup.file(DIGESTED))
    return Row(
        ours=Side(label="digest_fd", argv=(sys.executable, "-c", _FILE, file, algorithm)),
        theirs=Side(
            label="fsverity digest",
            argv=(tool, "digest", "--compact", f"--hash-alg={algorithm}", file),
        ),
        same_output=True,
    )
