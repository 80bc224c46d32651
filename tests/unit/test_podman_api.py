# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Pulls by podman's API, from a fake podman: what is understood, and how each failure ends."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import selectors
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootc import fs
from bootc.errors import BootcError, FormatError, ProcessError, find_hint
from bootc.podman.auth import find_auth_file, read_auth_file
from bootc.podman.command import Podman, host_podman
from bootc.podman.http import LINE_MAX
from bootc.podman.pull import Blob, BlobStatus, PullLine, PullRequest, Text, pull_image, read_line
from bootc.podman.service import api_service

FAKE = Path(__file__).resolve().parents[1] / "fakepodman.py"
IMAGE = "ab" * 32
BLOB = f"sha256:{'c' * 64}"
DONE = {"line": {"images": [IMAGE], "id": IMAGE}}
OK = {"status": 200}


class Fake:
    """A scenario's file, and what was asked of the podman that plays it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "scenario.json"
        self.run = folder / "run"
        self.podman = Podman(argv=(sys.executable, str(FAKE)), env={"FAKE_PODMAN": str(self.path)})

    def plays(self, *answer: dict[str, Any], **scenario: Any) -> None:
        self.path.write_text(json.dumps({"answer": answer, **scenario}))

    def log(self) -> list[Any]:
        return [json.loads(line) for line in Path(f"{self.path}.log").read_text().splitlines()]

    def pids(self) -> list[int]:
        """The fakes of this test that still run."""
        wanted = str(self.path).encode()
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    environ = Path(f"/proc/{name}/environ").read_bytes()
                    if b"FAKE_PODMAN=" + wanted in environ.split(b"\0"):
                        found.append(int(name))
                except OSError:
                    continue
        return found


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    made = Fake(tmp_path)
    yield made
    assert made.pids() == []
    assert not made.run.exists() or os.listdir(made.run) == []


def request(**changes: Any) -> PullRequest:
    return PullRequest(**{"reference": "quay.io/a/b:1", **changes})


def pulled(fake: Fake, **changes: Any) -> tuple[str, list[PullLine]]:
    lines: list[PullLine] = []
    with api_service(fake.podman, str(fake.run), timeout=20) as path:
        return pull_image(path, request(**changes), lines.append), lines


@pytest.mark.parametrize("ready", ["notify", "quiet"])
def test_an_image_is_pulled_and_its_lines_are_told(fake: Fake, ready: str) -> None:
    fake.plays(
        OK,
        {"line": {"stream": "Trying to pull quay.io/a/b:1...\n"}},
        {"line": {"stream": f"Copying blob {BLOB}\n"}},
        DONE,
        ready=ready,
    )
    image, lines = pulled(fake)
    assert image == IMAGE
    assert lines == [
        Text(text="Trying to pull quay.io/a/b:1..."),
        Text(text=f"Copying blob {BLOB}"),
    ]
    assert isinstance(lines[1], Text)
    assert lines[1].blob() == BLOB
    service, asked = fake.log()
    assert service[:2] == ["system", "service"]
    assert asked["request"] == (
        "POST /v5.0.0/libpod/images/pull?reference=quay.io%2Fa%2Fb%3A1&pullProgress=true"
        "&policy=always HTTP/1.1"
    )
    assert asked["headers"]["host"] == "d"
    assert asked["headers"]["content-length"] == "0"
    assert "x-registry-auth" not in asked["headers"]


def test_progress_of_each_blob_is_told(fake: Fake) -> None:
    def told(**progress: Any) -> dict[str, Any]:
        progress.setdefault("progressComponentID", BLOB)
        return {"line": {"status": progress["status"], "pullProgress": progress}}

    fake.plays(
        OK,
        told(status="pulling", current=10, total=100),
        told(status="pulling", current=20, total=-1),
        told(status="success", current=100, total=100),
        told(status="skipped", progressComponentID="sha256:other"),
        told(status="something-new"),
        {"line": {"unknown": 1}},
        DONE,
    )
    _, lines = pulled(fake)
    assert lines == [
        Blob(id=BLOB, status=BlobStatus.PULLING, current=10, total=100),
        Blob(id=BLOB, status=BlobStatus.PULLING, current=20, total=None),
        Blob(id=BLOB, status=BlobStatus.SUCCESS, current=100, total=100),
        Blob(id="sha256:other", status=BlobStatus.SKIPPED, current=0, total=None),
    ]


def test_lines_may_come_in_any_pieces(fake: Fake) -> None:
    text = '{"stream": "one"}\n\n{"stream": "t\\u00fco"}\r\n' + json.dumps(DONE["line"])
    fake.plays(OK, {"raw": text, "split": 3})
    image, lines = pulled(fake)
    assert (image, lines) == (IMAGE, [Text(text="one"), Text(text="tüo")])
    fake.plays({"status": 200, "length": len(text.encode("latin-1"))}, {"raw": text, "split": 1})
    assert pulled(fake) == (image, lines)


def test_credentials_are_sent_as_a_map_of_registries(fake: Fake) -> None:
    fake.plays(OK, DONE)
    pulled(fake, credentials={"quay.io/a": ("me", "a:b")}, tls_verify=False, policy="missing")
    asked = fake.log()[1]
    assert asked["request"].endswith("&policy=missing&tlsVerify=false HTTP/1.1")
    sent = base64.urlsafe_b64decode(asked["headers"]["x-registry-auth"])
    assert json.loads(sent) == {"quay.io/a": {"username": "me", "password": "a:b"}}


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("initializing source docker://x: manifest unknown: manifest unknown", "list-tags"),
        ("unauthorized: access to the requested resource is not authorized", "auth.json"),
        ("invalid reference format", "write it like"),
        ("writing blob: no space left on device", "make room"),
        ("http: server gave HTTP response to HTTPS client", "containers-registries.conf"),
    ],
)
def test_an_error_line_in_a_200_is_an_error(fake: Fake, said: str, hint: str) -> None:
    fake.plays(OK, {"line": {"stream": "Trying…"}}, {"line": {"error": said}}, DONE)
    with pytest.raises(BootcError, match=r"podman: pull of quay\.io/a/b:1: ") as caught:
        pulled(fake)
    assert said in str(caught.value)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"cause": "c", "message": "unsupported transport oci", "response": 400}', "unsupported"),
        ("just text\nand more", "just text and more"),
        ("", "HTTP 400: Said"),
        ("x" * 100_000, "HTTP 400: xxx"),
    ],
)
def test_a_refusal_is_told_with_its_text(fake: Fake, body: str, said: str) -> None:
    fake.plays({"status": 400, "length": len(body)}, {"raw": body or "", "split": 1000})
    with pytest.raises(BootcError, match="HTTP 400") as caught:
        pulled(fake)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([OK, {"raw": "no JSON\n"}, DONE], "is not JSON"),
        ([OK, {"raw": "[1]\n"}, DONE], "is not a JSON object"),
        ([OK, {"line": {"stream": 5}}, DONE], "expected a string"),
        ([OK, {"line": {"id": "../../etc"}}], "is no image id"),
        ([OK, {"line": {"pullProgress": []}}], "expected an object"),
        (
            [
                OK,
                {
                    "line": {
                        "pullProgress": {
                            "progressComponentID": "x",
                            "status": "pulling",
                            "current": -1,
                        }
                    }
                },
            ],
            "is negative",
        ),
        ([OK, {"raw": "\xff\xfe{\n"}], "is not JSON"),
        ([OK, {"raw": "x" * 70_000 + "\n"}], "is not JSON"),
        ([OK, {"blank": LINE_MAX + 8192}], "has more than"),
    ],
)
def test_garbage_is_a_format_error(fake: Fake, steps: list[Any], said: str) -> None:
    fake.plays(*steps)
    with pytest.raises(FormatError, match=said) as caught:
        pulled(fake)
    assert str(caught.value).startswith("podman: pull of quay.io/a/b:1")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([OK, {"line": {"stream": "x"}}], "no image was named"),
        ([OK], "no image was named"),
        ([OK, {"line": {"stream": "x"}}, {"cut": True}], "ends in the middle"),
        ([OK, {"socket": "ff\r\nabc"}, {"cut": True}], "ends in the middle"),
        ([OK, {"socket": "zz\r\nabc"}], "cannot be read|ends in the middle"),
        ([{"status": 200, "length": 50}, {"raw": "{}\n"}, {"cut": True}], "middle|no image"),
        ([{"cut": True}], "closed the connection"),
        ([{"socket": "SSH-2.0-nothing\r\n\r\n"}, {"cut": True}], "is no HTTP"),
        ([{"socket": "HTTP/1.1 200 OK\r\n" + "a: b\r\n" * 200 + "\r\n"}], "is no HTTP"),
    ],
)
def test_an_answer_that_breaks_off_is_no_image(fake: Fake, steps: list[Any], said: str) -> None:
    fake.plays(*steps)
    with pytest.raises(BootcError, match=said):
        pulled(fake)


@pytest.mark.parametrize(
    ("steps", "changes"),
    [
        ([{"stall": True}], {"head_timeout": 0.3}),
        ([OK, {"line": {"stream": "x"}}, {"stall": True}], {"silent_without": 0.3}),
        (
            [
                OK,
                {"line": {"pullProgress": {"progressComponentID": "x", "status": "pulling"}}},
                {"stall": True},
            ],
            {"silent_with_progress": 0.3},
        ),
        ([OK, {"raw": '{"stream":', "split": 1}, {"stall": True}], {"silent_without": 0.3}),
    ],
    ids=["head", "lines", "progress", "half a line"],
)
def test_a_pull_that_stalls_is_given_up(fake: Fake, steps: list[Any], changes: Any) -> None:
    fake.plays(*steps)
    with pytest.raises(BootcError, match=r"nothing was heard for|no answer from podman") as caught:
        pulled(fake, **changes)
    assert caught.value.hint


def test_a_service_that_never_gets_ready_is_ended(fake: Fake) -> None:
    fake.plays(ready="never")
    with (
        pytest.raises(BootcError, match="is not ready after 1 s") as caught,
        api_service(fake.podman, str(fake.run), timeout=1),
    ):
        pass
    assert "storage.lock" in str(caught.value.hint)


def test_a_service_that_ends_at_once_is_told_with_its_words(fake: Fake) -> None:
    fake.plays(ready="ends")
    with (
        pytest.raises(ProcessError, match=r"ended at once.*the storage is on fire") as caught,
        api_service(fake.podman, str(fake.run), timeout=20),
    ):
        pass
    assert caught.value.status == 125


def test_a_service_that_dies_in_the_middle_is_told(fake: Fake) -> None:
    fake.plays(OK, {"line": {"stream": "x"}}, {"die": True})
    with pytest.raises(BootcError, match=r"exit status -9|ends in the middle") as caught:
        pulled(fake)
    assert find_hint(caught.value)


def test_a_socket_path_that_is_too_long_is_refused(fake: Fake, tmp_path: Path) -> None:
    fake.plays(OK, DONE)
    folder = tmp_path / ("long" * 25)
    with (
        pytest.raises(BootcError, match="at most 107 can be used") as caught,
        api_service(fake.podman, str(folder)),
    ):
        pass
    assert "shorter" in str(caught.value.hint)
    assert os.listdir(folder) == []


def test_without_podman_the_package_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BootcError, match="podman is not on PATH") as caught, host_podman():
        pass
    assert "apt-get install podman" in str(caught.value.hint)


def kill_and_pull(fake: Fake, end: signal.Signals) -> None:
    with api_service(fake.podman, str(fake.run)) as path:
        [pid] = fake.pids()
        os.kill(pid, end)
        # The last program to know is the kernel: a zombie holds no socket any more.
        with selectors.DefaultSelector() as ended:
            fd = os.pidfd_open(pid)
            ended.register(fd, selectors.EVENT_READ)
            assert ended.select(10)
            os.close(fd)
        pull_image(path, request(), lambda line: None)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_however_the_service_ends_the_block_cleans_up(fake: Fake, end: signal.Signals) -> None:
    fake.plays(OK, DONE)
    with pytest.raises(BootcError, match="podman"):
        kill_and_pull(fake, end)


def test_what_killed_servers_left_is_removed_and_nothing_else(fake: Fake) -> None:
    fake.plays(OK, DONE)
    names = ("api-stale", "api-used", "api-new", "storage-run")
    for name in names:
        (fake.run / name).mkdir(parents=True)
        (fake.run / name / "podman.sock").touch()
        if name != "api-new":
            os.utime(fake.run / name, (0, 0))
    with fs.open_directory(fake.run / "api-used") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pulled(fake)
        assert sorted(os.listdir(fake.run)) == ["api-new", "api-used", "storage-run"]
    for name in names[1:]:
        shutil.rmtree(fake.run / name)


def test_read_line_passes_over_what_it_does_not_know() -> None:
    assert list(read_line(b'{"stream": " \\n"}', "x")) == []
    assert list(read_line(b'{"id": null, "error": ""}', "x")) == []
    assert list(read_line(json.dumps({"id": IMAGE}).encode(), "x")) == [IMAGE]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["status", "current", "total", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
_KEYS = st.sampled_from(["stream", "error", "id", "images", "pullProgress", "status", "y"])


def understood(line: bytes) -> list[PullLine | str] | str:
    """What a line says, or the error that it is."""
    try:
        return list(read_line(line, "answer"))
    except BootcError as error:
        return str(error)


@given(st.dictionaries(_KEYS, _VALUES, max_size=5) | _VALUES)
def test_any_json_is_understood_or_refused(value: object) -> None:
    found = understood(json.dumps(value).encode())
    if isinstance(found, str):
        assert found.startswith("answer")
    else:
        assert all(isinstance(one, Text | Blob | str) for one in found)


@given(st.binary(max_size=60))
def test_any_bytes_are_understood_or_refused(line: bytes) -> None:
    found = understood(line)
    assert found == [] or str(found).startswith("answer")


def test_auth_files_are_read_as_containers_auth(tmp_path: Path) -> None:
    path = tmp_path / "auth.json"
    secret = base64.b64encode(b"me:pass:word").decode()
    path.write_text(json.dumps({"auths": {"quay.io/a": {"auth": secret}, "helped.io": {}}}))
    assert read_auth_file(str(path)) == {"quay.io/a": ("me", "pass:word")}
    path.write_text("{}")
    assert read_auth_file(str(path)) == {}
    assert find_auth_file([str(tmp_path / "none"), str(path)]) == str(path)
    assert find_auth_file([str(tmp_path / "none")]) is None


@pytest.mark.parametrize(
    ("secret", "said"),
    [("!", "is not base64"), ("/w==", "is not base64 of text"), ("bm9jb2xvbg==", "USER:PASSWORD")],
)
def test_a_bad_auth_file_is_named_and_no_secret_shown(
    tmp_path: Path, secret: str, said: str
) -> None:
    path = tmp_path / "auth.json"
    path.write_text(json.dumps({"auths": {"quay.io": {"auth": secret}}}))
    with pytest.raises(FormatError, match=said) as caught:
        read_auth_file(str(path))
    assert f"{path} at .auths.quay.io.auth" in str(caught.value)
    assert "nocolon" not in str(caught.value)
