# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A mock machine: folders that look like a sysroot, an ESP and /run, with real images in them.

    machine = MockMachine(tmp_path)
    first = machine.install(machine.image("1"))       # deployed, booted
    ... a verb on machine.sysroot ...
    machine.reboot()                                   # boots what the menu has first

The repository is real (and insecure, no file system here needs fs-verity), so are boot entries,
kernel files, origins and each deployment's /etc. `current` is what / would be: links to the /etc
and the /usr/lib/bootc of the booted deployment. A reboot empties /run.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path

from bootc import fs, paths
from bootc.boot import bls, entries
from bootc.composefs.assemble import assemble, commit_image, transform_for_boot
from bootc.composefs.pull import pull
from bootc.composefs.repository import Repository
from bootc.composefs.stored import load_image
from bootc.deploy import image as images
from bootc.deploy import state
from bootc.deploy.bootable import commit_bootable, write_etc
from bootc.deploy.kernel import write_kernel
from bootc.deploy.state import Origin
from bootc.deploy.sysroot import Sysroot, read_menu
from bootc.deploy.uki import Uki, uki_digest, write_uki
from bootc.oci.layout import open_source
from bootc.oci.reference import ImageReference, parse_imgref
from bootc.spec import BootType
from tests.ocibuild import END, folder, header, member, write_layout

FIRST_ARGUMENTS = ["root=UUID=1234", "rw"]


@dataclass
class ImageContent:
    """What makes one image of a mock differ from the others; `etc` maps names to contents."""

    version: str
    os_id: str = "mock"
    kernel: bytes = b"kernel 1"
    initrd: bytes = b"initrd 1"
    etc: dict[str, bytes] = field(default_factory=lambda: {"hostname": b"mock\n"})
    kargs: dict[str, str] = field(default_factory=dict)
    """kargs.d files by name."""
    extra: dict[str, bytes] = field(default_factory=dict)
    """Further files, by their path; their folders are made."""
    links: dict[str, str] = field(default_factory=dict)
    """Symbolic links, by their path, and what they lead to."""

    def tar(self) -> bytes:
        release = f'ID={self.os_id}\nPRETTY_NAME="Mock {self.version}"\nVERSION_ID={self.version}\n'
        modules = "usr/lib/modules/6.1"
        files = {
            "usr/lib/os-release": release.encode(),
            **({f"{modules}/vmlinuz": self.kernel} if self.kernel else {}),
            **({f"{modules}/initramfs.img": self.initrd} if self.initrd else {}),
            **{f"etc/{name}": data for name, data in self.etc.items()},
            **{f"{paths.KARGS_D}/{name}": text.encode() for name, text in self.kargs.items()},
            **self.extra,
        }
        folders = {"boot", "etc", "run", "sysroot", "usr", "var"}
        for name in [*files, *self.links]:
            while name := os.path.dirname(name):
                folders.add(name)
        return b"".join(
            [
                folder(b"./"),
                *(folder(f"{name}/".encode()) for name in sorted(folders)),
                *(member(name.encode(), data) for name, data in sorted(files.items())),
                *(
                    header(name.encode(), 0, b"2", link=target.encode(), mode=0o777)
                    for name, target in sorted(self.links.items())
                ),
                END,
            ]
        )


