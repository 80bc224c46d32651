# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Images mounted by the kernel, and compared with the directory that they were made of."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import stat as st
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bootc import process
from bootc.composefs import (
    Algorithm,
    Device,
    Directory,
    FormatVersion,
    ImageMount,
    Inline,
    Leaf,
    MountOptions,
    NotFoundError,
    Repository,
    Stat,
    Verity,
    make_mount,
    mount_image,
    scan_directory,
    store_content,
    write_image,
)
from bootc.composefs.cli import mount_composefs
from bootc.composefs.mount import Layers, mount_erofs
from bootc.errors import BootcError
from bootc.linux.blockdev import read_mounts

TOP = Path(__file__).resolve().parents[2]
PATHS = {"PYTHONPATH": str(TOP)}
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
"""cap_net_bind_service, effective and permitted (linux/capability.h, `vfs_cap_data`)."""
FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
VERSIONS = [FormatVersion.V0, FormatVersion.V1, FormatVersion.V2]

pytestmark = [pytest.mark.root, pytest.mark.erofs]


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No mount, no loop device, no temporary folder of ours is left by a test."""
    ours = str(tmp_path_factory.getbasetemp())

    def state() -> tuple[list[str], list[str], set[str], int]:
        loops = process.run(["losetup", "--list", "--noheadings", "--output", "BACK-FILE"])
        return (
            [mount.target for mount in read_mounts()],
            [file for file in loops.stdout.split() if file.startswith(ours)],
            {name for name in os.listdir("/tmp") if name.startswith(".composefs")},
            len(os.listdir("/proc/self/fd")),
        )

    before = state()
    yield
    assert state() == before


def make_tree(top: Path) -> None:
    """One of everything that a file system has: kinds, sizes around the limits, names, xattrs."""
    for name, mode in (("usr/bin", 0o755), ("usr/share/empty", 0o2711), ("tmp", 0o1777)):
        (top / name).mkdir(parents=True)
        (top / name).chmod(mode)
    for size in (0, 1, 63, 64, 65, 4095, 4096, 4097, 70_000, 3 << 20):
        (top / f"usr/share/{size}").write_bytes(hashlib.shake_128(b"%d" % size).digest(size))
    sparse = top / "usr/sparse"
    with open(sparse, "wb") as file:
        file.truncate(50 << 20)
        file.seek(10 << 20)
        file.write(b"in the middle")
    (top / "usr/bin/tool").write_bytes(b"#!" + b"x" * 500)
    (top / "usr/bin/tool").chmod(0o4755)
    os.link(top / "usr/bin/tool", top / "usr/bin/another")
    os.link(top / "usr/bin/tool", top / "tmp/third")
    (top / "usr/link").symlink_to("bin/tool")
    (top / "usr/long").symlink_to("../" * 300 + "usr")
    os.mknod(top / "usr/character", st.S_IFCHR | 0o620, os.makedev(5, 1))
    os.mknod(top / "usr/block", st.S_IFBLK | 0o660, os.makedev(259, 70_000))
    os.mkfifo(top / "usr/fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(top / "usr/socket"))
    os.makedirs(os.fsencode(top) + b"/usr/not utf-8 \xff/\n\\=,:")
    for number in range(300):
        (top / f"usr/share/empty/{'n' * 200}{number}").write_bytes(b"%d" % number)
    os.setxattr(top / "usr/bin/tool", "security.capability", CAPABILITY)
    os.setxattr(top / "usr/share/65", "user.name", b"value\0" * 100)
    os.setxattr(top / "usr/share/64", "trusted.overlay.metacopy", b"a user's own")
    os.setxattr(top / "usr/share/empty", "trusted.x", b"")
    os.chown(top / "usr/share/1", 70_000, 80_000)
    os.lchown(top / "usr/link", 1, 2)
    os.utime(top / "usr/share/63", ns=(0, 1_234_567_890_123_456_789))
    os.utime(top / "usr/share/64", ns=(0, -5_000_000_000))


def state_of(path: bytes) -> tuple[object, ...]:
    """All that a name has, but for its inode, its link count and its times of access and change."""
    found = os.lstat(path)
    content: object = None
    if st.S_ISREG(found.st_mode):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    elif st.S_ISLNK(found.st_mode):
        content = os.readlink(path)
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return (
        *(found.st_mode, found.st_uid, found.st_gid, found.st_rdev, found.st_mtime_ns),
        found.st_size if not st.S_ISDIR(found.st_mode) else 0,
        content,
        {name: os.getxattr(path, name, follow_symlinks=False) for name in names},
    )


def contents_of(top: bytes) -> dict[bytes, tuple[object, ...]]:
    """By their path below `top`, the names of a directory."""
    found = {b".": state_of(top)}
    for folder, folders, files in os.walk(top):
        for name in folders + files:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, top)] = state_of(path)
    return found


def links_of(top: bytes) -> set[frozenset[bytes]]:
    """The sets of names below `top` that are one file."""
    groups: dict[int, set[bytes]] = {}
    for folder, _, files in os.walk(top):
        for name in files:
            path = os.path.join(folder, name)
            groups.setdefault(os.lstat(path).st_ino, set()).add(os.path.relpath(path, top))
    return {frozenset(group) for group in groups.values() if len(group) > 1}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("source")
    make_tree(top)
    return top


@pytest.fixture(scope="module")
def repo(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    path = tmp_path_factory.mktemp("repo") / "repo"
    with Repository.init(path, algorithm=Algorithm.SHA256, secure=False) as made:
        root = scan_directory(source, store_content(made))
        for version in VERSIONS:
            data = write_image(root, version=version, algorithm=made.algorithm)
            made.write_image(data, f"tree/{version.name}")
        yield made


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


@pytest.mark.parametrize("version", VERSIONS)
def test_mounted_image_is_the_directory_it_was_made_of(
    repo: Repository, source: Path, target: Path, version: FormatVersion
) -> None:
    wanted = contents_of(os.fsencode(source))
    if version is FormatVersion.V2:  # which has whole seconds only
        wanted = {
            path: (*state[:4], int(str(state[4])) // 10**9 * 10**9, *state[5:])
            for path, state in wanted.items()
        }
    with mount_image(repo, f"tree/{version.name}") as mount, mount.attached(target):
        found = contents_of(os.fsencode(target))
        assert found.keys() == wanted.keys()
        for path, state in wanted.items():
            # What is only overlayfs' business isn't shown; the rest is.
            assert found[path] == state, path
        assert links_of(os.fsencode(target)) == links_of(os.fsencode(source))
        with pytest.raises(OSError, match="Read-only") as caught:
            (target / "new").write_text("x")
        assert caught.value.errno == errno.EROFS


def test_whiteouts_of_the_image_are_there_for_another_overlay(
    repo: Repository, target: Path
) -> None:
    whiteout = Leaf(Stat(0o600), Device(st.S_IFCHR, 0))
    folder = Directory(Stat(0o755), {b"gone": whiteout, b"here": Leaf(Stat(0o644), Inline(b"h"))})
    named_like_a_stub = Leaf(Stat(0o644), Inline(b"a stub?"))
    root = Directory(Stat(0o755), {b"d": folder, b"aa": named_like_a_stub})
    repo.write_image(write_image(root, algorithm=repo.algorithm), "whiteouts")
    with mount_image(repo, "whiteouts") as mount, mount.attached(target):
        assert sorted(os.listdir(target)) == ["aa", "d"]
        assert sorted(os.listdir(target / "d")) == ["gone", "here"]
        # Escaped in the image; what overlayfs makes of it is a whiteout to the next overlay.
        found = os.lstat(target / "d/gone")
        assert (found.st_mode, found.st_size) == (st.S_IFREG | 0o600, 0)
        assert os.getxattr(target / "d/gone", "trusted.overlay.whiteout") == b""
        assert os.getxattr(target / "d", "trusted.overlay.opaque") == b"x"
        assert (target / "aa").read_bytes() == b"a stub?"


@pytest.mark.parametrize("form", list(Layers))
@pytest.mark.parametrize("writable", [False, True])
def test_each_way_to_name_the_layers_gives_the_same_mount(
    repo: Repository, source: Path, target: Path, tmp_path: Path, form: Layers, writable: bool
) -> None:
    # Characters that mean something in overlayfs' options, and a path longer than fsconfig takes.
    folder = tmp_path / "a,b:c\\d=e" / ("n" * 250)
    for name in ("upper", "work"):
        (folder / name).mkdir(parents=True)
    objects = os.open(f"{repo.path}/objects", FOLDER)
    image = repo.open_object(repo.find_image("tree/V1") or b"")
    try:
        options = MountOptions(
            objects=(objects,),
            upper=str(folder / "upper") if writable else None,
            work=str(folder / "work") if writable else None,
            read_write=writable,
        )
        mount = ImageMount(make_mount(image, options, forms=(form,)))
    finally:
        os.close(image)
        os.close(objects)
    with mount, mount.attached(target):
        found, wanted = (contents_of(os.fsencode(path)) for path in (target, source))
        if writable:  # the root directory is that of the upper layer
            assert found.pop(b".") != wanted.pop(b".")
        assert found == wanted
        if writable:
            (target / "usr/share/4097").write_bytes(b"changed")
            (target / "usr/new").write_text("new")
            (target / "usr/link").unlink()
            assert (target / "usr/share/4097").read_bytes() == b"changed"
    if writable:
        names = {path.name for path in (folder / "upper").rglob("*")}
        assert names == {"usr", "share", "4097", "new", "link"}


def test_a_mount_with_an_upper_layer_is_writable_only_if_asked(
    repo: Repository, target: Path, tmp_path: Path
) -> None:
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    upper, work = tmp_path / "upper", tmp_path / "work"
    with (
        mount_image(repo, "tree/V1", upper=upper, work=work) as mount,
        mount.attached(target),
        pytest.raises(OSError, match="Read-only"),
    ):
        (target / "new").write_text("x")
    with (
        mount_image(repo, "tree/V1", upper=upper, work=work, read_write=True) as mount,
        mount.attached(target),
    ):
        (target / "new").write_text("x")
    assert (tmp_path / "upper/new").read_text() == "x"
    with pytest.raises(BootcError, match="needs a work directory"):
        mount_image(repo, "tree/V1", upper=tmp_path / "upper")
    with pytest.raises(BootcError, match="nothing to write to"):
        mount_image(repo, "tree/V1", read_write=True)


def test_a_detached_mount_is_read_by_its_descriptor_and_goes_with_it(repo: Repository) -> None:
    with mount_image(repo, "tree/V1") as mount:
        fd = os.open("usr/share/70000", os.O_RDONLY, dir_fd=mount.fd)
        with os.fdopen(fd, "rb") as file:
            assert file.read() == hashlib.shake_128(b"70000").digest(70_000)


def test_a_mount_that_fails_leaves_nothing(repo: Repository, target: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no image nothing"):
        mount_image(repo, "nothing")
    with (
        mount_image(repo, "tree/V1") as mount,
        pytest.raises(BootcError, match="No such file or directory"),
    ):
        mount.attach(tmp_path / "missing")
    repo.write_image(b"no image" * 1000, "bad")
    with pytest.raises(BootcError, match="cannot mount the image bad"):
        mount_image(repo, "bad")
    (tmp_path / "upper").mkdir()
    # An upper layer on another file system than the work directory.
    with pytest.raises(BootcError, match="cannot mount the image tree/V1"):
        mount_image(repo, "tree/V1", upper=tmp_path / "upper", work="/dev/shm", read_write=True)


def test_an_image_is_mounted_by_a_loop_device_where_a_file_is_refused(repo: Repository) -> None:
    image = repo.open_object(repo.find_image("tree/V1") or b"")
    try:
        fd = mount_erofs(image, by_loop=True)
    finally:
        os.close(image)
    try:
        where = f"/proc/self/fd/{fd}"
        assert {"00", "ff", "usr", "tmp"} < set(os.listdir(where))
        assert os.readlink(f"{where}/usr/link") == "bin/tool"
        devices = process.run(["losetup", "--list", "--noheadings", "--output", "BACK-FILE,RO"])
        assert f"{repo.path}/objects/" in devices.stdout
    finally:
        os.close(fd)


_NAMESPACE = """
import sys
from bootc.linux.libc import unshare
unshare(0x10000000)  # CLONE_NEWUSER
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def user_namespace(uid: int, gid: int) -> Iterator[int]:
    """A descriptor of a user namespace whose ids 0 to 99999 are those from `uid` and `gid` on."""
    with process.running(
        [sys.executable, "-c", _NAMESPACE], env=PATHS, stdin=process.PIPE, stdout=process.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        for name, first in (("uid_map", uid), ("gid_map", gid)):
            Path(f"/proc/{child.pid}/{name}").write_text(f"0 {first} 100000")
        fd = os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


def test_owners_are_mapped_by_a_user_namespace(repo: Repository, target: Path) -> None:
    with (
        user_namespace(100_000, 300_000) as namespace,
        mount_image(repo, "tree/V1", user_namespace=namespace) as mount,
        mount.attached(target),
    ):
        found = os.stat(target / "usr/bin/tool")
        assert (found.st_uid, found.st_gid) == (100_000, 300_000)
        found = os.lstat(target / "usr/share/1")
        assert (found.st_uid, found.st_gid) == (170_000, 380_000)
        assert (target / "usr/share/65").read_bytes() == hashlib.shake_128(b"65").digest(65)


@pytest.mark.parametrize("verity", [Verity.REQUIRE, Verity.ON])
def test_without_verity_the_kernel_gives_no_content_that_should_be_verified(
    repo: Repository, target: Path, verity: Verity
) -> None:
    image = repo.open_object(repo.find_image("tree/V1") or b"")
    objects = os.open(f"{repo.path}/objects", FOLDER)
    try:
        options = MountOptions(objects=(objects,), verity=verity)
        mount = ImageMount(make_mount(image, options))
    finally:
        os.close(image)
        os.close(objects)
    with mount, mount.attached(target):
        assert (target / "usr/share/64").read_bytes() == hashlib.shake_128(b"64").digest(64)
        with pytest.raises(OSError, match="Input/output error"):
            (target / "usr/share/65").read_bytes()


def make_helper(folder: Path) -> Path:
    """mount.composefs of this checkout, alone in `folder`."""
    folder.mkdir()
    path = folder / "mount.composefs"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(TOP)!r})\n"
        "from bootc.composefs.cli.main import entry\nentry()\n"
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def image(repo: Repository) -> str:
    digest = repo.find_image("tree/V1")
    assert digest is not None
    return f"{repo.path}/images/{digest.hex()}"


