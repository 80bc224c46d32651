# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Make the machine's root from a composefs image: the program that runs in the initrd.

It starts with the physical root mounted at `--sysroot` and ends with the deployment there, on
which init is then started; for a soft reboot it leaves `--sysroot` alone and assembles the next
root at `--target`.

| mount in the new root | what it is |
|---|---|
| `/` | overlay, source `composefs:<id>`: the EROFS image over composefs/objects, read-only |
| `/sysroot` | the physical root, read-only (the mount, not its file system) |
| `/etc`, `/var` | state/deploy/<id>/{etc,var}, writable |

The image is named by the kernel command line: `composefs.digest=v1-sha512-12:<hex>`, else
`composefs=<hex>` (64 digits for SHA-256, 128 for SHA-512). The kernel's fs-verity digest of the
image must be that name, and the very descriptor that was measured is mounted. A `?` before the
digest drops this and the check of each object: for file systems without fs-verity.

The configuration (TOML, may be missing; unknown keys are ignored):

* `root.transient`, bool: a writable root that is forgotten at power-off; its source is then
  `transient:composefs=<id>`.
* `etc.mount`, `var.mount`: `bind` (the default) to state/deploy/<id>; `overlay`, with its upper
  layer there; `transient`, with its upper layer in memory; `volatile`, an empty tmpfs; `none` and
  `root`, what the image has.
* `etc.transient`, `var.transient`, bool: `transient`, unless `mount` says otherwise.

Any failure is one line on stderr and in the kernel's log, status 1, and nothing moved. Standard
library only and few modules of it, so the exceptions of `bootc.errors` are not used here.
"""

import errno
import os
import sys

from bootc.initramfs import cmdline
from bootc.linux import fsverity, libc, newmount

CONFIG = "/usr/lib/composefs/setup-root-conf.toml"
GPT_AUTO_ROOT = "/dev/gpt-auto-root"
VOLATILE_ROOT = "/run/systemd/volatile-root"

_MODES = ("bind", "overlay", "transient", "volatile", "none", "root")
_ALGORITHMS = {64: fsverity.SHA256, 128: fsverity.SHA512}
_NAMES = {fsverity.SHA256: "sha256", fsverity.SHA512: "sha512"}
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class SetupError(Exception):
    """Why there is no root: what failed, and at what."""


class Wanted:
    """An image that the command line asks for."""

    __slots__ = ("insecure", "name")

    def __init__(self, name: str, *, insecure: bool) -> None:
        self.name = name
        self.insecure = insecure

    @classmethod
    def parse(cls, word: str, digest: str) -> "Wanted":
        """From the digits with their `?`; `word` is the whole argument, for the message."""
        insecure = digest.startswith("?")
        name = digest.removeprefix("?").lower()
        if len(name) not in _ALGORITHMS or name.strip("0123456789abcdef"):
            raise SetupError(f"{word}: not a digest of 64 or 128 hexadecimal digits")
        return cls(name, insecure=insecure)


class Config:
    """What the configuration file says, with its defaults."""

    __slots__ = ("etc", "transient_root", "var")

    def __init__(
        self, *, transient_root: bool = False, etc: str = "bind", var: str = "bind"
    ) -> None:
        self.transient_root = transient_root
        self.etc = etc
        self.var = var


def wanted_images(words: list[str]) -> list[Wanted]:
    """The images to try, in order. Raises `SetupError` when there is none or one is malformed."""
    found: list[Wanted] = []
    for value in cmdline.values(words, "composefs.digest"):
        word = f"composefs.digest={value}"
        mark = "?" if value.startswith("?") else ""
        form, colon, digest = value.removeprefix("?").partition(":")
        version, _, algorithm = form.partition("-")
        size = {"sha256-12": 64, "sha512-12": 128}.get(algorithm)
        if not colon or version not in ("v1", "v2") or size != len(digest):
            raise SetupError(f"{word}: not of the form v1-sha512-12:<hex> or v1-sha256-12:<hex>")
        found.append(Wanted.parse(word, mark + digest))
    for value in cmdline.values(words, "composefs"):
        found.append(Wanted.parse(f"composefs={value}", value))
    if not found:
        raise SetupError("no composefs= on the kernel command line")
    return found


def read_config(path: str, words: list[str]) -> Config:
    """The configuration at `path`, or the defaults when there is no such file."""
    config = Config()
    if cmdline.last(words, "systemd.volatile") in ("state", "overlay"):
        config.var = "none"
    if not os.path.exists(path):
        return config
    import tomllib  # only here: it costs more than the rest of this program

    with open(path, "rb") as file:
        try:
            document = tomllib.load(file)
        except ValueError as error:
            raise SetupError(f"{path}: {error}") from error
    root = document.get("root", {})
    config.transient_root = isinstance(root, dict) and root.get("transient") is True
    for section in ("etc", "var"):
        table = document.get(section)
        if not isinstance(table, dict):
            continue
        mode = table.get("mount", "transient" if table.get("transient") is True else "bind")
        if mode not in _MODES:
            raise SetupError(f"{path}: {section}.mount is {mode!r}, not one of {', '.join(_MODES)}")
        setattr(config, section, mode)
    return config


def open_image(repository: int, images: list[Wanted]) -> tuple[int, Wanted]:
    """The descriptor of the first of `images` that exists, verified, and which one it is."""
    for wanted in images:
        path = f"images/{wanted.name}"
        try:
            image = libc.openat2(repository, path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            _verify(image, wanted)
        except BaseException:
            os.close(image)
            raise
        return image, wanted
    raise SetupError(f"composefs/images/{images[0].name}: no such image in the physical root")


def _verify(image: int, wanted: Wanted) -> None:
    path = f"composefs/images/{wanted.name}"
    measured = fsverity.measure(image)
    if measured is None:
        if wanted.insecure:
            return
        raise SetupError(f"{path}: fs-verity is not enabled, so the image cannot be verified")
    algorithm, digest = measured
    if digest.hex() != wanted.name or algorithm != _ALGORITHMS[len(wanted.name)]:
        kind = _NAMES.get(algorithm, str(algorithm))
        raise SetupError(f"{path}: the image's fs-verity digest is {kind}:{digest.hex()}")


def mark_root_device(device: str = GPT_AUTO_ROOT) -> None:
    """Tell systemd's GPT generator which disk lies under the overlay it will find as root."""
    try:
        number = os.stat(device).st_rdev
        os.makedirs(os.path.dirname(VOLATILE_ROOT), exist_ok=True)
        os.symlink(f"/dev/block/{os.major(number)}:{os.minor(number)}", VOLATILE_ROOT)
    except (FileNotFoundError, FileExistsError):
        return


