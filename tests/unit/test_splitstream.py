# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Split streams: the pinned vector, the way back, and bad input."""

from __future__ import annotations

import contextlib
import itertools
import json
import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as some

from bootc.composefs.digest import Algorithm, digest_bytes
from bootc.composefs.splitstream import (
    OCI_CONFIG,
    OCI_LAYER,
    SplitStreamWriter,
    read_splitstream,
)
from bootc.errors import FormatError
from tests.ocibuild import END, header, sha256

SHA256 = Algorithm.SHA256


def test_splitstream_config_of_three_layers_has_the_pinned_digest() -> None:
    diff_ids: list[str] = []
    config = SplitStreamWriter(SHA256, OCI_CONFIG)
    for name, size in ((b"alpha", 1000), (b"beta", 2000), (b"gamma", 3000)):
        head, tail = header(name, size, mode=0o700), bytes(-size % 512) + END
        layer = SplitStreamWriter(SHA256, OCI_LAYER)
        layer.inline(head)
        layer.external(digest_bytes(bytes(size), SHA256), size)
        layer.inline(tail[:5])
        layer.inline(tail[5:])
        diff_ids.append(sha256(head + bytes(size) + tail))
        config.named_ref(diff_ids[-1], digest_bytes(layer.finish(), SHA256))
    text = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        },
        separators=(",", ":"),
    ).encode()
    config.external(digest_bytes(text, SHA256), len(text))
    data = config.finish()
    assert len(data) == 405
    assert (
        digest_bytes(data, SHA256).hex()
        == "4839518dea22749f8ff233e7f7baec65f23dd5336462f46ad6884769af84bf95"
    )


@pytest.mark.parametrize("algorithm", list(Algorithm))
@given(
    some.lists(
        some.one_of(some.binary(max_size=300), some.tuples(some.integers(0, 5), some.just(70)))
    )
)
def test_splitstream_reads_what_was_written(
    algorithm: Algorithm, parts: list[bytes | tuple[int, int]]
) -> None:
    writer = SplitStreamWriter(algorithm, OCI_LAYER)
    digests = [bytes([number]) * algorithm.size for number in range(6)]
    wanted: list[bytes] = []
    for part in parts:
        if isinstance(part, bytes):
            writer.inline(part)
            wanted.append(part)
        else:
            writer.external(digests[part[0]], part[1])
            wanted.append(digests[part[0]])
    writer.named_ref("b:colon", digests[1])
    writer.named_ref("a", digests[0])
    writer.named_ref("c", digests[0])
    found = read_splitstream(writer.finish(), "test")
    chunks = list(found.chunks())
    joined = b"".join(
        part if isinstance(part, bytes) else found.object_refs[part] for part in chunks
    )
    assert joined == b"".join(wanted)
    assert found.named_refs == {"a": digests[0], "b:colon": digests[1], "c": digests[0]}
    assert found.stream_refs == [digests[1], digests[0]]
    assert found.content_type == OCI_LAYER
    assert found.total_size == sum(
        len(part) if isinstance(part, bytes) else part[1] for part in parts
    )
    # No two inline chunks follow each other.
    assert not any(
        isinstance(one, bytes) and isinstance(two, bytes) for one, two in itertools.pairwise(chunks)
    )


@pytest.mark.parametrize("size", [131064 - 9, 131064, 131064 + 1, 131064 + 7, 131072, 3 * 131072])
def test_splitstream_chunks_are_whole_wherever_the_reader_stops(size: int) -> None:
    """It reads 128 KiB at a time, whatever lies at such a place: a number, or an inline chunk."""
    pieces = [bytes([number]) * (size if number % 2 else 100 + number) for number in range(6)]
    writer = SplitStreamWriter(SHA256, OCI_LAYER)
    for piece in pieces:
        writer.inline(piece)
        writer.external(bytes(32), 70)
    chunks = list(read_splitstream(writer.finish(), "test").chunks())
    assert chunks == list(itertools.chain.from_iterable((piece, 0) for piece in pieces))


def test_splitstream_that_ends_in_a_chunk_says_what_is_missing() -> None:
    for chunks, missing in (
        (struct.pack("<q", 0) * 16384 + b"\0\0\0", 5),
        (struct.pack("<q", -100) + bytes(40), 60),
    ):
        stream = read_splitstream(with_stream(chunks), "test")
        with pytest.raises(FormatError, match=f"ends {missing} bytes too early"):
            list(stream.chunks())


def sample() -> bytes:
    writer = SplitStreamWriter(SHA256, OCI_LAYER)
    writer.inline(b"abc")
    writer.external(bytes(32), 100)
    writer.named_ref("name", bytes(32))
    return writer.finish()


def test_splitstream_old_header_is_read() -> None:
    data = sample()
    magic, version, flags, kernel, block, start, end = struct.unpack_from("<11sBHBBQQ", data)
    old = struct.pack("<QQH11sBBB", start, end, flags, magic, version, kernel, block)
    assert list(read_splitstream(old + data[32:], "old").chunks()) == [b"abc", 0]


