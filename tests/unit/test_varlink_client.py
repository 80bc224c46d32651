# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The client against servers that lie or die, `exec:`, and sockets that we are started with."""

from __future__ import annotations

import array
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bootc import process
from bootc.errors import BootcError, FormatError
from bootc.varlink import Client, Limits, VarlinkError, bind, from_environment
from tests.varlinks import INTERFACE, open_fds
from tests.waiting import wait_until

T = "org.example.test"
TOP = Path(__file__).resolve().parents[2]
SERVER = f"""#!{sys.executable}
import os, sys
sys.path.insert(0, {str(TOP)!r})
from bootc.varlink import from_environment, serve
from tests.varlinks import Handlers
activated = from_environment()
with open(sys.argv[1], "w") as file:
    names = [(each.fd, each.name, each.listening) for each in activated]
    left = sorted(name for name in os.environ if name.startswith("LISTEN_"))
    file.write(repr((names, left, [os.get_inheritable(each.fd) for each in activated])))
if activated:
    serve(Handlers().service(), [each.socket() for each in activated], idle=0.2)
"""


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    fds, threads = open_fds(), threading.active_count()
    yield
    wait_until(lambda: threading.active_count() == threads)
    assert open_fds() == fds


@contextmanager
def lying(data: bytes, fds: int = 0, limits: Limits | None = None) -> Iterator[Client]:
    """A client whose server has replied `data` already, with descriptors, and then closed."""
    ours, theirs = socket.socketpair()
    with open("/dev/null") as null, theirs:
        rights = array.array("i", [null.fileno()] * fds)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []
        if data:
            theirs.sendmsg([data], ancillary)
        theirs.shutdown(socket.SHUT_WR)
        with Client(ours, interfaces=[INTERFACE], limits=limits, timeout=10) as client:
            yield client


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "closed the connection before it replied"),
        (b"{", "ended in the middle of a message"),
        (b"x\0", "is not JSON"),
        (b"[]\0", "is not a JSON object"),
        (b'{"parameters":[]}\0', "is no reply"),
        (b'{"error":1}\0', "is no reply"),
        (b'{"continues":1,"parameters":{}}\0', "is no reply"),
        (b'{"method":"a.b.C"}\0', "is no reply"),
        (b'{"parameters":{"text":1}}\0', "text is a number, not a string"),
        (b"{}\0", "text is missing"),
        (b'{"parameters":{"text":""},"continues":true}\0', "sent several replies"),
        (b'{"parameters":{"text":"' + b"x" * 2000, "MessageTooLong (bytes_max: 1000)"),
    ],
)
@pytest.mark.parametrize("fds", [0, 3])
def test_servers_that_lie(data: bytes, problem: str, fds: int) -> None:
    with lying(data, fds, Limits(message=1000, fds=3)) as client:
        with pytest.raises(BootcError) as caught:
            client.call(f"{T}.Echo", {"text": "a"})
        assert problem in caught.value.message
        with pytest.raises(BootcError, match="the connection is closed"):
            client.call(f"{T}.Echo", {"text": "a"})


def test_errors_leave_the_connection_open_and_close_descriptors() -> None:
    ours, theirs = socket.socketpair()
    with theirs, open("/dev/null") as null, Client(ours, interfaces=[INTERFACE]) as client:
        rights = array.array("i", [null.fileno()] * 2)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
        theirs.sendmsg([b'{"error":"a.b.C","parameters":{"x":1}}\0'], ancillary)
        theirs.send(b'{"parameters":{"text":"a"}}\0')
        with pytest.raises(VarlinkError) as caught:
            client.call(f"{T}.Echo", {"text": "a"})
        assert (caught.value.name, caught.value.parameters) == ("a.b.C", {"x": 1})
        assert client.call(f"{T}.Echo", {"text": "a"}).parameters == {"text": "a"}


def test_too_many_descriptors_end_the_connection() -> None:
    with (
        lying(b'{"parameters":{"text":"a"}}\0', 4, Limits(fds=3)) as client,
        pytest.raises(BootcError, match="TooManyDescriptors"),
    ):
        client.call(f"{T}.Echo", {"text": "a"})


def test_what_is_wrong_is_not_sent() -> None:
    ours, theirs = socket.socketpair()
    with theirs, Client(ours, interfaces=[INTERFACE]) as client:
        for method, parameters, problem in (
            (f"{T}.Echo", {}, "text is missing"),
            (f"{T}.Nope", {}, "has no method Nope"),
            ("a.b.C", {"x": float("inf")}, "no JSON"),
            ("a.b.C", {"x": {1}}, "no JSON"),
        ):
            with pytest.raises(BootcError, match=problem):
                client.call(method, parameters)
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


def test_a_reply_that_takes_too_long_and_a_server_that_is_gone() -> None:
    ours, theirs = socket.socketpair()
    late = r"no reply to a\.b\.C within 0\.05 s"
    with theirs, Client(ours, timeout=0.05) as client, pytest.raises(BootcError, match=late):
        client.call("a.b.C")
    ours, theirs = socket.socketpair()
    theirs.close()
    with Client(ours) as client, pytest.raises(BootcError, match=r"Broken pipe|closed the conn"):
        client.call("a.b.C")


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("tcp:127.0.0.1:1", "is no address"),
        ("nothing", "is no address"),
        ("unix:/nowhere/sock", "cannot connect: No such file"),
        ("/nowhere/sock", "cannot connect: No such file"),
        ("unix:@bootc-nobody", "cannot connect: Connection refused"),
        ("unix:/" + "x" * 200, "path too long"),
        ("exec:", "needs a program"),
    ],
)
def test_addresses_that_lead_nowhere(address: str, problem: str) -> None:
    with pytest.raises(BootcError, match=problem) as caught:
        Client.connect(address)
    assert caught.value.hint


