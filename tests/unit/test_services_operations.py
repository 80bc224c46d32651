# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Updates over varlink on a mock machine: what is streamed, refused, cancelled, and left behind."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bootc.deploy.finalize import finalize_staged
from bootc.deploy.progress import Stage
from bootc.deploy.sysroot import BUSY, BusyError, one_at_a_time
from bootc.varlink import Client, VarlinkError
from tests.servicescene import PATIENCE, TOP, Scene, is_running
from tests.sysroots import ImageContent
from tests.waiting import wait_until

PROGRESS = json.loads((TOP / "bootc/data/schema/progress-v0.schema.json").read_text())
UPDATE = "containers.bootc.update"
BEFORE_STAGED = [Stage.PULLING, Stage.IMPORTING, Stage.MERGING, Stage.DEPLOYING]


def is_free(path: str) -> bool:
    try:
        with one_at_a_time(path, wait=False):
            return True
    except BusyError:
        return False


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def refusal(client: Client, method: str, parameters: dict[str, Any]) -> VarlinkError:
    with pytest.raises(VarlinkError) as caught:
        client.call(f"{UPDATE}.{method}", parameters)
    return caught.value


def upgrade_works(scene: Scene) -> None:
    """The next upgrade, and the reboot into it."""
    scene.tell(None)
    with scene.client() as client:
        outcome = client.call(f"{UPDATE}.Upgrade").parameters["outcome"]
    assert scene.staged() == outcome["staged"]["verity"]
    finalize_staged(scene.machine.sysroot)
    assert scene.machine.reboot() == outcome["staged"]["verity"]


def test_upgrade_with_more(scene: Scene) -> None:
    scene.tell(None, idle=0.3)
    with scene.service() as child:
        # It must not be idle before we come, so it is still starting.
        with scene.client() as client:
            replies = list(client.stream(f"{UPDATE}.Upgrade"))
        events = [one.parameters["progress"] for one in replies[:-1]]
        for event in events:
            jsonschema.validate(event, PROGRESS, cls=jsonschema.Draft202012Validator)
        tasks = list(dict.fromkeys(event["task"] for event in events))
        assert tasks == ["pulling", "importing", "staging"]
        assert events[-1]["steps"] == events[-1]["stepsTotal"] == 3
        outcome = replies[-1].parameters["outcome"]
        assert "progress" not in replies[-1].parameters
        staged = outcome["staged"]
        assert (outcome["changed"], outcome["ready"]) == (True, True)
        assert outcome["messages"][0] == f"Queued for next boot: oci:{staged['image']['image']}"
        assert staged["image"]["transport"] == "oci"
        assert (staged["version"], staged["downloadOnly"]) == ("1", False)
        assert staged["verity"] == scene.staged()
        # Nobody is there any more: it ends by itself, and said nothing.
        assert child.stdout is not None
        assert child.stdout.read() == b""
        assert child.wait(PATIENCE) == 0
    finalize_staged(scene.machine.sysroot)
    assert scene.machine.reboot() == staged["verity"]


def test_upgrade_without_more_check_and_rollback(scene: Scene) -> None:
    with scene.service(), scene.client() as client:
        found = client.call(f"{UPDATE}.Check").parameters
        assert found["messages"][0].startswith("Update available for: oci:")
        assert scene.staged() is None
        done = client.call(f"{UPDATE}.Upgrade", {"downloadOnly": True}).parameters["outcome"]
        assert done["staged"]["imageDigest"] == found["update"]["imageDigest"]
        assert done["staged"]["downloadOnly"]
        assert not done["ready"]
        released = client.call(f"{UPDATE}.Upgrade", {"fromDownloaded": True}).parameters
        assert released["outcome"]["ready"]
        assert released["outcome"].get("staged") is None
        again = client.call(f"{UPDATE}.Upgrade").parameters["outcome"]
        assert (again["changed"], again["messages"]) == (
            False,
            ["Staged update present, not changed."],
        )
        assert "No rollback available" in refusal(client, "Rollback", {}).parameters["message"]
        finalize_staged(scene.machine.sysroot)
        scene.machine.reboot()
        scene.tell(None)
        assert client.call(f"{UPDATE}.Check").parameters["update"] is None
        back = client.call(f"{UPDATE}.Rollback").parameters["outcome"]
        assert back["messages"] == ["Next boot: rollback deployment"]
        assert scene.machine.menu()[0] == scene.first


