# SPDX-License-Identifier: Apache-2.0 OR MIT
"""PyPI's `varlink`, which nobody here wrote: as client of our server, as server of our client.

It passes no descriptors.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import varlink

from bootc.varlink import Client, VarlinkError, bind, serving
from tests.varlinks import INTERFACE, TEXT, Handlers, open_fds
from tests.waiting import wait_until

T = "org.example.test"


@contextmanager
def their_client() -> Iterator[varlink.Client]:
    """Theirs, connected with a server of ours."""
    name = f"@bootc-pypi-{os.getpid()}"
    with serving(Handlers().service(), bind(name)), varlink.Client(f"unix:{name}") as client:
        yield client


def test_their_client_reads_what_our_service_tells() -> None:
    with their_client() as client, client.open("org.varlink.service") as connection:
        info = connection.GetInfo()
        assert info["vendor"] == "Example"
        assert info["interfaces"] == ["org.varlink.service", T]
        for name in (*info["interfaces"], "containers.bootc.transport"):
            text = connection.GetInterfaceDescription(name)["description"]
            assert varlink.Interface(text).name == name


def test_their_client_calls_our_server() -> None:
    with their_client() as client, client.open(T) as connection:
        tree = {"name": "\u00e9", "branches": [{"name": "\0", "branches": []}]}
        given = {"text": "x" * 200_000, "kind": "two", "tree": tree}
        assert connection.Echo(**given) == given
        numbers = [reply["number"] for reply in connection.Count(5, _more=True)]
        assert numbers == [1, 2, 3, 4, 5]
        assert connection.Count(5)["number"] == 5
        assert connection.Echo("after", _oneway=True) is None
        with pytest.raises(varlink.VarlinkError) as caught:
            connection.Fail("refused")
        assert caught.value.error() == f"{T}.Refused"
        assert caught.value.parameters() == {"why": "so"}
        with pytest.raises(varlink.VarlinkError) as caught:
            connection.Missing()
        assert caught.value.error() == "org.varlink.service.MethodNotImplemented"
        with pytest.raises(varlink.VarlinkError) as caught:
            connection.Fail("wrong type")
        assert caught.value.error() == "containers.bootc.transport.Failed"
        assert connection.Echo("again")["text"] == "again"


class TheirHandlers:
    """The same methods for their server."""

    def Echo(self, text: str, kind: str | None = None, tree: object = None) -> dict[str, object]:
        return {"text": text, "kind": kind, "tree": tree}

    def Count(
        self, to: int, pause: int | None = None, _more: bool = False
    ) -> Iterator[dict[str, object]]:
        for number in range(1 if _more else to, to + 1):
            yield {"number": number, "_continues": number < to}

    def Fail(self, how: str) -> dict[str, object]:
        raise varlink.VarlinkError({"error": f"{T}.Refused", "parameters": {"why": how}})


@contextmanager
def their_server(folder: Path) -> Iterator[str]:
    """Theirs, serving the same interface; its address."""
    (folder / f"{T}.varlink").write_text(TEXT)
    service = varlink.Service(vendor="V", product="P", version="1", interface_dir=str(folder))
    service.interface(T)(TheirHandlers)
    requests = type("Requests", (varlink.RequestHandler,), {"service": service})
    address = f"unix:{folder}/socket"
    with varlink.ThreadingServer(address, requests) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield address
        finally:
            server.shutdown()
            thread.join()


def test_our_client_calls_their_server(tmp_path: Path) -> None:
    fds, threads = open_fds(), threading.active_count()
    with their_server(tmp_path) as address, Client.connect(address, timeout=20) as client:
        info = client.call("org.varlink.service.GetInfo").parameters
        assert (info["vendor"], T in info["interfaces"]) == ("V", True)
        learned = client.learn(T)
        assert learned.methods.keys() == INTERFACE.methods.keys()
        given = {"text": "\u00e9" * 100_000, "kind": "one"}
        reply = client.call(f"{T}.Echo", given)
        assert reply.parameters == {**given, "tree": None}
        numbers = [r.parameters["number"] for r in client.stream(f"{T}.Count", {"to": 4})]
        assert numbers == [1, 2, 3, 4]
        client.oneway(f"{T}.Echo", {"text": "nobody waits"})
        with pytest.raises(VarlinkError) as caught:
            client.call(f"{T}.Fail", {"how": "no"})
        assert (caught.value.name, caught.value.parameters) == (f"{T}.Refused", {"why": "no"})
        with pytest.raises(VarlinkError, match=r"InterfaceNotFound \(interface: a\.b\)"):
            client.call("a.b.C")
    wait_until(lambda: (open_fds(), threading.active_count()) == (fds, threads))
