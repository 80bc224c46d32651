# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Is a system whole after a power cut? Looked at without booting it.

`find_problems` judges folders: a sysroot, and the files of its ESP. What it demands:

* the menu has entries, all can be read, and each starts a deployment that is whole: kernel and
  initrd are there and have the origin's boot digest; the composefs image is there, has the digest
  that is its name, and every object that it refers to exists with the right size; the state folder
  has an /etc (no file of it is empty that is not empty in the image) and the link to /var;
* `bootc status --sysroot` names exactly these deployments, each with its image;
* streams and images of the repository are sound, and objects hold what their names say.

What a cut may leave, and so is no problem: a staged menu, kernels, state folders, objects that
nothing refers to.

`recovered` makes those folders from a disk image: as a boot would it runs the root file system's
check (which replays the journal), and reads the ESP with mtools. Then it repairs the ESP as the
next update will, which must leave the menu as it is. It needs root and a loop device.
The host's kernel may lack fs-verity, and then opens no file that has it. So the file system's flag
is taken off each object, after it was seen to be there: an object without it is a problem too, as
the guest's kernel would refuse the object.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bootc import paths, process
from bootc.boot import bls, entries
from bootc.boot.esp import ESP_TYPE
from bootc.boot.esp_repair import repair
from bootc.boot.fat import is_dirty
from bootc.composefs.digest import digest_bytes, digest_fd
from bootc.composefs.erofs_reader import read_image
from bootc.composefs.fsck import check_repository
from bootc.composefs.objects import SHARDS, object_path
from bootc.composefs.repository import Repository
from bootc.deploy.sysroot import Deployment, Sysroot, read_deployments
from bootc.errors import BootcError, FormatError, chain_text
from bootc.linux import blockdev
from bootc.status import describe
from bootc.tree import Directory, External, Inline, Leaf, walk

