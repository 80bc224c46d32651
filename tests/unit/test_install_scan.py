# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The look for a kernel in the layers, whatever compresses them."""

import gzip
import io

import pytest
import zstandard

from bootc.errors import FormatError
from bootc.install.scan import has_kernel
from bootc.oci.model import Compression
from tests.ocibuild import END, folder, header, member

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
