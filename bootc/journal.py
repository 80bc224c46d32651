# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Where log records go: to stderr, and what happened to the machine to the journal.

A record with a `MESSAGE_ID` (of 32 hexadecimal digits, in `extra`) goes to journald's socket, when
root runs the program and there is one. Source: systemd.io/JOURNAL_NATIVE_PROTOCOL.
"""

from __future__ import annotations

import logging
import os
import sys

SOCKET = "/run/systemd/journal/socket"
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno >= logging.WARNING:
            return f"{record.levelname.lower()}: {text}"
        return text


class Journal(logging.Handler):
    """Sends the records that have a `MESSAGE_ID` to journald, as fields; never fails."""

    def __init__(self, socket_path: str = SOCKET) -> None:
        super().__init__(logging.INFO)
        self._path = socket_path

    def emit(self, record: logging.LogRecord) -> None:
        message_id = getattr(record, "MESSAGE_ID", None)
        if message_id is None:
            return
        import socket  # start-up time: most runs have nothing to say here

        fields = {
            "MESSAGE": record.getMessage(),
            "MESSAGE_ID": message_id,
            "PRIORITY": str(next((n for at, n in _PRIORITIES if record.levelno >= at), 7)),
            "SYSLOG_IDENTIFIER": "bootc",
        }
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as one:
                one.connect(self._path)
                one.send(b"".join(_journal_field(key, text) for key, text in fields.items()))
        except OSError:
            return


def _journal_field(key: str, text: str) -> bytes:
    """KEY=text, or with a length where the text has more than one line."""
    data = text.encode("utf-8", "replace")
    if b"\n" not in data:
        return b"%s=%s\n" % (key.encode(), data)
    return b"%s\n%s%s\n" % (key.encode(), len(data).to_bytes(8, "little"), data)


def setup(level: str) -> None:
    """Send records of that level (debug, info, warning) and above there; another name is info."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    if os.geteuid() == 0 and os.path.exists(SOCKET):
        root.addHandler(Journal())
    root.setLevel(logging.getLevelNamesMapping().get(level.upper(), logging.INFO))
    for noisy in ("paramiko", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
