# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Varlink: small calls on one connection beside PyPI's `varlink`, and how soon a service answers.

The same method of the same interface is served by both, each in a process of its own, and the same
client calls it: bytes that are ready, so that the servers are compared. In the second row each
library's client calls its own server. The client's process is measured; both rows tell microseconds
a call. The limit of 333 is 3,000 calls a second, on an idle machine.

The third and fourth row are the time from the start of a service, as `varlinkctl exec:` starts it,
to its first answer.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from tests.bench.frame import ROOT, Make, Row, Side
from tests.bench.sample import Setup

CALLS = 4000
CALL_MAX = 1e6 / 3000
FIRST_ANSWER_MAX = 0.15
_INTERFACE = """interface org.example.ping
type Kind (one, two)
method Ping (text: string, kind: ?Kind, sizes: []int) -> (text: string, kind: ?Kind, sizes: []int)
"""
_OURS = """
import sys
from bootc.varlink import Reply, Service, bind, parse, serve
service = Service(vendor="V", product="P", version="1", url="U")
service.add(parse(open(sys.argv[1]).read()), {"Ping": lambda call: Reply(call.parameters)})
serve(service, bind(sys.argv[2]))
"""
_THEIRS = """
import os, sys, varlink
service = varlink.Service(vendor="V", product="P", interface_dir=os.path.dirname(sys.argv[1]))
@service.interface("org.example.ping")
class Ping:
    def Ping(self, text, kind, sizes):
        return {"text": text, "kind": kind, "sizes": sizes}
class Requests(varlink.RequestHandler):
    pass
Requests.service = service
with varlink.ThreadingServer("unix:" + sys.argv[2], Requests) as server:
    server.serve_forever()
"""
_CLIENT = """
import os, socket, sys, tempfile, time
from bootc import process
server, client, interface, calls = *sys.argv[1:4], int(sys.argv[4])
given = {"text": "hello", "kind": "one", "sizes": [1, 2, 3]}
with tempfile.TemporaryDirectory() as folder:
    path = folder + "/s"
    with process.running([sys.executable, "-c", server, interface, path]) as child:
        while not os.path.exists(path):
            assert child.poll() is None
            time.sleep(0.01)
        time.sleep(0.1)
        space = {"path": path, "given": given}
        exec(client, space)
        call = space["call"]
        for _ in range(200):
            call()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        print((time.perf_counter() - start) / calls * 1e6)
        space["close"]()
"""
_BYTES = """
import json, socket
sock = socket.socket(socket.AF_UNIX)
sock.connect(path)
message = json.dumps({"method": "org.example.ping.Ping", "parameters": given}).encode() + b"\\0"
def call():
    sock.sendall(message)
    data = sock.recv(65536)
    while not data.endswith(b"\\0"):
        data += sock.recv(65536)
    assert b'"sizes"' in data
close = sock.close
"""
_OUR_CLIENT = """
from bootc.varlink import Client
client = Client.connect("unix:" + path)
client.learn("org.example.ping")
def call():
    client.call("org.example.ping.Ping", given)
close = client.close
"""
_THEIR_CLIENT = """
import varlink
client = varlink.Client("unix:" + path)
connection = client.open("org.example.ping")
def call():
    connection.Ping(**given)
close = connection.close
"""
_FIRST = """
import sys, time
from bootc.varlink import Client
with open(sys.argv[2], "w") as file:
    file.write("#!" + sys.executable + "\\n" + sys.argv[1])
import os
os.chmod(sys.argv[2], 0o755)
import bootc.process
start = time.perf_counter()
with Client.connect("exec:" + sys.argv[2], timeout=60) as client:
    client.call("org.varlink.service.GetInfo")
    print(time.perf_counter() - start)
"""


def rows(setup: Setup) -> dict[str, Make]:
    """The rows of this module."""
    return {
        "varlink server, small calls": functools.partial(_calls, setup, _BYTES, _BYTES, CALL_MAX),
        "varlink client and server": functools.partial(
            _calls, setup, _OUR_CLIENT, _THEIR_CLIENT, None
        ),
        "first answer of bootc": functools.partial(_first, setup, "bootc.cli.main"),
        "first answer of cfsctl": functools.partial(_first, setup, "bootc.composefs.cli.main"),
    }


def _calls(setup: Setup, ours: str, theirs: str, most: float | None) -> Row:
    path = _interface(setup.folder)
    argv = (sys.executable, "-c", _CLIENT)
    return Row(
        ours=Side(label="ours", argv=(*argv, _OURS, ours, path, f"{CALLS}"), value=float),
        theirs=Side(label="PyPI", argv=(*argv, _THEIRS, theirs, path, f"{CALLS}"), value=float),
        unit="us/call",
        ratio_max=1.0,
        value_max=most,
    )


def _interface(folder: Path) -> str:
    path = folder / "org.example.ping.varlink"
    path.write_text(_INTERFACE)
    return str(path)


def _first(setup: Setup, module: str) -> Row:
    """Byte code is kept, as it is for an installed program."""
    program = (
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom {module} import entry\nentry()\n"
    )
    path = str(setup.folder / f"first-{module}")
    env = {"PYTHONPYCACHEPREFIX": str(setup.folder / "pyc"), "PYTHONDONTWRITEBYTECODE": ""}
    return Row(
        ours=Side(
            label="exec, GetInfo",
            argv=(sys.executable, "-c", _FIRST, program, path),
            env=env,
            value=float,
        ),
        value_max=FIRST_ANSWER_MAX,
    )
