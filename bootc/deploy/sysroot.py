# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The installed system that a verb works on, and the deployments that it has.

A `Sysroot` is a handful of folders, so every verb works on the running machine, on a sysroot that
is mounted somewhere, and on a mock. Which deployments there are is said by the boot entries on the
ESP: `loader/entries` is the menu, `loader/entries.staged` is the menu that the next shutdown may
put in its place. What is booted is said by the mount at `/`: its source is `composefs:<id>` or
`transient:composefs=<id>`. The kernel command line only tells that this is a composefs machine;
after a soft reboot its digest is an old one.

`open_booted(writable=True)` works in a mount namespace of its own, where /sysroot can be written
and the ESP is mounted; nothing of that is seen outside, and all of it ends with the block. One
process at a time does so, the others wait. For reading nothing is mounted where anybody sees it.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache

from bootc import log, paths
from bootc.boot import bls, entries, esp, kargs, loader_info
from bootc.deploy import state
from bootc.deploy.messages import NO_ORIGIN
from bootc.deploy.state import Origin
from bootc.errors import BootcError
from bootc.linux import blockdev, libc, mount, namespaces
from bootc.records import dataclass, replace
from bootc.spec import Bootloader

_log = logging.getLogger(__name__)

BUSY = "another bootc is at work"
_CONTAINER_VARIABLE = "container"
_CONTAINER_MARKS = ("/run/.containerenv", "/.dockerenv")


