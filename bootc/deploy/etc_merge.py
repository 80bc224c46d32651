# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The three-way merge of /etc: what was changed on this machine is carried into a new image's /etc.

Three trees: *pristine* is /etc of the image that runs, *current* what it has become, *new* /etc of
the image to come. `plan_merge` compares, `apply_merge` carries out.

* Two nodes are the same if owner, group, mode, all extended attributes, type and content are:
  bytes or fs-verity digest of a file, target of a link. Times don't count.
* added: in current and not in pristine (of a new folder everything in it, too). modified: in both
  and not the same. removed: only in pristine; a folder stands for what is in it.
* A folder that was not changed, but has local changes below, and that new doesn't have any more,
  is made again: `recreated`.
* Local changes win over new ones. Only two cannot be reconciled: a folder here that is a file in
  new, and a file here that is a folder in new. Then nothing may be applied.

Applying the same plan again, also after an interruption, gives the same result: files are written
under a temporary name in the root of new and renamed. Nothing here follows a symbolic link.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from enum import StrEnum

from bootc.composefs.digest import Algorithm, digest_bytes
from bootc.deploy.etc_tree import read_xattrs
from bootc.errors import BootcError
from bootc.linux import libc, reflink
from bootc.records import dataclass
from bootc.tree import Content, Device, Directory, External, Inline, Leaf, Node, Sparse, Special

_log = logging.getLogger(__name__)

TEMPORARY = ".bootc-merge"
"""In the root of new: what is being written. There is one writer at a time."""

_NO_SYMLINKS = 0x04
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_SPARSE_MAX = 1 << 24
_NO_NODES: dict[bytes, Node] = {}