def with_stream(chunks: bytes) -> bytes:
    """The sample with other chunks."""
    data = bytearray(sample())
    frame = zstandard.ZstdCompressor().compress(chunks)
    start = struct.unpack_from("<Q", data, 32 + 32)[0]
    struct.pack_into("<QQ", data, 32 + 32, start, start + len(frame))
    return bytes(data[:start]) + frame


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"SplitStream",
        bytes(200),
        sample()[:60],
        sample()[:-20],
        sample()[:11] + b"\x01" + sample()[12:],
        sample()[:14] + b"\x07" + sample()[15:],
        with_stream(b"\0" * 7),
        with_stream(struct.pack("<q", 1)),
        with_stream(struct.pack("<q", -10) + b"short"),
        with_stream(struct.pack("<q", -(1 << 63))),
        with_stream(b"")[:-9] + b"not a zstd frame",
    ],
)
def test_splitstream_bad_input_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        list(read_splitstream(data, "bad").chunks())


def with_names(text: bytes) -> bytes:
    """A stream of nothing but named refs, and two stream refs."""
    frame = zstandard.ZstdCompressor().compress(text)
    empty = zstandard.ZstdCompressor().compress(b"")
    head = struct.pack("<11sBHBBQQ", b"SplitStream", 0, 0, 1, 12, 32, 112)
    first, second = 112 + 64, 112 + 64 + len(frame)
    ranges = (112, first, first, first, second, second + len(empty), first, second)
    info = struct.pack("<8Q8sQ", *ranges, OCI_CONFIG, 0)
    return head + info + bytes(range(64)) + frame + empty


def test_splitstream_names() -> None:
    found = read_splitstream(with_names(b"1:one\x000:zero\x00"), "names").named_refs
    assert found == {"one": bytes(range(32, 64)), "zero": bytes(range(32))}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"2:none\0", "bad entry"),
        (b"-1:none\0", "bad entry"),
        (b"1none\0", "bad entry"),
        (b"0" * 5000 + b":many digits\0", "bad entry"),
        (b"1:\xff\0", "bad name"),
        (b"1:cut", "in the middle of a name"),
        (b"0:a\x001:a\0", "'a' is there twice"),
        (bytes((16 << 20) + 1), "longer than 16 MiB"),
    ],
)
def test_splitstream_bad_names_are_refused(text: bytes, problem: str) -> None:
    with pytest.raises(FormatError, match=f"names at named refs: .*{problem}"):
        read_splitstream(with_names(text), "names")


def two_blocks() -> bytes:
    """A stream whose frame has a block for each of its two chunks."""
    compressor = zstandard.ZstdCompressor().compressobj()
    one = struct.pack("<q", -50) + bytes(50)
    frame = compressor.compress(one) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    frame += compressor.compress(one) + compressor.flush()
    data = bytearray(sample())
    start = struct.unpack_from("<Q", data, 32 + 32)[0]
    struct.pack_into("<QQ", data, 32 + 32, start, start + len(frame))
    return bytes(data[:start]) + frame


def test_splitstream_cut_between_blocks_is_refused() -> None:
    whole = two_blocks()
    assert list(read_splitstream(whole, "whole").chunks()) == [bytes(50), bytes(50)]
    start, end = struct.unpack_from("<QQ", whole, 32 + 32)
    at = start + zstandard.frame_header_size(whole[start:])
    first = at + 3 + (int.from_bytes(whole[at : at + 3], "little") >> 3)
    for size in range(start, end):
        data = bytearray(whole[:size])
        struct.pack_into("<Q", data, 32 + 40, size)
        with pytest.raises(FormatError, match="zstd frame"):
            list(read_splitstream(bytes(data), "cut").chunks())
    assert start < first < end
    longer = bytearray(whole + b"more")
    struct.pack_into("<Q", longer, 32 + 40, end + 4)
    with pytest.raises(FormatError, match="ends 4 bytes before its section does"):
        list(read_splitstream(bytes(longer), "longer").chunks())


def test_splitstream_bomb_is_refused_before_it_is_unpacked() -> None:
    size = 300 << 20
    bomb = bytearray(with_stream(struct.pack("<q", -size) + bytes(1 << 20)))
    with pytest.raises(FormatError, match="more than fits in a file of 103"):
        list(read_splitstream(bytes(bomb), "bomb").chunks())
    struct.pack_into("<Q", bomb, 32 + 72, 1 << 60)
    with pytest.raises(FormatError, match="or than 268435456"):
        list(read_splitstream(bytes(bomb), "bomb").chunks())


@given(some.binary(max_size=40), some.integers(0, 300))
def test_splitstream_random_damage_gives_format_errors_only(noise: bytes, at: int) -> None:
    good = sample()
    damaged = good[:at] + noise + good[at + len(noise) :]
    with contextlib.suppress(FormatError):
        list(read_splitstream(damaged, "damaged").chunks())
