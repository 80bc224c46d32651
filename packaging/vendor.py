# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Collect the pinned wheels of `vendor.txt` in one archive, to build without network.

The archive (`bootc-vendor.tar.gz`; USTAR, gzip) holds `vendor/*.whl`, sorted by name, owner and
group 0, mode 0644, all times 1980-01-01: the same bytes for the same pins. Use it so:

    tar xzf bootc-vendor.tar.gz
    pip wheel --no-index --find-links vendor .          # bootc's own wheel
    pip install --no-index --find-links vendor bootc…whl

or give it to `srpm.py --vendor`: then the source RPM builds with nothing but Python and pip.
Needs pip and a package index, unlike all the rest. Standard library only.
"""

import argparse
import gzip
import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

PINS = Path(__file__).with_name("vendor.txt")
ARCHIVE = "bootc-vendor.tar.gz"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64",)
_FOLDER = "vendor"
_TIME = 315532800  # 1980-01-01, the first that a wheel can name
_GLIBC = ("2014", "_2_17", "_2_28")
_COMPILED = ("zstandard",)


class VendorError(Exception):
    """The wheels could not be had; `hint` is what to do about it."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def build_vendor_archive(
    outdir: Path,
    *,
    pythons: Sequence[str] = PYTHONS,
    machines: Sequence[str] = MACHINES,
    build_only: bool = False,
) -> Path:
    """Download the wheels and pack them into `outdir`; the archive's path.

    Compiled wheels are taken for each of `pythons` on each of `machines`; `build_only` leaves them
    out, for building bootc needs none. Raises `VendorError`.
    """
    pins = read_pins(PINS)
    portable = [pin for name, pin in pins.items() if name not in _COMPILED]
    compiled = [] if build_only else [pins[name] for name in _COMPILED]
    with tempfile.TemporaryDirectory(prefix="bootc-vendor-") as name:
        wheels = Path(name)
        _download(portable, wheels, ())
        for python in pythons if compiled else ():
            for machine in machines:
                platforms = [f"--platform=manylinux{glibc}_{machine}" for glibc in _GLIBC]
                _download(
                    compiled,
                    wheels,
                    ("--implementation=cp", f"--python-version={python}", *platforms),
                )
        data = archive_bytes(sorted(wheels.glob("*.whl")))
    outdir.mkdir(parents=True, exist_ok=True)
    archive = outdir / ARCHIVE
    archive.write_bytes(data)
    return archive


def read_pins(path: Path) -> dict[str, str]:
    """The entries of a requirements file by name, each with its hashes as one line."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = (" ".join(line.split()) for line in text.splitlines())
    entries = [line for line in lines if line and not line.startswith("#")]
    for entry in entries:
        if "==" not in entry or "--hash=sha256:" not in entry:
            raise VendorError(f"{path.name}: not pinned with a hash: {entry.split()[0]}")
    return {entry.split("==")[0]: entry for entry in entries}


def archive_bytes(wheels: Sequence[Path]) -> bytes:
    """The archive of these files."""
    out = io.BytesIO()
    with (
        # Wheels are compressed; more effort would gain nothing.
        gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=out, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for wheel in sorted(wheels, key=lambda wheel: wheel.name):
            data = wheel.read_bytes()
            info = tarfile.TarInfo(f"{_FOLDER}/{wheel.name}")
            info.size = len(data)
            info.mtime = _TIME
            info.mode = 0o644
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _download(pins: Sequence[str], folder: Path, target: Sequence[str]) -> None:
    """Let pip fetch `pins` for `target` (its own interpreter if empty) and check their hashes."""
    requirements = folder / "requirements.txt"
    requirements.write_text("\n".join(pins) + "\n", encoding="utf-8")
    argv = [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"),
        *("--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"),
        *(*target, f"--dest={folder}", f"--requirement={requirements}"),
    ]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=600
    )
    requirements.unlink()
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise VendorError(
            f"{sys.executable} has no pip", hint=f"{sys.executable} -m ensurepip --upgrade"
        )
    said = [line for line in done.stderr.splitlines() if line.strip()]
    raise VendorError(f"pip download failed: {' | '.join(said[-3:])}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Collect the wheels for building offline.")
    parser.add_argument("--outdir", type=Path, required=True, help="the folder for the archive")
    parser.add_argument(
        "--python", action="append", metavar="X.Y", help=f"default: {', '.join(PYTHONS)}"
    )
    parser.add_argument("--machine", action="append", help=f"default: {', '.join(MACHINES)}")
    parser.add_argument(
        "--build-only",
        action="store_true",
        help="only what building a wheel needs (a small archive)",
    )
    options = parser.parse_args(argv)
    try:
        archive = build_vendor_archive(
            options.outdir,
            pythons=options.python or PYTHONS,
            machines=options.machine or MACHINES,
            build_only=options.build_only,
        )
    except (VendorError, OSError) as error:
        hint = getattr(error, "hint", None)
        print(f"vendor: {error}{f' (try: {hint})' if hint else ''}", file=sys.stderr)
        return 1
    print(archive)
    return 0


if __name__ == "__main__":
    sys.exit(main())
