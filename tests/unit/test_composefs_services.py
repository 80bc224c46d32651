# SPDX-License-Identifier: Apache-2.0 OR MIT
"""org.composefs.Repository and org.composefs.Oci, called over a socket."""

from __future__ import annotations

import io
import itertools
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootc.composefs.cli.main import run_program
from bootc.composefs.digest import Algorithm
from bootc.composefs.dirfdstream import StreamWriter
from bootc.composefs.dirfdstream_export import join_exports
from bootc.composefs.dirfdstream_fds import Incoming
from bootc.composefs.pull import import_tar
from bootc.composefs.repository import Repository
from bootc.composefs.services.handles import HANDLES_MAX, Options
from bootc.composefs.services.replies import OCI, REPOSITORY
from bootc.composefs.services.service import make_service, read_interface
from bootc.composefs.stored import layer_content_id, load_image
from bootc.varlink import Client, Connection, Peer, Server, VarlinkError, parse
from tests.ocibuild import END, header, member, sha256, system_tar, write_layout
from tests.varlinks import open_fds, wait_until

INTERFACES = [parse(read_interface(name), name) for name in (REPOSITORY, OCI)]
TAR = member(b"large", b"L" * 70_000) + member(b"small", b"s" * 10) + END


class Served:
    """A server with a client, and whatever more clients are asked for."""

    def __init__(self, options: Options | None = None) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind("")  # an abstract name that the kernel chooses
        self.listener.listen()
        name = self.listener.getsockname().decode("latin-1")
        self.address = f"unix:@{name[1:]}"
        self.server = Server(make_service(options), [self.listener])
        self._thread = threading.Thread(target=self.server.run)
        self._thread.start()
        self.client = self.connect()

    def connect(self) -> Client:
        return Client.connect(self.address, interfaces=INTERFACES, timeout=60)

    def close(self) -> None:
        self.client.close()
        self.server.stop()
        self._thread.join()

    def repository(self, method: str, **parameters: object) -> dict[str, Any]:
        with self.client.call(f"{REPOSITORY}.{method}", parameters) as reply:
            return dict(reply.parameters)

    def oci(self, method: str, **parameters: object) -> dict[str, Any]:
        with self.client.call(f"{OCI}.{method}", parameters) as reply:
            return dict(reply.parameters)

    def open(self, path: Path) -> int:
        number = self.repository("OpenRepository", path=str(path))["handle"]
        assert isinstance(number, int)
        return number

    def fails(self, method: str, fds: tuple[int, ...] = (), /, **parameters: Any) -> VarlinkError:
        """The error; the connection is usable afterwards."""
        owner = REPOSITORY if method in INTERFACES[0].methods else OCI
        with pytest.raises(VarlinkError) as failure:
            self.client.call(f"{owner}.{method}", parameters, fds)
        assert self.oci("GetInfo") == {"features": ["splitdirfdstream-v0"]}
        return failure.value


@pytest.fixture
def served() -> Iterator[Served]:
    before = open_fds()
    made = Served()
    yield made
    made.close()
    join_exports()
    assert open_fds() == before