def setup_root(
    words: list[str],
    *,
    sysroot: str = "/sysroot",
    config_path: str = CONFIG,
    root_fs: str | None = None,
    target: str | None = None,
) -> str:
    """Assemble the root and put it at `target`, or in the place of `sysroot`.

    `root_fs` names a tree to take in the place of the EROFS image, for tests. Returns the line to
    log. Raises `SetupError` or `OSError`, and then nothing has moved.
    """
    config = read_config(config_path, words)
    images = wanted_images(words)
    with _Work() as work:
        physical = work.keep(os.open(sysroot, _FOLDER))
        if root_fs is None:
            repository = work.keep(_open_folder(physical, "composefs"))
            image, wanted = open_image(repository, images)
            work.keep(image)
            work.mount_image(image, wanted, f"{sysroot}/composefs/objects", config)
        else:
            wanted = images[0]
            newmount.attach(work.keep(newmount.clone(root_fs)), work.root)
        _add_sysroot(work, physical)
        for name, mode in (("etc", config.etc), ("var", config.var)):
            _add_state(work, physical, wanted.name, name, mode)
        if target is None:
            libc.umount2(sysroot, libc.MNT_DETACH)
        newmount.move(work.root, target or sysroot)
    how = "not verified" if wanted.insecure else "verified"
    return f"composefs:{wanted.name} ({how}) is the root at {target or sysroot}"


