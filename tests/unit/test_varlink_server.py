# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Server and client over real sockets: calls, streams, descriptors, upgrades, cancelling, limits.

After each test the process holds the descriptors and threads that it held before.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from bootc.errors import BootcError
from bootc.varlink import (
    Call,
    Cancelled,
    Client,
    ClientGoneError,
    Limits,
    Reply,
    Server,
    Service,
    Stream,
    VarlinkError,
    bind,
    parse,
    serve,
    serving,
)
from bootc.varlink.message import Parameters
from tests.varlinks import INTERFACE, TEXT, Handlers, open_fds
from tests.waiting import wait_until

T = "org.example.test"


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    fds, threads = open_fds(), threading.active_count()
    yield
    wait_until(lambda: threading.active_count() == threads)
    assert open_fds() == fds


class Scene:
    """A server with the test's handlers, and clients of it."""

    def __init__(self, stack: ExitStack, limits: Limits) -> None:
        self._stack = stack
        self.address = f"@bootc-test-{os.getpid()}"
        self.handlers = Handlers()
        service = self.handlers.service()
        self.server = stack.enter_context(serving(service, bind(self.address), limits=limits))

    def client(self, *, checked: bool = True) -> Client:
        known = [INTERFACE] if checked else []
        return self._stack.enter_context(
            Client.connect(f"unix:{self.address}", interfaces=known, timeout=20)
        )

    def raw(self) -> socket.socket:
        made = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        made.settimeout(20)
        made.connect(f"\0{self.address[1:]}")
        return made


@contextmanager
def scene(limits: Limits | None = None) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(stack, limits or Limits())


def exchange(sock: socket.socket, data: bytes, count: int = 1) -> list[dict[str, object]]:
    """Send bytes as they are; so many replies, fewer if the connection ends."""
    if data:
        sock.sendall(data)
    buffer = b""
    while buffer.count(b"\0") < count and (more := sock.recv(65536)):
        buffer += more
    return [json.loads(part) for part in buffer.split(b"\0")[:-1]]


def refusal(
    client: Client, method: str, parameters: Parameters | None = None, fds: list[int] | None = None
) -> str:
    with pytest.raises(VarlinkError) as caught:
        client.call(method, parameters, fds or [])
    return caught.value.message


def test_calls_and_what_a_service_tells() -> None:
    with scene() as s:
        client = s.client()
        info = client.call("org.varlink.service.GetInfo").parameters
        assert info == {
            "vendor": "Example",
            "product": "Test",
            "version": "1",
            "url": "https://example.org/",
            "interfaces": ["org.varlink.service", T],
        }
        assert client.learn(T).text == TEXT
        assert client.learn("org.varlink.service").methods.keys() >= {"GetInfo"}
        assert "TooManyClients" in client.learn("containers.bootc.transport").errors
        tree = {"name": "\u00e9\0", "branches": [{"name": "b", "branches": []}]}
        given = {"text": "x" * 300_000, "kind": "two", "tree": tree}
        assert client.call(f"{T}.Echo", given).parameters == given
        client.oneway(f"{T}.Fail", {"how": "refused"})
        assert client.call(f"{T}.Echo", {"text": ""}).parameters == {"text": ""}


def test_more_and_its_absence() -> None:
    with scene() as s:
        client = s.client()
        replies = list(client.stream(f"{T}.Count", {"to": 4}))
        assert [(r.parameters["number"], r.continues) for r in replies] == [
            (1, True),
            (2, True),
            (3, True),
            (4, False),
        ]
        # Without `more` only the last reply is sent.
        assert client.call(f"{T}.Count", {"to": 4}).parameters == {"number": 4}
        assert [r.parameters for r in client.stream(f"{T}.Echo", {"text": "a"})] == [{"text": "a"}]


