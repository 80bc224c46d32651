# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The kernel argument that names the image to boot.

| images of version | argument |
|---|---|
| 0 and 1 | `composefs.digest=v1-sha512-12:<hex>`, or `sha256-12` |
| 2 | `composefs=<hex>`; the length tells the algorithm |

A `?` before the value lets a machine boot without fs-verity.
"""

from __future__ import annotations

from bootc.composefs.digest import Algorithm
from bootc.composefs.erofs_format import FormatVersion


def format_karg(
    digest: bytes, *, algorithm: Algorithm, version: FormatVersion, insecure: bool = False
) -> str:
    """The argument for the image with this fs-verity digest."""
    mark = "?" if insecure else ""
    if version is FormatVersion.V2:
        return f"composefs={mark}{digest.hex()}"
    return f"composefs.digest={mark}v1-{algorithm.value}-12:{digest.hex()}"
