# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The service, on a mock machine: mockservice.py serve|work FILE.

FILE is JSON: `sysroot` (the fields of the record), `lock` (the file that only one writer locks),
`pause` (a stage, or null), `idle` (seconds) and `folder`. `serve` serves on the sockets that it was
started with, and says its process id in FOLDER/service. Its operations are carried out by `work`,
which at the beginning of the stage `pause` writes its process id to FOLDER/paused and waits for
FOLDER/go.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bootc.deploy.progress import Observer, Stage
from bootc.deploy.sysroot import Sysroot, one_at_a_time
from bootc.services import server, worker
from bootc.spec import Bootloader


class Pausing(Observer):
    def __init__(self, folder: Path, at: str | None) -> None:
        self._folder = folder
        self._at = at

    def stage(self, stage: Stage) -> None:
        if stage.value == self._at:
            write(self._folder / "paused", str(os.getpid()))
            while not (self._folder / "go").exists():
                time.sleep(0.01)


def write(path: Path, text: str) -> None:
    """A file that is whole when it is there."""
    made = path.with_suffix(".new")
    made.write_text(text)
    made.rename(path)


def work(told: dict[str, Any]) -> int:
    fields = {**told["sysroot"], "bootloader": Bootloader(told["sysroot"]["bootloader"])}

    @contextmanager
    def open_it(*, writable: bool) -> Iterator[Sysroot]:
        if not writable:
            yield Sysroot(**fields)
            return
        with one_at_a_time(told["lock"], wait=False):
            yield Sysroot(**fields)

    return worker.main(open_it, lambda: Pausing(Path(told["folder"]), told["pause"]))


def main() -> int:
    mode, file = sys.argv[1:]
    told = json.loads(Path(file).read_text())
    if mode == "work":
        return work(told)
    write(Path(told["folder"]) / "service", str(os.getpid()))
    server.serve_activated((sys.executable, __file__, "work", file), idle=told["idle"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
