# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What the tests of the upkeep share: the machine's parts, opened as bootc opens them."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import booted

FOLDER = "/var/lib/booted-upkeep"


@contextmanager
def writable_system() -> "Iterator[Any]":
    """The system's parts, writable, in a mount namespace that goes with the block."""
    from bootc.deploy.sysroot import open_booted

    with open_booted(writable=True) as sysroot:
        yield sysroot


def kernel_folders() -> "list[str]":
    """The names in EFI/Linux on the ESP."""
    with writable_system() as sysroot:
        return sorted(os.listdir(f"{sysroot.esp}/EFI/Linux"))


def entries() -> "dict[str, str]":
    """The files of the boot menu, by name."""
    found = {}
    with writable_system() as sysroot:
        folder = f"{sysroot.esp}/loader/entries"
        for name in sorted(os.listdir(folder)):
            with open(f"{folder}/{name}", encoding="utf-8") as file:
                found[name] = file.read()
    return found


def save(name: str, record: "dict[str, Any]") -> None:
    """Keep something for after the reboot."""
    os.makedirs(FOLDER, exist_ok=True)
    with open(f"{FOLDER}/{name}.json", "w", encoding="utf-8") as file:
        json.dump(record, file)
        file.flush()
        os.fsync(file.fileno())


def saved(name: str) -> "dict[str, Any]":
    with open(f"{FOLDER}/{name}.json", encoding="utf-8") as file:
        record: dict[str, Any] = json.load(file)
    return record


def soft_reboot() -> NoReturn:
    """Like `booted.reboot`, by a soft reboot."""
    environment = {**os.environ, "PATH": f"{booted.SCRIPTS}:{os.environ['PATH']}"}
    code = subprocess.run(["tmt-reboot", "-s"], env=environment).returncode
    raise RuntimeError(f"tmt-reboot came back with status {code}")


def show(document: "dict[str, Any]") -> "dict[str, Any]":
    """Log a document, and give it back."""
    print(json.dumps(document, indent=1), flush=True)
    return document