class MockMachine:
    """`path` is a new folder's. `sysroot` is what verbs take; it changes with each reboot."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = path / "physical"
        self.esp = path / "esp"
        self.run = path / "run"
        self.current = path / "current"
        for one in (self.root, self.esp, self.run, self.current):
            one.mkdir(parents=True)
        self.sysroot = Sysroot(
            root=str(self.root), esp=str(self.esp), run=str(self.run), current=str(self.current)
        )
        with Repository.init(self.root / paths.REPOSITORY, secure=False):
            pass

    def copied(self, path: Path) -> MockMachine:
        """This machine once more, in the new folder `path`; images are not copied."""
        path.mkdir(parents=True)
        for one in (self.root, self.esp, self.run):
            shutil.copytree(one, path / one.name, symlinks=True)
        (path / self.current.name).mkdir()
        made = copy.copy(self)
        made.path = path
        made.root, made.esp = path / self.root.name, path / self.esp.name
        made.run, made.current = path / self.run.name, path / self.current.name
        made.sysroot = replace(
            self.sysroot,
            root=str(made.root),
            esp=str(made.esp),
            run=str(made.run),
            current=str(made.current),
        )
        if self.sysroot.booted is not None:
            made.boot(self.sysroot.booted)
        return made

    def check_whole(self) -> None:
        """Everything in the menu can be booted: kernel, initrd, image, state and origin."""
        with Repository.open(self.root / paths.REPOSITORY) as repo:
            for name, entry in read_menu(self.sysroot, paths.ENTRIES):
                deployment = entries.deployment_of(entry, name).digest
                for path in started_files(entry):
                    assert (self.esp / path.lstrip("/")).is_file(), f"{name}: {path}"
                assert self.etc(deployment).is_dir(), name
                assert state.read_origin(str(self.root), deployment) is not None, name
                os.close(repo.open_image(deployment).fd)

    def image(self, version: str, content: ImageContent | None = None) -> str:
        """Write an image; returns its reference, `oci:…`. The tag is the version."""
        made = content or ImageContent(version)
        where = self.path / "images" / version
        if where.exists():
            shutil.rmtree(where)
        where.mkdir(parents=True)
        return write_layout(where, [made.tar()], tag=version)

    def install(self, reference: str, *, origin: str | None = None) -> str:
        """Deploy an image below those that are there, boot it if it is the first; returns its id.

        `origin` is where its updates come from, if not from where it is installed from.
        """
        root = str(self.root)
        with (
            Repository.open(self.root / paths.REPOSITORY) as repo,
            open_source(reference) as source,
        ):
            tag = f"{paths.TAG_PREFIX}{source.manifest_digest}"
            pulled = pull(repo, source, reference=reference, tag=tag)
            image = commit_bootable(repo, pulled)
            write_etc(repo, image, state.make_skeleton(root, image.id))
            if isinstance(image.kernel, Uki):
                digest = uki_digest(repo, image.kernel)
                write_uki(repo, image.kernel, str(self.esp), image.id)
            else:
                digest = write_kernel(repo, image.kernel, str(self.esp), image.id)
            release = images.read_os_release(repo, image.tree)
            own = images.read_kargs_d(repo, image.tree, "x86_64")
        arguments = [*FIRST_ARGUMENTS, f"composefs=?{image.id}", *own]
        state.write_origin(
            root,
            image.id,
            Origin(
                image=parse_imgref(origin or reference),
                boot_type=BootType.UKI if isinstance(image.kernel, Uki) else BootType.BLS,
                boot_digest=digest,
                manifest_digest=pulled.manifest_digest,
            ),
        )
        old = [entry for _, entry in read_menu(self.sysroot, paths.ENTRIES)]
        menu = self.esp / paths.ENTRIES
        shutil.rmtree(menu, ignore_errors=True)
        menu.mkdir(parents=True)
        new = entries.make_entry(release, image.id, arguments)
        if isinstance(image.kernel, Uki):
            new = entries.make_uki_entry(release, image.id, key="efi")
        wanted = [*old, new]
        for name, entry in entries.arrange(wanted):
            fs.write_atomic(menu / name, entry.to_text())
        if self.sysroot.booted is None:
            self.reboot()
        return image.id

    def reboot(self) -> str:
        """Boot what the menu has first; returns its id. Nothing is finalized: that is a verb's."""
        name, entry = read_menu(self.sysroot, paths.ENTRIES)[0]
        arg = entries.deployment_of(entry, name)
        for path in started_files(entry):
            assert (self.esp / path.lstrip("/")).is_file(), f"{name}: {path} is not there"
        shutil.rmtree(self.run)
        self.run.mkdir()
        self.boot(arg.digest)
        return arg.digest

    def boot(self, deployment: str) -> None:
        """Make `deployment` the booted one, whatever the menu says, as a soft reboot does."""
        shutil.rmtree(self.current)
        self.current.mkdir()
        (self.current / "etc").symlink_to(self.etc(deployment))
        fragments = self.current / paths.KARGS_D
        fragments.parent.mkdir(parents=True)
        with Repository.open(self.root / paths.REPOSITORY) as repo:
            origin = state.read_origin(str(self.root), deployment)
            assert origin is not None
            assert origin.manifest_digest is not None
            tree = assemble(repo, load_image(repo, f"@{origin.manifest_digest}"))
            folder = tree.find_directory(paths.KARGS_D)
            if folder is not None:
                images.write_tree(repo, folder, str(fragments))
        self.sysroot = replace(self.sysroot, booted=deployment, insecure=True)

    def etc(self, deployment: str) -> Path:
        """The writable /etc of a deployment."""
        return self.root / paths.state_dir(deployment) / "etc"

    def menu(self) -> list[str]:
        """The ids in the menu, in its order."""
        found = read_menu(self.sysroot, paths.ENTRIES)
        return [entries.deployment_of(entry, name).digest for name, entry in found]

    def stage_mark(self, deployment: str, *, locked: bool = False) -> None:
        """Write the file that says what is staged."""
        path = Path(self.sysroot.staged_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"depl_id": deployment, "finalization_locked": locked}))


