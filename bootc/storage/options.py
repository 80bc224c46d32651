# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Where the stores are, found as podman finds them.

Source: containers-storage.conf(5), containers-config(5), and what podman 4.3, 5.4 and 5.8 do.

One main file, the first there is of `$XDG_CONFIG_HOME/containers/storage.conf` (without that
variable `~/.config/…`), `/etc/containers/storage.conf`, `/usr/share/containers/storage.conf`. Then
the drop-ins, `*.conf` of

    /usr/share/containers/ and /etc/containers/:  storage.conf.d, storage.rootful.conf.d (root) or
                                                  storage.rootless.conf.d and …/UID (others)
    the user's containers/:                       storage.conf.d

in the order of their names, wherever they lie; of those with the same name only the one from the
place that stands last above. A later file's fields replace earlier ones, whole arrays too; an
array that ends in `{append=true}` is appended. CONTAINERS_STORAGE_CONF names the one file to be
read instead of all these, CONTAINERS_STORAGE_CONF_OVERRIDE one to be read after them.

STORAGE_DRIVER replaces the driver, the stores in STORAGE_OPTS (`overlay.imagestore=PATH`,
`additionalimagestore=PATH`, separated by commas) are added. Paths may contain $VARIABLES, and $UID.

podman before 5.8 (measured: 4.3, 5.4) knew no drop-ins and no override, looked for root's own file
only where XDG_CONFIG_HOME is set, and took no folders from files that are not the user's when it
ran without root, but `rootless_storage_path`. These are `Rules.CLASSIC`. Where both rules find the
same store, and that is nearly always, nobody is asked; else podman says its version.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from bootc import process
from bootc.errors import BootcError, FormatError
from bootc.jsonutil import Reader

GRAPHROOT = "/var/lib/containers/storage"
RUNROOT = "/run/containers/storage"
_FILE_MAX = 1 << 20
_DROP_INS_SINCE = (5, 8)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_STORE_KEYS = ("imagestore", "additionalimagestore")


class Rules(StrEnum):
    """Which podman's way of reading its configuration."""

    DROP_INS = "drop-ins"
    CLASSIC = "classic"


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageOptions:
    """A store and those beside it: absolute paths. `driver` is empty if nothing names one.

    Images are written to `imagestore` if there is one, else to `graphroot`; `additional` are
    read-only. `files` were read to know this, in their order.
    """

    driver: str = ""
    graphroot: str
    runroot: str
    imagestore: str | None = None
    additional: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def roots(self) -> tuple[str, ...]:
        """The folders that may hold images, in the order in which they are looked for."""
        found = [*([self.imagestore] if self.imagestore else []), self.graphroot, *self.additional]
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Surroundings:
    environ: Mapping[str, str]
    uid: int
    root: str

    @property
    def rootless(self) -> bool:
        return self.uid != 0

    def system(self, *names: str) -> str:
        return os.path.join(self.root, *names)

    @property
    def user(self) -> str | None:
        """The user's folder of configuration."""
        if folder := self.environ.get("XDG_CONFIG_HOME"):
            return os.path.join(folder, "containers")
        home = self.environ.get("HOME")
        return os.path.join(home, ".config/containers") if home else None


def find_options(
    environ: Mapping[str, str] | None = None,
    *,
    uid: int | None = None,
    root: str = "/",
    rules: Rules | None = None,
) -> StorageOptions:
    """The stores of the user `uid` (default: ours), with the system's files below `root`.

    Without `rules` they are podman's of this machine. Raises `BootcError` (`FormatError`) for files
    that are missing or bad.
    """
    around = _Surroundings(
        environ=os.environ if environ is None else environ,
        uid=_host_uid() if uid is None else uid,
        root=root,
    )
    if rules is not None:
        return _find(around, rules)
    found = _find(around, Rules.DROP_INS)
    older = _find(around, Rules.CLASSIC)
    if replace(found, files=()) == replace(older, files=()):
        return found
    return older if _podman_is_classic() else found


def _host_uid() -> int:
    """Our user id, but in a user namespace that podman made the one outside of it."""
    told = os.environ.get("_CONTAINERS_ROOTLESS_UID", "")
    return int(told) if told.isdigit() and len(told) < 10 else os.geteuid()


def _podman_is_classic() -> bool:
    program = process.find_program("podman")
    if program is None:
        return False
    said = process.run([program, "--version"], timeout=60, check=False).stdout
    version = re.search(r"(\d+)\.(\d+)", said)
    return version is not None and (int(version[1]), int(version[2])) < _DROP_INS_SINCE


def _find(around: _Surroundings, rules: Rules) -> StorageOptions:
    files = _files(around, rules)
    merged: dict[str, object] = {}
    for path in files:
        _merge(merged, _read(path))
    storage = _table(merged, "storage", files)
    if rules is Rules.CLASSIC and around.rootless and not _is_users(files, around):
        # Folders of the system's are not for users.
        for key in ("graphroot", "runroot", "imagestore"):
            storage.pop(key, None)
        options = _table(storage, "options", files)
        options.pop("additionalimagestores", None)
        storage["options"] = options
    return _options(
        around, Reader(storage, files[-1] if files else "storage.conf", ".storage"), files
    )


