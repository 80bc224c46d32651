# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The first process of the tiny initrd: from nothing to the root's init, in Python alone.

Mounts the API file systems, loads the packed drivers, finds the root (`root=`, else the one
discoverable root partition), mounts it at /sysroot, hands a command line with `composefs` to
`setup_root`, empties the initramfs and becomes `init=` or the root's own init.

Of the kernel command line it heeds `root= rootfstype= rootflags= ro rw init= composefs…=`,
`<module>.<parameter>=`, `rd.shell` (on failure: a Python prompt on the console) and
`rd.emergency=poweroff|reboot|halt` (on failure; the default is poweroff, so nothing hangs).

Modules lie in /usr/lib/bootc-initrd/modules; `index` there has a line `when name needs…` for each,
a module after those that it needs. `when` is `start`, or `demand` for the file systems, which are
loaded when they are mounted.
"""

import os
import sys
import time

from bootc.initramfs import cmdline, rootdev, setup_root
from bootc.linux import libc

MODULES = "/usr/lib/bootc-initrd/modules"
SYSROOT = "/sysroot"
INITS = ("/sbin/init", "/etc/init", "/bin/init", "/bin/sh")
API_MOUNTS = ("/dev", "/proc", "/sys", "/run")

_NO_DEVICES = libc.MS_NOSUID | libc.MS_NODEV
_FLAGS = {
    "ro": libc.MS_RDONLY,
    "nosuid": libc.MS_NOSUID,
    "nodev": libc.MS_NODEV,
    "noexec": libc.MS_NOEXEC,
    "noatime": 0x400,
    "nodiratime": 0x800,
    "relatime": 0x200000,
}
_ENDS = {"reboot": libc.RB_AUTOBOOT, "halt": libc.RB_HALT}


class InitError(Exception):
    """Why the machine cannot boot."""


def say(text: str) -> None:
    """One line on the console, and into the kernel's log for the journal."""
    line = f"bootc-initrd: {text}"
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
    setup_root.say(line, level=7)


def mount_api() -> None:
    """/dev, /proc, /sys and /run."""
    for source, target, flags, data in (
        ("devtmpfs", "/dev", libc.MS_NOSUID, "mode=0755"),
        ("proc", "/proc", _NO_DEVICES | libc.MS_NOEXEC, ""),
        ("sysfs", "/sys", _NO_DEVICES | libc.MS_NOEXEC, ""),
        ("tmpfs", "/run", _NO_DEVICES, "mode=0755"),
    ):
        os.makedirs(target, exist_ok=True)
        libc.mount(source, target, source, flags, data)


class Modules:
    """The packed kernel modules."""

    def __init__(self, folder: str, words: list[str]) -> None:
        self._folder = folder
        self._words = words
        self._needs: dict[str, list[str]] = {}
        self._at_start: list[str] = []
        self._loaded: set[str] = set()
        if not os.path.exists(f"{folder}/index"):
            return
        with open(f"{folder}/index", encoding="utf-8") as file:
            for line in file:
                when, name, *needs = line.split()
                self._needs[name] = needs
                if when == "start":
                    self._at_start.append(name)

    def load(self, name: str) -> None:
        """Load `name` after what it needs; one that is not packed is taken to be built in."""
        if name in self._loaded or name not in self._needs:
            return
        self._loaded.add(name)
        for needed in self._needs[name]:
            self.load(needed)
        fd = os.open(f"{self._folder}/{name}.ko", os.O_RDONLY | os.O_CLOEXEC)
        try:
            libc.finit_module(fd, self.parameters(name))
        except FileExistsError:
            return
        except OSError as error:
            raise InitError(f"module {name}: {error.strerror}") from error
        finally:
            os.close(fd)

    def load_start(self) -> None:
        """Load every module that is not left for later."""
        for name in self._at_start:
            self.load(name)

    def parameters(self, name: str) -> str:
        """What the command line gives the module `name`."""
        start = f"{name}."
        return " ".join(word[len(start) :] for word in self._words if word.startswith(start))