def test_switch(scene: Scene) -> None:
    other = scene.machine.image("other", ImageContent("3")).removeprefix("oci:")
    same = scene.machine.image("same", ImageContent("1")).removeprefix("oci:")
    with scene.service(), scene.client() as client:
        given = {"target": other, "transport": "oci"}
        done = client.call(f"{UPDATE}.Switch", given).parameters["outcome"]
        assert done["staged"]["image"] == {"image": other, "transport": "oci"}
        again = client.call(f"{UPDATE}.Switch", given).parameters["outcome"]
        assert again["messages"] == ["Image specification is unchanged."]
        error = refusal(client, "Switch", {"target": same, "transport": "oci"})
        assert error.name == f"{UPDATE}.InvalidOption"
        assert error.parameters["field"] == "target"
        assert "existing booted deployment" in error.parameters["message"]
        assert "--mutate-in-place" in error.parameters["hint"]


@pytest.mark.parametrize(
    ("method", "parameters", "field"),
    [
        ("Upgrade", {"tag": "a/b"}, "tag"),
        ("Check", {"tag": ""}, "tag"),
        ("Upgrade", {"downloadOnly": True, "apply": True}, "downloadOnly"),
        ("Upgrade", {"fromDownloaded": True, "downloadOnly": True}, "fromDownloaded"),
        ("Switch", {"target": "a", "transport": "floppy"}, "transport"),
        ("Switch", {"target": ""}, "target"),
        ("Switch", {"target": "a", "allowCopy": True}, "allowCopy"),
    ],
)
def test_options_that_cannot_be(
    method: str, parameters: dict[str, Any], field: str, scene: Scene
) -> None:
    with scene.service(), scene.client() as client:
        error = refusal(client, method, parameters)
        assert error.name == f"{UPDATE}.InvalidOption"
        assert error.parameters["field"] == field
        assert client.call(f"{UPDATE}.Check").parameters["update"] is not None
    scene.is_as_before()


def test_what_the_interface_does_not_know(scene: Scene) -> None:
    with scene.service(), Client.connect(f"unix:{scene.address}") as client:
        for parameters, field in (
            ({"speed": 1}, "speed"),
            ({"tag": 5}, "tag"),
            ({"softReboot": "maybe"}, "softReboot"),
        ):
            error = refusal(client, "Upgrade", parameters)
            assert error.name == "org.varlink.service.InvalidParameter"
            assert error.parameters == {"parameter": field}
        assert refusal(client, "Downgrade", {}).name == "org.varlink.service.MethodNotFound"


def test_an_image_that_is_not_there(scene: Scene) -> None:
    with scene.service(), scene.client() as client:
        error = refusal(client, "Switch", {"target": "/nowhere", "transport": "oci"})
        assert error.name == f"{UPDATE}.Failed"
        assert "is no OCI layout" in error.parameters["message"]
        assert error.parameters["hint"]
    scene.is_as_before()


def test_one_operation_at_a_time(scene: Scene) -> None:
    scene.tell(Stage.PULLING)
    with scene.service(), scene.client() as first, scene.client() as second:
        replies = first.stream(f"{UPDATE}.Upgrade")
        scene.wait_for("paused")
        for method in ("Upgrade", "Rollback"):
            error = refusal(second, method, {})
            assert error.name == f"{UPDATE}.Busy"
            assert error.parameters["message"] == BUSY
            assert error.parameters["hint"]
        # What changes nothing may look meanwhile.
        assert second.call(f"{UPDATE}.Check").parameters["update"] is not None
        scene.go()
        assert list(replies)[-1].parameters["outcome"]["changed"]


