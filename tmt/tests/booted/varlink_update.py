#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""An upgrade over varlink; a client that is killed in the middle of it leaves nothing."""

import fcntl
import json
import os

import booted
import derived_image
import varlink_parts
from varlink_parts import UPDATE

LAYOUT = "/var/lib/booted-varlink/layout"
VERSION = "usr/share/booted-varlink/version"
STATES = "/sysroot/state/deploy"


def check_busy() -> None:
    """A command at work, as far as the service can tell."""
    with open(varlink_parts.LOCK, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        varlink_parts.expect_error(f"{UPDATE}.Upgrade", {}, f"{UPDATE}.Busy")


def check_clean(states: "list[str]") -> None:
    booted.expect_equal(booted.status()["status"]["staged"], None, "what is staged")
    booted.expect(not os.path.exists("/run/reboot-required"), "no reboot is required")
    booted.expect_equal(sorted(os.listdir(STATES)), states, "the folders in state/deploy")
    booted.expect_equal(booted.mount_of("/run/bootc/esp"), {}, "a mounted ESP")


def check_staged(replies: "list[dict[str, object]]", digest: str) -> None:
    tasks = varlink_parts.tasks_of(replies)
    booted.expect_equal(tasks, ["pulling", "importing", "staging"], "the tasks that were told")
    outcome = replies[-1]["outcome"]
    assert isinstance(outcome, dict)
    print(json.dumps(outcome, indent=1), flush=True)
    booted.expect(outcome["changed"] and outcome["ready"], "it is staged, and may be booted")
    staged = booted.status()["status"]["staged"]
    booted.expect_equal(staged["image"]["imageDigest"], digest, "the staged digest")
    booted.expect_equal(outcome["staged"]["verity"], booted.verity(staged), "the reply's id")


def check() -> None:
    running = booted.status()["status"]["booted"]["image"]["imageDigest"]
    states = sorted(os.listdir(STATES))
    digest = derived_image.derive(running, LAYOUT, {VERSION: b"1\n"})
    target = {"target": f"{LAYOUT}:latest", "transport": "oci", "mutateInPlace": True}
    outcome = varlink_parts.call(f"{UPDATE}.Switch", target)["outcome"]
    booted.expect(outcome["changed"] and not outcome["ready"], "updates come from elsewhere")
    found = varlink_parts.call(f"{UPDATE}.Check")["update"]
    booted.expect_equal(found["imageDigest"], digest, "what is offered")
    varlink_parts.kill_in_the_middle(f"{UPDATE}.Upgrade", {}, "pulling")
    check_clean(states)
    check_busy()
    check_staged(varlink_parts.call_more(f"{UPDATE}.Upgrade", {}, "--more"), digest)


if __name__ == "__main__":
    booted.main(check)