class BusyError(BootcError):
    """Another process is changing what is deployed, and our caller doesn't want to wait for it."""

    def __init__(self) -> None:
        super().__init__(BUSY, hint="try again when it has ended")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sysroot:
    """Where the parts of an installed system are; all but the booleans are paths.

    `root` is the physical root (composefs/, state/), `esp` the mounted ESP (None: not found), `run`
    is /run, `current` the root of the booted system (its /etc, its /usr). `booted` is a deployment
    id, None for a system that isn't running; `insecure` says that it was booted without the need of
    fs-verity. `live` is true for the running machine alone.
    """

    root: str
    esp: str | None
    run: str = "/run"
    current: str = "/"
    booted: str | None = None
    bootloader: Bootloader = Bootloader.SYSTEMD
    insecure: bool = False
    live: bool = False

    @property
    def staged_file(self) -> str:
        return f"{self.run}/composefs/staged-deployment"

    @property
    def repository(self) -> str:
        return f"{self.root}/{paths.REPOSITORY}"

    def need_esp(self) -> str:
        """The folder of the ESP. Raises `BootcError` without one."""
        if self.esp is None:
            raise BootcError(
                f"no EFI system partition was found for {self.root}",
                hint="boot entries are on the ESP of the disk that the system was installed on",
            )
        return self.esp

    def need_booted(self) -> str:
        """The id of the booted deployment. Raises `BootcError` when the system isn't running."""
        if self.booted is None:
            raise BootcError(f"the system in {self.root} is not running")
        return self.booted


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One entry of the menu (or of the staged one); `file` is its file's name.

    `entry` and `file` are None for a booted deployment that no menu has. Without an origin file
    nobody knows what image it was.
    """

    id: str
    entry: bls.Entry | None
    file: str | None
    staged: bool
    insecure: bool
    origin: Origin | None
    uki_arguments: tuple[str, ...] | None = None
    """The kernel arguments in its unified kernel image; None if it has none, or it is damaged."""

    @property
    def is_uki(self) -> bool:
        """Whether it is started from a unified kernel image."""
        return self.entry is not None and self.entry.linux is None

    @property
    def kernel_folder(self) -> str | None:
        """What the kernel is started from, below the ESP's `EFI/Linux`: a folder, which may be
        shared, or a unified kernel image."""
        if self.entry is None:
            return None
        if self.entry.linux is not None:
            return os.path.basename(os.path.dirname(self.entry.linux))
        path = self.entry.efi or self.entry.uki or ""
        return path.strip("/").removeprefix(f"{paths.ESP_KERNELS}/")

    @property
    def arguments(self) -> list[str]:
        """The kernel arguments; none for what has no entry."""
        if self.is_uki:
            return list(self.uki_arguments or ())
        return self.entry.arguments if self.entry is not None else []


def read_deployments(sysroot: Sysroot) -> tuple[Deployment, ...]:
    """Each deployment once: those of the menu in its order, then those only the staged one has.

    A booted one without an entry comes last. Entries that cannot be read are left out, with a
    warning, as are, here, those of other systems.
    """
    found: dict[str, Deployment] = {}
    for name, entry in read_menu(sysroot, paths.ENTRIES):
        _add(found, sysroot, name, entry, staged=False)
    for name, entry in read_menu(sysroot, paths.ENTRIES_STAGED):
        _add(found, sysroot, name, entry, staged=True)
    if sysroot.booted is not None and sysroot.booted not in found:
        found[sysroot.booted] = Deployment(
            id=sysroot.booted,
            entry=None,
            file=None,
            staged=False,
            insecure=sysroot.insecure,
            origin=read_origin(sysroot, sysroot.booted),
        )
    return tuple(found.values())


def read_menu(sysroot: Sysroot, folder: str) -> list[tuple[str, bls.Entry]]:
    """(file name, entry) of our entries in a folder of the ESP, in the menu's order."""
    if sysroot.esp is None:
        return []
    fd = os.open(sysroot.esp, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return entries.read_entries(fd, folder)
    finally:
        os.close(fd)


def _add(
    found: dict[str, Deployment], sysroot: Sysroot, name: str, entry: bls.Entry, *, staged: bool
) -> None:
    arg = entries.deployment_of(entry, name)
    if arg.digest in found:
        return
    inside = _uki_arguments(sysroot, entry) if entry.linux is None else None
    if inside is not None:
        told = kargs.find_composefs(inside)
        arg = replace(arg, insecure=told is not None and told.insecure)
    found[arg.digest] = Deployment(
        id=arg.digest,
        entry=entry,
        file=name,
        staged=staged,
        insecure=arg.insecure,
        origin=read_origin(sysroot, arg.digest),
        uki_arguments=inside,
    )


def _uki_arguments(sysroot: Sysroot, entry: bls.Entry) -> tuple[str, ...] | None:
    """The kernel arguments in the file that an entry starts; None, and a warning, without them."""
    from bootc.boot import pe  # start-up time: few machines have one

    path = f"{sysroot.esp}/{(entry.efi or entry.uki or '').lstrip('/')}"
    try:
        with open(path, "rb", buffering=0) as file:
            fd = file.fileno()
            size = os.fstat(fd).st_size
            text = pe.read_cmdline(lambda at, count: os.pread(fd, count, at), size, path)
        kargs.find_composefs(found := kargs.split(text))
    except (BootcError, OSError) as error:
        _log.warning("the unified kernel image cannot be read: %s", error)
        return None
    return tuple(found)


def read_origin(sysroot: Sysroot, deployment: str) -> Origin | None:
    """The origin of a deployment; None, and a warning, when it is missing or damaged.

    An update reads it a dozen times; a process warns once.
    """
    try:
        origin = state.read_origin(sysroot.root, deployment)
    except (BootcError, OSError) as error:
        _warn_once(sysroot.root, str(error))
        return None
    if origin is None:
        _warn_once(sysroot.root, f"deployment {deployment} has a boot entry, but no origin file")
    return origin


@lru_cache(maxsize=256)
def _warn_once(root: str, text: str) -> None:
    _log.warning("%s", text, extra={"MESSAGE_ID": NO_ORIGIN})


def is_container() -> bool:
    """Whether we run in a container."""
    told = os.environ.get(_CONTAINER_VARIABLE)
    return bool(told) or any(os.path.exists(mark) for mark in _CONTAINER_MARKS)


def find_cmdline(path: str = "/proc/cmdline") -> kargs.ComposefsArg | None:
    """What the kernel was told to boot, or None on a machine without composefs."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return kargs.find_composefs(kargs.split(file.read()))


def booted_deployment(source: str) -> str:
    """The deployment id in the source of the mount at `/`."""
    for prefix in ("composefs:", "transient:composefs="):
        if source.startswith(prefix):
            return source.removeprefix(prefix)
    raise BootcError(
        f"the kernel was told to boot a composefs image, but / is {source!r}",
        hint="look at the initrd's messages: journalctl -b -t bootc-root-setup",
    )


@contextmanager
def open_at(path: str) -> Iterator[Sysroot]:
    """The installed system below `path`, for reading: any mounted physical root."""
    root = os.path.realpath(path)
    if not os.path.isdir(f"{root}/{paths.REPOSITORY}"):
        raise BootcError(
            f"{path} is not the root of a system that bootc installed: it has no "
            f"{paths.REPOSITORY} folder",
            hint="name the folder where the root file system is mounted",
        )
    with ExitStack() as stack:
        folder: str | None = None
        for name in ("boot", "efi", "boot/efi"):
            found = blockdev.find_mount(f"{root}/{name}")
            if found is not None and found.fstype == "vfat":
                folder = found.target
        if folder is None:
            folder = _reading_esp(stack, _device_below(root))
        yield Sysroot(root=root, esp=folder, current=root)


@contextmanager
def open_booted(*, writable: bool, wait: bool = True) -> Iterator[Sysroot]:
    """The running machine's system.

    Raises `BootcError` in a container, without root, on a machine that bootc did not install, and,
    to be written to, on a read-only device; `BusyError` instead of waiting for another writer, if
    `wait` is off.
    """
    if is_container():
        raise BootcError(
            "this command requires a booted host system, and this is a container",
            hint="run it on the machine itself",
        )
    if os.geteuid() != 0:
        raise BootcError("this command needs root", hint="run it with sudo")
    told = find_cmdline()
    if told is None:
        raise BootcError(
            "this system was not installed by bootc: the kernel command line has no composefs=",
            hint="`bootc install` installs; `bootc status --sysroot PATH` looks at another system",
        )
    mounts = blockdev.read_mounts()
    root = blockdev.find_mount("/", mounts)
    booted = booted_deployment(root.source if root else "")
    physical = blockdev.find_mount(paths.SYSROOT, mounts)
    if physical is None:
        raise BootcError(
            f"nothing is mounted at {paths.SYSROOT}", hint="the initrd should have done that"
        )
    with ExitStack() as stack:
        device = blockdev.device_of(physical)
        folder: str | None
        if writable:
            stack.enter_context(one_at_a_time(wait=wait))
            stack.enter_context(namespaces.own_mounts())
            _make_writable(physical, device)
            folder = stack.enter_context(_writing_esp(device))
        else:
            folder = _reading_esp(stack, device)
        yield Sysroot(
            root=paths.SYSROOT,
            esp=folder,
            booted=booted,
            bootloader=loader_info.detect(),
            insecure=told.insecure,
            live=True,
        )


def _device_below(path: str) -> str:
    """`major:minor` of the block device that the file system at `path` lies on."""
    where = path
    while where != "/" and not os.path.ismount(where):
        where = os.path.dirname(where)
    found = blockdev.find_mount(where)
    if found is None:
        raise BootcError(f"no mount holds {path}", hint="mount the system's root file system")
    return blockdev.device_of(found)


def _reading_esp(stack: ExitStack, device: str) -> str | None:
    """A path to the ESP of the disks below a device, by a descriptor that the stack closes."""
    node = esp.find_esp(device)
    if node is None:
        _log.warning("no EFI system partition was found, so the boot entries are unknown")
        return None
    return f"/proc/self/fd/{stack.enter_context(esp.open_esp(node))}"


@contextmanager
def _writing_esp(device: str) -> Iterator[str]:
    node = esp.find_esp(device)
    if node is None:
        raise BootcError(
            "no EFI system partition was found on the disks of the root file system",
            hint="boot entries live there; `lsblk -o NAME,PARTTYPENAME` shows the partitions",
        )
    os.makedirs(paths.ESP_MOUNT, mode=0o700, exist_ok=True)
    with esp.mounted_esp(node, paths.ESP_MOUNT) as folder:
        yield folder


@contextmanager
def one_at_a_time(path: str = paths.LOCK, *, wait: bool = True) -> Iterator[None]:
    """One process at a time changes what is deployed. Raises `BusyError` if it is not to wait."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise BusyError from None
            with log.step(f"wait: {BUSY}"):
                fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _make_writable(physical: blockdev.Mounted, device: str) -> None:
    """Drop the read-only flag of the mount at /sysroot, then, if need be, of its file system."""
    if blockdev.is_readonly(device):
        raise BootcError(
            f"the root file system is on {physical.source}, which is a read-only device",
            hint="nothing can be changed on it; boot the system from a disk that can be written",
        )
    target = physical.target
    libc.mount(None, target, None, mount.MS_REMOUNT | mount.MS_BIND)
    if os.statvfs(target).f_flag & os.ST_RDONLY:
        try:
            libc.mount(None, target, None, mount.MS_REMOUNT)
        except OSError as error:
            raise BootcError(
                f"{target} ({physical.source}) cannot be made writable: {error.strerror}",
                hint="`dmesg | tail` tells when the kernel found the file system damaged",
            ) from error
