# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What `dev` does on a machine that has none of the packages. Needs root.

The distribution is told by a file over /etc/os-release in a mount namespace; the package managers
are scripts that write down how they were called, have no package and install none.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootc import process

pytestmark = pytest.mark.root

DEV = Path(__file__).resolve().parents[2] / "dev"
NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--")
RELEASES = {
    "debian": "ID=debian\nVERSION_CODENAME=trixie\n",
    "bookworm": "ID=debian\nVERSION_CODENAME=bookworm\n",
    "ubuntu": "ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=questing\n",
    "fedora": "ID=fedora\nVERSION_ID=43\n",
    "rhel": 'ID="centos"\nID_LIKE="rhel fedora"\n',
}


class Machine:
    """A machine of one distribution, with no packages."""

    def __init__(self, top: Path, release: str) -> None:
        self.top, self.called = top, top / "called"
        self.called.touch()
        self.called.chmod(0o666)
        shutil.copy(DEV, top / "dev")
        (top / "os-release").write_text(RELEASES[release])
        (top / "bin").mkdir()
        for name in ("dpkg-query", "rpm"):
            self._program(name, "exit 1")
        for name in ("apt-get", "dnf"):
            self._program(name, f'echo "{name} $*" >> {self.called}; [ "$1" = update ]')

    def _program(self, name: str, code: str) -> None:
        path = self.top / "bin" / name
        path.write_text(f"#!/bin/sh\n{code}\n")
        path.chmod(0o755)

    def dev(self, *, root: bool) -> process.Completed:
        script = f'mount --bind {self.top}/os-release /etc/os-release; exec "$@"'
        who = () if root else NOBODY
        argv = ["unshare", "-m", "sh", "-ec", script, "sh", *who, str(self.top / "dev"), "true"]
        env = {"PATH": f"{self.top}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.top)}
        return process.run(argv, env=env, cwd="/", check=False)


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    # Not tmp_path: everybody may look into this one.
    with tempfile.TemporaryDirectory(prefix="bootc-dev-") as name:
        Path(name).chmod(0o755)
        yield Machine(Path(name), request.param)


@pytest.mark.parametrize("machine", ["fedora", "rhel"], indirect=True)
def test_dnf_installs_what_is_missing_and_its_failure_ends_it(machine: Machine) -> None:
    done = machine.dev(root=True)
    assert done.status == 1
    (called,) = machine.called.read_text().splitlines()
    assert called.startswith("dnf install -q -y --setopt=install_weak_deps=False ")
    assert {"qemu-system-x86-core", "edk2-ovmf", "podman", "mmdebstrap"} <= set(called.split())
    assert done.stderr.splitlines()[-1] == "dev: error: dnf could not install them: see above"
    assert not (machine.top / ".venv").exists()


@pytest.mark.parametrize("machine", ["debian", "ubuntu"], indirect=True)
def test_apt_installs_what_is_missing_and_its_failure_ends_it(machine: Machine) -> None:
    done = machine.dev(root=True)
    assert done.status == 1
    update, install = machine.called.read_text().splitlines()
    assert update == "apt-get update -qq"
    assert install.startswith("apt-get install -y --no-install-recommends -qq ")
    assert {"qemu-system-x86", "ovmf", "podman", "mmdebstrap", "python3-venv"} <= set(
        install.split()
    )
    assert done.stderr.splitlines()[-1] == "dev: error: apt-get could not install them: see above"
    assert not (machine.top / ".venv").exists()


@pytest.mark.parametrize("machine", ["fedora", "debian", "bookworm"], indirect=True)
def test_without_root_the_commands_are_printed(machine: Machine) -> None:
    done = machine.dev(root=False)
    assert done.status == 1
    assert machine.called.read_text() == ""
    lines = done.stderr.splitlines()
    assert lines[0].startswith("dev: as root, run this")
    assert lines[-1].startswith("dev: error: ")
    commands = "\n".join(line for line in lines if line.startswith("  "))
    fedora = "fedora" in (machine.top / "os-release").read_text()
    assert ("  dnf install -y " in commands) is fedora
    assert ("  apt-get update\n  apt-get install -y " in commands) is not fedora
    # QEMU 7.2 of Debian 12 panics modern guests.
    bookworm = "bookworm" in (machine.top / "os-release").read_text()
    assert ("-t bookworm-backports qemu-system-x86" in commands) is bookworm