@pytest.mark.parametrize("extra", ["rw", "ro", "tryverity"])
def test_mount_composefs_makes_the_same_mount(
    *, repo: Repository, source: Path, target: Path, tmp_path: Path, image: str, extra: str
) -> None:
    program = make_helper(tmp_path / "bin")
    options = f"{extra},basedir={repo.path}/objects"
    process.run([str(program), image, str(target), "-v", "-o", options])
    try:
        (found,) = [mount for mount in read_mounts() if mount.target == str(target)]
        assert (found.fstype, found.source) == ("overlay", "composefs")
        assert "ro" in found.options
        # No file system without fs-verity is asked for it, where the C tool's reads would fail.
        assert not any(option.startswith("verity") for option in found.super_options)
        assert contents_of(os.fsencode(target)) == contents_of(os.fsencode(source))
    finally:
        process.run(["umount", str(target)])


def test_mount_composefs_fails_with_one_line(target: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(bytes(8192))
    program = make_helper(tmp_path / "bin")
    done = process.run(
        [str(program), str(bad), str(target), "-o", f"basedir={tmp_path}"], check=False
    )
    assert done.status == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"mount.composefs: Failed to mount composefs {bad}: Invalid arg")
    assert len(done.stderr.splitlines()) == 1


_BY_MOUNT = """
mount -t overlay -o ro,lowerdir="$1":/usr/sbin overlay /usr/sbin
mkdir "$4/upper" "$4/work"
mount -t composefs -o "basedir=$2,upperdir=$4/upper,workdir=$4/work,nosuch" "$3" "$5" && exit 3
mount -t composefs -o "basedir=$2,upperdir=$4/upper,workdir=$4/work" "$3" "$5"
findmnt -no FSTYPE,SOURCE "$5"
readlink "$5/usr/link"
echo text > "$5/usr/new"
umount "$5"
cat "$4/upper/usr/new"
test ! -e "$5/usr"
"""