def make(path: Path, algorithm: Algorithm = Algorithm.SHA256) -> Path:
    Repository.init(path, algorithm=algorithm, secure=False).close()
    return path


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A repository with an image `app` of one layer, TAR over a system."""
    path = make(tmp_path / "filled")
    reference = write_layout(tmp_path / "oci", [system_tar(), TAR])
    assert run_program(["cfsctl", "--repo", str(path), "oci", "pull", reference, "app"]) == 0
    return path


def is_error(error: VarlinkError, name: str, **parameters: object) -> bool:
    shown = {key: error.parameters.get(key) for key in parameters}
    return error.name.rpartition(".")[2] == name and shown == parameters


# -- The repository


def test_interfaces_are_served_as_their_files_are(served: Served) -> None:
    for name in (REPOSITORY, OCI):
        assert served.client.learn(name).text == read_interface(name)
    info = served.client.call("org.varlink.service.GetInfo").parameters
    assert info["vendor"] == "org.composefs"
    assert info["product"] == "cfsctl"
    assert info["interfaces"] == ["org.varlink.service", REPOSITORY, OCI]


def test_a_repository_is_made_once(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "a/b/repo"
    about = {"path": str(path), "algorithm": "fsverity-sha256-12", "insecure": True}
    assert served.repository("InitRepository", **about) == {"created": True}
    assert served.repository("InitRepository", **about) == {"created": False}
    other = {**about, "algorithm": "fsverity-sha512-12"}
    assert is_error(served.fails("InitRepository", **other), "InvalidSpec")
    assert served.repository("EnsureRepository", **other) == {"status": "Opened"}
    opened = served.repository("OpenRepository", path=str(path))
    assert opened["hash_algorithm"] == "sha256"
    assert opened["objects_device_id"] == os.stat(path).st_dev
    fresh = served.repository("EnsureRepository", path=str(tmp_path / "x"), insecure=True)
    assert fresh == {"status": "Created"}
    (path / "objects/ab").mkdir(parents=True)
    (path / f"objects/ab/{'c' * 62}").touch()
    (path / "meta.json").unlink()
    assert served.repository("EnsureRepository", **about) == {"status": "Upgraded"}


@pytest.mark.parametrize("path", ["", "relative", "/x\0y"])
def test_a_path_has_to_be_absolute(served: Served, path: str) -> None:
    for method in ("InitRepository", "EnsureRepository", "OpenRepository"):
        assert is_error(served.fails(method, path=path), "InvalidSpec")


def test_exactly_one_repository_is_opened(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert is_error(served.fails("OpenRepository"), "InvalidSpec")
    assert is_error(served.fails("OpenRepository", user=False), "InvalidSpec")
    assert is_error(served.fails("OpenRepository", user=True, path="/x"), "InvalidSpec")
    assert is_error(served.fails("OpenRepository", user=True), "RepoNotFound")
    assert is_error(served.fails("OpenRepository", path=str(tmp_path)), "RepoNotFound")
    (tmp_path / ".var/lib").mkdir(parents=True)
    make(tmp_path / ".var/lib/composefs")
    assert served.repository("OpenRepository", user=True, system=False)["handle"] >= 1
    monkeypatch.delenv("HOME")
    assert is_error(served.fails("OpenRepository", user=True), "InvalidSpec")


def test_handles_are_of_their_connection(served: Served, filled: Path) -> None:
    handle = served.open(filled)
    assert served.open(filled) == handle + 1
    before = len(open_fds())
    with served.connect() as other:
        with pytest.raises(VarlinkError, match="InvalidHandle"):
            other.call(f"{OCI}.ListImages", {"handle": handle})
        theirs = other.call(f"{REPOSITORY}.OpenRepository", {"path": str(filled)})
        number = theirs.parameters["handle"]
        assert len(open_fds()) > before
    wait_until(lambda: len(open_fds()) <= before)
    assert is_error(served.fails("ListImages", handle=number), "InvalidHandle", handle=number)
    assert served.repository("CloseRepository", handle=handle) == {}
    assert is_error(served.fails("CloseRepository", handle=handle), "InvalidHandle", handle=handle)
    assert is_error(served.fails("Fsck", handle=handle), "InvalidHandle", handle=handle)
    assert is_error(served.fails("Fsck", handle=-1), "InvalidHandle", handle=-1)


def test_handles_are_limited(served: Served, filled: Path) -> None:
    for _ in range(HANDLES_MAX):
        served.open(filled)
    error = served.fails("OpenRepository", path=str(filled))
    assert is_error(error, "InvalidSpec")


def test_options_hold_for_what_clients_open(filled: Path) -> None:
    made = Served(Options(hash="sha512"))
    assert is_error(made.fails("OpenRepository", path=str(filled)), "RepoNotFound")
    made.close()
    made = Served(Options(require_verity=True))
    assert is_error(made.fails("OpenRepository", path=str(filled)), "RepoNotFound")
    made.close()


def test_handle_zero_is_the_repository_of_the_server(served: Served, filled: Path) -> None:
    assert is_error(served.fails("ListImages", handle=0), "InvalidHandle", handle=0)
    made = Served(Options(default=str(filled)))
    for _ in range(2):
        assert made.oci("ListImages", handle=0)["images"][0]["name"] == "app"
        assert made.repository("CloseRepository", handle=0) == {}
    made.close()
    made = Served(Options(default=str(filled / "no")))
    assert is_error(made.fails("ListImages", handle=0), "RepoNotFound")
    made.close()


def test_checking_and_collecting_tell_what_the_commands_tell(
    served: Served, filled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*argv: str) -> Any:
        capsys.readouterr()
        assert run_program(["cfsctl", "--repo", str(filled), *argv]) == 0
        return json.loads(capsys.readouterr().out)

    handle = served.open(filled)
    assert served.repository("Fsck", handle=handle) == said("fsck", "--json")
    assert served.oci("Check", handle=handle) == said("oci", "fsck", "--json")
    assert served.oci("Check", handle=handle, image="app")["images_checked"] == 1
    quick = served.repository("Fsck", handle=handle, metadata_only=True)
    assert quick["ok"] is True
    assert quick["objects_checked"] == 0
    assert served.oci("ListImages", handle=handle) == said("oci", "images", "--json")
    assert served.oci("Inspect", handle=handle, image="app") == said("oci", "inspect", "app")
    assert served.repository("ListImageRefs", handle=handle) == {"images": []}
    erofs = served.oci("Inspect", handle=handle, image="app")["composefs_erofs"]
    objects = served.repository("ImageObjects", handle=handle, name=erofs)["object_ids"]
    assert objects == sorted(objects)
    assert all(item.startswith("sha256:") for item in objects)
    assert len(objects) == 3
    served.oci("Untag", handle=handle, name="app")
    told = served.repository("Gc", handle=handle, dry_run=True, roots=[])
    done = served.repository("Gc", handle=handle, dry_run=False, roots=[])
    assert told == {**done, "dry_run": True}
    assert done["result"]["objects_removed"] > 5


def test_collecting_fails_while_another_handle_is_open(served: Served, filled: Path) -> None:
    handle = served.open(filled)
    served.open(filled)
    error = served.fails("Gc", handle=handle, dry_run=False, roots=[])
    assert is_error(error, "InternalError")
    assert "is open 1 more time" in error.parameters["message"]


@pytest.mark.parametrize("name", ["", "nope", "a\0b", "..", "refs/x", "0" * 64])
def test_unknown_images_are_typed_errors(served: Served, filled: Path, name: str) -> None:
    handle = served.open(filled)
    options = {"overlay": None}
    named: tuple[tuple[str, dict[str, Any]], ...] = (
        ("ImageObjects", {"name": name}),
        ("Mount", {"name": name, "options": options}),
    )
    for method, more in named:
        error = served.fails(method, handle=handle, **more)
        assert is_error(error, "NoSuchRef", reference=name), error
    error = served.fails("Gc", handle=handle, dry_run=True, roots=[name])
    assert error.name == f"{REPOSITORY}.NoSuchRef", error
    calls: tuple[tuple[str, dict[str, Any]], ...] = (
        ("Inspect", {"image": name}),
        ("Check", {"image": name}),
        ("Untag", {"name": name}),
        ("ComputeId", {"image": name, "bootable": False}),
        ("OciMount", {"image": name, "bootable": False, "options": options}),
    )
    for method, more in calls:
        error = served.fails(method, handle=handle, **more)
        known = ("NoSuchImage", "InvalidRequest", "InternalError")
        assert any(is_error(error, kind) for kind in known), error
    missing = sha256(b"missing")
    error = served.fails("Inspect", handle=handle, image=f"@{missing}")
    assert is_error(error, "NoSuchImage", image=f"@{missing}")
    assert is_error(served.fails("Inspect", handle=handle, image="@x"), "InvalidDigest")
    error = served.fails("Tag", handle=handle, manifest_digest=missing, name="t")
    assert is_error(error, "NoSuchImage")
    assert is_error(
        served.fails("Tag", handle=handle, manifest_digest="x", name="t"), "InvalidDigest"
    )


def test_tags_and_ids(served: Served, filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handle = served.open(filled)
    with Repository.open(filled) as repo:
        image = load_image(repo, "app")
    digest = image.manifest_digest
    assert served.oci("Tag", handle=handle, manifest_digest=digest, name="b/c:1") == {}
    found = served.oci("ListImages", handle=handle, filter="b/")["images"]
    assert [item["name"] for item in found] == ["b/c:1"]
    assert is_error(
        served.fails("Tag", handle=handle, manifest_digest=digest, name="@x"), "InvalidRequest"
    )
    for bootable, xattrs in itertools.product(
        (False, True), (None, "AllowlistOnly", "KeepUserXattrs")
    ):
        about = {"image": "b/c:1", "bootable": bootable, "xattrs": xattrs}
        mine = served.oci("ComputeId", handle=handle, **about)
        argv = ["--bootable"] if bootable else []
        argv += ["--xattrs", "keep-user-xattrs"] if xattrs == "KeepUserXattrs" else []
        capsys.readouterr()
        run_program(["cfsctl", "--repo", str(filled), "oci", "compute-id", "app", *argv])
        assert mine["image_id"] == capsys.readouterr().out.strip()
    error = served.fails("ComputeId", handle=handle, image="app", verity="00", bootable=False)
    assert is_error(error, "InternalError")


# -- Pull


def test_a_pull_tells_its_progress(served: Served, tmp_path: Path) -> None:
    reference = write_layout(tmp_path / "oci", [system_tar(), TAR])
    handle = served.open(make(tmp_path / "repo"))
    about = {"handle": handle, "image": reference, "local_fetch": "disabled", "bootable": True}
    replies = [
        reply.parameters for reply in served.client.stream(f"{OCI}.Pull", {**about, "name": "app"})
    ]
    assert all(len(reply) == 1 for reply in replies)
    kinds = [next(iter(reply)) for reply in replies]
    assert kinds.count("started") == kinds.count("done") == 2
    assert kinds[-1] == "completed"
    completed = replies[-1]["completed"]
    images = served.oci("ListImages", handle=handle)["images"]
    assert [item["manifest_digest"] for item in images] == [completed["manifest_digest"]]
    boot = served.oci("Inspect", handle=handle, image="app")["composefs_boot_erofs"]
    assert completed["boot_image"] == boot
    assert completed["boot_image_mode"] == "allowlist-only"
    assert completed["boot_image_format_version"] == "V1"
    again = served.oci("Pull", **about, expected_digest=boot)
    assert again["completed"]["boot_image"] == boot
    kept = served.oci("Pull", **about, xattrs="KeepUserXattrs")
    assert kept["completed"]["boot_image_mode"] == "keep-user-xattrs"
    error = served.fails("Pull", **about, expected_digest="00" * 32)
    assert is_error(error, "BootImageMismatch", expected="00" * 32, tried=4)
    assert len(served.oci("ListImages", handle=handle)["images"]) == 1, "no tag without a name"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"expected_digest": "00", "bootable": False}, "InvalidRequest"),
        ({"expected_digest": "00", "xattrs": "AllowlistOnly"}, "InvalidRequest"),
        ({"expected_digest": "xx"}, "InvalidDigest"),
        ({"image": "oci:/x\0y"}, "InvalidRequest"),
        ({"name": "@x"}, "InvalidRequest"),
        ({"storage_root": "/x"}, "InvalidRequest"),
        ({"image": "oci:/nowhere"}, "InternalError"),
    ],
)
def test_a_pull_that_cannot_work_is_refused(
    served: Served, tmp_path: Path, change: dict[str, object], name: str
) -> None:
    reference = write_layout(tmp_path / "oci", [system_tar()])
    handle = served.open(make(tmp_path / "repo"))
    about: dict[str, object] = {"image": reference, "local_fetch": "disabled", "bootable": True}
    assert is_error(served.fails("Pull", handle=handle, **{**about, **change}), name)
    assert served.oci("ListImages", handle=handle) == {"images": []}
    assert not (tmp_path / "repo/streams").exists()


def test_a_client_that_goes_away_ends_its_pull(served: Served, tmp_path: Path) -> None:
    """The blob is a FIFO in which nothing comes: the pull waits until it is woken."""
    reference = write_layout(tmp_path / "oci", [TAR])
    blob = tmp_path / "oci/blobs/sha256" / sha256(TAR).removeprefix("sha256:")
    os.rename(blob, tmp_path / "blob")
    big = member(b"f", b"x" * (48 << 20))
    path = make(tmp_path / "repo")
    reference = write_layout(tmp_path / "oci", [big + END, TAR])
    fds = len(open_fds())
    with served.connect() as other:
        opened = other.call(f"{REPOSITORY}.OpenRepository", {"path": str(path)})
        about = {
            "handle": opened.parameters["handle"],
            "image": reference,
            "name": "app",
            "local_fetch": "disabled",
            "bootable": False,
        }
        replies = other.stream(f"{OCI}.Pull", about)
        assert "started" in next(replies).parameters
    wait_until(lambda: len(open_fds()) <= fds)
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "pull"])
    with Repository.open(path) as repo:
        assert list(repo.tags()) == []


# -- Layers


def get_layer(client: Client, handle: int, diff_id: str, *, more: bool = True) -> Incoming:
    params = {"diff_id": diff_id, "consumer_has_cap_dac_override": False}
    asked = {"handle": handle, "params": params}
    if more:
        replies = list(client.stream(f"{OCI}.GetLayer", asked))
        assert len(replies) >= 3
    else:
        replies = [client.call(f"{OCI}.GetLayer", asked)]
    counts = {reply.parameters["dir_count"] for reply in replies}
    assert len(counts) == 1
    return Incoming([fd for reply in replies for fd in reply.fds.take_all()], counts.pop())


def put_layer(
    client: Client, handle: int, diff_id: str, fds: list[int], *, zerocopy: bool = False
) -> dict[str, Any]:
    about = {"handle": handle, "diff_id": diff_id, "zerocopy": zerocopy}
    return dict(client.call(f"{OCI}.PutLayer", about, fds).parameters)


@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("zerocopy", [False, True])
def test_an_image_goes_over_the_wire(
    served: Served, filled: Path, tmp_path: Path, more: bool, zerocopy: bool
) -> None:
    target = make(tmp_path / "target")
    ours, theirs = served.open(filled), served.open(target)
    documents = served.oci("Inspect", handle=ours, image="app")
    layers = []
    for diff_id in (sha256(system_tar()), sha256(TAR)):
        assert served.oci("HasLayer", handle=theirs, diff_id=diff_id) == {"present": False}
        with get_layer(served.client, ours, diff_id, more=more) as got:
            fds = [got.stream, *got.directories]
            put = put_layer(served.client, theirs, diff_id, fds, zerocopy=zerocopy)
        assert put["already_present"] is False
        if zerocopy:
            assert put["objects_copied"] == 0
        assert put["objects_reflinked"] + put["objects_hardlinked"] + put["objects_copied"] > 0
        told = served.oci("HasLayer", handle=theirs, diff_id=diff_id)
        assert told == {"present": True, "layer_verity": put["layer_verity"]}
        layers.append({"diff_id": diff_id, "layer_verity": put["layer_verity"]})
        with get_layer(served.client, ours, diff_id) as got:
            again = put_layer(served.client, theirs, diff_id, [got.stream, *got.directories])
        assert again["already_present"] is True
        assert again["objects_already_present"] > 0
    about = {
        "manifest_json": documents["manifest"],
        "config_json": documents["config"],
        "layers": layers,
    }
    done = served.oci("FinalizeImage", handle=theirs, **about, name="copied")
    assert served.oci("FinalizeImage", handle=theirs, **about) == done
    assert served.oci("Inspect", handle=theirs, image="copied") == documents
    assert served.oci("Check", handle=theirs)["ok"] is True
    with Repository.open(filled) as one, Repository.open(target) as other:
        image = load_image(one, "app")
        assert (
            load_image(other, "copied").manifest_id == image.manifest_id == done["manifest_verity"]
        )
        assert done["config_verity"] == image.config_id


KINDS = st.lists(st.sampled_from(("null", "memory", "event", "path", "socket")), max_size=20)


def dummy(kind: str) -> int:
    match kind:
        case "memory":
            return os.memfd_create("dummy")
        case "event":
            return os.eventfd(0)
        case "socket":
            return socket.socket(socket.AF_UNIX).detach()
        case _:
            return os.open("/dev/null", os.O_RDONLY if kind == "null" else os.O_PATH)


@settings(max_examples=25, deadline=None)
@given(before=KINDS, after=KINDS)
def test_dummies_at_random_slots_change_nothing(
    before: list[str], after: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The directory stands behind those of `before`; the other descriptors are anything."""
    folder = tmp_path_factory.mktemp("dummies")
    (folder / "large").write_bytes(b"L" * 70_000)
    was = open_fds()
    served = Served()
    handle = served.open(make(folder / "repo"))
    directory = os.open(folder, os.O_RDONLY)
    dirs = [*map(dummy, before), directory, *map(dummy, after)]
    reading, writing = os.pipe()
    writer = StreamWriter(writing)
    tar = io.BytesIO(TAR)
    writer.metadata(tar.read(512))
    writer.file(70_000, len(before), b"large")
    tar.seek(70_000, os.SEEK_CUR)
    writer.metadata(tar.read())
    writer.flush()
    os.close(writing)
    put = put_layer(served.client, handle, sha256(TAR), [reading, *dirs])
    assert put["already_present"] is False
    for fd in (reading, *dirs):
        os.close(fd)
    served.close()
    assert open_fds() == was


