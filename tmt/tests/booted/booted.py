# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What the booted tests share. Standard library only: it runs in the guest.

A test ends by `passed()` (exit status 0), by `failed()` (1: the machine is not as it must be) or by
an exception (2: the test itself could not do its work).
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NoReturn

REPOSITORY = "/sysroot/composefs"
SCRIPTS = os.environ.get("TMT_SCRIPTS_DIR", "/var/lib/tmt/scripts")


def output(*argv: str, check: bool = True) -> str:
    """The stdout of a program, which must succeed unless `check` is off."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if check and done.returncode != 0:
        failed(f"{' '.join(argv)}: exit status {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def failed(*lines: str) -> NoReturn:
    for line in lines:
        print(f"FAIL {line}", flush=True)
    sys.exit(1)


def expect(true: bool, text: str) -> None:
    """Go on when `true`, with a line that says so; else the test has failed."""
    if not true:
        failed(text)
    print(f"ok   {text}", flush=True)


def expect_equal(found: object, wanted: object, what: str) -> None:
    expect(found == wanted, f"{what}: {found!r}, must be {wanted!r}")


def main(test: Callable[[], None]) -> NoReturn:
    """Run `test`; anything but a pass or a failure is an error, exit status 2."""
    try:
        test()
    except Exception as error:
        import traceback

        traceback.print_exc()
        print(f"ERROR {type(error).__name__}: {error}", flush=True)
        sys.exit(2)
    sys.exit(0)


def booted_digest() -> "tuple[str, bool]":
    """(digest, whether verity is enforced) of `composefs=` on the kernel's command line."""
    with open("/proc/cmdline", encoding="utf-8") as file:
        words = file.read().split()
    values = [word.partition("=")[2] for word in words if word.startswith("composefs=")]
    if len(values) != 1:
        failed(f"one composefs= wanted on the kernel command line, found {values}")
    return values[0].lstrip("?"), not values[0].startswith("?")


def status() -> "dict[str, Any]":
    document: dict[str, Any] = json.loads(output("bootc", "status", "--json"))
    return document


def mount_of(target: str) -> "dict[str, Any]":
    """findmnt's record of the topmost mount at `target`; {} when nothing is mounted there."""
    text = output(
        "findmnt",
        "-J",
        "-v",
        "-o",
        "TARGET,SOURCE,FSTYPE,OPTIONS,FSROOT",
        "-M",
        target,
        check=False,
    )
    if not text.strip():
        return {}
    found: dict[str, Any] = json.loads(text)["filesystems"][-1]
    found["options"] = found["options"].split(",")
    return found


def refusal(path: str) -> "int | None":
    """The errno with which the kernel refuses a new file at `path`; None when it makes one."""
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except OSError as error:
        return error.errno
    os.close(fd)
    os.unlink(path)
    return None


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def reboot_count() -> int:
    """How often this test has rebooted the machine already."""
    return int(os.environ["TMT_REBOOT_COUNT"])


def reboot(command: "str | None" = None) -> NoReturn:
    """Reboot (by `command`) and begin this test anew, with `reboot_count()` one higher."""
    environment = {**os.environ, "PATH": f"{SCRIPTS}:{os.environ['PATH']}"}
    argv = ["tmt-reboot", *(["-c", command] if command else [])]
    code = subprocess.run(argv, env=environment).returncode
    raise RuntimeError(f"tmt-reboot came back with status {code}")


def refused(*argv: str) -> str:
    """The stderr of a program that must fail with exit status 1."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    print(done.stdout + done.stderr, flush=True)
    if done.returncode != 1:
        failed(f"{' '.join(argv)}: exit status {done.returncode}, must be 1")
    return done.stderr


def told(*argv: str) -> str:
    """The stdout of a program that must succeed; stderr goes to ours."""
    print(f"$ {' '.join(argv)}", flush=True)
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    if done.returncode != 0:
        failed(f"{' '.join(argv)}: exit status {done.returncode}")
    return done.stdout


def verity(entry: "dict[str, Any] | None") -> "str | None":
    """The deployment id of an entry of the status."""
    return None if entry is None else str(entry["composefs"]["verity"])
