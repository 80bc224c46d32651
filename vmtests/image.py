# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`localhost/bootc`: the base image with our wheel, dracut module, units and an initrd in it.

The image keeps two labels: `bootc.kit.inputs`, the digest of every input (so that an unchanged
source is told in a fraction of a second, and a changed one by name), and one label for each option
that shapes it (so that a machine with other options is refused).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bootc import process
from bootc.errors import BootcError
from bootc.jsonutil import canonical, read_object
from bootc.log import step
from vmtests import base, content, paths, podman
from vmtests.content import Inputs
from vmtests.options import BcvkInstallOpts

INPUTS_LABEL = "bootc.kit.inputs"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    """An image in podman's storage: its id (64 hex digits), labels and size in bytes."""

    name: str
    id: str
    labels: Mapping[str, str]
    size: int
    fresh: bool
    """Whether it was built just now."""


def image_inputs(opts: BcvkInstallOpts) -> Inputs:
    """What the image is made from, input by input."""
    top = paths.CHECKOUT
    package = top / "bootc"
    recipe = [top / "packaging" / "Containerfile", top / "packaging" / "install.sh"]
    project = [top / "pyproject.toml", top / "README.md"]
    digests = {
        "bootc/": content.files_digest(package, content.package_files(package)),
        "packaging/": content.files_digest(top, recipe),
        "pyproject.toml, README.md": content.files_digest(top, project),
    }
    if opts.base:
        found = podman.find_image(opts.base)
        digests["BOOTC_base"] = opts.base
        digests["base image"] = found.text("Id")[:12] if found else "not pulled yet"
    else:
        digests |= base.base_inputs(opts.mirror or base.MIRROR, opts.extras).digests
    digests |= {f"option {name}": value for name, value in opts.labels().items()}
    return Inputs(digests)


def read_image(name: str) -> BuiltImage | None:
    """The image `name` of podman's storage, or None."""
    found = podman.find_image(name)
    if found is None:
        return None
    return BuiltImage(
        name=name,
        id=found.text("Id"),
        labels=podman.labels(found),
        size=found.integer("Size"),
        fresh=False,
    )


def _stored_inputs(image: BuiltImage) -> dict[str, str]:
    text = image.labels.get(INPUTS_LABEL)
    if text is None:
        return {}
    table = read_object(text, f"label {INPUTS_LABEL} of {image.name}")
    return {key: table.text(key) for key in table.value}


def why_rebuild(opts: BcvkInstallOpts) -> list[str]:
    """The reasons why `build_image` would build, one a line; empty when it would not."""
    image = read_image(opts.base_img)
    if image is None:
        return [f"there is no image {opts.base_img}"]
    if not _stored_inputs(image):
        return [f"{opts.base_img} was not built by this kit"]
    return image_inputs(opts).changes(_stored_inputs(image))


def _base_image(opts: BcvkInstallOpts) -> str:
    if not opts.base:
        return base.build_base(opts.mirror or base.MIRROR, opts.extras)
    if podman.find_image(opts.base) is None:
        with step(f"pull {opts.base}"):
            podman.podman("pull", "--quiet", opts.base, timeout=1800)
    return opts.base


def build_wheel(folder: Path) -> Path:
    """Our wheel, built into `folder`."""
    process.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)],
        cwd=paths.CHECKOUT,
        timeout=300,
    )
    return next(folder.glob("*.whl"))


def build_image(opts: BcvkInstallOpts) -> BuiltImage:
    """The image for `opts`: the one that is there when no input changed, else a new one."""
    present = read_image(opts.base_img)
    inputs = image_inputs(opts)
    if present is not None and not opts.nocache:
        stored = _stored_inputs(present)
        if stored and not inputs.changes(stored):
            return present
        if not stored:
            raise BootcError(
                f"{opts.base_img} is there, but was not built by this kit",
                hint=f"remove it (podman rmi {opts.base_img}) or set BOOTC_base_img",
            )
    start = _base_image(opts)
    inputs = image_inputs(opts)
    with (
        tempfile.TemporaryDirectory(prefix="context-") as scratch,
        podman.build_base(start) as named,
    ):
        context = Path(scratch)
        with step("build the wheel"):
            build_wheel(context)
        shutil.copy(paths.CHECKOUT / "packaging" / "install.sh", context)
        argv = ["build", "--isolation=chroot", "--pull=never", "--quiet", "--layers=false"]
        argv += ["--network=host", "--format=oci", "--tag", opts.base_img]
        argv += ["--file", str(paths.CHECKOUT / "packaging" / "Containerfile")]
        argv += ["--build-arg", f"BASE={named}", "--build-arg", f"INITRD={opts.initrd}"]
        shown = {**opts.labels(), INPUTS_LABEL: canonical(dict(inputs.digests))}
        for key, value in shown.items():
            argv += ["--label", f"{key}={value}"]
        with step(f"build {opts.base_img}"):
            podman.podman(*argv, str(context), timeout=1800)
    built = read_image(opts.base_img)
    if present is not None and built is not None and present.id != built.id:
        # Ours, and nameless now. Still in use by a container: stays until that is gone.
        podman.podman("rmi", present.id, timeout=120, check=False)
    if built is None:
        raise BootcError(f"podman built {opts.base_img}, but does not know it")
    return BuiltImage(
        name=built.name, id=built.id, labels=built.labels, size=built.size, fresh=True
    )


def check_image(image: BuiltImage, opts: BcvkInstallOpts) -> None:
    """Refuse an image that was built with other options than `opts`."""
    opts.check_labels(image.labels)
