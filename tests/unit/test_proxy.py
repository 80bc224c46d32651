# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Pulls through skopeo's proxy, played by a program that also does what skopeo does on bad days."""

from __future__ import annotations

import json
import os
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from bootc.composefs.digest import Algorithm
from bootc.composefs.progress import Event, Progress
from bootc.composefs.pull import pull
from bootc.composefs.repository import Repository
from bootc.errors import BootcError, ProcessError
from bootc.oci.layout import open_source
from bootc.oci.proxy import ProxyOptions
from tests.ocibuild import END, folder, member, sha256, system_tar, write_layout

# It serves the layout FAKE_LAYOUT, writes its arguments into FAKE_LOG, and misbehaves with the blob
# that FAKE_BAD says: "stall", "die" or "complain", in the middle.
SKOPEO = r"""#!PYTHON -I
import json, os, socket, sys, threading, time
layout, log = os.environ["FAKE_LAYOUT"], os.environ["FAKE_LOG"]
how, _, bad = os.environ.get("FAKE_BAD", "").partition(" ")
with open(log, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\n")
channel = socket.socket(fileno=0)
for word in sys.argv:
    if word.startswith("--tmpdir="):
        with open(f"{word.partition('=')[2]}/{os.getpid()}", "w") as file:
            file.write("what skopeo leaves")
pipes = {}

def answer(fds=(), **values):
    reply = {"success": True, "value": None, "pipeid": 0, "error": "", **values}
    socket.send_fds(channel, [json.dumps(reply).encode()], list(fds))

def blob(digest):
    with open(os.path.join(layout, "blobs", *digest.split(":")), "rb") as file:
        return file.read()

def serve(digest, value):
    reading, writing = os.pipe()
    state = {}
    def write():
        data = blob(digest)
        half = len(data) // 2 if digest == bad else len(data)
        try:
            at = 0
            while at < half:
                at += os.write(writing, data[at:half])
        except BrokenPipeError:
            state["error"] = "write: broken pipe"
        if digest == bad and how == "stall":
            time.sleep(1000)
        if digest == bad and how == "die":
            os._exit(3)
        if digest == bad and how == "complain":
            state["error"] = "unexpected EOF from the registry"
    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    pipes[writing] = (thread, state)
    answer([reading], value=value, pipeid=writing)
    os.close(reading)

while True:
    data = channel.recv(1 << 16)
    if not data:
        break
    request = json.loads(data)
    method, args = request["method"], request["args"]
    if method == "Initialize":
        answer(value="0.2.8")
    elif method == "OpenImage":
        if "missing" in args[0]:
            answer(success=False, error="manifest unknown")
        else:
            answer(value=1)
    elif method == "GetManifest":
        with open(os.path.join(layout, "index.json")) as file:
            digest = json.load(file)["manifests"][0]["digest"]
        serve(digest, digest)
    elif method == "GetBlob":
        serve(args[1], args[2])
    elif method == "FinishPipe":
        thread, state = pipes.pop(args[0])
        thread.join()
        os.close(args[0])
        error = state.get("error", "")
        answer(success=not error, error=error)
    elif method == "Shutdown":
        break
""".replace("PYTHON", sys.executable)


@pytest.fixture
def skopeo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log of the fake's argument lists; the image is `tmp_path/oci`."""
    program = tmp_path / "bin/skopeo"
    program.parent.mkdir()
    program.write_text(SKOPEO)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_LAYOUT", str(tmp_path / "oci"))
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    return tmp_path / "log"


def layers() -> list[bytes]:
    other = folder(b"usr") + member(b"usr/random", os.urandom(300_000)) + END
    return [system_tar(), other, folder(b"usr") + member(b"usr/x", b"x" * 100) + END]


def pull_all(tmp_path: Path, events: list[Event] | None = None) -> Repository:
    repo = Repository.init(tmp_path / "repo", algorithm=Algorithm.SHA256, secure=False)
    report = events.append if events is not None else None
    with ExitStack() as failed:
        failed.enter_context(repo)
        with open_source("docker://registry/image") as source:
            pull(repo, source, reference="x", tag="t", readers=3, on_progress=report)
        failed.pop_all()
    return repo


