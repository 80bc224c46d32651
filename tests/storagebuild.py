# SPDX-License-Identifier: Apache-2.0 OR MIT
"""containers-storage stores for tests, made file by file so that they can be wrong on purpose."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

from bootc.composefs.pull import pull
from bootc.composefs.repository import Repository
from bootc.composefs.stored import PulledImage
from bootc.oci.layout import open_source
from bootc.storage.crc64 import crc64
from bootc.storage.layer import open_layer
from bootc.storage.opener import Opener
from bootc.storage.records import big_data_name
from bootc.storage.store import LayerIndex, Store
from tests.ocibuild import END, TYPES, folder, header, member, pax, sha256

FIRST = folder(b"usr") + END
"""A layer below the one that is wrong: a pull may keep it, so that the next need not read it."""
BIG = bytes(range(256)) * 20_000
"""5,120,000 bytes: more than goes through memory."""
Line = dict[str, object]


def split_tar(tar: bytes) -> list[Line]:
    """The lines of tar-split for `tar`."""
    lines: list[Line] = []
    at = 0

    def put(line: Line) -> None:
        lines.append({**line, "position": len(lines)})

    def segment(data: bytes) -> None:
        put({"type": 2, "payload": base64.b64encode(data).decode()})

    with tarfile.open(fileobj=io.BytesIO(tar)) as members:
        for member in members:
            segment(tar[at : member.offset_data])
            at = member.offset_data
            size = member.size if member.isreg() else 0
            line: Line = {"type": 1, "payload": None}
            name = os.fsencode(member.name)
            try:
                line["name"] = name.decode()
            except UnicodeDecodeError:
                line["name_raw"] = base64.b64encode(name).decode()
            if size:
                crc = crc64(tar[at : at + size])
                line["size"] = size
                line["payload"] = base64.b64encode(crc.to_bytes(8, "big")).decode()
            put(line)
            at += size
    segment(tar[at:])
    return lines


def pack_lines(lines: list[Line], how: str = "gzip") -> bytes:
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    return zstandard.compress(data) if how == "zstd" else gzip.compress(data, 1)


def unpack_tar(tar: bytes, folder: Path) -> None:
    """The folders, files and links of `tar`, without owners: what a layer's `diff` holds."""
    folder.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(tar)) as members:
        for member in members:
            path = folder / member.name.lstrip("/")
            if member.isdir():
                path.mkdir(exist_ok=True, parents=True)
            elif member.issym():
                path.symlink_to(member.linkname)
            elif member.islnk():
                os.link(folder / member.linkname, path)
            elif member.isreg():
                path.parent.mkdir(exist_ok=True, parents=True)
                found = members.extractfile(member)
                assert found is not None
                path.write_bytes(found.read())


