# SPDX-License-Identifier: Apache-2.0 OR MIT
"""An installed machine and the updates that it gets: new images from a registry of ours.

    with open_updates(session, scratch) as updates:
        updates.publish()                      # a new image under the tag that machines follow
        with updates.boot() as machine: …      # the machine's disk stays when the block ends

The image that is installed is the project's; each update is it with one layer more. Every other
update has another initrd too, so that both ways are taken: a kernel folder of its own on the ESP,
and one that is shared. The machine follows `HOST:PORT/os:latest` from its first boot on, without
TLS: what it was installed from was no registry.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bootc.errors import BootcError
from bootc.jsonutil import Reader, read_object
from bootc.log import step
from vmtests import cache, dev, disk, image, lease, tree
from vmtests.content import Inputs
from vmtests.derived import add_layer, layer_of
from vmtests.disk import BaseDisk
from vmtests.domain import MachineSpec, Uefi
from vmtests.image import BuiltImage
from vmtests.machine import Machine, start_machine
from vmtests.registry import Registry, serve
from vmtests.session import Session

TAG = "latest"
MARK = "usr/share/bootc-update"
"""A file of each update that says which one it is."""
_PADDING = 512
"""The kernel takes zeros between the parts of an initrd, and behind it."""
_WORK = 1 << 20
"""Bytes of an update that are new in it, so that there is something to write."""
UPGRADE_LIMIT = 300.0
"""Seconds for an upgrade under emulation; it takes some 20."""
_INITRD = re.compile(r"(\./)?usr/lib/modules/[^/]+/initramfs\.img")
_INSECURE = """[[registry]]
location = "{address}"
insecure = true
"""


@dataclass(slots=True, kw_only=True)
class Updates:
    """The scene. `number` is that of the newest update, 0 when there was none yet."""

    session: Session
    base: BaseDisk
    layout: Path
    initrd: tuple[str, bytes]
    registry: Registry
    folder: Path
    number: int = 0
    _spec: MachineSpec | None = None

    @property
    def reference(self) -> str:
        """What the machine follows."""
        return f"{self.registry.guest_address}/{self.registry.name}:{TAG}"

    def publish(self) -> str:
        """Make the next update and give it the tag; returns the digest of its manifest."""
        self.number += 1
        content = self.number.to_bytes(4, "little")
        files = {
            MARK: f"{self.number}\n".encode(),
            "usr/share/bootc-update-data": (content * (_WORK // 4))[:_WORK],
            "etc/bootc-update": f"{self.number}\n".encode(),
        }
        if self.number % 2:
            name, data = self.initrd
            files[name] = data + bytes(_PADDING * self.number)
        return add_layer(self.layout, layer_of(files), base=tree.OCI_TAG, tag=TAG)

    def layer_sizes(self) -> list[int]:
        """Bytes of each layer of the newest image."""
        index = read_object((self.layout / "index.json").read_bytes(), str(self.layout))
        newest = list(index.tables("manifests"))[-1]
        manifest = _read_blob(self.layout, newest.text("digest"))
        return [layer.integer("size") for layer in manifest.tables("layers")]

    def spec(self, *, write_log: Path | None = None) -> MachineSpec:
        """The machine's description; its disk is made at the first time."""
        if self._spec is None:
            self._spec = dev.installed_spec(
                self.base, self.folder, name="bootc-updates", session=self.session
            )
        if write_log is None:
            return self._spec
        disks = tuple(replace(one, write_log=write_log) for one in self._spec.disks)
        return replace(self._spec, disks=disks)

    @property
    def disk(self) -> Path:
        return self.spec().disks[0].path

    def fresh(self, folder: Path) -> Updates:
        """The same scene with another machine, which was not started yet; its files in `folder`."""
        return replace(self, folder=folder, _spec=None)

    @contextmanager
    def boot(self, spec: MachineSpec | None = None) -> Iterator[Machine]:
        """The machine, booted from its disk as the last boot left that.

        The firmware's variables are what they were when the first boot was done. A store that was
        cut while it was written takes OVMF 45 s under emulation to repair, and is not looked at
        here.
        """
        spec = spec or self.spec()
        variables = spec.boot.vars if isinstance(spec.boot, Uefi) else None
        kept = self.folder / "efivars.kept"
        if variables is not None and kept.exists():
            shutil.copyfile(kept, variables)
        with start_machine(self.session.hypervisor(), spec, key=self.session.key) as machine:
            if variables is not None and not kept.exists():
                shutil.copyfile(variables, kept)
            machine.guest.put_bytes(
                _INSECURE.format(address=self.registry.guest_address).encode(),
                "/etc/containers/registries.conf.d/50-updates.conf",
            )
            yield machine


