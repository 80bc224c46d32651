# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What a command tells on its `--progress-fd`, every record of it checked against the schema."""

import json
import os
import subprocess
from typing import Any

import booted
import schema_check

import bootc


def told_progress(*argv: str) -> "list[dict[str, Any]]":
    """The records of a command that must succeed; `--progress-fd N` is put at its end."""
    package = os.path.dirname(bootc.__file__)
    with open(f"{package}/data/schema/progress-v0.schema.json", encoding="utf-8") as file:
        schema = json.load(file)
    reader, writer = os.pipe()
    child = subprocess.Popen([*argv, "--progress-fd", str(writer)], pass_fds=[writer])
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        lines = file.read().splitlines()
    booted.expect_equal(child.wait(), 0, "the exit status")
    print("\n".join(lines), flush=True)
    records = [json.loads(line) for line in lines]
    for record in records:
        booted.expect_equal(schema_check.problems(record, schema), [], f"problems of {record}")
    booted.expect_equal(records[0]["type"], "Start", "the first record")
    booted.expect_equal(records[-1]["steps"], records[-1]["stepsTotal"], "the last step")
    return records


def tasks_of(records: "list[dict[str, Any]]") -> "list[str]":
    """Each task once, as they came."""
    return list(dict.fromkeys(record["task"] for record in records[1:]))
