# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What the tests of the service share: calls by systemd's varlinkctl."""

import fcntl
import json
import signal
import subprocess
import sys
import time
from typing import Any

import booted

SOCKET = "/run/bootc/varlink"
UNIT = "bootc-varlink.service"
UPDATE = "containers.bootc.update"
INSTALL = "containers.bootc.install"
LOCK = "/run/bootc/lock"
PATIENCE = 120.0
CLIENT = f"""
import json, sys
from bootc.varlink import Client
with Client.connect("unix:{SOCKET}") as client:
    for reply in client.stream(sys.argv[1], json.loads(sys.argv[2])):
        print(json.dumps(reply.parameters), flush=True)
"""


def _run(
    method: str, parameters: "dict[str, Any]", *options: str, address: str = SOCKET
) -> "subprocess.CompletedProcess[str]":
    text = json.dumps(parameters)
    argv = ["varlinkctl", "call", "--timeout=600", "--json=short", *options, address, method, text]
    print(f"$ {' '.join(argv)}", flush=True)
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def call_more(method: str, parameters: "dict[str, Any]", *options: str) -> "list[dict[str, Any]]":
    """The replies of a call that must succeed."""
    done = _run(method, parameters, *options)
    if done.returncode != 0:
        booted.failed(f"exit status {done.returncode}: {done.stdout} {done.stderr}")
    # A sequence of JSON texts has a separator before each.
    return [json.loads(line.lstrip("\x1e")) for line in done.stdout.splitlines() if line]


def call(
    method: str, parameters: "dict[str, Any] | None" = None, *, address: str = SOCKET
) -> "dict[str, Any]":
    """The reply of a call that must succeed."""
    done = _run(method, parameters or {}, address=address)
    if done.returncode != 0:
        booted.failed(f"exit status {done.returncode}: {done.stdout} {done.stderr}")
    reply: dict[str, Any] = json.loads(done.stdout)
    return reply


def expect_error(
    method: str, parameters: "dict[str, Any]", error: str, field: "str | None" = None
) -> None:
    """The call is refused by `error`, for `field` if that is said."""
    done = _run(method, parameters)
    print(done.stdout, done.stderr, flush=True)
    booted.expect(done.returncode != 0 and error in done.stderr, f"{method} is refused by {error}")
    if field is not None:
        booted.expect_equal(json.loads(done.stdout)["field"], field, "the field that was wrong")


def tasks_of(replies: "list[dict[str, Any]]") -> "list[str]":
    """The tasks that the progress told, each once."""
    for one in replies[:-1]:
        booted.expect(set(one) == {"progress"}, f"a reply tells progress: {json.dumps(one)[:100]}")
    return list(dict.fromkeys(one["progress"]["task"] for one in replies[:-1]))


def unit(key: str, name: str = UNIT) -> str:
    return booted.output("systemctl", "show", "-P", key, name).strip()


def is_busy() -> bool:
    with open(LOCK, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def workers() -> str:
    """The processes that carry out an operation."""
    return booted.output("pgrep", "-af", "bootc.services.worker", check=False).strip()


def kill_in_the_middle(method: str, parameters: "dict[str, Any]", task: str) -> None:
    """Kill a client that was told of `task`, and wait until its operation has ended."""
    argv = [sys.executable, "-c", CLIENT, method, json.dumps(parameters)]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        first = json.loads(client.stdout.readline())
        booted.expect_equal(first["progress"]["task"], task, "what began")
        booted.expect(is_busy(), "the operation is at work")
        client.send_signal(signal.SIGKILL)
        rest = client.stdout.read()
    booted.expect(b'"outcome"' not in rest and b'"installed"' not in rest, "it had not ended")
    deadline = time.monotonic() + PATIENCE
    while is_busy() or workers():
        time.sleep(0.2)
        if time.monotonic() > deadline:
            booted.failed(f"the operation was not cancelled: {workers()}")
    booted.expect_equal(unit("ActiveState"), "active", "the service's state")