def test_descriptors_both_ways() -> None:
    with scene() as s, open("/dev/null") as null:
        client = s.client()
        with client.call(f"{T}.Open", {"text": "hello", "before": 200}) as reply:
            assert len(reply.fds) == 201
            fd = reply.fds.take(reply.parameters["fd_index"])
        # The pipe that came goes back, among others.
        given = [null.fileno(), fd, null.fileno()]
        assert client.call(f"{T}.Read", {"fd_index": 1}, given).parameters == {"data": "hello"}
        os.close(fd)
        for index in (1, -1, 1 << 40):
            assert refusal(client, f"{T}.Read", {"fd_index": index}, [null.fileno()]) == (
                "org.varlink.service.InvalidParameter (parameter: fd_index)"
            )
        wrong = "containers.bootc.transport.WrongDescriptors"
        for count in (0, 4):
            told = f"{wrong} (expected: 1 to 3, received: {count})"
            assert refusal(client, f"{T}.Read", {"fd_index": 0}, [null.fileno()] * count) == told
        extra = refusal(client, f"{T}.Echo", {"text": ""}, [null.fileno()])
        assert extra == f"{wrong} (expected: 0, received: 1)"


def test_upgrade() -> None:
    with scene() as s:
        upgraded = s.client().upgrade(f"{T}.Shout")
        with upgraded.socket as sock:
            sock.sendall(b"hello")
            assert sock.recv(100) == b"HELLO"
        # Bytes that came with the call are the new protocol's.
        raw = s.raw()
        call = json.dumps({"method": f"{T}.Shout", "upgrade": True}).encode()
        raw.sendall(call + b"\0early")
        want = b'{"parameters":{}}\0EARLY'
        raw.setblocking(True)
        assert raw.recv(len(want), socket.MSG_WAITALL) == want
        client = s.client()
        with pytest.raises(VarlinkError, match=r"InvalidParameter \(parameter: upgrade\)"):
            client.upgrade(f"{T}.Echo", {"text": ""})
        assert client.call(f"{T}.Echo", {"text": "a"}).parameters == {"text": "a"}


ERRORS = {
    ("org.nowhere.X", "{}"): ("InterfaceNotFound", {"interface": "org.nowhere"}),
    ("X", "{}"): ("InterfaceNotFound", {"interface": ""}),
    (f"{T}.Nope", "{}"): ("MethodNotFound", {"method": f"{T}.Nope"}),
    (f"{T}.echo", "{}"): ("MethodNotFound", {"method": f"{T}.echo"}),
    (f"{T}.Missing", "{}"): ("MethodNotImplemented", {"method": f"{T}.Missing"}),
    (f"{T}.Echo", "{}"): ("InvalidParameter", {"parameter": "text"}),
    (f"{T}.Echo", '{"text":1}'): ("InvalidParameter", {"parameter": "text"}),
    (f"{T}.Echo", '{"text":"","x":1}'): ("InvalidParameter", {"parameter": "x"}),
    (f"{T}.Echo", '{"text":"","kind":"three"}'): ("InvalidParameter", {"parameter": "kind"}),
    (f"{T}.Echo", '{"text":"","tree":{"name":"","branches":[{}]}}'): (
        "InvalidParameter",
        {"parameter": "tree.branches[0].name"},
    ),
    (f"{T}.Echo", "[]"): ("InvalidParameter", {"parameter": "parameters"}),
    (f"{T}.Count", '{"to":1.0}'): ("InvalidParameter", {"parameter": "to"}),
    (f"{T}.Count", '{"to":true}'): ("InvalidParameter", {"parameter": "to"}),
    (f"{T}.Count", '{"to":18446744073709551616}'): ("InvalidParameter", {"parameter": "to"}),
    (f"{T}.Echo", '{"text":""},"more":1'): ("InvalidParameter", {"parameter": "more"}),
    (f"{T}.Echo", '{"text":""},"more":true,"upgrade":true'): (
        "InvalidParameter",
        {"parameter": "upgrade"},
    ),
    (f"{T}.Echo", '{"text":""},"nonsense":true'): ("InvalidParameter", {"parameter": "nonsense"}),
}


