# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What a repository is: the file `meta.json`, or what the objects tell where it is missing.

    {"version": 1,
     "algorithm": "fsverity-sha512-12",
     "features": {"compatible": [], "read-only-compatible": ["v1_erofs"], "incompatible": []},
     "erofs_formats": {"default": 1, "extra": [2]}}

The file has two blanks of indent and a newline at the end; `extra`, sorted, is left out when empty.

* A version other than 1 and any incompatible feature are refused. A repository with an unknown
  read-only-compatible feature can be read; writing to it is refused.
* Images are made in the format `default`, then in each of `extra`. Where `erofs_formats` is missing
  or says only 2, the flag `v1_erofs` decides: 1 with it, 2 without.
* Unknown keys are ignored.
* Whether fs-verity is required is not in the JSON: it is when meta.json itself has it enabled.

An old repository has objects and no meta.json. The length of the objects' names is its algorithm,
verity on them its security; it gets a meta.json with the formats of a new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from bootc import fs, jsonutil
from bootc.composefs.digest import Algorithm
from bootc.errors import BootcError, FormatError
from bootc.linux import fsverity, libc
from bootc.records import dataclass

META = "meta.json"
TEMPORARY = ".tmp-meta-"
"""How the names of files begin that a failed `write_metadata` may leave."""
V1_EROFS = "v1_erofs"
EROFS_VERSIONS = (0, 1, 2)
_SIZE_MAX = 1 << 20
_REGULAR = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """The content of meta.json."""

    algorithm: Algorithm
    erofs_default: int = 1
    erofs_extra: tuple[int, ...] = ()
    compatible: tuple[str, ...] = ()
    read_only_compatible: tuple[str, ...] = (V1_EROFS,)

    @classmethod
    def fresh(
        cls, algorithm: Algorithm, *, default: int = 1, extra: tuple[int, ...] = ()
    ) -> Metadata:
        """That of a new repository, whose images have the version `default`, and `extra` ones."""
        for version in (default, *extra):
            if version not in EROFS_VERSIONS:
                raise BootcError(f"there is no EROFS version {version}", hint="use 0, 1 or 2")
        return cls(
            algorithm=algorithm,
            erofs_default=default,
            erofs_extra=tuple(sorted(set(extra) - {default})),
            read_only_compatible=(V1_EROFS,) if default == 1 else (),
        )

    @property
    def unknown_features(self) -> tuple[str, ...]:
        """Read-only-compatible features that this program doesn't know: it must not write."""
        return tuple(name for name in self.read_only_compatible if name != V1_EROFS)

    def to_json(self) -> str:
        formats: dict[str, int | list[int]] = {"default": self.erofs_default}
        if self.erofs_extra:
            formats["extra"] = sorted(self.erofs_extra)
        return jsonutil.pretty(
            {
                "version": 1,
                "algorithm": self.algorithm.identifier,
                "features": {
                    "compatible": list(self.compatible),
                    "read-only-compatible": list(self.read_only_compatible),
                    "incompatible": [],
                },
                "erofs_formats": formats,
            }
        )


def read_algorithm(identifier: str, source: str) -> Algorithm:
    """The algorithm that `fsverity-sha512-12` and the like name."""
    for algorithm in Algorithm:
        if algorithm.identifier == identifier:
            return algorithm
    known = " or ".join(algorithm.identifier for algorithm in Algorithm)
    raise FormatError(
        source, ".algorithm", f"unknown algorithm {identifier!r}", hint=f"{known} is known"
    )


def read_metadata(text: bytes, source: str) -> Metadata:
    """Parse meta.json; refuses what this program would handle wrongly."""
    top = jsonutil.read_object(text, source)
    if top.integer("version") != 1:
        raise FormatError(
            source, ".version", f"version {top.integer('version')} is unknown, 1 is the newest"
        )
    features = top.optional_table("features")
    flags: dict[str, tuple[str, ...]] = {}
    for kind in ("compatible", "read-only-compatible", "incompatible"):
        listed = features is not None and features.has(kind)
        flags[kind] = tuple(features.texts(kind)) if features is not None and listed else ()
    if flags["incompatible"]:
        raise FormatError(
            source,
            ".features.incompatible",
            f"unknown features {', '.join(flags['incompatible'])}",
            hint="use a newer version of this program",
        )
    default, extra = _read_formats(top, source)
    if default == 2 and not extra and V1_EROFS in flags["read-only-compatible"]:
        default = 1
    return Metadata(
        algorithm=read_algorithm(top.text("algorithm"), source),
        erofs_default=default,
        erofs_extra=extra,
        compatible=flags["compatible"],
        read_only_compatible=flags["read-only-compatible"],
    )


