# SPDX-License-Identifier: Apache-2.0 OR MIT
"""PyPI's `varlink`, which nobody here wrote, calls every method of the service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import varlink

from bootc.deploy.finalize import finalize_staged
from tests.servicescene import INTERFACES, Scene
from tests.sysroots import ImageContent


def failure(call: Any, *arguments: Any, **named: Any) -> tuple[str, dict[str, Any]]:
    """(name, parameters) of the error that a call replies."""
    with pytest.raises(varlink.VarlinkError) as caught:
        call(*arguments, **named)
    return caught.value.error(), caught.value.parameters() or {}


def test_it_reads_every_interface_and_calls_what_changes_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    with scene.service(), varlink.Client(f"unix:{scene.address}") as client:
        with client.open("org.varlink.service") as connection:
            for interface in INTERFACES:
                text = connection.GetInterfaceDescription(interface.name)["description"]
                assert set(varlink.Interface(text).members) >= set(interface.methods)
        with client.open("containers.bootc") as connection:
            host = connection.GetStatus()["host"]
            assert host["kind"] == "BootcHost"
            assert connection.GetStatus(booted=True)["host"]["spec"] == host["spec"]
            name, parameters = failure(connection.GetStatusForSysroot, "/usr")
            assert (name, parameters["field"]) == ("containers.bootc.InvalidOption", "sysroot")
        with client.open("containers.bootc.install") as connection:
            assert connection.GetConfiguration(all=True)["configuration"]["kargs"] is not None
            for method, given, field in (
                (connection.ToDisk, {"device": "none"}, "device"),
                (connection.ToFilesystem, {"rootPath": "none"}, "rootPath"),
            ):
                name, parameters = failure(method, **given)
                assert name == "containers.bootc.install.InvalidOption"
                assert parameters["field"] == field
            name, _ = failure(connection.ToExistingRoot)
            assert name == "org.varlink.service.MethodNotImplemented"


def test_it_updates_a_machine(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    other = scene.machine.image("other", ImageContent("3")).removeprefix("oci:")
    with (
        scene.service(),
        varlink.Client(f"unix:{scene.address}") as client,
        client.open("containers.bootc.update") as connection,
    ):
        assert connection.Check()["update"]["imageDigest"]
        replies = list(connection.Upgrade(_more=True))
        assert {reply["progress"]["task"] for reply in replies[:-1]} == {
            "pulling",
            "importing",
            "staging",
        }
        assert replies[-1]["outcome"]["staged"]["verity"] == scene.staged()
        outcome = connection.Switch(target=other, transport="oci")["outcome"]
        assert outcome["staged"]["verity"] == scene.staged()
        finalize_staged(scene.machine.sysroot)
        scene.machine.reboot()
        scene.tell(None)
        assert connection.Rollback()["outcome"]["ready"]
        assert scene.machine.menu()[0] == scene.first