def _open_folder(at: int, path: str) -> int:
    try:
        return libc.openat2(at, path, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        raise SetupError(f"{path} of the physical root: {error.strerror}") from error


def _add_sysroot(work: "_Work", physical: int) -> None:
    tree = work.keep(newmount.clone("", at=physical))
    newmount.set_readonly(tree)
    try:
        newmount.attach(tree, f"{work.root}/sysroot")
    except FileNotFoundError:
        return


def _add_state(work: "_Work", physical: int, deployment: str, name: str, mode: str) -> None:
    """Mount /etc or /var of the new root."""
    target = f"{work.root}/{name}"
    if mode in ("none", "root"):
        return
    if mode == "volatile":
        newmount.attach(work.keep(newmount.fsmount("tmpfs", [("mode", "0755")])), target)
        return
    if mode == "transient":
        upper, scratch = work.make_layers(name)
    else:
        state = work.keep(_open_folder(physical, f"state/deploy/{deployment}/{name}"))
        if mode == "bind":
            tree = work.keep(newmount.clone("", at=state))
            newmount.set_writable(tree)
            newmount.attach(tree, target)
            return
        upper, scratch = (f"/proc/self/fd/{state}/{part}" for part in ("upper", "work"))
        _make_layers(upper, scratch)
    options = [("source", name), ("lowerdir+", target), ("upperdir", upper), ("workdir", scratch)]
    newmount.attach(work.keep(newmount.fsmount("overlay", options)), target)


def _make_layers(upper: str, scratch: str) -> None:
    for path, mode in ((upper, 0o755), (scratch, 0o700)):
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            continue


class _Work:
    """A private tmpfs to assemble the tree in, and the descriptors it takes; all go at the end.

    Private, because a mount whose parent is shared cannot be moved.
    """

    def __init__(self) -> None:
        self.path = f"/run/bootc-setup-root-{os.getpid()}"
        self.root = f"{self.path}/root"
        self._fds: list[int] = []

    def __enter__(self) -> "_Work":
        os.makedirs(self.path, 0o700)
        try:
            libc.mount("bootc-setup-root", self.path, "tmpfs", 0, "mode=0755")
        except BaseException:
            os.rmdir(self.path)
            raise
        try:
            libc.mount(None, self.path, None, libc.MS_PRIVATE)
            os.mkdir(self.root)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds:
            os.close(fd)
        # Lazily: the overlays made here go on using the layers in this tmpfs.
        libc.umount2(self.path, libc.MNT_DETACH)
        os.rmdir(self.path)

    def keep(self, fd: int) -> int:
        """Close `fd` at the end."""
        self._fds.append(fd)
        return fd

    def make_layers(self, name: str) -> tuple[str, str]:
        """Upper and work folder in memory, for an overlay over `name`."""
        upper, scratch = f"{self.path}/{name}.upper", f"{self.path}/{name}.work"
        _make_layers(upper, scratch)
        return upper, scratch

    def mount_image(self, image: int, wanted: Wanted, objects: str, config: Config) -> None:
        """Mount the EROFS image and the overlay that is the root."""
        lower = f"{self.path}/image"
        os.mkdir(lower)
        source = f"/proc/self/fd/{image}"
        try:
            erofs = self.keep(newmount.fsmount("erofs", [("source", source), ("ro", None)]))
        except OSError as error:
            if error.errno == errno.ENOTBLK:
                raise SetupError("this kernel mounts no EROFS from a file (6.12 does)") from error
            raise
        # Up to Linux 6.14 an overlay takes only layers that are attached somewhere.
        newmount.attach(erofs, lower)
        options: list[newmount.Option] = [("metacopy", "on"), ("redirect_dir", "on")]
        if not wanted.insecure:
            options.append(("verity", "require"))
        options += [("lowerdir+", lower), ("datadir+", objects)]
        if config.transient_root:
            upper, scratch = self.make_layers("root")
            options += [("upperdir", upper), ("workdir", scratch)]
            options.insert(0, ("source", f"transient:composefs={wanted.name}"))
            overlay = newmount.fsmount("overlay", options)
        else:
            options.insert(0, ("source", f"composefs:{wanted.name}"))
            overlay = newmount.fsmount("overlay", options, attributes=newmount.MOUNT_ATTR_RDONLY)
        newmount.attach(self.keep(overlay), self.root)


USAGE = """usage: bootc-setup-root [--sysroot DIR] [--config FILE] [--root-fs DIR]
                        [--cmdline STRING] [--target DIR]
"""


def parse_arguments(arguments: list[str]) -> dict[str, str]:
    """`--name VALUE` and `--name=VALUE` by name; argparse costs more than the whole program."""
    options: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name not in ("--sysroot", "--config", "--root-fs", "--cmdline", "--target"):
            raise SetupError(f"{name}: no such option\n{USAGE}")
        if not equals:
            if not rest:
                raise SetupError(f"{name}: needs a value\n{USAGE}")
            value = rest.pop(0)
        options[name] = value
    return options


def describe(error: OSError) -> str:
    """What failed at what, without Python's decoration."""
    where = error.filename
    text = error.strerror or str(error)
    return f"{os.fsdecode(where)}: {text}" if isinstance(where, str | bytes) else text


def say(line: str, *, level: int) -> None:
    """One line into the kernel's log, for the journal and for a console that shows nothing else."""
    try:
        kmsg = os.open("/dev/kmsg", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(kmsg, f"<{level}>{line}\n".encode())
    except OSError:
        return
    finally:
        os.close(kmsg)


def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    if "--help" in given:
        sys.stdout.write(USAGE)
        return 0
    try:
        options = parse_arguments(given)
        text = options.get("--cmdline")
        mark_root_device()
        line = setup_root(
            cmdline.read() if text is None else cmdline.split(text),
            sysroot=options.get("--sysroot", "/sysroot"),
            config_path=options.get("--config", CONFIG),
            root_fs=options.get("--root-fs"),
            target=options.get("--target"),
        )
    except (SetupError, OSError) as error:
        text = describe(error) if isinstance(error, OSError) else str(error)
        sys.stderr.write(f"bootc-setup-root: {text}\n")
        say(f"bootc-setup-root: {text}", level=2)
        return 1
    sys.stdout.write(f"bootc-setup-root: {line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