def test_calls_that_are_refused_leave_the_connection_usable() -> None:
    with scene() as s:
        raw = s.raw()
        for (method, parameters), (error, told) in ERRORS.items():
            call = f'{{"method":"{method}","parameters":{parameters}}}\0'.encode()
            assert exchange(raw, call) == [
                {"error": f"org.varlink.service.{error}", "parameters": told}
            ], call
        # No reply at all to a `oneway` call, then a good one.
        for method, parameters in ERRORS:
            if parameters in ("{}", "[]"):
                flags = f'"parameters":{parameters},"oneway":true'
                raw.sendall(f'{{"method":"{method}",{flags}}}\0'.encode())
        good = f'{{"method":"{T}.Echo","parameters":{{"text":"a"}}}}\0'.encode()
        assert exchange(raw, good) == [{"parameters": {"text": "a"}}]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\0", "not JSON"),
        (b"{\0", "not JSON"),
        (b"[]\0", "not a JSON object"),
        (b'{"method":1}\0', "a call needs the name of its method"),
        (b'{"error":"a.b.C"}\0', "a call needs the name of its method"),
        (b'{"method":"a.b.C","method":"d.e.F"}\0', "the member 'method' is there twice"),
        (b'{"method":"\xff"}\0', "not UTF-8"),
        (b'{"method":"\\udc00"}\0', "half a surrogate pair"),
        (b'{"method":"a.b.C","x":' + b"[" * 5000 + b"]" * 5000 + b"}\0", "nested deeper"),
    ],
)
def test_what_is_no_call_ends_the_connection(data: bytes, problem: str) -> None:
    with scene() as s:
        raw = s.raw()
        (reply,) = exchange(raw, data)
        assert reply["error"] == "containers.bootc.transport.BadMessage"
        assert problem in str(reply["parameters"])
        assert raw.recv(10) == b""
        # Others are not concerned.
        assert s.client().call(f"{T}.Echo", {"text": "a"}).parameters == {"text": "a"}


def test_limits() -> None:
    with scene(Limits(message=2000, clients=3, fds=4)) as s, open("/dev/null") as null:
        raw = s.raw()
        (reply,) = exchange(raw, b"x" * 2001)
        assert reply == {
            "error": "containers.bootc.transport.MessageTooLong",
            "parameters": {"bytes_max": 2000},
        }
        # The client hears why, too.
        client = s.client()
        long = refusal(client, f"{T}.Echo", {"text": "x" * 3000})
        assert long == "containers.bootc.transport.MessageTooLong (bytes_max: 2000)"
        client = s.client()
        many = refusal(client, f"{T}.Read", {"fd_index": 0}, [null.fileno()] * 5)
        assert many == "containers.bootc.transport.TooManyDescriptors (descriptors_max: 4)"
        assert client.call(f"{T}.Echo", {"text": "a"}).parameters == {"text": "a"}
        wait_until(lambda: len(s.server._clients) == 1)
        others = [s.client(), s.client()]
        for one in others:
            one.call("org.varlink.service.GetInfo")
        assert exchange(s.raw(), b"") == [
            {
                "error": "containers.bootc.transport.TooManyClients",
                "parameters": {"clients_max": 3},
            }
        ]
        others[0].close()
        wait_until(lambda: len(s.server._clients) == 2)
        s.client().call("org.varlink.service.GetInfo")


def test_unfinished_messages_of_all_clients_have_a_limit() -> None:
    with scene(Limits(unfinished=300_000)) as s:
        raws = [s.raw() for _ in range(4)]
        for raw in raws[:2]:
            raw.sendall(b"x" * 140_000)
        wait_until(lambda: sorted(_waiting(s)) == [0, 0, 140_000, 140_000])
        (reply,) = exchange(raws[2], b"x" * 140_000)
        assert reply == {
            "error": "containers.bootc.transport.TooMuchUnfinished",
            "parameters": {"bytes_max": 300_000},
        }
        # Small messages have room, and so has what begins when another one is gone.
        good = json.dumps({"method": "org.varlink.service.GetInfo"}).encode() + b"\0"
        assert "parameters" in exchange(raws[3], good)[0]
        raws[0].close()
        wait_until(lambda: sorted(_waiting(s)) == [0, 140_000])
        raws[3].sendall(b"x" * 140_000)
        wait_until(lambda: _waiting(s) == [140_000, 140_000])


