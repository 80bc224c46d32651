# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The composefs services against the reference's: one client, both servers, layers in both ways.

    nox -s interop -- composefs services [--seed S] [--count N]

Every round makes a repository with a random image, by one of the two programs. Then

* both servers are asked the same about it, and have to say the same;
* every layer goes from theirs to ours and from ours to theirs, and, read by ours, from podman's
  storage to theirs, each into a repository of a random algorithm, as descriptors of GetLayer that
  are handed to PutLayer; FinalizeImage makes the image, and both programs check it;
* `oci copy` of each copies from what the other one made.

The reference is named by the environment variable CFSCTL_REFERENCE, see `programs`.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bootc import process
from bootc.composefs.digest import Algorithm
from bootc.composefs.dirfdstream_fds import Incoming
from bootc.errors import BootcError
from bootc.varlink import Client, VarlinkError
from bootc.varlink.message import Parameters
from tests import ocibuild
from tests.interop import tally
from tests.interop.programs import need_reference
from tests.interop.tally import Tally
from tests.storagebuild import store_with

COUNT = 20
ROOT = Path(__file__).resolve().parents[2]
OURS = (sys.executable, "-m", "bootc.composefs.cli.main")
REPOSITORY = "org.composefs.Repository"
OCI = "org.composefs.Oci"
_ENV = {"RUST_BACKTRACE": "0", "BOOTC_LOG": "warning"}


def compare(found: Tally, rng: random.Random, count: int) -> None:
    theirs = (need_reference(),)
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="bootc-interop-", dir="/var/tmp")
            )
        )
        clients = [
            stack.enter_context(_served(program, folder / f"socket-{number}"))
            for number, program in enumerate((OURS, theirs))
        ]
        for number in range(count):
            here = folder / str(number)
            here.mkdir()
            _round(found, rng, here, clients, theirs, f"round {number}")
            shutil.rmtree(here)


@contextmanager
def _served(program: Sequence[str], path: Path) -> Iterator[Client]:
    argv = [*program, "varlink", "--address", str(path)]
    with process.running(argv, cwd=ROOT, env=_ENV) as child:
        end = time.monotonic() + 60
        while not path.is_socket():
            if child.poll() is not None or time.monotonic() > end:
                raise BootcError(f"{program[0]} made no socket")
            time.sleep(0.02)
        with Client.connect(str(path), timeout=120) as client:
            yield client


def _run(program: Sequence[str], repo: Path, *argv: str) -> process.Completed:
    return process.run([*program, "--repo", str(repo), *argv], cwd=ROOT, check=False, env=_ENV)


def _make(program: Sequence[str], repo: Path, algorithm: Algorithm) -> None:
    _run(program, repo, "init", "--insecure", "--algorithm", algorithm.identifier)


def _ask(client: Client, method: str, **parameters: object) -> Any:
    """The reply, without what is null; or the error and its parameters, but for texts."""
    try:
        return _plain(client.call(method, parameters).parameters)
    except VarlinkError as error:
        known = {k: v for k, v in error.parameters.items() if k != "message"}
        return f"{error.name} {known}"