_ROOT_TYPE = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
_INSTALL = "install it: apt-get install e2fsprogs dosfstools mtools"
_EXTENTS_FLAG = 0x80000
"""The flags of an ordinary file of ext4, without the one for fs-verity (0x100000)."""
_FSCK_UNREPAIRED = 4
_PIECE = 1 << 20
_MTOOLS = {"MTOOLS_SKIP_CHECK": "1", "MTOOLS_LOWER_CASE": "0"}
# What the checks say of every file system that was not unmounted, and of themselves.
_EXT4 = re.compile(
    r"recovering journal|^\S+: |\*{5}|orphan_present|(Clear|Fix)\? "
    r"|blocks count wrong|inodes count wrong"
)
_VFAT = re.compile(
    r"^fsck\.fat|irty bit|boot sector and its backup|mostly harmless|^ +\d|Leaving|^/"
    r"|utomatic|uto-correct"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """A disk after a cut: the folders in it, and objects that lack fs-verity.

    `notes` is what the file systems' checks said; they repair what they can, so it is no verdict.
    """

    sysroot: Sysroot
    unsealed: tuple[str, ...]
    notes: tuple[str, ...]


def find_problems(
    sysroot: Sysroot, *, known: Collection[str] = (), unsealed: Collection[str] = ()
) -> list[str]:
    """What is wrong with a system, one line each; none when it is whole.

    `known` are names of objects (`object_names`) whose content need not be read again; `unsealed`
    those that should have fs-verity, but do not.
    """
    sysroot = replace(sysroot, booted=None)
    problems = [f"object {name} has no fs-verity" for name in unsealed]
    problems += _menu_problems(sysroot)
    try:
        with Repository.open(sysroot.repository, insecure=True) as repo:
            problems += _repository_problems(repo, known)
            for deployment in _menu_deployments(sysroot):
                problems += _deployment_problems(sysroot, repo, deployment)
    except (BootcError, OSError) as error:
        problems.append(f"the repository cannot be read: {chain_text(error)}")
    return [*problems, *_status_problems(sysroot)]


def next_deployment(sysroot: Sysroot) -> str | None:
    """The deployment that the menu boots first."""
    found = _menu_deployments(sysroot)
    return found[0].id if found else None


def object_names(sysroot: Sysroot) -> frozenset[str]:
    """The objects of the repository as `xx/yyyy…`."""
    return frozenset(
        f"{shard}/{name}"
        for shard in SHARDS
        for name in _listed(f"{sysroot.repository}/objects/{shard}")
    )


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _menu_deployments(sysroot: Sysroot) -> list[Deployment]:
    return [one for one in read_deployments(sysroot) if one.file is not None and not one.staged]


def _menu_problems(sysroot: Sysroot) -> list[str]:
    """Entries of ours that cannot be read (readers leave them out), or no entry at all."""
    folder = f"{sysroot.esp}/{paths.ENTRIES}"
    problems = []
    for name in _listed(folder):
        if not (name.startswith(entries.NAME_PREFIX) and name.endswith(".conf")):
            continue
        try:
            with open(f"{folder}/{name}", encoding="utf-8", errors="replace") as file:
                entries.deployment_of(bls.parse(file.read(), name), name)
        except (BootcError, OSError) as error:
            problems.append(f"boot entry {name}: {chain_text(error)}")
    if not _menu_deployments(sysroot):
        problems.append("the menu has no entry that boots a deployment")
    return problems


def _deployment_problems(sysroot: Sysroot, repo: Repository, deployment: Deployment) -> list[str]:
    name = deployment.id[:16]
    problems = [f"{name}: {line}" for line in _boot_problems(sysroot, deployment)]
    try:
        tree = _image_tree(repo, deployment.id)
    except (BootcError, OSError) as error:
        return [*problems, f"{name}: the image cannot be used: {chain_text(error)}"]
    for path, node in walk(tree):
        if isinstance(node, Leaf) and isinstance(node.content, External):
            line = _object_problem(sysroot, node.content)
            if line is not None:
                problems.append(f"{name}: /{os.fsdecode(path).lstrip('/')}: {line}")
    return problems + [f"{name}: {line}" for line in _state_problems(sysroot, deployment.id, tree)]


def _boot_problems(sysroot: Sysroot, deployment: Deployment) -> Iterator[str]:
    """The files that the loader starts, against the origin's digest of them."""
    entry, origin = deployment.entry, deployment.origin
    if origin is None:
        yield "has no origin that can be read"
    if entry is None or entry.linux is None:
        yield "is not started by a kernel and an initrd"
        return
    hasher = hashlib.sha256()
    for path in (entry.linux, *entry.initrd):
        try:
            with open(f"{sysroot.esp}/{path.lstrip('/')}", "rb") as file:
                while piece := file.read(_PIECE):
                    hasher.update(piece)
        except OSError as error:
            yield f"{path} cannot be read: {error.strerror}"
            return
    wanted = None if origin is None else origin.boot_digest
    if wanted is not None and wanted != hasher.hexdigest():
        yield f"kernel and initrd have the digest {hasher.hexdigest()}, expected {wanted}"


def _image_tree(repo: Repository, deployment: str) -> Directory:
    data = repo.read_image(deployment)
    found = digest_bytes(data, repo.algorithm).hex()
    if found != deployment:
        raise BootcError(f"it has the digest {found[:16]}…")
    return read_image(data, deployment[:16])


def _object_problem(sysroot: Sysroot, content: External) -> str | None:
    if content.digest is None:
        return "names no object"
    name = object_path(content.digest)
    try:
        size = os.lstat(f"{sysroot.repository}/objects/{name}").st_size
    except OSError as error:
        return f"{name}: {error.strerror}"
    return None if size == content.size else f"{name} has {size} bytes, expected {content.size}"


def _state_problems(sysroot: Sysroot, deployment: str, tree: Directory) -> Iterator[str]:
    folder = f"{sysroot.root}/{paths.state_dir(deployment)}"
    try:
        if os.readlink(f"{folder}/var") != paths.STATE_VAR_LINK:
            yield "the state's var leads elsewhere"
        if not stat.S_ISDIR(os.lstat(f"{folder}/etc").st_mode):
            yield "the state's etc is no directory"
    except OSError as error:
        yield f"the state is not whole: {chain_text(error)}"
        return
    etc = tree.find_directory("etc")
    for path, node in walk(etc) if etc is not None else ():
        if not isinstance(node, Leaf) or not isinstance(node.content, (External, Inline)):
            continue
        content = node.content
        size = content.size if isinstance(content, External) else len(content.data)
        name = os.fsdecode(path).lstrip("/")
        try:
            found = os.lstat(f"{folder}/etc/{name}")
        except FileNotFoundError:
            continue  # somebody may have removed it
        if size and stat.S_ISREG(found.st_mode) and not found.st_size:
            yield f"/etc/{name} is empty, the image's has {size} bytes"


def _repository_problems(repo: Repository, known: Collection[str]) -> Iterator[str]:
    """fsck's findings, without the objects that are known already."""
    for finding in check_repository(repo, metadata_only=True).findings:
        yield str(finding)
    for shard in SHARDS:
        for name in _listed(f"{repo.path}/objects/{shard}"):
            if f"{shard}/{name}" not in known:
                line = _content_problem(repo, shard, name)
                if line is not None:
                    yield f"object {shard}/{name}: {line}"


def _content_problem(repo: Repository, shard: str, name: str) -> str | None:
    try:
        with open(f"{repo.path}/objects/{shard}/{name}", "rb") as file:
            found = digest_fd(file.fileno(), repo.algorithm).hex()
    except OSError as error:
        return error.strerror or str(error)
    return None if found == shard + name else f"its content has the digest {found}"


def _status_problems(sysroot: Sysroot) -> Iterator[str]:
    """What `bootc status --sysroot` would say, against the menu."""
    try:
        told = describe(sysroot, selinux=False).status.others
    except (BootcError, OSError) as error:
        yield f"status fails: {chain_text(error)}"
        return
    ids = [one.composefs.verity for one in told if one.composefs is not None]
    menu = [one.id for one in _menu_deployments(sysroot)]
    if ids != menu:
        yield f"status tells {[one[:16] for one in ids]}, the menu {[one[:16] for one in menu]}"
    for one in told:
        if one.image is None and one.composefs is not None:
            yield f"status knows no image of {one.composefs.verity[:16]}"


@contextmanager
def recovered(image: Path, folder: Path) -> Iterator[Recovered]:
    """The system on a raw disk image, which is repaired like a boot does; `folder` is for our use.

    Raises `BootcError` when a file system cannot be recovered: that is a loss, too.
    """
    try:
        table = blockdev.read_gpt(str(image)) or []
    except (FormatError, OSError) as error:
        raise BootcError(f"{image} has no partitions any more") from error
    parts = {part.type: part for part in table}
    if ESP_TYPE not in parts or _ROOT_TYPE not in parts:
        raise BootcError(f"{image} has no ESP or no root partition")
    shutil.rmtree(folder, ignore_errors=True)
    target = folder / "root"
    target.mkdir(parents=True)
    notes = _read_esp(image, parts[ESP_TYPE], folder)
    with _loop(image, parts[_ROOT_TYPE]) as device:
        notes += _check_ext4(device)
        with _mounted(device, target):
            sealed, unsealed = _look_at_seals(target)
        _take_seals_off(device, sealed, folder)
    # Another device: a mount namespace that somebody made meanwhile keeps the first mount, and with
    # it the kernel keeps the inodes as they were.
    with _loop(image, parts[_ROOT_TYPE]) as device, _mounted(device, target):
        sysroot = Sysroot(
            root=str(target),
            esp=str(folder / "esp"),
            run=str(folder / "run"),
            current=str(target),
        )
        yield Recovered(sysroot=sysroot, unsealed=tuple(unsealed), notes=tuple(notes))


@contextmanager
def _loop(image: Path, part: blockdev.GptPartition) -> Iterator[str]:
    """A partition of an image as a device: e2fsck forgets an offset once it replayed a journal."""
    losetup = process.need_program("losetup", hint="install util-linux")
    argv = [losetup, "--find", "--show", f"--offset={part.start}", f"--sizelimit={part.size}"]
    device = process.run([*argv, str(image)], timeout=60).stdout.strip()
    try:
        yield device
    finally:
        process.run([losetup, "--detach", device], timeout=60)


def _check_ext4(device: str) -> list[str]:
    """Replay the journal and repair; the lines that tell of more than that."""
    program = process.need_program("e2fsck", hint=_INSTALL)
    done = process.run([program, "-fy", device], timeout=300, check=False)
    lines = [line for line in done.stdout.splitlines() if line and not line.startswith("Pass ")]
    if done.status >= _FSCK_UNREPAIRED:
        said = "; ".join([*lines[-4:], *done.stderr.splitlines()[-1:]])
        raise BootcError(f"e2fsck could not repair the root: {said}")
    return [f"ext4: {line}" for line in lines if line.strip() and not _EXT4.search(line)]


def _read_esp(image: Path, part: blockdev.GptPartition, folder: Path) -> list[str]:
    """Copy what is on the ESP into `folder`/esp; what fsck.vfat has to say."""
    copy = folder / "esp.img"
    _copy_range(image, part.start, part.size, copy)
    checker = process.need_program("fsck.vfat", hint=_INSTALL)
    checked = process.run([checker, "-n", str(copy)], timeout=120, check=False)
    target = folder / "esp"
    _copy_menu(copy, target)
    _copy_kernels(copy, target)
    _check_repair(copy, target, folder / "repaired")
    copy.unlink()
    lines = checked.stdout.splitlines() if checked.status else []
    return [f"vfat: {line.strip()}" for line in lines if line.strip() and not _VFAT.search(line)]


def _copy_menu(copy: Path, target: Path, *, check: bool = False) -> None:
    """The folder with the boot entries; unless `check`, as far as it can be read: what lacks is
    judged later."""
    above = (target / paths.ENTRIES).parent
    above.mkdir(parents=True)
    argv = [_mcopy(), "-s", "-n", "-Q", "-i", str(copy), f"::/{paths.ENTRIES}", str(above)]
    process.run(argv, timeout=120, check=check, env=_MTOOLS)


def _copy_kernels(copy: Path, target: Path) -> None:
    """The files that the entries name, each by its path as the firmware opens it: what a cut left
    of an update beside them may lead nowhere."""
    for name, data in _read_files(target / paths.ENTRIES).items():
        try:
            entry = bls.parse(data.decode(errors="replace"), name)
        except BootcError:
            continue  # which is judged later
        for path in filter(None, (entry.linux, *entry.initrd, entry.efi, entry.uki)):
            file = target / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            argv = [_mcopy(), "-n", "-Q", "-i", str(copy), f"::/{path.lstrip('/')}", str(file)]
            process.run(argv, timeout=120, check=False, env=_MTOOLS)


def _mcopy() -> str:
    return process.need_program("mcopy", hint=_INSTALL)


def _check_repair(copy: Path, before: Path, after: Path) -> None:
    """Repair what needs it. Raises `BootcError` unless the file system is sound then, and the menu
    as it was."""
    with open(copy, "rb") as image:
        if not is_dirty(image.fileno()):
            return
    repair(str(copy))
    checked = process.run(["fsck.vfat", "-n", str(copy)], timeout=120, check=False)
    if checked.status:
        raise BootcError(f"the ESP is not sound after a repair: {checked.stdout}")
    _copy_menu(copy, after, check=True)
    found = [_read_files(folder / paths.ENTRIES) for folder in (before, after)]
    if found[0] != found[1]:
        raise BootcError(f"a repair makes the menu {list(found[1])}, it was {list(found[0])}")


def _read_files(folder: Path) -> dict[str, bytes]:
    if not folder.is_dir():
        return {}
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _copy_range(source: Path, start: int, size: int, target: Path) -> None:
    """A part of a sparse file as a sparse file of its own."""
    with source.open("rb") as reading, target.open("wb") as writing:
        writing.truncate(size)
        place, end = start, start + size
        while place < end:
            try:
                place = os.lseek(reading.fileno(), place, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return
            stop = min(end, os.lseek(reading.fileno(), place, os.SEEK_HOLE))
            while place < stop:
                piece = os.pread(reading.fileno(), min(_PIECE, stop - place), place)
                os.pwrite(writing.fileno(), piece, place - start)
                place += len(piece)


@contextmanager
def _mounted(device: str, target: Path) -> Iterator[None]:
    process.run(["mount", "-t", "ext4", "-o", "ro", device, str(target)], timeout=60)
    try:
        yield
    finally:
        process.run(["umount", str(target)], timeout=60)


def _look_at_seals(root: Path) -> tuple[list[int], list[str]]:
    """The inodes of the repository that this kernel refuses to open for their fs-verity, and the
    names of objects that it does open although meta.json says, by its own, that all have it."""
    repository = root / paths.REPOSITORY
    sealed, opened = [], []
    files = [repository / "meta.json"]
    for shard in SHARDS:
        folder = repository / "objects" / shard
        files += [folder / name for name in _listed(str(folder))]
    for path in files:
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                sealed.append(os.lstat(path).st_ino)
            continue
        opened.append(f"{path.parent.name}/{path.name}")
    # A kernel with fs-verity opens them all, and would refuse what is not sealed by itself.
    return sealed, opened if sealed else []


def _take_seals_off(device: str, inodes: list[int], folder: Path) -> None:
    if not inodes:
        return
    program = process.need_program("debugfs", hint=_INSTALL)
    script = folder / "debugfs"
    script.write_text(
        "".join(f"set_inode_field <{inode}> flags {_EXTENTS_FLAG:#x}\n" for inode in inodes)
    )
    process.run([program, "-w", "-f", str(script), device], timeout=120)
