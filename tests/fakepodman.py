#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A podman for tests: a program that plays the scenario which the file $FAKE_PODMAN holds.

    {"ready": "notify" | "quiet" | "never" | "ends",
     "answer": [STEP, …],
     "commands": {"image list": {"status": 0, "stdout": "…", "stderr": "…"}, …}}

Each command line is appended to $FAKE_PODMAN.log, as a JSON array, and so is each request of the
API, as `{"request": "POST …", "headers": {…}}`. `ready` is how `system service` begins: it says so
(NOTIFY_SOCKET), it only listens, it never does, it fails. The steps of its answer:

    {"status": 200, "headers": {…}}   the head; with "length" instead of chunks
    {"line": {…}}                     a JSON line, in a chunk of its own
    {"raw": "…", "split": N}          these bytes, N at a time
    {"blank": N}                      N bytes without a newline
    {"socket": "…"}                   these bytes past all HTTP
    {"stall": true}                   nothing more, and the connection stays
    {"die": true}                     the whole server ends, as by SIGKILL
    {"cut": true}                     the connection is closed in the middle

Any other command prints what the first entry of `commands` whose words all begin its words says.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from typing import Any


def record(value: Any) -> None:
    with open(os.environ["FAKE_PODMAN"] + ".log", "a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")


def words_of(argv: list[str]) -> list[str]:
    """The command: `argv` without the global options, each of which has a value."""
    rest = list(argv)
    while rest and rest[0].startswith("--"):
        rest = rest[1:] if "=" in rest[0] else rest[2:]
    return rest


def serve(path: str, scenario: dict[str, Any]) -> None:
    ready = scenario.get("ready", "notify")
    if ready == "ends":
        sys.stderr.write("Error: the storage is on fire\n")
        sys.exit(125)
    if ready == "never":
        signal.pause()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(4)
        if ready == "notify":
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
                told.sendto(b"MAINPID=%d\nREADY=1" % os.getpid(), os.environ["NOTIFY_SOCKET"])
        while True:
            channel, _ = server.accept()
            with channel:
                talk(channel, scenario.get("answer", []))


def talk(channel: socket.socket, steps: list[dict[str, Any]]) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        piece = channel.recv(4096)
        if not piece:
            return
        head += piece
    first, *fields = head.decode().split("\r\n\r\n")[0].split("\r\n")
    pairs = (field.split(": ", 1) for field in fields)
    record({"request": first, "headers": {key.lower(): value for key, value in pairs}})
    chunked = True

    def send(data: bytes) -> None:
        channel.sendall(b"%x\r\n%s\r\n" % (len(data), data) if chunked else data)

    for step in steps:
        if "status" in step:
            lines = [f"HTTP/1.1 {step['status']} Said"]
            chunked = "length" not in step
            lines.append(
                "Transfer-Encoding: chunked" if chunked else f"Content-Length: {step['length']}"
            )
            lines += [f"{key}: {value}" for key, value in step.get("headers", {}).items()]
            channel.sendall("\r\n".join([*lines, "", ""]).encode())
        elif "line" in step:
            send(json.dumps(step["line"]).encode() + b"\n")
        elif "raw" in step:
            data = step["raw"].encode("latin-1")
            size = step.get("split", len(data))
            for at in range(0, len(data), size):
                send(data[at : at + size])
        elif "blank" in step:
            for _ in range(step["blank"] // 4096):
                send(b" " * 4096)
        elif "socket" in step:
            channel.sendall(step["socket"].encode("latin-1"))
        elif step.get("stall"):
            time.sleep(3600)
        elif step.get("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif step.get("cut"):
            return
    if chunked:
        channel.sendall(b"0\r\n\r\n")


def main() -> None:
    argv = sys.argv[1:]
    record(argv)
    with open(os.environ["FAKE_PODMAN"], encoding="utf-8") as file:
        scenario = json.load(file)
    words = words_of(argv)
    if words[:2] == ["system", "service"]:
        serve(words[-1].removeprefix("unix://"), scenario)
    for command, told in scenario.get("commands", {}).items():
        wanted = command.split()
        if words[: len(wanted)] == wanted:
            sys.stdout.write(told.get("stdout", ""))
            sys.stderr.write(told.get("stderr", ""))
            sys.stdout.flush()
            time.sleep(told.get("sleep", 0))
            sys.exit(told.get("status", 0))
    sys.exit(0)


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        sys.exit(1)