def program(folder: Path) -> Path:
    path = folder / "server"
    path.write_text(SERVER)
    path.chmod(0o755)
    return path


def test_exec_starts_a_server_on_the_connection(tmp_path: Path) -> None:
    report = tmp_path / "report"
    with Client.connect(f"exec:{program(tmp_path)} {report}", timeout=30) as client:
        assert client.call(f"{T}.Echo", {"text": "a"}).parameters == {"text": "a"}
        with client.call(f"{T}.Open", {"text": "x", "before": 2}) as reply:
            assert os.read(reply.fds[2], 10) == b"x"
    assert report.read_text() == "([(3, 'varlink', False)], [], [False])"


def test_exec_lets_the_server_end_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "slow"
    path.write_text(
        f"""#!{sys.executable}
import sys, time
sys.path.insert(0, {str(TOP)!r})
from bootc.varlink import from_environment, serve
from tests.varlinks import Handlers
serve(Handlers().service(), [each.socket() for each in from_environment()])
time.sleep(0.2)
open({str(tmp_path / "ended")!r}, "w").close()
"""
    )
    path.chmod(0o755)
    with Client.connect(f"exec:{path}", timeout=30) as client:
        assert client.call(f"{T}.Echo", {"text": "a"}).parameters == {"text": "a"}
    assert (tmp_path / "ended").exists()


def test_exec_of_what_is_no_program(tmp_path: Path) -> None:
    with (
        Client.connect(f"exec:{tmp_path}/nothing", timeout=30) as client,
        pytest.raises(BootcError, match=r"closed the connection|Broken pipe|Connection reset"),
    ):
        client.call("a.b.C")


def activated(folder: Path, socket_path: str, variables: str) -> tuple[str, int, str]:
    """Run the server with a listening socket as descriptor 3, as systemd would."""
    report = folder / "report"
    script = f"exec 3<&0 </dev/null; {variables}; exec {program(folder)} {report}"
    with bind(socket_path) as listener:
        done: list[process.Completed] = []

        def run() -> None:
            with process.running(["sh", "-c", script], stdin=listener.fileno()) as child:
                done.append(process.Completed(status=child.wait(30), stdout="", stderr=""))

        thread = threading.Thread(target=run)
        thread.start()
        said = ""
        try:
            if "LISTEN_PID=$$" in variables:
                with Client.connect(f"unix:{socket_path}", timeout=30) as client:
                    said = client.call(f"{T}.Echo", {"text": "hello"}).parameters["text"]
        finally:
            thread.join(30)
    return said, done[0].status, report.read_text()


def test_activation_with_a_listening_socket(tmp_path: Path) -> None:
    variables = "export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=my-name"
    found = activated(tmp_path, f"{tmp_path}/s", variables)
    assert found == ("hello", 0, "([(3, 'my-name', True)], [], [False])")


def test_activation_of_somebody_else(tmp_path: Path) -> None:
    variables = "export LISTEN_PID=1 LISTEN_FDS=1"
    found = activated(tmp_path, f"{tmp_path}/s", variables)
    assert found == ("", 0, "([], ['LISTEN_FDS', 'LISTEN_PID'], [])")


def test_a_process_that_is_not_activated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISTEN_PID", raising=False)
    assert from_environment() == ()
    monkeypatch.setenv("LISTEN_PID", "")
    monkeypatch.setenv("LISTEN_FDS", "nonsense")
    assert from_environment() == ()


@pytest.mark.parametrize("count", ["", "x", "-1", "1e3", "99999999", "\u0663"])
def test_activation_with_bad_numbers(count: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", count)
    with pytest.raises(FormatError, match=r"LISTEN_FDS: .* is no number of descriptors"):
        from_environment()


@pytest.mark.parametrize("what", ["file", "datagram", "closed"])
def test_activation_with_what_is_no_stream_socket(what: str, tmp_path: Path) -> None:
    made = {
        "file": "import sys, os; os.dup2(os.open('/dev/null', 0), 3)",
        "datagram": "import socket, os; s = socket.socket(1, 2); os.dup2(s.fileno(), 3)",
        "closed": "import os; os.closerange(3, 10)",
    }[what]
    code = (
        f"import os, sys; sys.path.insert(0, {str(TOP)!r}); {made}\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n"
        "from bootc.varlink import from_environment\n"
        "try:\n    from_environment()\nexcept Exception as error:\n    print(error)\n"
    )
    said = process.run([sys.executable, "-c", code]).stdout
    want = "3: Bad file descriptor" if what == "closed" else "descriptor 3 is no stream socket"
    assert said == f"the environment at LISTEN_FDS: {want}\n"


def test_starting_up_imports_little() -> None:
    """What an activated server imports: modules that cost milliseconds are not among them."""
    code = (
        f"import sys; sys.path.insert(0, {str(TOP)!r})\n"
        "from bootc.varlink import from_environment, serve, Service, Handler, Reply, parse\n"
        "print(*sorted(sys.modules))"
    )
    names = set(process.run([sys.executable, "-I", "-c", code]).stdout.split())
    heavy = {"asyncio", "typing", "subprocess", "tempfile", "pathlib", "argparse", "ssl"}
    assert not heavy & names
