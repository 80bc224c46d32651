# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The look for a kernel in the layers, whatever compresses them."""

import gzip
import io
from pathlib import Path

import pytest
import zstandard

from bootc.errors import BootcError, FormatError
from bootc.install.scan import has_kernel, is_cheap_to_scan, need_kernel
from bootc.oci.layout import open_source
from bootc.oci.model import Compression
from bootc.oci.reference import ImageReference, Transport
from tests.ocibuild import END, folder, header, member, write_layout

KERNEL = b"usr/lib/modules/6.12.107+deb13-cloud-amd64/vmlinuz"
NOISE = (
    member(b"usr/lib/modules/6.12/x.ko", bytes(1_500_000))
    + folder(b"etc/")
    + member(b"etc/a", b"x")
)


def _packed(data: bytes, compression: Compression) -> io.BytesIO:
    match compression:
        case Compression.NONE:
            return io.BytesIO(data)
        case Compression.GZIP:
            return io.BytesIO(gzip.compress(data[:700_000]) + gzip.compress(data[700_000:]))
        case Compression.ZSTD:
            return io.BytesIO(
                zstandard.compress(data[:700_000]) + zstandard.compress(data[700_000:])
            )


@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (KERNEL, True),
        (b"./" + KERNEL, True),
        (b"boot/EFI/Linux/6.12.efi", True),
        (b"boot/vmlinuz-6.12", False),
        (b"usr/lib/modules/vmlinuz", False),
    ],
)
def test_finds_it(name: bytes, expected: bool, compression: Compression) -> None:
    blob = _packed(NOISE + member(name, b"k" * 1000) + NOISE + END, compression)
    assert has_kernel(blob, compression, "layer") is expected


def test_name_in_two_parts() -> None:
    block = header(b"6.12/vmlinuz", prefix=b"usr/lib/modules")
    assert has_kernel(io.BytesIO(NOISE + block + END), Compression.NONE, "layer")


def test_binary_sizes() -> None:
    size = b"\x80" + (1000).to_bytes(11, "big")
    first = header(b"big", numbers={"size": size}) + bytes(1024)
    assert has_kernel(io.BytesIO(first + member(KERNEL) + END), Compression.NONE, "layer")


def test_a_layer_cut_short_has_none() -> None:
    assert not has_kernel(io.BytesIO(NOISE[:1000]), Compression.NONE, "layer")


def test_rubbish() -> None:
    with pytest.raises(FormatError, match="is not a tar archive"):
        has_kernel(io.BytesIO(b"x" * 4096), Compression.NONE, "layer")
    with pytest.raises(FormatError, match="is not gzip"):
        has_kernel(io.BytesIO(b"x" * 4096), Compression.GZIP, "layer")


@pytest.mark.parametrize("how", ["none", "gzip"])
def test_layers_of_an_image(tmp_path: Path, how: str) -> None:
    with_kernel, without = NOISE + member(KERNEL, b"k") + END, NOISE + END
    good = write_layout(tmp_path / "good", [with_kernel, without], how=how)
    bad = write_layout(tmp_path / "bad", [without, without], how=how)
    local = ImageReference(image="x", transport=Transport.OCI)
    with open_source(good) as source:
        need_kernel(source)
        assert is_cheap_to_scan(local, source) is (how == "none")
        remote = ImageReference(image="x", transport=Transport.REGISTRY)
        assert not is_cheap_to_scan(remote, source)
    with open_source(bad) as source, pytest.raises(BootcError, match="has no kernel"):
        need_kernel(source)
