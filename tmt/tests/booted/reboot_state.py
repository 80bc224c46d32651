#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Before the reboot: leave marks in /etc and /var. After it: find them, in another boot."""

import json
import os

import booted

MARKS = ("/etc/booted-test-mark", "/var/lib/booted-test-mark")


def before() -> None:
    digest, _ = booted.booted_digest()
    mark = {"boot-id": booted.boot_id(), "digest": digest}
    for path in MARKS:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(mark, file)
            file.flush()
            os.fsync(file.fileno())
    print(f"marked {mark}", flush=True)
    booted.reboot()


def after() -> None:
    marks = []
    for path in MARKS:
        booted.expect(os.path.exists(path), f"{path} is still there")
        with open(path, encoding="utf-8") as file:
            marks.append(json.load(file))
    booted.expect_equal(marks[0], marks[1], "the marks in /etc and in /var")
    booted.expect(marks[0]["boot-id"] != booted.boot_id(), "the boot id has changed")
    digest, _ = booted.booted_digest()
    booted.expect_equal(digest, marks[0]["digest"], "the booted digest")
    verity = booted.status()["status"]["booted"]["composefs"]["verity"]
    booted.expect_equal(verity, digest, "the digest in the status")
    for path in MARKS:
        os.unlink(path)


def check() -> None:
    count = os.environ.get("TMT_REBOOT_COUNT", "")
    match count:
        case "0":
            before()
        case "1":
            after()
        case _:
            raise RuntimeError(f"TMT_REBOOT_COUNT is {count!r}, must be 0 or 1")


if __name__ == "__main__":
    booted.main(check)