def test_a_command_in_another_process_is_seen(scene: Scene) -> None:
    with scene.service(), scene.client() as client:
        with one_at_a_time(scene.lock):
            assert refusal(client, "Upgrade", {}).name == f"{UPDATE}.Busy"
        assert client.call(f"{UPDATE}.Upgrade").parameters["outcome"]["changed"]


@pytest.mark.parametrize("stage", BEFORE_STAGED)
def test_a_client_that_leaves_cancels(stage: Stage, scene: Scene) -> None:
    scene.tell(stage)
    with scene.service():
        with scene.client() as client:
            replies = client.stream(f"{UPDATE}.Upgrade")
            next(replies)
            pid = scene.wait_for("paused")
        wait_until(lambda: not is_running(pid), PATIENCE)
        wait_until(lambda: is_free(scene.lock), PATIENCE)
        scene.is_as_before()
        upgrade_works(scene)


def test_what_is_staged_is_not_cancelled(scene: Scene) -> None:
    scene.tell(Stage.CLEANUP)
    touched = scene.machine.root / "composefs/bootc"
    with scene.service():
        with scene.client() as client:
            replies = client.stream(f"{UPDATE}.Upgrade")
            next(replies)
            pid = scene.wait_for("paused")
        time.sleep(0.2)
        assert is_running(pid)
        touched.mkdir(exist_ok=True)
        os.utime(touched, (0, 0))
        scene.go()
        wait_until(lambda: not is_running(pid), PATIENCE)
    # Others were told, so the rest of the work was done.
    assert touched.stat().st_mtime > 0
    staged = scene.staged()
    assert staged is not None
    finalize_staged(scene.machine.sysroot)
    assert scene.machine.reboot() == staged


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("stage", [Stage.PULLING, Stage.DEPLOYING])
def test_a_service_that_ends(stage: Stage, number: signal.Signals, scene: Scene) -> None:
    scene.tell(stage)
    with scene.service() as child:
        client = scene.client()
        replies = client.stream(f"{UPDATE}.Upgrade")
        pid = scene.wait_for("paused")
        child.send_signal(number)
        wait_until(lambda: not is_running(pid), PATIENCE)
        assert child.wait(PATIENCE) == (-number if number is signal.SIGKILL else 0)
        if number is signal.SIGTERM:
            with pytest.raises(VarlinkError) as caught:
                list(replies)
            assert caught.value.name == f"{UPDATE}.Cancelled"
        client.close()
    scene.is_as_before()
    with scene.service():
        upgrade_works(scene)


def test_a_worker_that_is_killed(scene: Scene) -> None:
    scene.tell(Stage.DEPLOYING)
    with scene.service():
        with scene.client() as client:
            replies = client.stream(f"{UPDATE}.Upgrade")
            os.kill(scene.wait_for("paused"), signal.SIGKILL)
            with pytest.raises(VarlinkError) as caught:
                list(replies)
            assert caught.value.name == f"{UPDATE}.Failed"
            assert "ended with status -9" in caught.value.parameters["message"]
        assert scene.staged() is None
        upgrade_works(scene)


def test_the_reboot_is_asked_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = scene.folder / "bin"
    programs.mkdir()
    for name, said in (("systemd-run", ""), ("systemctl", "systemd 257")):
        program = programs / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {scene.folder}/asked\necho {said}\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with scene.service(), scene.client() as client:
        outcome = client.call(f"{UPDATE}.Upgrade", {"apply": True}).parameters["outcome"]
        assert outcome["ready"]
        asked = (scene.folder / "asked").read_text()
        assert asked == (
            "systemd-run --quiet -- systemctl reboot --message=Rebooting to update the system\n"
        )
        client.call(f"{UPDATE}.Upgrade")
        assert (scene.folder / "asked").read_text() == asked
