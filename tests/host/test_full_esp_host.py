# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A kernel that doesn't fit on the ESP costs nothing that was staged. Needs root, for a tmpfs."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootc.deploy import state, update
from bootc.errors import BootcError
from bootc.linux import mount
from bootc.oci.reference import parse_imgref
from tests.sysroots import ImageContent, MockMachine

pytestmark = pytest.mark.root


def test_what_is_staged_stays_staged(tmp_path: Path) -> None:
    machine = MockMachine(tmp_path)
    with mount.mounted("tmpfs", str(machine.esp), "tmpfs", data="size=256k"):
        first = machine.install(machine.image("1"))
        machine.boot(first)
        held = ImageContent("2", kernel=b"2" * 60_000)
        staged = update.switch(machine.sysroot, parse_imgref(machine.image("2", held)))
        assert staged.staged is not None
        large = ImageContent("3", kernel=b"3" * 300_000)
        with pytest.raises(BootcError, match="do not fit on the ESP") as caught:
            update.switch(machine.sysroot, parse_imgref(machine.image("3", large)))
        assert caught.value.hint
        mark = state.read_staged(machine.sysroot.staged_file)
        assert mark is not None
        assert mark.deployment == staged.staged.id
        machine.check_whole()
        # It fits when what is staged now makes room for it.
        other = ImageContent("4", kernel=b"4" * 170_000)
        done = update.switch(machine.sysroot, parse_imgref(machine.image("4", other)))
        assert done.staged is not None
        machine.check_whole()
