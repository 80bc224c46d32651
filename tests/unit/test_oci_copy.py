# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`cfsctl oci copy` between repositories, and `cfsctl varlink` as a program."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from bootc import process
from bootc.composefs.cli.main import run_program
from bootc.composefs.copy_image import check_zerocopy, copy_image
from bootc.composefs.digest import Algorithm
from bootc.composefs.dirfdstream_export import join_exports
from bootc.composefs.pull import pull
from bootc.composefs.repository import NotFoundError, Repository
from bootc.composefs.splitstream import OCI_BLOB
from bootc.composefs.stored import layer_content_id, load_image, open_stream
from bootc.errors import BootcError
from bootc.oci.layout import open_source
from bootc.varlink import Client
from tests.ocibuild import END, member, sha256, system_tar, write_blob, write_layout
from tests.varlinks import open_fds
from tests.waiting import wait_until

CFSCTL = (sys.executable, "-m", "bootc.composefs.cli.main")
TAR = member(b"large", b"L" * 70_000) + member(b"small", b"s" * 10) + END
BLOBS = (b"", b"tiny", b"b" * 64, b"B" * 9000)


def make(path: Path, algorithm: Algorithm = Algorithm.SHA256) -> Path:
    Repository.init(path, algorithm=algorithm, secure=False).close()
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = make(tmp_path / "source")
    reference = write_layout(tmp_path / "oci", [system_tar(), TAR, system_tar()])
    run("oci", "pull", reference, "app", repo=path)
    return path


def run(*argv: str, repo: Path) -> int:
    return run_program(["cfsctl", "--repo", str(repo), *argv])


def listing(repo: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, links and time of change of everything."""
    return {
        str(path.relative_to(repo)): (
            path.lstat().st_ino,
            path.lstat().st_mtime_ns,
            path.lstat().st_size,
        )
        for path in repo.rglob("*")
    }


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_a_copy_is_the_image(
    source: Path, tmp_path: Path, algorithm: Algorithm, capsys: pytest.CaptureFixture[str]
) -> None:
    target = make(tmp_path / "target", algorithm)
    before, fds = listing(source), open_fds()
    capsys.readouterr()
    assert run("oci", "copy", "app", "--from", str(source), "--name", "b/c", repo=target) == 0
    join_exports()
    assert open_fds() == fds
    assert listing(source) == before, "the source is as it was"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Copied image app from {source} to destination repo, tagged as b/c"
    with Repository.open(source) as one, Repository.open(target) as other:
        image, copied = load_image(one, "app"), load_image(other, "b/c")
        assert lines[1:] == [
            f"Manifest digest: {image.manifest_digest}",
            f"Manifest verity: {copied.manifest_id}",
            f"Config digest:   {image.config_digest}",
            f"Config verity:   {copied.config_id}",
        ]
        assert (copied.manifest, copied.config) == (image.manifest, image.config)
        if algorithm is Algorithm.SHA256:
            assert copied.manifest_id == image.manifest_id
    assert run("oci", "fsck", repo=target) == 0
    # Without a name there is no tag, and nothing is sent again.
    assert run("oci", "copy", f"@{image.manifest_digest}", "--from", str(source), repo=target) == 0
    with Repository.open(target) as other:
        assert [name for name, _ in other.tags()] == ["b/c"]


def test_zerocopy_links_what_it_cannot_share(source: Path, tmp_path: Path) -> None:
    target = make(tmp_path / "target")
    with Repository.open(target) as repo, Repository.open(source) as theirs:
        done = copy_image(repo, theirs, "app", tag="app", zerocopy=True)
        assert done.stats.new == 4
    join_exports()
    assert run("oci", "fsck", repo=target) == 0
    stored = {path.name: path.stat() for path in (source / "objects").glob("*/*")}
    large = [path for path in (target / "objects").glob("*/*") if path.stat().st_size == 70_000]
    assert len(large) == 1
    shared = os.path.samestat(large[0].stat(), stored[large[0].name])
    assert shared or large[0].stat().st_nlink == 1, "linked, or its extents are shared"


def test_zerocopy_needs_the_same_algorithm(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = make(tmp_path / "target", Algorithm.SHA512)
    assert run("oci", "copy", "app", "--from", str(source), "--zerocopy", repo=target) == 1
    err = capsys.readouterr().err
    assert "zerocopy" in err
    assert "hash algorithm" in err
    assert not (target / "streams").exists()


def test_zerocopy_is_tried_out_before_anything_is_sent(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As between two file systems: neither way works."""
    target = make(tmp_path / "target")
    monkeypatch.setattr("bootc.linux.reflink.clone", lambda fd, other: False)

    def refuse(fd: int, folder: int, name: str) -> None:
        raise OSError(18, "Invalid cross-device link")

    with Repository.open(target) as repo, Repository.open(source) as theirs:
        check_zerocopy(repo, theirs, load_image(theirs, "app"))
        assert not list(target.glob("objects/.tmp-*")), "the trial leaves nothing"
        monkeypatch.setattr("bootc.linux.libc.link_fd", refuse)
        with pytest.raises(BootcError, match="neither reflinked nor hard-linked"):
            copy_image(repo, theirs, "app", zerocopy=True)
    assert not (target / "streams").exists()


def test_a_repository_is_not_copied_into_itself(source: Path) -> None:
    with (
        Repository.open(source) as repo,
        Repository.open(source) as again,
        pytest.raises(BootcError, match="the source and the destination"),
    ):
        copy_image(repo, again, "app")


def test_what_is_not_there_is_not_copied(source: Path, tmp_path: Path) -> None:
    target = make(tmp_path / "target")
    with (
        Repository.open(target) as repo,
        Repository.open(source) as theirs,
        pytest.raises(NotFoundError, match="there is no image nope"),
    ):
        copy_image(repo, theirs, "nope")
    assert run("oci", "copy", "app", "--from", str(tmp_path / "no"), repo=target) == 1
    assert run("--hash", "sha512", "oci", "copy", "app", "--from", str(source), repo=target) == 1


def write_artifact(layout: Path) -> str:
    """A layout with an artifact of BLOBS."""
    layers = [
        {"mediaType": "application/octet-stream", **write_blob(layout, blob)} for blob in BLOBS
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/x-test",
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            **write_blob(layout, b"{}"),
        },
        "layers": layers,
    }
    entry = {
        "mediaType": manifest["mediaType"],
        **write_blob(layout, json.dumps(manifest).encode()),
        "annotations": {"org.opencontainers.image.ref.name": "latest"},
    }
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return f"oci:{layout}:latest"