def stream_of(data: bytes) -> int:
    """The read end of a pipe with a short stream."""
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    return reading


def metadata(data: bytes) -> bytes:
    return struct.pack("<BI", 0, len(data)) + data


Bad = Callable[[Path], list[int]]
BAD_DESCRIPTORS: dict[str, Bad] = {
    "none": lambda folder: [],
    "the pipe alone": lambda folder: [stream_of(metadata(TAR[:512]))],
    "no pipe": lambda folder: [os.open(folder, os.O_RDONLY), os.open(folder, os.O_RDONLY)],
    "a file for the directory": lambda folder: [
        stream_of(metadata(TAR[:512]) + struct.pack("<BQII", 2, 70_000, 0, 5) + b"large"),
        os.open("/dev/null", os.O_RDONLY),
    ],
    "an index too large": lambda folder: [
        stream_of(metadata(TAR[:512]) + struct.pack("<BQII", 2, 70_000, 1, 5) + b"large"),
        os.open(folder, os.O_RDONLY),
    ],
    "a way out": lambda folder: [
        stream_of(metadata(TAR[:512]) + struct.pack("<BQII", 2, 70_000, 0, 8) + b"../large"),
        os.open(folder, os.O_RDONLY),
    ],
    "a link out": lambda folder: [
        stream_of(metadata(TAR[:512]) + struct.pack("<BQII", 2, 70_000, 0, 4) + b"link"),
        os.open(folder, os.O_RDONLY),
    ],
    "longer than said": lambda folder: [
        stream_of(
            metadata(header(b"large", 69_999)) + struct.pack("<BQII", 2, 69_999, 0, 5) + b"large"
        ),
        os.open(folder, os.O_RDONLY),
    ],
    "shorter than said": lambda folder: [
        stream_of(
            metadata(header(b"large", 70_001)) + struct.pack("<BQII", 2, 70_001, 0, 5) + b"large"
        ),
        os.open(folder, os.O_RDONLY),
    ],
    "cut off in a chunk": lambda folder: [
        stream_of(metadata(TAR[:512])[:-1]),
        os.open(folder, os.O_RDONLY),
    ],
    "no stream": lambda folder: [stream_of(b"\7" * 70), os.open(folder, os.O_RDONLY)],
}


