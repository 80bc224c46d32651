#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""update_refusals.py same|conflict|unknown|progress|concurrent: without a reboot, and what is
refused changes nothing."""

import json
import os
import subprocess
import sys

import booted
import derived_image
import progress_records

FOLDER = "/var/lib/booted-update"


def unchanged(before: "dict[str, object]") -> None:
    booted.expect_equal(booted.status(), before, "the status")
    entries = os.path.exists("/run/composefs/staged-deployment")
    booted.expect(not entries, "nothing is staged")


def same() -> None:
    """The image that runs under another name, with one file more that is there already."""
    before = booted.status()
    digest = before["status"]["booted"]["image"]["imageDigest"]
    with open("/usr/lib/os-release", "rb") as file:
        release = file.read()
    mode = os.stat("/usr/lib/os-release").st_mode & 0o7777
    booted.expect_equal(mode, 0o644, "the mode of os-release, which the copy has")
    # Equal in content but not in time: so an image that was switched to before is used.
    layout = f"{FOLDER}/same"
    derived_image.derive(digest, layout, {"usr/lib/os-release": release})
    booted.told("bootc", "switch", "--transport", "oci", f"{layout}:latest")
    staged = booted.status()["status"]["staged"]
    copy = f"{FOLDER}/copy"
    subprocess.run(["cp", "-r", layout, copy], check=True)
    said = booted.refused("bootc", "switch", "--transport", "oci", f"{copy}:latest")
    text = "same fs-verity digest as the existing staged deployment"
    booted.expect(text in said, "the refusal says why")
    booted.expect("hint: " in said, "and what to do")
    booted.expect_equal(booted.status()["status"]["staged"], staged, "what is staged")
    said = booted.told("bootc", "delete-deployment", str(booted.verity(staged)))
    booted.expect("Deleted the staged deployment" in said, "the staged one can be deleted")
    unchanged(before)


def conflict() -> None:
    before = booted.status()
    digest = before["status"]["booted"]["image"]["imageDigest"]
    layout = f"{FOLDER}/conflict"
    derived_image.derive(digest, layout, {"etc/booted-conflict": b"a file\n"})
    os.mkdir("/etc/booted-conflict")
    said = booted.refused("bootc", "switch", "--transport", "oci", f"{layout}:latest")
    os.rmdir("/etc/booted-conflict")
    text = "Merge conflicts found in etc: Directory 'booted-conflict' now defaults to a file"
    booted.expect(text in said, "the refusal names the path")
    unchanged(before)


def unknown() -> None:
    before = booted.status()
    said = booted.refused("bootc", "switch", "--transport", "oci", "/nonexistent")
    booted.expect("hint: " in said, "an image that isn't there is refused with a hint")
    said = booted.refused("bootc", "upgrade", "--from-downloaded")
    booted.expect("No staged deployment found" in said, "nothing was downloaded")
    said = booted.refused("bootc", "delete-deployment", "0" * 128)
    booted.expect("is no deployment" in said, "a deployment that isn't there cannot be deleted")
    running = str(booted.verity(before["status"]["booted"]))
    said = booted.refused("bootc", "delete-deployment", running)
    booted.expect("Cannot delete the booted deployment" in said, "nor can the booted one")
    text = booted.output("bootc", "status", "--format", "yaml")
    path = f"{FOLDER}/host.yaml"
    os.makedirs(FOLDER, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    said = booted.told("bootc", "edit", "--filename", path)
    booted.expect("Edit cancelled, no changes made." in said, "edit of what is so already")
    with open(path, "w", encoding="utf-8") as file:
        file.write(text.replace("bootOrder: default", "bootOrder: sideways"))
    said = booted.refused("bootc", "edit", "--filename", path)
    booted.expect("neither default nor rollback" in said, "edit refuses another boot order")
    unchanged(before)


def progress() -> None:
    digest = booted.status()["status"]["booted"]["image"]["imageDigest"]
    layout = f"{FOLDER}/progress"
    derived_image.derive(digest, layout, {"usr/share/booted-progress": b"x" * 100000})
    records = progress_records.told_progress(
        "bootc", "switch", "--transport", "oci", f"{layout}:latest"
    )
    tasks = progress_records.tasks_of(records)
    booted.expect_equal(tasks, ["pulling", "importing", "staging"], "the tasks")
    staged = booted.status()["status"]["staged"]
    booted.told("bootc", "delete-deployment", str(booted.verity(staged)))


def concurrent() -> None:
    """Ten statuses at once, and one after the other while an update is staged."""
    before = booted.status()
    argv = ["bootc", "status", "--json"]
    children = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(10)]
    for child in children:
        out, _ = child.communicate()
        booted.expect_equal(child.returncode, 0, "the exit status")
        booted.expect_equal(json.loads(out), before, "one of ten statuses")
    digest = before["status"]["booted"]["image"]["imageDigest"]
    layout = f"{FOLDER}/concurrent"
    derived_image.derive(digest, layout, {"usr/share/booted-concurrent": b"1"})
    argv = ["bootc", "switch", "--transport", "oci", f"{layout}:latest"]
    child = subprocess.Popen(argv)
    count = 0
    while child.poll() is None:
        found = booted.status()["status"]
        booted.expect_equal(found["booted"], before["status"]["booted"], "what is booted")
        count += 1
    booted.expect_equal(child.returncode, 0, "the exit status of the switch")
    print(f"{count} statuses during the switch", flush=True)
    staged = booted.status()["status"]["staged"]
    booted.told("bootc", "delete-deployment", str(booted.verity(staged)))


if __name__ == "__main__":
    checks = (same, conflict, unknown, progress, concurrent)
    booted.main({check.__name__: check for check in checks}[sys.argv[1]])