def pull_plug(machine: Machine) -> None:
    """Kill QEMU, which is the power cut: what the guest has not flushed is lost."""
    process = machine.lease.qemu
    if process is None:
        raise BootcError(f"{machine.name} has no QEMU")
    lease.end_process(process, patience=0)
    machine.log_out()


def read_status(machine: Machine) -> Reader:
    """`bootc status --json`, the part `status`."""
    text = machine.run("bootc status --json", timeout=120).stdout
    return read_object(text.encode(), "bootc status").table("status")


def deployment_of(status: Reader, key: str) -> str | None:
    """The deployment id of `booted`, `staged` or `rollback`."""
    entry = status.optional_table(key)
    return None if entry is None else entry.table("composefs").text("verity")


def manifest_of(status: Reader, key: str) -> str | None:
    """The manifest digest of `booted`, `staged` or `rollback`."""
    entry = status.optional_table(key)
    found = None if entry is None else entry.optional_table("image")
    return None if found is None else found.text("imageDigest")


@contextmanager
def open_updates(session: Session, folder: Path) -> Iterator[Updates]:
    """The image, the installed disk, the registry; `folder` takes the machine's own files."""
    built = image.build_image(session.opts)
    image.check_image(built, session.opts)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    layout = folder / "layout"
    with (
        disk.installed_disk(built, session.opts, session.accel(), session.hypervisor) as base,
        _saved(built) as saved,
    ):
        # Names of their own for the same blobs: the cache's layout gets no tags of ours.
        shutil.copytree(saved, layout, copy_function=os.link)
        (layout / "index.json").unlink()
        shutil.copyfile(saved / "index.json", layout / "index.json")
        with serve(layout) as registry:
            yield Updates(
                session=session,
                base=base,
                layout=layout,
                initrd=find_initrd(layout),
                registry=registry,
                folder=folder / "machine",
            )


@contextmanager
def _saved(built: BuiltImage) -> Iterator[Path]:
    """The image as an OCI layout, from the cache or saved now."""

    def make(folder: Path) -> None:
        with step(f"save {built.name} as an OCI layout"):
            tree.save_layout(built, folder / "oci")

    with cache.entry("layouts", Inputs({"image": built.id}), make) as folder:
        yield folder / "oci"


def find_initrd(layout: Path) -> tuple[str, bytes]:
    """(path, content) of the initrd in the one image of a layout of plain layers."""
    index = read_object((layout / "index.json").read_bytes(), str(layout))
    manifest = _read_blob(layout, next(index.tables("manifests")).text("digest"))
    found = None
    for layer in manifest.tables("layers"):
        with tarfile.open(_blob(layout, layer.text("digest")), "r:") as tar:
            for item in tar:
                if _INITRD.fullmatch(item.name) and item.isfile():
                    content = tar.extractfile(item)
                    assert content is not None
                    found = (item.name.removeprefix("./"), content.read())
    if found is None:
        raise BootcError(f"the image in {layout} has no initrd")
    return found


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def _read_blob(layout: Path, digest: str) -> Reader:
    path = _blob(layout, digest)
    return read_object(path.read_bytes(), str(path))
