# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Tars and OCI layouts for tests, made byte by byte so that they can be wrong on purpose."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import zstandard

TYPES = {
    "none": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}
END = bytes(1024)


def header(
    name: bytes,
    size: int = 0,
    kind: bytes = b"0",
    *,
    link: bytes = b"",
    mode: int = 0o644,
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    numbers: dict[str, bytes] | None = None,
) -> bytes:
    """A header block; `numbers` sets raw numeric fields (uid, gid, size, mtime, major, minor)."""
    raw = {"uid": b"0000000\0", "gid": b"0000000\0", "size": b"%011o\0" % size}
    raw |= {"mtime": b"%011o\0" % 0, "major": bytes(8), "minor": bytes(8)}
    raw |= numbers or {}
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = b"%07o\0" % mode
    block[108:116] = raw["uid"]
    block[116:124] = raw["gid"]
    block[124:136] = raw["size"]
    block[136:148] = raw["mtime"]
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[157 : 157 + len(link)] = link
    block[257:265] = magic
    block[329:337] = raw["major"]
    block[337:345] = raw["minor"]
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b"%07o\0" % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def member(name: bytes, data: bytes = b"", kind: bytes = b"0") -> bytes:
    return header(name, len(data), kind) + padded(data)


def folder(name: bytes, mode: int = 0o755) -> bytes:
    return header(name, 0, b"5", mode=mode)


def pax(**records: bytes) -> bytes:
    return pax_items(*((key.encode(), value) for key, value in records.items()))


def pax_items(*records: tuple[bytes, bytes]) -> bytes:
    body = b""
    for key, value in records:
        rest = b" " + key + b"=" + value + b"\n"
        size = len(rest) + 1
        while len(str(size)) + len(rest) != size:
            size = len(str(size)) + len(rest)
        body += str(size).encode() + rest
    return member(b"pax", body, b"x")


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def compress(data: bytes, how: str) -> bytes:
    if how == "gzip":
        # Two members, as some packers write them.
        half = len(data) // 2
        return gzip.compress(data[:half], 1) + gzip.compress(data[half:], 1)
    if how == "zstd":
        half = len(data) // 2
        packer = zstandard.ZstdCompressor()
        return packer.compress(data[:half]) + packer.compress(data[half:])
    return data


def write_blob(layout: Path, data: bytes) -> dict[str, object]:
    folder = layout / "blobs" / "sha256"
    folder.mkdir(parents=True, exist_ok=True)
    digest = sha256(data)
    (folder / digest.removeprefix("sha256:")).write_bytes(data)
    return {"digest": digest, "size": len(data)}


def write_layout(
    layout: Path,
    tars: list[bytes],
    *,
    how: str = "none",
    diff_ids: list[str] | None = None,
    tag: str = "latest",
) -> str:
    """Write an OCI layout of these layers; returns the reference."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Labels": {"org.opencontainers.image.version": "1"}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids or [sha256(tar) for tar in tars]},
    }
    layers = [{"mediaType": TYPES[how], **write_blob(layout, compress(tar, how))} for tar in tars]
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            **write_blob(layout, json.dumps(config).encode()),
        },
        "layers": layers,
    }
    entry = {
        "mediaType": manifest["mediaType"],
        **write_blob(layout, json.dumps(manifest).encode()),
        "annotations": {"org.opencontainers.image.ref.name": tag},
    }
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return f"oci:{layout}:{tag}"


def system_tar(big: bytes = b"") -> bytes:
    """A layer with the folders every image has, and some files."""
    folders = b"".join(
        folder(b"./" + name + b"/") for name in (b"usr", b"boot", b"sysroot", b"run")
    )
    return (
        folder(b"./")
        + folders
        + folder(b"usr/bin")
        + member(b"usr/bin/small", b"tiny")
        + member(b"usr/bin/large", bytes(range(256)) * 40)
        + header(b"usr/bin/hard", 0, b"1", link=b"usr/bin/large")
        + header(b"usr/bin/soft", 0, b"2", link=b"large")
        + member(b"boot/vmlinuz", b"k" * 1000)
        + member(b"run/lock", b"l" * 100)
        + (member(b"usr/big", big) if big else b"")
        + END
    )