def _options(around: _Surroundings, storage: Reader, files: tuple[str, ...]) -> StorageOptions:
    def path(key: str, default: str) -> str:
        return _expanded(storage.optional_text(key) or default, around, storage.source)

    graphroot, runroot = _defaults(around)
    if around.rootless:
        graphroot = storage.optional_text("rootless_storage_path") or graphroot
    driver = around.environ.get("STORAGE_DRIVER") or storage.optional_text("driver") or ""
    additional: list[str] = []
    options = storage.optional_table("options")
    if options is not None and options.has("additionalimagestores"):
        additional += options.texts("additionalimagestores")
    additional += parse_store_options(around.environ.get("STORAGE_OPTS", ""))
    imagestore = storage.optional_text("imagestore")
    return StorageOptions(
        driver="overlay" if driver == "overlay2" else driver,
        graphroot=path("graphroot", graphroot),
        runroot=path("runroot", runroot),
        imagestore=_expanded(imagestore, around, storage.source) if imagestore else None,
        additional=tuple(_clean(store, storage.source) for store in additional),
        files=files,
    )


def parse_store_options(text: str) -> list[str]:
    """The additional stores among comma-separated `[overlay.]KEY=VALUE`."""
    found = []
    for item in text.split(","):
        key, _, value = item.partition("=")
        name = key.strip().lower().removeprefix("overlay").removeprefix("2").removeprefix(".")
        if name in _STORE_KEYS and value.strip():
            found.append(value.strip())
    return found


def _clean(path: str, source: str) -> str:
    if not os.path.isabs(path):
        raise BootcError(
            f"{source}: the image store {path!r} is no absolute path",
            hint="write it with a leading slash in additionalimagestores or STORAGE_OPTS",
        )
    return os.path.normpath(path)


def _expanded(path: str, around: _Surroundings, source: str) -> str:
    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        return str(around.uid) if name == "UID" else around.environ.get(name, "")

    expanded = _VARIABLE.sub(value, path)
    if not os.path.isabs(expanded):
        raise BootcError(
            f"{source}: the path {path!r} is {expanded!r}, which is not absolute",
            hint="write an absolute path, or set the variables in it",
        )
    return os.path.realpath(expanded)


def _defaults(around: _Surroundings) -> tuple[str, str]:
    """(graphroot, runroot) where no file says anything."""
    if not around.rootless:
        return GRAPHROOT, RUNROOT
    environ = around.environ
    data = environ.get("XDG_DATA_HOME") or os.path.join(environ.get("HOME") or "/", ".local/share")
    runtime = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{around.uid}"
    if not os.path.isdir(runtime):
        runtime = f"/tmp/storage-run-{around.uid}"
    return os.path.join(data, "containers/storage"), os.path.join(runtime, "containers")


def _is_users(files: tuple[str, ...], around: _Surroundings) -> bool:
    user = around.user
    return bool(files) and user is not None and files[0] == os.path.join(user, "storage.conf")


def _files(around: _Surroundings, rules: Rules) -> tuple[str, ...]:
    """The files that say what counts, the last one most."""
    environ = around.environ
    named = environ.get("CONTAINERS_STORAGE_CONF")
    user = around.user
    if rules is Rules.CLASSIC:
        if not around.rootless and not environ.get("XDG_CONFIG_HOME"):
            user = None
        return (named,) if named else _main_file(around, user)
    files = (named,) if named else (*_main_file(around, user), *_drop_ins(around, user))
    last = environ.get("CONTAINERS_STORAGE_CONF_OVERRIDE")
    return (*files, last) if last else files


def _main_file(around: _Surroundings, user: str | None) -> tuple[str, ...]:
    places = [around.system("etc/containers"), around.system("usr/share/containers")]
    for folder in [*([user] if user else []), *places]:
        path = os.path.join(folder, "storage.conf")
        if os.path.exists(path):
            return (path,)
    return ()


def _drop_ins(around: _Surroundings, user: str | None) -> list[str]:
    kinds = ["storage.conf.d"]
    if around.rootless:
        kinds += ["storage.rootless.conf.d", f"storage.rootless.conf.d/{around.uid}"]
    else:
        kinds += ["storage.rootful.conf.d"]
    folders = [
        around.system(place, kind)
        for place in ("usr/share/containers", "etc/containers")
        for kind in kinds
    ]
    if user is not None:
        folders.append(os.path.join(user, "storage.conf.d"))
    found: dict[str, str] = {}
    for folder in folders:
        try:
            names = os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        for name in names:
            path = os.path.join(folder, name)
            if name.endswith(".conf") and not os.path.isdir(path):
                found[name] = path
    return [found[name] for name in sorted(found)]


def _read(path: str) -> dict[str, object]:
    try:
        with open(path, "rb") as file:
            data = file.read(_FILE_MAX + 1)
    except OSError as error:
        raise BootcError(
            f"cannot read {path}: {error.strerror}",
            hint="podman reads it, too: correct the file, or the variable that names it",
        ) from error
    if len(data) > _FILE_MAX:
        raise FormatError(path, None, "is too large for a configuration file")
    try:
        return tomllib.loads(data.decode())
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise FormatError(path, None, f"is not TOML: {error}") from error
    except RecursionError:
        raise FormatError(path, None, "is not TOML: it is nested too deeply") from None


def _merge(into: dict[str, object], new: Mapping[str, object]) -> None:
    """Let the fields of `new` replace those of `into`; tables are merged."""
    for key, value in new.items():
        old = into.get(key)
        if isinstance(value, dict):
            table = dict(old) if isinstance(old, dict) else {}
            _merge(table, value)
            into[key] = table
        elif isinstance(value, list):
            items = [item for item in value if not isinstance(item, dict)]
            appended = any(isinstance(item, dict) and item.get("append") is True for item in value)
            into[key] = [*old, *items] if appended and isinstance(old, list) else items
        else:
            into[key] = value


def _table(value: Mapping[str, object], key: str, files: tuple[str, ...]) -> dict[str, object]:
    found = value.get(key, {})
    if not isinstance(found, dict):
        raise FormatError(files[-1], f".{key}", "is no table")
    return dict(found)