@dataclass
class StoreBuilder:
    """A store at `root`; `write` has to be called after the last change of `images`, `layers`."""

    root: Path
    images: list[dict[str, object]] = field(default_factory=list)
    layers: list[dict[str, object]] = field(default_factory=list)

    def add_layer(self, tar: bytes, parent: str | None = None, how: str = "gzip") -> str:
        """A layer of this tar; returns its id."""
        layer = hashlib.sha256(tar + (parent or "").encode()).hexdigest()
        folder = self.root / "overlay" / layer
        unpack_tar(tar, folder / "diff")
        short = layer[:26].upper()
        (folder / "link").write_text(short)
        links = self.root / "overlay" / "l"
        links.mkdir(exist_ok=True)
        (links / short).symlink_to(f"../{layer}/diff")
        below = []
        while parent is not None:
            below.append(f"l/{parent[:26].upper()}")
            found = [item for item in self.layers if item["id"] == parent]
            parent = str(found[0]["parent"]) if "parent" in found[0] else None
        if below:
            (folder / "lower").write_text(":".join(below))
        self.split(layer).parent.mkdir(exist_ok=True)
        self.split(layer).write_bytes(pack_lines(split_tar(tar), how))
        record: dict[str, object] = {"id": layer, "diff-digest": sha256(tar), "diff-size": len(tar)}
        if below:
            record["parent"] = next(
                str(item["id"])
                for item in self.layers
                if below[0].endswith(str(item["id"])[:26].upper())
            )
        self.layers.append(record)
        return layer

    def add_image(self, tars: list[bytes], *names: str, how: str = "gzip") -> str:
        """An image of these layers; returns its id, which is the digest of its config."""
        top: str | None = None
        for tar in tars:
            known = [item for item in self.layers if item["diff-digest"] == sha256(tar)]
            top = str(known[0]["id"]) if known and top is None else self.add_layer(tar, top, how)
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Labels": {"test.names": " ".join(names)}},
                "rootfs": {"type": "layers", "diff_ids": [sha256(tar) for tar in tars]},
            }
        ).encode()
        layers = [
            {"mediaType": TYPES["none"], "digest": sha256(tar), "size": len(tar)} for tar in tars
        ]
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": {
                    "mediaType": "application/vnd.oci.image.config.v1+json",
                    "digest": sha256(config),
                    "size": len(config),
                },
                "layers": layers,
            }
        ).encode()
        image = sha256(config).removeprefix("sha256:")
        data = {
            sha256(config): config,
            "manifest": manifest,
            f"manifest-{sha256(manifest)}": manifest,
        }
        folder = self.root / "overlay-images" / image
        folder.mkdir(parents=True)
        for key, content in data.items():
            (folder / big_data_name(key)).write_bytes(content)
        self.images.append(
            {
                "id": image,
                "digest": sha256(manifest),
                "names": list(names),
                "layer": top,
                "big-data-names": list(data),
            }
        )
        return image

    def split(self, layer: str) -> Path:
        return self.root / "overlay-layers" / f"{layer}.tar-split.gz"

    def diff(self, layer: str) -> Path:
        return self.root / "overlay" / layer / "diff"

    def rewrite(self, layer: str, lines: list[Line]) -> None:
        """Give a layer another tar-split."""
        self.split(layer).write_bytes(pack_lines(lines))

    def lines(self, layer: str) -> list[Line]:
        with gzip.open(self.split(layer)) as file:
            return [json.loads(line) for line in file]

    def write(self) -> None:
        for name in ("overlay/l", "overlay-layers", "overlay-images"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "overlay-layers/layers.json").write_text(json.dumps(self.layers))
        (self.root / "overlay-images/images.json").write_text(json.dumps(self.images))
        for name in ("overlay-layers/layers.lock", "overlay-images/images.lock"):
            (self.root / name).touch()

    def imgref(self, name: str) -> str:
        return f"containers-storage:[overlay@{self.root}+{self.root}-run]{name}"


def odd_tar() -> bytes:
    """Members of every kind that matters here, padding that is no zeros, bytes after the end."""
    return (
        folder(b"./")
        + folder(b"usr")
        + member(b"usr/empty")
        + member(b"usr/64", b"x" * 64)
        + header(b"usr/65", 65)
        + b"y" * 65
        + b"PADDING".ljust(447, b"!")
        + member(b"usr/512", b"z" * 512)
        + pax(path=b"usr/" + b"long" * 50)
        + member(b"ignored", b"p" * 700)
        + header(b"usr/hard", 0, b"1", link=b"usr/512")
        + header(b"usr/soft", 0, b"2", link=b"/usr/512")
        + member(b"usr/.wh.gone")
        + member(b"usr/not-utf8-\xff", b"n" * 3000)
        + END
        + b"\0" * 9000
        + b"after the end"
    )


def store_with(tmp_path: Path, *tars: bytes, how: str = "gzip") -> StoreBuilder:
    store = StoreBuilder(root=tmp_path / "store")
    store.add_image(list(tars), "localhost/image:1", how=how)
    store.write()
    return store


def rebuilt(store: StoreBuilder, number: int = 0) -> bytes:
    stores = (Store(root=str(store.root)),)
    layer = LayerIndex(stores).find(str(store.layers[number]["id"]))
    assert layer is not None
    with Opener() as opener, open_layer(layer, stores, opener) as reader:
        return b"".join(reader.read_tar())


def pulled(repo: Repository, imgref: str, **options: bool) -> PulledImage:
    with open_source(imgref) as source:
        return pull(
            repo, source, reference=imgref, tag="t", zerocopy=options.get("zerocopy", False)
        )


def nothing_is_published(repo: Repository) -> bool:
    """No tag, manifest or config, and no layer but `FIRST`."""
    streams = Path(repo.path) / "streams"
    found = set(os.listdir(streams)) if streams.exists() else set()
    return not list(repo.tags()) and found <= {"refs", f"oci-layer-{sha256(FIRST)}"}