@pytest.mark.parametrize("kind", list(BAD_DESCRIPTORS))
@pytest.mark.parametrize("zerocopy", [False, True])
def test_bad_layers_are_invalid_requests(
    served: Served, tmp_path: Path, kind: str, zerocopy: bool
) -> None:
    path = make(tmp_path / "repo")
    handle = served.open(path)
    with Repository.open(path) as repo:
        repo.writable_objects()
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "large").write_bytes(b"L" * 70_000)
    (folder / "link").symlink_to("/etc/passwd")
    about = {"handle": handle, "diff_id": sha256(TAR), "zerocopy": zerocopy}
    counts = []
    for _ in range(3):
        fds = BAD_DESCRIPTORS[kind](folder)
        assert is_error(served.fails("PutLayer", tuple(fds), **about), "InvalidRequest")
        for fd in fds:
            os.close(fd)
        counts.append(len(open_fds()))
    assert counts[1] == counts[2], "nothing is left open"
    assert not (path / "streams").exists()
    assert served.oci("HasLayer", handle=handle, diff_id=sha256(TAR)) == {"present": False}


def test_a_wrong_digest_is_told(served: Served, tmp_path: Path) -> None:
    handle = served.open(make(tmp_path / "repo"))
    pipe = stream_of(metadata(END))
    about = {"handle": handle, "diff_id": sha256(TAR), "zerocopy": False}
    error = served.fails("PutLayer", (pipe, pipe), **about)
    os.close(pipe)
    assert is_error(error, "DiffIdMismatch", expected=sha256(TAR), actual=sha256(END))
    for text in ("", "x", "sha256:0", "md5:00"):
        assert is_error(served.fails("HasLayer", handle=handle, diff_id=text), "InvalidDigest")
        error = served.fails("PutLayer", handle=handle, diff_id=text, zerocopy=False)
        assert is_error(error, "InvalidDigest")