def _waiting(s: Scene) -> list[int]:
    """Of the clients that no worker has."""
    clients = list(s.server._clients.values())
    return [each.stream.waiting for each in clients if each.resting]


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("unknown error", "raised org.example.test.Nonsense, which no interface here has"),
        ("foreign error", "raised org.example.other.Error, which no interface here has"),
        ("bad error", "parameters that it has not: why is a number, not a string"),
        ("no text", "parameters that are no JSON"),
        ("wrong type", "a reply that is none: number is a string, not an integer"),
        ("too much", "a reply that is none: more is not known here"),
        ("bad descriptor", "OSError: [Errno 9] Bad file descriptor"),
        ("nothing", "TypeError: the handler gave no reply"),
        ("connection", "ConnectionRefusedError: of somebody else"),
        ("a bug \ud800", "RuntimeError: a bug ?"),
    ],
)
def test_bugs_of_a_handler_are_errors_and_no_answers(
    how: str, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(call: Call) -> Reply:
        return Handlers().fail(
            Call(call.method, {"how": how}, call.fds, call.connection, call.cancelled)
        )

    service = Service(vendor="", product="", version="", url="")
    service.add(INTERFACE, {"Fail": fail})
    ours, theirs = socket.socketpair()
    with serving(service, theirs), Client(ours) as client:
        with pytest.raises(VarlinkError) as caught:
            client.call(f"{T}.Fail", {"how": ""})
        assert caught.value.name == "containers.bootc.transport.Failed"
        assert caught.value.parameters["method"] == f"{T}.Fail"
        assert problem in caught.value.parameters["problem"]
        assert f"{T}.Fail" in caplog.text
        # And the connection is as good as before.
        assert client.call("org.varlink.service.GetInfo").parameters["interfaces"]


def test_errors_of_the_interface_and_refusals_of_the_program() -> None:
    def refuse(call: Call) -> Reply:
        raise BootcError("there is no room", hint="make some")

    def halfway(call: Call) -> Stream:
        yield Reply({"number": 1})
        raise VarlinkError(f"{T}.Refused", {"why": "halfway"})

    service = Service(vendor="", product="", version="", url="")
    service.add(INTERFACE, {"Fail": refuse, "Count": halfway})
    ours, theirs = socket.socketpair()
    with serving(service, theirs), Client(ours) as client:
        told = refusal(client, f"{T}.Fail", {"how": ""})
        assert told.startswith("containers.bootc.transport.Failed (method: ")
        assert "there is no room" in told
        replies = client.stream(f"{T}.Count", {"to": 3})
        assert next(replies).parameters == {"number": 1}
        with pytest.raises(VarlinkError, match=r"Refused \(why: halfway\)"):
            next(replies)
        assert client.call("org.varlink.service.GetInfo").parameters


def test_a_client_that_leaves_cancels_its_call() -> None:
    with scene() as s:
        raw = s.raw()
        raw.sendall(json.dumps({"method": f"{T}.Wait"}).encode() + b"\0")
        assert s.handlers.waiting.acquire(timeout=10)
        raw.close()
        wait_until(lambda: s.handlers.events == ["wait: cancelled", "wait: closed"])
        s.handlers.events.clear()
        replies = s.client().stream(f"{T}.Count", {"to": 1000, "pause": 100})
        assert next(replies).parameters == {"number": 1}
        replies.close()
        wait_until(lambda: s.handlers.events == ["count: cancelled", "count: closed"])


def test_nothing_cancels_a_oneway_call() -> None:
    with scene() as s:
        with s.client() as client:
            client.oneway(f"{T}.Count", {"to": 5, "pause": 20})
        wait_until(lambda: s.handlers.events == ["count: closed"])


def test_half_closed_clients_get_their_replies() -> None:
    with scene() as s:
        raw = s.raw()
        call = json.dumps({"method": f"{T}.Count", "parameters": {"to": 3, "pause": 30}}).encode()
        raw.sendall(call + b"\0")
        raw.shutdown(socket.SHUT_WR)
        assert raw.recv(100) == b'{"parameters":{"number":3}}\0'
        assert raw.recv(100) == b""
        assert s.handlers.events == ["count: closed"]


def test_cancelled_can_be_polled() -> None:
    seen: list[bool] = []
    kept: list[Cancelled] = []

    def wait(call: Call) -> Reply:
        import select

        poll = select.poll()
        poll.register(call.cancelled, select.POLLIN)
        kept.append(call.cancelled)
        started.set()
        seen.append(bool(poll.poll(10_000)))
        return Reply()

    started = threading.Event()
    service = Service(vendor="", product="", version="", url="")
    service.add(INTERFACE, {"Wait": wait})
    ours, theirs = socket.socketpair()
    with serving(service, theirs):
        ours.sendall(json.dumps({"method": f"{T}.Wait"}).encode() + b"\0")
        assert started.wait(10)
        ours.close()
        wait_until(lambda: seen == [True])
    with pytest.raises(ValueError, match="the call has ended"):
        kept[0].fileno()


def test_pipelined_calls_are_answered_in_order() -> None:
    with scene() as s:
        calls = b"".join(
            json.dumps({"method": f"{T}.Echo", "parameters": {"text": str(n)}}).encode() + b"\0"
            for n in range(500)
        )
        replies = exchange(s.raw(), calls, 500)
        assert [reply["parameters"] for reply in replies] == [{"text": str(n)} for n in range(500)]


def test_a_client_that_reads_nothing_is_given_up() -> None:
    with scene(Limits(send_seconds=0.2)) as s:
        raw = s.raw()
        raw.sendall(
            json.dumps({"method": f"{T}.Echo", "parameters": {"text": "x" * (4 << 20)}}).encode()
            + b"\0"
        )
        s.client().call(f"{T}.Echo", {"text": "others go on"})
        wait_until(lambda: len(s.server._clients) == 1)


def test_state_and_callbacks_live_as_long_as_the_connection() -> None:
    events: list[str] = []

    def count(call: Call) -> Reply:
        state = call.connection.state
        state["n"] = state.get("n", 0) + 1
        if state["n"] == 1:
            call.connection.on_close(lambda: events.append("first"))
            call.connection.on_close(lambda: events.append(f"last of {state['n']}"))
            call.connection.on_close(lambda: 1 // 0)
        return Reply({"number": state["n"]})

    service = Service(vendor="", product="", version="", url="")
    service.add(INTERFACE, {"Count": count})
    with ExitStack() as stack:
        address = f"@bootc-test-{os.getpid()}"
        stack.enter_context(serving(service, bind(address)))
        one, two = (stack.enter_context(Client.connect(f"unix:{address}")) for _ in range(2))
        numbers = [c.call(f"{T}.Count", {"to": 1}).parameters["number"] for c in (one, two, one)]
        assert numbers == [1, 1, 2]
        one.close()
        wait_until(lambda: events == ["last of 2", "first"])


def test_the_peer_and_who_may_call() -> None:
    def authorize(call: Call) -> None:
        assert (call.peer.pid, call.peer.uid, call.peer.gid) == (
            os.getpid(),
            os.geteuid(),
            os.getegid(),
        )
        if call.method.endswith("Echo"):
            raise VarlinkError("org.varlink.service.PermissionDenied")

    service = Service(vendor="", product="", version="", url="", authorize=authorize)
    service.add(INTERFACE, {"Echo": Handlers().echo, "Count": Handlers().count})
    ours, theirs = socket.socketpair()
    with serving(service, theirs), Client(ours) as client:
        denied = refusal(client, f"{T}.Echo", {"text": ""})
        assert denied == "org.varlink.service.PermissionDenied"
        assert client.call(f"{T}.Count", {"to": 2}).parameters == {"number": 2}


def test_stop_cancels_and_waits() -> None:
    with scene() as s:
        raw, idle = s.raw(), s.raw()
        raw.sendall(json.dumps({"method": f"{T}.Wait"}).encode() + b"\0")
        assert s.handlers.waiting.acquire(timeout=10)
        s.server.stop()
        assert idle.recv(1) == b""
        assert raw.recv(1) == b""
        assert s.handlers.events == ["wait: cancelled", "wait: closed"]
        s.server.stop()


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_stream_that_is_stopped_can_say_how_it_ended(stubborn: bool) -> None:
    """It is told once, and what it yields is not sent; if it then goes on, it is ended."""
    told: list[str] = []

    def count(call: Call) -> Stream:
        yield Reply({"number": 1})
        assert call.cancelled.wait(10)
        try:
            yield Reply({"number": 2})
        except ClientGoneError:
            told.append("gone")
            if stubborn:
                yield Reply({"number": 3})
            raise VarlinkError(f"{T}.Refused", {"why": "stopped"}) from None
        return Reply({"number": 4})

    service = Service(vendor="a", product="b", version="1", url="https://example.org/")
    service.add(INTERFACE, {"Count": count})
    address = f"@bootc-test-{os.getpid()}"
    with (
        serving(service, bind(address)) as server,
        Client.connect(f"unix:{address}", interfaces=[INTERFACE]) as client,
    ):
        replies = client.stream(f"{T}.Count", {"to": 4})
        assert next(replies).parameters == {"number": 1}
        server.stop()
        with pytest.raises(BootcError if stubborn else VarlinkError) as caught:
            next(replies)
    assert told == ["gone"]
    if stubborn:
        assert "closed the connection" in str(caught.value)
    else:
        assert isinstance(caught.value, VarlinkError)
        assert caught.value.parameters == {"why": "stopped"}


def test_a_server_that_was_stopped_before_it_ran() -> None:
    address = f"@bootc-test-{os.getpid()}"
    server = Server(Handlers().service(), [bind(address)])
    server.stop()
    server.run()
    server.stop()


def test_served_connections_end_the_server_and_idle_ends_it() -> None:
    service = Handlers().service()
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve, args=(service, theirs))
    thread.start()
    with Client(ours) as client:
        assert client.call(f"{T}.Echo", {"text": "a"}).parameters == {"text": "a"}
    thread.join(10)
    assert not thread.is_alive()
    address = f"@bootc-test-{os.getpid()}"
    server = Server(service, [bind(address)], idle=0.4)
    thread = threading.Thread(target=server.run)
    thread.start()
    with Client.connect(f"unix:{address}") as client:
        time.sleep(0.6)
        assert client.call(f"{T}.Echo", {"text": "a"}).parameters == {"text": "a"}
    # The time begins anew when the last one has gone.
    wait_until(lambda: not server._clients)
    with Client.connect(f"unix:{address}") as client:
        assert client.call(f"{T}.Echo", {"text": "a"}).parameters == {"text": "a"}
    thread.join(10)
    assert not thread.is_alive()


def test_listening_sockets_and_connections_at_once() -> None:
    service = Handlers().service()
    ours, theirs = socket.socketpair()
    address = f"@bootc-test-{os.getpid()}"
    with serving(service, [bind(address), theirs, bind(address + "2")]):
        with Client(ours) as one:
            one.call(f"{T}.Echo", {"text": "a"})
        for suffix in ("", "2"):
            with Client.connect(f"unix:{address}{suffix}") as two:
                two.call(f"{T}.Echo", {"text": "a"})


def test_handlers_must_fit_their_interface() -> None:
    service = Handlers().service()
    with pytest.raises(ValueError, match=r"two interfaces org\.example\.test"):
        service.add(INTERFACE, {})
    other = parse("interface a.b\nmethod M() -> ()\n")
    with pytest.raises(ValueError, match=r"a\.b has no method N"):
        service.add(other, {"N": Handlers().echo})


def test_expect_more() -> None:
    def count(call: Call) -> Stream:
        call.expect_more()
        yield Reply({"number": 1})
        return Reply({"number": 2})

    service = Service(vendor="", product="", version="", url="")
    service.add(INTERFACE, {"Count": count})
    ours, theirs = socket.socketpair()
    with serving(service, theirs), Client(ours) as client:
        assert refusal(client, f"{T}.Count", {"to": 1}) == "org.varlink.service.ExpectedMore"
        numbers = [r.parameters["number"] for r in client.stream(f"{T}.Count", {"to": 1})]
        assert numbers == [1, 2]
