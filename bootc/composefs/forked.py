# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Work spread over forked processes: for hashing in small blocks, which threads cannot speed up.

The parent gives out numbers of tasks through a pipe, as many as there are; each child takes the
next one when it is done with the last. What a child returns comes back as JSON.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
from collections.abc import Callable

from bootc.errors import BootcError, chain_text
from bootc.jsonutil import Json

_NUMBER = struct.Struct("=H")
TASKS_MAX = 4096
"""So that all their numbers fit into a pipe at once."""


def cpu_count() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))


def map_forked(work: Callable[[int], Json], tasks: int, *, workers: int) -> list[Json]:
    """`work(0)` … `work(tasks - 1)`, in this order, computed by `workers` processes.

    What `work` returns must survive JSON. With one worker, or when other threads run (a fork would
    copy their locks as they are), it runs here. Raises `BootcError` if a child dies.
    """
    assert tasks <= TASKS_MAX
    if min(workers, tasks) < 2 or threading.active_count() > 1:
        return [work(number) for number in range(tasks)]
    queue, feed = os.pipe()
    os.write(feed, b"".join(_NUMBER.pack(number) for number in range(tasks)))
    os.close(feed)
    children: list[tuple[int, int]] = []
    results: dict[int, Json] = {}
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        for _ in range(min(workers, tasks)):
            children.append(_start(work, queue))
        for _, answers in children:
            with os.fdopen(os.dup(answers), "rb") as reader:
                for line in reader:
                    number, result, error = json.loads(line)
                    if error is not None:
                        raise BootcError(error)
                    results[number] = result
    finally:
        os.close(queue)
        for pid, answers in children:
            os.close(answers)
            os.waitpid(pid, 0)
    if len(results) != tasks:
        raise BootcError(f"a worker process ended early: {len(results)} of {tasks} tasks done")
    return [results[number] for number in range(tasks)]


def _start(work: Callable[[int], Json], queue: int) -> tuple[int, int]:
    """(process id, pipe with its answers) of a child that takes tasks from `queue`."""
    answers, out = os.pipe()
    pid = os.fork()
    if pid:
        os.close(out)
        return pid, answers
    status = 1
    try:
        os.close(answers)
        with os.fdopen(out, "wb") as writer:
            while head := os.read(queue, _NUMBER.size):
                (number,) = _NUMBER.unpack(head)
                try:
                    answer = [number, work(number), None]
                except (BootcError, OSError) as error:
                    answer = [number, None, chain_text(error)]
                writer.write(json.dumps(answer).encode() + b"\n")
        status = 0
    except KeyboardInterrupt:
        pass
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        # Nothing of the parent's is to be flushed or closed twice.
        os._exit(status)