def test_mount_8_finds_its_helper(
    *, repo: Repository, target: Path, tmp_path: Path, image: str
) -> None:
    # mount(8) looks for helpers in /sbin only; in a mount namespace of our own it has this one.
    program = make_helper(tmp_path / "bin")
    arguments = [program.parent, f"{repo.path}/objects", image, tmp_path, target]
    done = process.run(
        ["unshare", "--mount", "sh", "-ec", _BY_MOUNT, "sh", *map(str, arguments)],
    )
    assert done.stdout.split() == ["overlay", "composefs", "bin/tool", "text"]
    assert done.stderr == "mount.composefs: Unsupported option nosuch\n"


def test_cfsctl_mounts_by_name_and_by_digest(*, repo: Repository, target: Path, image: str) -> None:
    for name in ("tree/V1", os.path.basename(image)):
        command = ["-m", "bootc.composefs.cli.main", "--repo", repo.path, "mount", name]
        done = process.run([sys.executable, *command, str(target)], env=PATHS)
        try:
            assert (done.stdout, done.stderr) == ("", "")
            assert os.readlink(target / "usr/link") == "bin/tool"
            (found,) = [mount for mount in read_mounts() if mount.target == str(target)]
            assert found.source == f"composefs:{name}"
        finally:
            process.run(["umount", str(target)])


def test_cfsctl_mount_needs_real_root(repo: Repository, target: Path) -> None:
    command = ["-m", "bootc.composefs.cli.main", "--repo", repo.path, "mount", "tree/V1"]
    pretend = ["unshare", "--user", "--map-root-user", "--mount"]
    done = process.run([*pretend, sys.executable, *command, str(target)], env=PATHS, check=False)
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "error: cannot mount the image tree/V1: Operation not permitted",
        "hint: become root; without CAP_SYS_ADMIN, `cfsctl dump-files` tells what is in it",
    ]


def test_mount_composefs_can_pretend(repo: Repository, target: Path, image: str) -> None:
    options = f"basedir={repo.path}/objects"
    assert mount_composefs.main([image, str(target), "-f", "-o", options]) == 0
    assert os.listdir(target) == []