def test_layers_come_by_a_skopeo_each(tmp_path: Path, skopeo: Path) -> None:
    tars = layers()
    write_layout(tmp_path / "oci", tars, how="gzip")
    events: list[Event] = []
    with pull_all(tmp_path, events) as repo:
        for tar in tars:
            assert repo.find_stream(f"oci-layer-{sha256(tar)}") is not None
    started = skopeo.read_text().splitlines()
    assert 1 <= len(started) <= 3
    assert json.loads(started[0]) == ["experimental-image-proxy", "--sockfd", "0"]
    last = {event.id: event for event in events if isinstance(event, Progress)}
    assert all(event.fetched == event.total for event in last.values())


def test_options_reach_skopeo(tmp_path: Path, skopeo: Path) -> None:
    write_layout(tmp_path / "oci", layers())
    options = ProxyOptions(authfile="/etc/auth.json", insecure=True, user_agent="tool/1")
    with open_source("docker://registry/image", options):
        pass
    (line,) = skopeo.read_text().splitlines()
    assert json.loads(line) == [
        "--user-agent-prefix=tool/1",
        "experimental-image-proxy",
        "--sockfd",
        "0",
        "--authfile=/etc/auth.json",
        "--tls-verify=false",
    ]


def test_what_skopeo_leaves_is_removed(tmp_path: Path, skopeo: Path) -> None:
    write_layout(tmp_path / "oci", layers())
    with open_source("docker-archive:/image.tar") as source:
        (folder,) = (tmp_path / "scratch").iterdir()
        assert len(list(folder.iterdir())) == len(skopeo.read_text().splitlines()) == 1
        assert source.manifest
    assert list((tmp_path / "scratch").iterdir()) == []


def test_no_place_for_skopeos_files_is_told(
    tmp_path: Path, skopeo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    with pytest.raises(BootcError, match=r"no place for its files: .*nowhere") as caught:
        open_source("docker-archive:/image.tar").__enter__()
    assert caught.value.hint == "set TMPDIR to a folder with room for a layer"
    assert not skopeo.exists()


@pytest.mark.parametrize(
    ("how", "problem"),
    [("complain", "unexpected EOF from the registry"), ("die", "ended during GetBlob")],
)
def test_skopeos_reason_is_told(
    tmp_path: Path, skopeo: Path, monkeypatch: pytest.MonkeyPatch, how: str, problem: str
) -> None:
    tars = layers()
    write_layout(tmp_path / "oci", tars)
    monkeypatch.setenv("FAKE_BAD", f"{how} {sha256(tars[1])}")
    with pytest.raises(BootcError, match=problem):
        pull_all(tmp_path)
    assert not (tmp_path / "repo/streams/refs").exists()
    assert skopeo.exists()


def test_a_failure_ends_a_pull_that_waits_for_data(
    tmp_path: Path, skopeo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tars = layers()
    write_layout(tmp_path / "oci", tars, diff_ids=[sha256(b"wrong"), *map(sha256, tars[1:])])
    monkeypatch.setenv("FAKE_BAD", f"stall {sha256(tars[1])}")
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with pytest.raises(BootcError, match="has the digest"):
        pull_all(tmp_path)
    assert threading.active_count() == before[0]
    assert skopeo.exists()


def test_a_registry_that_says_nothing_is_given_up_aloud(
    tmp_path: Path,
    skopeo: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tars = layers()
    write_layout(tmp_path / "oci", tars)
    monkeypatch.setenv("FAKE_BAD", f"stall {sha256(tars[1])}")
    repo = Repository.init(tmp_path / "repo", algorithm=Algorithm.SHA256, secure=False)
    source = open_source("docker://registry/image", ProxyOptions(silence=1.0))
    with (
        repo,
        source as opened,
        pytest.raises(BootcError, match=r"no data of .* for 1 s") as caught,
    ):
        pull(repo, opened, reference="x", tag="t")
    assert "check the network" in str(caught.value.hint)
    assert any(record.levelname == "WARNING" for record in caplog.records)
    assert skopeo.exists()


def test_what_is_not_there_is_refused(
    tmp_path: Path, skopeo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_layout(tmp_path / "oci", layers())
    with pytest.raises(BootcError, match="manifest unknown"), open_source("docker://missing"):
        pass
    assert skopeo.exists()
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with (
        pytest.raises((BootcError, ProcessError)) as caught,
        open_source("docker://registry/image"),
    ):
        pass
    assert "oci:" in str(getattr(caught.value, "hint", ""))