class ConflictKind(StrEnum):
    """What became of the name in the new image."""

    FILE = "file"
    DIRECTORY = "directory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """A local change that has no place in the new /etc; `now` is what the name is there."""

    path: str
    now: ConflictKind

    def __str__(self) -> str:
        if self.now is ConflictKind.FILE:
            return f"Directory '{self.path}' now defaults to a file in new etc"
        return f"File '{self.path}' now defaults to a directory in new etc"


@dataclass(frozen=True, slots=True, kw_only=True)
class MergePlan:
    """Paths below /etc without a leading slash, parents before what is in them."""

    added: tuple[str, ...] = ()
    modified: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    recreated: tuple[str, ...] = ()
    conflicts: tuple[Conflict, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.added or self.modified or self.removed or self.conflicts)


def plan_merge(pristine: Directory, current: Directory, new: Directory | None = None) -> MergePlan:
    """Compare the three trees; without `new`, only say what was changed on this machine."""
    plan = _Planner(merging=new is not None)
    plan.visit((), pristine.entries, current.entries, new.entries if new else _NO_NODES)
    return MergePlan(
        added=_in_order(plan.added),
        modified=_in_order(plan.modified),
        removed=_in_order(plan.removed),
        recreated=_in_order(plan.recreated),
        conflicts=tuple(
            Conflict(path=_text(path), now=now) for path, now in sorted(plan.conflicts)
        ),
    )


def need_mergeable(plan: MergePlan) -> None:
    """Raises `BootcError` when something cannot be merged."""
    if plan.conflicts:
        told = "; ".join(str(conflict) for conflict in plan.conflicts)
        raise BootcError(
            f"Merge conflicts found in etc: {told}",
            hint="move these out of the way in /etc, and try again; nothing was changed",
        )


def is_same(left: Node, right: Node) -> bool:
    """Whether two nodes (of folders, without what is in them) are the same to a merge."""
    mine, theirs = left.stat, right.stat
    if (mine.mode, mine.uid, mine.gid) != (theirs.mode, theirs.uid, theirs.gid):
        return False
    if mine.xattrs != theirs.xattrs:
        return False
    if isinstance(left, Directory) or isinstance(right, Directory):
        return type(left) is type(right)
    return left.kind == right.kind and _is_same_content(left.content, right.content)


def _is_same_content(left: Content, right: Content) -> bool:
    match left, right:
        case External(digest=None), _:
            return False
        case External(size=size, digest=digest), External(size=other, digest=found):
            return size == other and digest == found
        case ((Inline() | Sparse()), External()):
            return _is_same_content(right, left)
        case External(size=size, digest=digest), (Inline() | Sparse()):
            data = _bytes_of(right)
            if digest is None or data is None or len(data) != size:
                return False
            kind = Algorithm.SHA512 if len(digest) == Algorithm.SHA512.size else Algorithm.SHA256
            return digest_bytes(data, kind) == digest
        case ((Inline() | Sparse()), (Inline() | Sparse())):
            return left == right or _bytes_of(left) == _bytes_of(right) is not None
        case _:
            return left == right


def _bytes_of(content: Content) -> bytes | None:
    """The content of a small file; None when it is too large to be held."""
    match content:
        case Inline(data=data):
            return data
        case Sparse(size=size) if size <= _SPARSE_MAX:
            return bytes(size)
        case _:
            return None


_Path = tuple[bytes, ...]


class _Planner:
    def __init__(self, *, merging: bool) -> None:
        self.added: list[_Path] = []
        self.modified: list[_Path] = []
        self.removed: list[_Path] = []
        self.recreated: list[_Path] = []
        self.conflicts: list[tuple[_Path, ConflictKind]] = []
        self._merging = merging

    def visit(
        self,
        path: _Path,
        pristine: dict[bytes, Node],
        current: dict[bytes, Node],
        new: dict[bytes, Node],
    ) -> bool:
        """Compare what is in a folder; whether there is a change that needs the folder in new."""
        changed = False
        for name in pristine.keys() | current.keys():
            before, here = _known(pristine.get(name)), _known(current.get(name))
            where = (*path, name)
            if here is not None:
                changed |= self._compare(where, before, here, new.get(name))
            elif before is not None:
                self.removed.append(where)
        return changed

    def _compare(self, where: _Path, before: Node | None, here: Node, new: Node | None) -> bool:
        is_folder = isinstance(here, Directory)
        changed = before is None or not is_same(before, here)
        if changed:
            (self.added if before is None else self.modified).append(where)
        below = False
        if isinstance(here, Directory):
            was = before.entries if isinstance(before, Directory) else _NO_NODES
            will = new.entries if isinstance(new, Directory) else _NO_NODES
            below = self.visit(where, was, here.entries, will)
        if not (changed or below) or not self._merging:
            return changed or below
        if new is None:
            if not changed:
                self.recreated.append(where)
        elif is_folder and not isinstance(new, Directory):
            self.conflicts.append((where, ConflictKind.FILE))
        elif not is_folder and isinstance(new, Directory):
            self.conflicts.append((where, ConflictKind.DIRECTORY))
        return True


def _known(node: Node | None) -> Node | None:
    """A node that takes part in a merge."""
    if isinstance(node, Leaf) and isinstance(node.content, Device | Special):
        return None
    return node


def _in_order(paths: list[_Path]) -> tuple[str, ...]:
    return tuple(_text(path) for path in sorted(paths))


def _text(path: _Path) -> str:
    return os.fsdecode(b"/".join(path))


# -- Carrying it out


def apply_merge(
    plan: MergePlan, current: str | os.PathLike[str], new: str | os.PathLike[str]
) -> None:
    """Carry the changes of `plan` from the folder `current` into the folder `new`, durably.

    What has gone from `current` since it was planned is passed over, with a warning.
    """
    need_mergeable(plan)
    with _open_folder(os.fspath(current)) as source, _open_folder(os.fspath(new)) as target:
        merger = _Merger(source, target)
        merger.discard()
        try:
            # Parents first: what is added may lie in a folder that is made again.
            for path in sorted({*plan.recreated, *plan.added, *plan.modified}, key=_parts):
                merger.carry(path)
            for path in plan.removed:
                merger.remove(path)
        except OSError as error:
            raise BootcError(
                f"cannot merge /etc into {os.fspath(new)}: {error.strerror}"
                + (f": {error.filename}" if error.filename else ""),
                hint="make room on the root file system" if error.errno == errno.ENOSPC else None,
            ) from error
        finally:
            merger.discard()
        libc.syncfs(target)


def _parts(path: str) -> list[bytes]:
    return os.fsencode(path).split(b"/")


@contextlib.contextmanager
def _open_folder(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


class _Merger:
    """Copies names from one folder's descriptor to another's."""

    def __init__(self, source: int, target: int) -> None:
        self._source = source
        self._target = target
        self._links: dict[tuple[int, int], str] = {}

    def discard(self) -> None:
        """Remove what an interrupted merge was writing."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(TEMPORARY, dir_fd=self._target)

    def carry(self, path: str) -> None:
        """Make `path` in new what it is in current; of a folder, not what is in it."""
        folder, _, name = path.rpartition("/")
        with contextlib.ExitStack() as stack:
            try:
                source = stack.enter_context(_beneath(self._source, folder))
                status = os.stat(name, dir_fd=source, follow_symlinks=False)
            except FileNotFoundError:
                _log.warning("/etc/%s went away while /etc was merged", path)
                return
            target = stack.enter_context(_beneath(self._target, folder))
            self._carry(path, name, status, source, target)

    def _carry(
        self, path: str, name: str, status: os.stat_result, source: int, target: int
    ) -> None:
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            self._folder(name, source, target)
            return
        if kind not in (stat.S_IFREG, stat.S_IFLNK):
            return
        key = (status.st_dev, status.st_ino)
        first = self._links.get(key) if status.st_nlink > 1 else None
        if first is not None:
            with _beneath(self._target, first.rpartition("/")[0]) as fd:
                base = first.rpartition("/")[2]
                os.link(
                    base,
                    TEMPORARY,
                    src_dir_fd=fd,
                    dst_dir_fd=self._target,
                    follow_symlinks=False,
                )
        elif kind == stat.S_IFREG:
            self._file(name, source)
        else:
            self._symlink(name, status, source)
        os.rename(TEMPORARY, name, src_dir_fd=self._target, dst_dir_fd=target)
        # A rename over another name of the same file does nothing at all.
        self.discard()
        self._links.setdefault(key, path)

    def _file(self, name: str, source: int) -> None:
        fd = os.open(name, _FILE, dir_fd=source)
        try:
            status = os.fstat(fd)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            written = os.open(TEMPORARY, flags, 0o600, dir_fd=self._target)
            try:
                if not reflink.clone(written, fd):
                    reflink.copy(written, fd)
                _set_metadata(written, status, read_xattrs(fd))
            finally:
                os.close(written)
        finally:
            os.close(fd)

    def _symlink(self, name: str, status: os.stat_result, source: int) -> None:
        os.symlink(os.readlink(name, dir_fd=source), TEMPORARY, dir_fd=self._target)
        os.chown(
            TEMPORARY, status.st_uid, status.st_gid, dir_fd=self._target, follow_symlinks=False
        )
        made = f"/proc/self/fd/{self._target}/{TEMPORARY}"
        for key, value in read_xattrs(f"/proc/self/fd/{source}/{name}").items():
            os.setxattr(made, key, value, follow_symlinks=False)
        times = (status.st_atime_ns, status.st_mtime_ns)
        os.utime(TEMPORARY, ns=times, dir_fd=self._target, follow_symlinks=False)

    def _folder(self, name: str, source: int, target: int) -> None:
        fd = os.open(name, _FOLDER, dir_fd=source)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=target)
            made = os.open(name, _FOLDER, dir_fd=target)
            try:
                _set_metadata(made, os.fstat(fd), read_xattrs(fd))
            finally:
                os.close(made)
        finally:
            os.close(fd)

    def remove(self, path: str) -> None:
        """Remove `path`, if it is there, and what is in it."""
        folder, _, name = path.rpartition("/")
        try:
            with _beneath(self._target, folder) as fd:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    shutil.rmtree(name, dir_fd=fd)
                else:
                    os.unlink(name, dir_fd=fd)
        except FileNotFoundError:
            return
        except OSError as error:
            # The folder that it was in is a file or a link now: then it isn't there.
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise


@contextlib.contextmanager
def _beneath(root: int, folder: str) -> Iterator[int]:
    """The descriptor of a folder below `root`, reached without any symbolic link."""
    resolve = libc.RESOLVE_BENEATH | _NO_SYMLINKS
    fd = libc.openat2(root, folder or ".", os.O_RDONLY | os.O_DIRECTORY, resolve=resolve)
    try:
        yield fd
    finally:
        os.close(fd)


def _set_metadata(fd: int, status: os.stat_result, xattrs: dict[bytes, bytes]) -> None:
    """Give a file or folder the owner, attributes, mode and times; the mode after the owner,
    because a change of owner drops set-id bits and file capabilities."""
    os.fchown(fd, status.st_uid, status.st_gid)
    for key, value in xattrs.items():
        os.setxattr(fd, key, value)
    for extra in read_xattrs(fd).keys() - xattrs.keys():
        # Such as an ACL that was inherited. A label, the kernel may not let go.
        if extra != b"security.selinux":
            os.removexattr(fd, extra)
    os.fchmod(fd, stat.S_IMODE(status.st_mode))
    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