def started_files(entry: bls.Entry) -> list[str]:
    """The files on the ESP that an entry of the menu starts."""
    found = [path for path in (entry.linux, entry.efi, entry.uki, *entry.initrd) if path]
    assert found, entry
    return found


def unified(content: ImageContent, folder: Path, *, image: str | None = None) -> ImageContent:
    """The same system with its kernel in a unified kernel image, which names it (or `image`).

    `folder` is made, to find out how the system is called.
    """
    made = replace(content, extra=dict(content.extra), kernel=b"", initrd=b"")
    made.extra["boot/EFI/Linux/mock.efi"] = make_uki(content, "0" * 128)
    if image is None:
        (folder / "layout").mkdir(parents=True)
        with Repository.init(folder / "repository", secure=False) as repo:
            layout = write_layout(folder / "layout", [made.tar()])
            with open_source(layout) as source:
                tree = assemble(repo, pull(repo, source, reference="x", tag="x"))
            transform_for_boot(tree, repo)
            image = commit_image(repo, tree).id
    made.extra["boot/EFI/Linux/mock.efi"] = make_uki(content, image)
    return made


def make_uki(content: ImageContent, image: str) -> bytes:
    """A PE file with the sections that are looked at."""
    parts = {
        b".osrel": b"ID=mock\n",
        b".cmdline": f"rw quiet composefs=?{image}".encode() + b"\0",
        b".linux": content.kernel,
        b".initrd": content.initrd,
    }
    table, body = b"", b""
    for name, data in parts.items():
        padded = data + bytes(-len(data) % 512)
        table += struct.pack("<8sIIII16x", name, len(data), 0, len(padded), 1024 + len(body))
        body += padded
    begin = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    head = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, len(parts), 0, 0, 0, 0, 0x22)
    return (begin + head + table).ljust(1024, b"\0") + body


def reference_of(machine: MockMachine, deployment: str) -> ImageReference:
    """Where the origin of a deployment says that its updates come from."""
    origin = state.read_origin(str(machine.root), deployment)
    assert origin is not None
    return origin.image


def follow(machine: MockMachine, version: str, content: ImageContent | None = None) -> None:
    """Put another image where the machine's updates come from."""
    machine.image("updates", content or ImageContent(version))


def started(machine: MockMachine) -> str:
    return machine.install(machine.image("updates", ImageContent("1")))


def everything(path: Path) -> dict[str, tuple[int, float, bytes | str]]:
    """Each path below `path`, with its mode, time and content."""
    found: dict[str, tuple[int, float, bytes | str]] = {}
    for one in sorted(path.rglob("*")):
        status = one.lstat()
        content: bytes | str = b""
        if one.is_symlink():
            content = os.readlink(one)
        elif one.is_file():
            content = one.read_bytes()
        found[str(one)] = (status.st_mode, status.st_mtime, content)
    return found