def _plain(value: Any) -> Any:
    """JSON in which a missing member and a null are the same."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _open(client: Client, path: Path) -> int:
    reply = client.call(f"{REPOSITORY}.OpenRepository", {"path": str(path)})
    number = reply.parameters["handle"]
    assert isinstance(number, int)
    return number


def _round(
    found: Tally,
    rng: random.Random,
    folder: Path,
    clients: Sequence[Client],
    theirs: tuple[str, ...],
    where: str,
) -> None:
    layout = folder / "layout"
    tars = [_tar(rng) for _ in range(rng.randint(1, 3))]
    reference = ocibuild.write_layout(layout, tars)
    maker = rng.choice((OURS, theirs))
    algorithm = rng.choice(list(Algorithm))
    where = f"{where}, made by {'ours' if maker == OURS else 'theirs'}, {algorithm.value}"
    repo = folder / "repo"
    _make(maker, repo, algorithm)
    _run(maker, repo, "oci", "pull", reference, "app")
    handles = [_open(client, repo) for client in clients]
    _compare_answers(found, clients, handles, tars, where)
    documents = _ask(clients[0], f"{OCI}.Inspect", handle=handles[0], image="app")
    stored = [{"diff_id": ocibuild.sha256(tar)} for tar in tars]
    ways: dict[str, tuple[int, int, Sequence[Parameters]]] = {
        "ours to theirs": (0, 1, stored),
        "theirs to ours": (1, 0, stored),
        "podman's to theirs": (0, 1, _in_storage(folder / "storage", tars)),
    }
    for way, (source, target, wanted) in ways.items():
        path = folder / f"received-{len(os.listdir(folder))}"
        _make(OURS, path, rng.choice(list(Algorithm)))
        try:
            number = _open(clients[target], path)
            giver = (clients[source], handles[source])
            _send(giver, (clients[target], number), wanted, tars, documents)
        except BootcError as error:
            found.differ(f"layers, {way}", f"{where}: {error}")
            continue
        copied = _ask(clients[target], f"{OCI}.Inspect", handle=number, image="sent")
        for key in ("manifest", "config"):
            found.compare(f"layers, {way}: {key}", copied.get(key), documents.get(key), where)
        for name, program in (("ours", OURS), ("theirs", theirs)):
            checked = _run(program, path, "oci", "fsck")
            found.compare(f"layers, {way}: fsck by {name}", checked.status, 0, where)
        clients[target].call(f"{REPOSITORY}.CloseRepository", {"handle": number})
    for client, handle in zip(clients, handles, strict=True):
        client.call(f"{REPOSITORY}.CloseRepository", {"handle": handle})
    _compare_copies(found, rng, folder, theirs, where)


def _compare_answers(
    found: Tally,
    clients: Sequence[Client],
    handles: Sequence[int],
    tars: Sequence[bytes],
    where: str,
) -> None:
    missing = ocibuild.sha256(b"missing")
    calls: list[tuple[str, dict[str, object]]] = [
        (f"{OCI}.ListImages", {}),
        (f"{OCI}.ListImages", {"filter": "nope"}),
        (f"{OCI}.Inspect", {"image": "app"}),
        (f"{OCI}.Inspect", {"image": "nope"}),
        (f"{OCI}.ComputeId", {"image": "app", "bootable": False}),
        (f"{OCI}.HasLayer", {"diff_id": ocibuild.sha256(tars[0])}),
        (f"{OCI}.HasLayer", {"diff_id": missing}),
        (f"{OCI}.HasLayer", {"diff_id": "nonsense"}),
        (f"{OCI}.Check", {}),
        (f"{REPOSITORY}.Fsck", {"metadata_only": True}),
        (f"{REPOSITORY}.Gc", {"dry_run": True, "roots": []}),
        (f"{REPOSITORY}.ListImageRefs", {}),
        (f"{REPOSITORY}.ImageObjects", {"name": "nope"}),
    ]
    erofs = _ask(clients[0], f"{OCI}.Inspect", handle=handles[0], image="app")["composefs_erofs"]
    calls.append((f"{REPOSITORY}.ImageObjects", {"name": erofs}))
    for method, parameters in calls:
        said = [
            _ask(client, method, handle=handle, **parameters)
            for client, handle in zip(clients, handles, strict=True)
        ]
        if method.endswith(".Gc"):
            # The original doesn't foretell the links.
            for answer in said:
                answer["result"].pop("images_pruned", None)
                answer["result"].pop("streams_pruned", None)
        found.compare(method.rpartition(".")[2], said[0], said[1], f"{where} {parameters}")


def _in_storage(folder: Path, tars: Sequence[bytes]) -> list[Parameters]:
    """The layers in a containers-storage, as GetLayer asks for them there."""
    store = store_with(folder, *tars)
    top = store.images[0]["layer"]
    ids = {str(layer["id"]): layer for layer in store.layers}
    found: list[Parameters] = []
    while top is not None:
        storage = {"storage_path": str(store.root), "layer_id": top}
        found.insert(0, {"storage": storage})
        top = ids[str(top)].get("parent")
    return found


def _send(
    source: tuple[Client, int],
    target: tuple[Client, int],
    wanted: Sequence[Parameters],
    tars: Sequence[bytes],
    documents: dict[str, str],
) -> None:
    """Each layer from one server (with its handle) to the other, then the image."""
    layers = []
    for params, tar in zip(wanted, tars, strict=True):
        fds: list[int] = []
        count = 0
        asked = {"handle": source[1], "params": {**params, "consumer_has_cap_dac_override": False}}
        for reply in source[0].stream(f"{OCI}.GetLayer", asked):
            fds += reply.fds.take_all()
            count = reply.parameters["dir_count"]
        put = {"handle": target[1], "diff_id": ocibuild.sha256(tar), "zerocopy": False}
        with Incoming(fds, count) as got:
            taken = target[0].call(f"{OCI}.PutLayer", put, [got.stream, *got.directories])
        verity = taken.parameters["layer_verity"]
        layers.append({"diff_id": put["diff_id"], "layer_verity": verity})
    about = {"manifest_json": documents["manifest"], "config_json": documents["config"]}
    final = {"handle": target[1], **about, "layers": layers, "name": "sent"}
    target[0].call(f"{OCI}.FinalizeImage", final)


def _compare_copies(
    found: Tally, rng: random.Random, folder: Path, theirs: tuple[str, ...], where: str
) -> None:
    """Both copy the same, and say the same but for what depends on the version of zstd."""
    algorithm = rng.choice(list(Algorithm))
    said = []
    for name, program in (("ours", OURS), ("theirs", theirs)):
        path = folder / f"copied-by-{name}"
        _make(program, path, algorithm)
        done = _run(
            program, path, "oci", "copy", "app", "--from", str(folder / "repo"), "--name", "x"
        )
        lines = done.stdout.splitlines()
        said.append([line for line in lines if " verity: " not in line])
        for other, checker in (("ours", OURS), ("theirs", theirs)):
            checked = _run(checker, path, "oci", "fsck")
            found.compare(f"copy by {name}: fsck by {other}", checked.status, 0, where)
    found.compare("oci copy", said[0], said[1], where)


def _tar(rng: random.Random) -> bytes:
    members = [ocibuild.folder(b"./"), ocibuild.folder(b"usr/")]
    for file in range(rng.randint(1, 12)):
        content = rng.randbytes(rng.choice((0, 1, 64, 65, 511, 512, 5000, 300_000)))
        members.append(ocibuild.member(b"usr/%d" % file, content))
    return b"".join([*members, ocibuild.END])


def main() -> int:
    return tally.main("services", compare, count=COUNT)


if __name__ == "__main__":
    sys.exit(main())