def mount_root(words: list[str], device: rootdev.Device, modules: Modules, sysroot: str) -> None:
    """Mount the physical root as the command line says; read-write unless it says `ro`."""
    fstype = cmdline.last(words, "rootfstype") or device.fstype
    if not fstype or fstype == "auto":
        raise InitError(f"{device.path} holds no file system known here; is it formatted?")
    modules.load(fstype)
    modes = [word for word in words if word in ("ro", "rw")]
    if not modes and device.flags & rootdev.FLAG_READ_ONLY:
        modes = ["ro"]
    flags = libc.MS_RDONLY if modes[-1:] == ["ro"] else 0
    data: list[str] = []
    for option in (cmdline.last(words, "rootflags") or "").split(","):
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif option == "rw":
            flags &= ~libc.MS_RDONLY
        elif option and option != "defaults":
            data.append(option)
    os.makedirs(sysroot, exist_ok=True)
    try:
        libc.mount(device.path, sysroot, fstype, flags, ",".join(data))
    except OSError as error:
        raise InitError(f"mount {device.path} as {fstype}: {error.strerror}") from error


def has_composefs(words: list[str]) -> bool:
    """Whether the command line asks for a composefs root."""
    return any(word.startswith(("composefs=", "composefs.digest=")) for word in words)


def find_init(words: list[str], root: str) -> str:
    """The init to start, as a path inside of `root`."""
    wanted = cmdline.last(words, "init")
    for path in (wanted,) if wanted else INITS:
        # A symlink may be absolute, and so only make sense inside of the root.
        if os.path.lexists(root + path):
            return path
    raise InitError(f"the root has no {wanted or ' nor '.join(INITS)}")


def empty(folder: int, device: int) -> None:
    """Delete what lies below the directory fd `folder`, on the file system `device` alone."""
    for name in os.listdir(folder):
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if found.st_dev != device:
            continue
        if found.st_mode & 0o170000 != 0o040000:
            os.unlink(name, dir_fd=folder)
            continue
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
        try:
            empty(inner, device)
        finally:
            os.close(inner)
        try:
            os.rmdir(name, dir_fd=folder)
        except OSError:
            continue  # a mount point


def switch_root(sysroot: str, init: str, arguments: list[str]) -> None:
    """Make `sysroot` the root, free the initramfs and become `init`. Returns only by raising."""
    for path in API_MOUNTS:
        if os.path.isdir(sysroot + path):
            libc.mount(path, sysroot + path, None, libc.MS_MOVE)
        else:
            libc.umount2(path, libc.MNT_DETACH)
    old = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chdir(sysroot)
    libc.mount(".", "/", None, libc.MS_MOVE)
    os.chroot(".")
    os.chdir("/")
    empty(old, os.fstat(old).st_dev)
    os.environ.pop("LC_CTYPE", None)  # Python's own doing, of no concern to init
    os.execv(init, [init, *arguments])


def boot(words: list[str]) -> None:
    """From a bare kernel to the root's init. Returns only by raising."""
    modules = Modules(MODULES, words)
    modules.load_start()
    device = rootdev.find_root(cmdline.last(words, "root"))
    mount_root(words, device, modules, SYSROOT)
    say(f"root {device}")
    if has_composefs(words):
        for name in ("erofs", "overlay"):
            modules.load(name)
        if not cmdline.last(words, "root"):
            setup_root.mark_root_device(device.path)
        say(setup_root.setup_root(words))
    init = find_init(words, SYSROOT)
    say(f"switch root to {init}")
    switch_root(SYSROOT, init, sys.argv[1:])


def fail(text: str, words: list[str]) -> None:
    """Say why, then end the machine: a person or a test that waits must not wait for ever."""
    line = f"bootc-initrd: cannot boot: {text}"
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
    setup_root.say(line, level=2)
    if "rd.shell" in words or cmdline.last(words, "rd.shell") == "1":
        os.execv(sys.executable, [sys.executable, "-ISi"])
    os.sync()
    time.sleep(1.0)  # let a slow console finish the line
    libc.reboot(_ENDS.get(cmdline.last(words, "rd.emergency") or "", libc.RB_POWER_OFF))


def main() -> None:
    """Run as process 1; anything else is refused, for this deletes files and reboots."""
    if os.getpid() != 1:
        sys.stderr.write("tiny_init is the first process of an initrd, and nothing else\n")
        sys.exit(1)
    words: list[str] = []
    try:
        mount_api()
        say("start")
        words = cmdline.read()
        boot(words)
    except (InitError, rootdev.RootDeviceError, setup_root.SetupError) as error:
        fail(str(error), words)
    except OSError as error:
        fail(setup_root.describe(error), words)
    except BaseException as error:
        fail(f"{type(error).__name__}: {error}", words)


if __name__ == "__main__":
    main()