def _read_formats(top: jsonutil.Reader, source: str) -> tuple[int, tuple[int, ...]]:
    formats = top.optional_table("erofs_formats")
    if formats is None:
        return 2, ()
    default = formats.integer("default")
    listed = formats.value.get("extra", [])
    if not isinstance(listed, list) or not all(type(item) is int for item in listed):
        raise FormatError(source, ".erofs_formats.extra", "expected integers")
    for where, version in ((".default", default), *((".extra", item) for item in listed)):
        if version not in EROFS_VERSIONS:
            raise FormatError(source, f".erofs_formats{where}", f"unknown EROFS version {version}")
    return default, tuple(sorted(set(listed) - {default}))


def load_metadata(fd: int, path: str) -> tuple[Metadata, bool] | None:
    """(metadata, whether verity is required) of the repository directory `fd`, or None.

    None: there is no meta.json. `path` is for messages.
    """
    source = os.path.join(path, META)
    try:
        file = os.open(META, _REGULAR, dir_fd=fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BootcError(f"cannot read {source}: {error.strerror}") from error
    with os.fdopen(file, "rb") as reader:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_size > _SIZE_MAX:
            raise FormatError(source, None, f"is no regular file of at most {_SIZE_MAX} bytes")
        measured = fsverity.measure(file)
        metadata = read_metadata(reader.read(_SIZE_MAX), source)
    if measured is not None and measured[0] != metadata.algorithm.kernel:
        raise FormatError(source, ".algorithm", "is not the one of the file's own fs-verity")
    return metadata, measured is not None


def write_metadata(fd: int, path: str, metadata: Metadata, *, secure: bool) -> None:
    """Write meta.json into the directory `fd`, durably, never over another (`FileExistsError`).

    `secure` enables verity on it. Raises `BootcError` where there is no verity.
    """
    if META in os.listdir(fd):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), META)
    try:
        with _new_file(fd) as (file, name):
            fs.write_all(file, metadata.to_json().encode())
            os.fsync(file)
            reading = os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)
            os.dup2(reading, file, inheritable=False)
            os.close(reading)
            if secure:
                fsverity.enable_patiently(file, metadata.algorithm.kernel)
            if name is None:
                libc.link_fd(file, fd, META)
            else:
                os.link(name, META, src_dir_fd=fd, dst_dir_fd=fd)
        os.fsync(fd)
    except FileExistsError:
        raise
    except OSError as error:
        if secure and fsverity.is_unsupported(error):
            raise no_verity(path) from error
        raise BootcError(f"cannot write {path}/{META}: {error.strerror}") from error


def no_verity(path: str) -> BootcError:
    """The refusal of a secure repository on a file system without fs-verity."""
    return BootcError(
        f"{path}: the file system has no fs-verity",
        hint="use ext4 with `tune2fs -O verity`, or btrfs, or --insecure",
    )


@contextlib.contextmanager
def _new_file(fd: int) -> Iterator[tuple[int, str | None]]:
    """(descriptor, name) of a new file in `fd`: without a name where the file system can."""
    flags = os.O_WRONLY | os.O_CLOEXEC
    name = None
    try:
        file = os.open(".", flags | os.O_TMPFILE, 0o644, dir_fd=fd)
    except OSError as error:
        if not fs.lacks_tmpfile(error):
            raise
        name = fs.temporary_name(TEMPORARY)
        file = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=fd)
    try:
        yield file, name
    finally:
        os.close(file)
        if name is not None:
            os.unlink(name, dir_fd=fd)


def infer_metadata(fd: int, path: str) -> tuple[Metadata, bool]:
    """(metadata, whether verity is required) of an old repository, from its objects.

    Raises `BootcError` if they don't tell: there are none, or two algorithms are mixed.
    """
    hint = f"make it a new one with `cfsctl --repo {path} init --reset-metadata`"
    found: dict[Algorithm, str] = {}
    try:
        with fs.open_directory("objects", dir_fd=fd) as objects:
            for number in range(256):
                shard = f"{number:02x}"
                for rest in _names(shard, objects):
                    for algorithm in Algorithm:
                        if len(rest) == 2 * algorithm.size - 2:
                            found.setdefault(algorithm, f"objects/{shard}/{rest}")
                if found:
                    break
    except OSError as error:
        raise BootcError(f"cannot read {path}/objects: {error.strerror}") from error
    if len(found) != 1:
        said = "no objects that tell its" if not found else "objects of more than one"
        raise BootcError(f"{path} has no {META} and {said} algorithm", hint=hint)
    ((algorithm, example),) = found.items()
    file = os.open(example, _REGULAR, dir_fd=fd)
    try:
        measured = fsverity.measure(file)
    finally:
        os.close(file)
    return Metadata.fresh(algorithm), measured is not None


def _names(shard: str, objects: int) -> list[str]:
    try:
        with fs.open_directory(shard, dir_fd=objects) as fd:
            return os.listdir(fd)
    except FileNotFoundError:
        return []
