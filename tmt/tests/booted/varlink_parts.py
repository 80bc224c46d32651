# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What the tests of the service share: calls by systemd's varlinkctl."""

import json
import subprocess
from typing import Any

import booted

SOCKET = "/run/bootc/varlink"
UNIT = "bootc-varlink.service"
UPDATE = "containers.bootc.update"
INSTALL = "containers.bootc.install"


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
