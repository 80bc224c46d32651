# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The Debian base image, built by mmdebstrap from packaging/base, once per content key.

It holds no code of ours: an edit of `bootc/` never rebuilds it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from bootc import process
from bootc.errors import BootcError
from bootc.log import step
from vmtests import content, paths, podman
from vmtests.content import Inputs

SUITE = "trixie"
MIRROR = "http://deb.debian.org/debian"
REPOSITORY = "localhost/bootc-base"
RECIPE = paths.CHECKOUT / "packaging" / "base"

_KEYRINGS = (
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
)


def _listed(name: str) -> list[str]:
    lines = (RECIPE / name).read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def base_inputs(mirror: str) -> Inputs:
    """What the base image is made from."""
    files = [path for path in RECIPE.rglob("*") if path.is_file()]
    return Inputs(
        {
            "base recipe": content.files_digest(RECIPE, files),
            "base suite": SUITE,
            "base mirror": content.text_digest(mirror),
        }
    )


def _mmdebstrap(mirror: str, output: Path) -> list[str]:
    program = process.need_program(
        "mmdebstrap", hint="install it: apt-get install mmdebstrap, dnf install mmdebstrap"
    )
    keyring = next((path for path in _KEYRINGS if Path(path).exists()), None)
    if keyring is None:
        raise BootcError(
            "Debian's archive keys are not on this machine",
            hint="install debian-archive-keyring (Debian) or debian-keyring (Fedora)",
        )
    argv = [
        program,
        "--variant=apt",
        f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
        "--format=tar",
        f"--keyring={keyring}",
        f"--include={' '.join(_listed('packages.txt'))}",
        # A mirror that lags behind is no reason to fail: what counts is the signature.
        '--aptopt=Acquire::Check-Valid-Until "false"',
        '--aptopt=Apt::Install-Recommends "false"',
        "--dpkgopt=force-unsafe-io",
        f'--customize-hook={RECIPE / "customize"} "$1"',
    ]
    argv += [f"--dpkgopt=path-exclude={pattern}" for pattern in _listed("exclude.txt")]
    return [*argv, SUITE, str(output), mirror]


def build_base(mirror: str = MIRROR) -> str:
    """The name of the base image; built if no image with its key is there."""
    inputs = base_inputs(mirror)
    name = f"{REPOSITORY}:{inputs.key}"
    if podman.find_image(name) is not None:
        return name
    paths.CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="base-", dir=paths.CACHE) as scratch:
        tar = Path(scratch) / "base.tar"
        with step(f"mmdebstrap {SUITE}: the base tree"):
            # The initrd is the image build's work: the kernel's own hook needn't make one.
            process.run(_mmdebstrap(mirror, tar), timeout=1800, env={"INITRD": "No"})
        with step("import the base tree"):
            podman.podman("import", "--quiet", str(tar), name, timeout=600)
    return name
