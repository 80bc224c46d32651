# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What mounts: the overlay over /usr and the next root of a soft reboot, on a mock machine.

Everything happens in a child with a mount namespace of its own.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from bootc import paths
from bootc.deploy import soft_reboot
from bootc.deploy.usr_overlay import has_usr_overlay, mount_usr_overlay
from bootc.errors import BootcError
from bootc.linux import libc
from bootc.linux.blockdev import find_mount, read_mounts
from tests.sysroots import ImageContent, MockMachine

_CLONE_NEWNS = 0x00020000

pytestmark = [pytest.mark.root, pytest.mark.erofs]


def apart(work: Callable[[], None]) -> None:
    """Run `work` in a child whose mounts nobody else sees."""
    before = [mount.target for mount in read_mounts()]
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            libc.unshare(_CLONE_NEWNS)
            libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, waited = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(waited) == 0
    assert [mount.target for mount in read_mounts()] == before


@pytest.fixture
def machine(tmp_path: Path) -> MockMachine:
    machine = MockMachine(tmp_path / "m")
    for version in ("1", "2"):
        content = ImageContent(
            version,
            etc={"version": version.encode()},
            extra={"usr/bin/tool": version.encode() * 200, "usr/small": version.encode()},
        )
        machine.install(machine.image(version, content))
    other = ImageContent("3", kernel=b"another")
    machine.install(machine.image("3", other))
    return machine


def test_usr_becomes_writable_and_the_image_stays(machine: MockMachine, tmp_path: Path) -> None:
    usr = tmp_path / "usr"
    usr.mkdir()

    def work() -> None:
        assert not has_usr_overlay(str(usr))
        assert mount_usr_overlay(machine.sysroot, target=str(usr))
        assert (usr / "bin/tool").read_bytes() == b"1" * 200
        (usr / "bin/tool").write_bytes(b"changed")
        (usr / "new").mkdir()
        (usr / "small").unlink()
        assert (usr / "bin/tool").read_bytes() == b"changed"
        assert os.listdir(machine.run) == []
        found = find_mount(str(usr))
        assert found is not None
        assert "rw" in found.options
        # The second time there is nothing to do, and nothing is done.
        assert not mount_usr_overlay(machine.sysroot, target=str(usr))
        assert (usr / "new").is_dir()
        libc.umount2(str(usr))
        assert mount_usr_overlay(machine.sysroot, target=str(usr))
        assert (usr / "bin/tool").read_bytes() == b"1" * 200
        assert not (usr / "new").exists()

    apart(work)


def test_a_read_only_overlay_takes_no_writes_until_it_is_remounted(
    machine: MockMachine, tmp_path: Path
) -> None:
    usr = tmp_path / "usr"
    usr.mkdir()

    def work() -> None:
        assert mount_usr_overlay(machine.sysroot, read_only=True, target=str(usr))
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            (usr / "new").mkdir()
        libc.mount(None, str(usr), None, libc.MS_REMOUNT | libc.MS_BIND)
        (usr / "new").mkdir()

    apart(work)


def test_the_next_root_is_the_deployment_with_its_etc_and_var(
    machine: MockMachine, tmp_path: Path
) -> None:
    one, two, three = machine.menu()
    next_root = tmp_path / "nextroot"
    (machine.root / paths.STATE_VAR / "shared").write_text("var")
    (machine.etc(two) / "version").write_text("2, changed")

    def work() -> None:
        said = soft_reboot.prepare(machine.sysroot, two, selinux=False, next_root=str(next_root))
        assert two in said
        assert (next_root / "usr/bin/tool").read_bytes() == b"2" * 200
        assert (next_root / "etc/version").read_text() == "2, changed"
        assert (next_root / "var/shared").read_text() == "var"
        (next_root / "etc/new").write_text("written")
        assert (machine.etc(two) / "new").read_text() == "written"
        found = find_mount(str(next_root))
        assert found is not None
        assert found.source == f"composefs:{two}"
        # Once more replaces it; reset leaves nothing, and says so.
        soft_reboot.prepare(machine.sysroot, two, selinux=False, next_root=str(next_root))
        assert soft_reboot.reset(str(next_root))
        assert os.listdir(next_root) == []
        assert not soft_reboot.reset(str(next_root))
        for deployment, reason in (
            (one, "it is the one that runs"),
            (three, "its kernel, its initrd or its kernel arguments"),
            ("0" * 128, "there is no such deployment"),
        ):
            with pytest.raises(BootcError, match=f"no soft reboot into .*: {reason}"):
                soft_reboot.prepare(
                    machine.sysroot, deployment, selinux=False, next_root=str(next_root)
                )
        assert find_mount(str(next_root)) is None

    apart(work)


def test_the_configuration_is_that_of_the_next_image(machine: MockMachine, tmp_path: Path) -> None:
    transient = ImageContent(
        "4",
        extra={
            "usr/lib/composefs/setup-root-conf.toml": b'[etc]\nmount = "transient"\n# ' + b"." * 99
        },
    )
    four = machine.install(machine.image("4", transient))
    next_root = tmp_path / "nextroot"

    def work() -> None:
        soft_reboot.prepare(machine.sysroot, four, selinux=False, next_root=str(next_root))
        (next_root / "etc/new").write_text("in memory")
        assert not (machine.etc(four) / "new").exists()
        soft_reboot.reset(str(next_root))

    apart(work)


def test_a_root_that_cannot_be_set_up_leaves_nothing(machine: MockMachine, tmp_path: Path) -> None:
    _, two, _ = machine.menu()
    next_root = tmp_path / "nextroot"
    etc = machine.etc(two)
    etc.rename(etc.with_name("elsewhere"))

    def work() -> None:
        with pytest.raises(BootcError, match=r"the next root cannot be set up: .*etc"):
            soft_reboot.prepare(machine.sysroot, two, selinux=False, next_root=str(next_root))
        assert find_mount(str(next_root)) is None

    apart(work)