def test_what_get_layer_refuses(served: Served, filled: Path) -> None:
    handle = served.open(filled)
    missing = sha256(b"missing")
    storage = {"storage_path": "/x", "layer_id": "y"}
    for params, name in (
        ({"diff_id": missing}, "NoSuchLayer"),
        ({"diff_id": "x"}, "InvalidDigest"),
        ({}, "InvalidRequest"),
        ({"storage": storage}, "InvalidRequest"),
        ({"diff_id": sha256(TAR), "storage": storage}, "InvalidRequest"),
    ):
        about = {**params, "consumer_has_cap_dac_override": False}
        assert is_error(served.fails("GetLayer", handle=handle, params=about), name)


def test_unexpected_descriptors_are_refused(served: Served, filled: Path) -> None:
    handle = served.open(filled)
    fd = os.open("/dev/null", os.O_RDONLY)
    error = served.fails("ListImages", (fd,), handle=handle)
    assert is_error(error, "WrongDescriptors", received=1)
    erofs = served.oci("Inspect", handle=handle, image="app")["composefs_erofs"]
    for options, fds in (
        ({}, (fd,)),
        ({"overlay": True}, ()),
        ({"overlay": True}, (fd,)),
        ({"overlay": True}, (fd, fd)),
        ({"overlay": True}, (fd, fd, fd)),
        ({"read_write": True}, ()),
    ):
        about = {"handle": handle, "options": options}
        assert is_error(served.fails("Mount", fds, name=erofs, **about), "InvalidSpec")
        error = served.fails("OciMount", fds, image="app", bootable=False, **about)
        assert is_error(error, "InvalidRequest")
    error = served.fails("OciMount", image="app", bootable=True, handle=handle, options={})
    assert is_error(error, "NoSuchImage"), "it has no bootable one"
    os.close(fd)


