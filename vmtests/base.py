# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The Debian base image, built by mmdebstrap from packaging/base, once per content key.

It holds no code of ours: an edit of `bootc/` never rebuilds it. For each of the `extras` it has the
packages of a folder of packaging/extras, too:

    packages.txt    names
    include.txt     patterns of files that exclude.txt of the base would leave out
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bootc import process
from bootc.errors import BootcError
from bootc.log import step
from vmtests import content, paths, podman
from vmtests.axes import Extra
from vmtests.content import Inputs

SUITE = "trixie"
MIRROR = "http://deb.debian.org/debian"
REPOSITORY = "localhost/bootc-base"
RECIPE = paths.CHECKOUT / "packaging" / "base"
EXTRAS = paths.CHECKOUT / "packaging" / "extras"

_KEYRINGS = (
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
)


def _listed(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def base_inputs(mirror: str, extras: Sequence[Extra] = ()) -> Inputs:
    """What the base image is made from."""
    digests = {
        "base recipe": content.files_digest(RECIPE, _files(RECIPE)),
        "base suite": SUITE,
        "base mirror": content.text_digest(mirror),
    }
    for extra in extras:
        digests[f"extra {extra}"] = content.files_digest(EXTRAS, _files(EXTRAS / extra))
    return Inputs(digests)


def _mmdebstrap_argv(mirror: str, extras: Sequence[Extra], output: Path) -> list[str]:
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
        f"--include={' '.join(packages(extras))}",
        # A mirror that lags behind is no reason to fail: what counts is the signature.
        '--aptopt=Acquire::Check-Valid-Until "false"',
        '--aptopt=Apt::Install-Recommends "false"',
        "--dpkgopt=force-unsafe-io",
        f'--customize-hook={RECIPE / "customize"} "$1"',
    ]
    argv += [f"--dpkgopt={rule}" for rule in path_rules(extras)]
    return [*argv, SUITE, str(output), mirror]


def packages(extras: Sequence[Extra]) -> list[str]:
    """Names of packages; those that they depend on come with them."""
    found = _listed(RECIPE / "packages.txt")
    for extra in extras:
        found += _listed(EXTRAS / extra / "packages.txt")
    return found


def path_rules(extras: Sequence[Extra]) -> Iterator[str]:
    """What dpkg unpacks: the last rule that matches a file counts."""
    for pattern in _listed(RECIPE / "exclude.txt"):
        yield f"path-exclude={pattern}"
    for extra in extras:
        for pattern in _listed(EXTRAS / extra / "include.txt"):
            yield f"path-include={pattern}"


def build_base(mirror: str = MIRROR, extras: Sequence[Extra] = ()) -> str:
    """The name of the base image; built if no image with its key is there."""
    inputs = base_inputs(mirror, extras)
    name = f"{REPOSITORY}:{inputs.key}"
    if podman.find_image(name) is not None:
        return name
    paths.CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="base-", dir=paths.CACHE) as scratch:
        tar = Path(scratch) / "base.tar"
        with step(f"mmdebstrap {SUITE}: the base tree{''.join(f' with {one}' for one in extras)}"):
            # The initrd is the image build's work: the kernel's own hook needn't make one.
            argv = _mmdebstrap_argv(mirror, extras, tar)
            process.run(argv, timeout=1800, env={"INITRD": "No"})
        with step("import the base tree"):
            podman.podman("import", "--quiet", str(tar), name, timeout=600)
    return name