@pytest.mark.parametrize("zerocopy", [False, True])
def test_an_artifact_survives(tmp_path: Path, zerocopy: bool) -> None:
    reference = write_artifact(tmp_path / "oci")
    paths = [make(tmp_path / name) for name in ("one", "two", "three")]
    with Repository.open(paths[0]) as repo, open_source(reference) as layout:
        pulled = pull(repo, layout, reference=reference, tag="art")
    for here, there in ((0, 1), (1, 2)):
        with Repository.open(paths[there]) as repo, Repository.open(paths[here]) as theirs:
            copied = copy_image(repo, theirs, "art", tag="art", zerocopy=zerocopy)
            assert copied.manifest_id == pulled.manifest_id, "byte for byte"
            assert not copied.is_container
            for blob in BLOBS:
                stream = open_stream(repo, layer_content_id(sha256(blob)))
                assert stream.content_type == OCI_BLOB
                assert repo.read_object(stream.only_object()) == blob
        assert run("oci", "fsck", repo=paths[there]) == 0
    join_exports()


# -- The server as a program


def test_the_server_has_a_socket_and_ends_by_sigterm(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    argv = [*CFSCTL, "varlink", "--address", str(path)]
    with process.running(argv, stdout=process.PIPE, stderr=process.PIPE) as child:
        wait_until(path.exists, 60)
        assert path.stat().st_mode & 0o777 == 0o600
        with Client.connect(str(path), timeout=60) as client:
            info = client.call("org.varlink.service.GetInfo").parameters
            assert info["product"] == "cfsctl"
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0
        assert child.stdout is not None
        assert child.stdout.read() in ("", b"")
    assert not path.exists()


@pytest.mark.parametrize("arguments", ["", " varlink", " oci varlink"])
def test_a_connection_is_served_at_once(source: Path, arguments: str) -> None:
    with Client.connect(f"exec:{' '.join(CFSCTL)}{arguments}", timeout=60) as client:
        opened = client.call("org.composefs.Repository.OpenRepository", {"path": str(source)})
        about = {"handle": opened.parameters["handle"]}
        images = client.call("org.composefs.Oci.ListImages", about).parameters["images"]
        assert [image["name"] for image in images] == ["app"]


def test_a_server_needs_a_socket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(["cfsctl", "varlink"]) == 1
    assert "there is no socket to serve on" in capsys.readouterr().err
    assert run_program(["cfsctl", "varlink", "--address", str(tmp_path / "no/such")]) == 1
    assert "cannot listen" in capsys.readouterr().err