def finalize(served: Served, handle: int, layers: object, **change: str) -> VarlinkError:
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers"}}
    config["rootfs"] = {"type": "layers", "diff_ids": [sha256(TAR)]}
    config_json = json.dumps(config)
    described = {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": sha256(config_json.encode()),
        "size": len(config_json),
    }
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": sha256(TAR)}
    manifest = {
        "schemaVersion": 2,
        "config": described,
        "layers": [{**layer, "size": len(TAR)}],
    }
    given = {"manifest_json": json.dumps(manifest), "config_json": config_json, **change}
    return served.fails("FinalizeImage", handle=handle, layers=layers, **given)


def test_an_image_has_to_fit_its_layers(served: Served, tmp_path: Path) -> None:
    path = make(tmp_path / "repo")
    handle = served.open(path)
    layer = {"diff_id": sha256(TAR), "layer_verity": "00" * 32}
    assert is_error(finalize(served, handle, [layer]), "NoSuchLayer", diff_id=sha256(TAR))
    with Repository.open(path) as repo:
        verity = import_tar(repo, io.BytesIO(TAR), sha256(TAR)).hex()
        import_tar(repo, io.BytesIO(END), sha256(END))
        other = repo.find_stream(layer_content_id(sha256(END)))
    assert other is not None
    good = {"diff_id": sha256(TAR), "layer_verity": verity}
    for layers in (
        [layer],
        [],
        [good, good],
        [{"diff_id": sha256(END), "layer_verity": other.hex()}],
    ):
        assert is_error(finalize(served, handle, layers), "InvalidRequest")
    bad = [{**good, "layer_verity": "xyz"}]
    assert is_error(finalize(served, handle, bad), "InvalidDigest")
    assert is_error(finalize(served, handle, [{**good, "diff_id": "x"}]), "InvalidDigest")
    for change in (
        {"config_json": "{}"},
        {"manifest_json": "{}"},
        {"manifest_json": "no JSON"},
        {"name": "@bad"},
    ):
        assert is_error(finalize(served, handle, [good], **change), "InvalidRequest"), change
    assert served.oci("ListImages", handle=handle) == {"images": []}
    assert not list((path / "streams").glob("oci-manifest-*"))
    assert not list((path / "streams").glob("oci-config-*"))


