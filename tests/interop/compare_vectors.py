# SPDX-License-Identifier: Apache-2.0 OR MIT
"""composefs' own vectors, the large ones too, through our `mkcomposefs`.

COMPOSEFS_ASSETS names the folder tests/assets of a checkout of composefs. NAME.dump and
NAME.dump.gz have the sha256 of their image in a file of that name and `.sha256`, its version in
`.version`; should-fail-NAME.dump must make mkcomposefs exit with status 1. (A few sums lie there
whose dump is missing: those are counted as refused.)
"""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import sys
from pathlib import Path

from bootc.composefs.cli import mkcomposefs
from bootc.errors import BootcError
from tests.interop import tally
from tests.interop.compare_reference import scratch
from tests.interop.tally import Tally

ASSETS = "COMPOSEFS_ASSETS"
_HINT = f"git clone https://github.com/composefs/composefs, and let {ASSETS} name its tests/assets"


def read_dump(path: Path) -> bytes | None:
    """The text of a vector, or None if only its sum is there."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if path.suffix == ".gz":
        # Some are kept elsewhere (git's large files), so that only a pointer is here.
        return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else None
    return data


def compare(found: Tally, rng: random.Random, count: int) -> None:
    named = os.environ.get(ASSETS)
    if not named:
        raise BootcError(f"{ASSETS} is not set", hint=_HINT)
    folder = Path(named)
    sums = sorted(folder.glob("*.sha256"))
    failing = sorted(folder.glob("should-fail-*.dump"))
    if not sums or not failing:
        raise BootcError(f"{folder}, from {ASSETS}, holds no vectors", hint=_HINT)
    with scratch() as work:
        dump, image = work / "dump", work / "image"
        for path in sums:
            text = read_dump(path.with_suffix(""))
            if text is None:
                found.refuse("vector")
                continue
            dump.write_bytes(text)
            argv = ["--from-file", str(dump), str(image)]
            version = path.with_suffix(".version")
            if version.exists():
                number = version.read_text().strip()
                argv = [f"--min-version={number}", f"--max-version={number}", *argv]
            status = mkcomposefs.main(argv)
            ours = hashlib.sha256(image.read_bytes()).hexdigest() if status == 0 else f"{status}"
            found.compare("vector", ours, path.read_text().strip(), path.stem)
            image.unlink(missing_ok=True)
        for path in failing:
            status = mkcomposefs.main(["--from-file", str(path), str(image)])
            found.compare("should fail", status, 1, path.name)


if __name__ == "__main__":
    sys.exit(tally.main("compare_vectors", compare, count=1))