def test_a_client_that_leaves_in_the_middle_stores_nothing(served: Served, tmp_path: Path) -> None:
    path = make(tmp_path / "repo")
    with Repository.open(path) as repo:
        repo.writable_objects()
    fds = len(open_fds())
    reading, writing = os.pipe()
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(served.listener.getsockname())
    for method, about in (
        (f"{REPOSITORY}.OpenRepository", {"path": str(path)}),
        (f"{OCI}.PutLayer", {"diff_id": sha256(TAR), "zerocopy": False}),
    ):
        if method.endswith("PutLayer"):
            about["handle"] = json.loads(sock.recv(9999)[:-1])["parameters"]["handle"]
            os.write(writing, metadata(TAR[:9000]))
            message = json.dumps({"method": method, "parameters": about}).encode() + b"\0"
            socket.send_fds(sock, [message], [reading, reading])
        else:
            sock.send(json.dumps({"method": method, "parameters": about}).encode() + b"\0")
    wait_until(lambda: len(open_fds()) > fds + 250)
    sock.close()
    os.close(reading)
    wait_until(lambda: len(open_fds()) <= fds + 1)
    with pytest.raises(BrokenPipeError):
        os.write(writing, b"x")
    os.close(writing)
    assert not (path / "streams").exists()


def test_a_receiver_may_outlive_its_connection(
    served: Served, filled: Path, tmp_path: Path
) -> None:
    """The repository stays open, and locked, until the layer has been received."""
    fds = len(open_fds())
    with served.connect() as other:
        opened = other.call(f"{REPOSITORY}.OpenRepository", {"path": str(filled)})
        got = get_layer(other, opened.parameters["handle"], sha256(TAR))
    handle = served.open(filled)
    error = served.fails("Gc", handle=handle, dry_run=False, roots=[])
    assert "is open 1 more time" in error.parameters["message"]
    target = served.open(make(tmp_path / "target"))
    with got:
        put_layer(served.client, target, sha256(TAR), [got.stream, *got.directories])
    join_exports()
    assert served.repository("Gc", handle=handle, dry_run=False, roots=[])["dry_run"] is False
    for number in (handle, target):
        served.repository("CloseRepository", handle=number)
    wait_until(lambda: len(open_fds()) == fds)


def test_nobody_else_may_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says that the client is somebody else."""
    made = Served()
    monkeypatch.setattr(Connection, "peer", Peer(pid=1, uid=os.geteuid() + 1, gid=1))
    with pytest.raises(VarlinkError, match="PermissionDenied"):
        made.client.call(f"{OCI}.GetInfo")
    made.close()


def test_many_calls_leave_nothing(served: Served, filled: Path) -> None:
    handle = served.open(filled)
    served.oci("ListImages", handle=handle)
    before = len(open_fds()), threading.active_count()
    for _ in range(300):
        served.oci("ListImages", handle=handle)
        with get_layer(served.client, handle, sha256(TAR), more=False):
            pass
    join_exports()
    wait_until(lambda: (len(open_fds()), threading.active_count()) <= before)
