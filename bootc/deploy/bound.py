# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Images of applications that are bound to the system's: what is booted has them at hand.

An image binds others by symbolic links in `/usr/lib/bootc/bound-images.d`, each to a unit of
podman's (podman-systemd.unit(5)) in the same image:

    x.image        [Image]      Image=quay.io/example/app:1
    x.container    [Container]  Image=quay.io/example/app:1

Refused: what is no link, leads out of the image or nowhere, has no `Image=`, an `AuthFile=`, or a
specifier of systemd's (`%`, but for `%%`), as nobody could say before the boot what it means.

Before an update that binds images is staged they are pulled into bootc's container storage, if they
aren't there, so that the next boot needs no network for them. That is podman's work: without podman
they are not pulled, which is told. Nothing removes them but `podman image rm` in that storage.
"""

from __future__ import annotations

import logging
import os

from bootc import process
from bootc.composefs.repository import Repository
from bootc.deploy.image import read_leaf
from bootc.deploy.sysroot import Sysroot
from bootc.errors import FormatError, advised
from bootc.log import step
from bootc.oci.reference import ImageReference, Transport
from bootc.tree import Directory, Leaf, Node, Symlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bootc.podman.pull import PullLine

FOLDER = "usr/lib/bootc/bound-images.d"
_SECTIONS = {".image": "Image", ".container": "Container"}
_UNIT_MAX = 1 << 20
_LINKS_MAX = 40

_log = logging.getLogger(__name__)


def read_bound_images(repo: Repository, root: Directory) -> list[ImageReference]:
    """The images that this one binds, each once, in the order of the links' names.

    Raises `FormatError` for a link or a unit that is not as it must be.
    """
    folder = root.find_directory(FOLDER)
    found: dict[str, ImageReference] = {}
    for name, node in folder.sorted() if folder is not None else ():
        source = f"/{FOLDER}/{os.fsdecode(name)}"
        if not isinstance(node, Leaf) or not isinstance(node.content, Symlink):
            raise FormatError(source, None, "is no symbolic link to a unit of podman's")
        unit = _resolve(root, source)
        if not isinstance(unit, Leaf):
            raise FormatError(source, None, "does not lead to a file of the image")
        text = b""
        for piece in read_leaf(repo, unit):
            text += piece
            if len(text) > _UNIT_MAX:
                raise FormatError(source, None, "is too large for a unit")
        image = parse_unit(text.decode("utf-8", "replace"), source)
        found[image] = ImageReference(image=image, transport=Transport.REGISTRY)
    return list(found.values())


def parse_unit(text: str, source: str) -> str:
    """The image that a unit names; its kind is that of the name of `source`. `FormatError`."""
    section = _SECTIONS.get(os.path.splitext(source)[1])
    if section is None:
        raise FormatError(source, None, "is neither a .image nor a .container")
    image = ""
    inside = ""
    for line in text.replace("\\\n", " ").splitlines():
        bare = line.strip()
        if bare.startswith("[") and bare.endswith("]"):
            inside = bare[1:-1]
            continue
        key, equals, value = (part.strip() for part in bare.partition("="))
        if inside != section or not equals or key.startswith(("#", ";")):
            continue
        if key == "AuthFile":
            raise FormatError(source, f"{section}.AuthFile", "is not supported here")
        if key == "Image":
            image = value
    if not image:
        raise FormatError(source, f"{section}.Image", "is missing")
    if "%" in image.replace("%%", ""):
        raise FormatError(source, f"{section}.Image", f"has a specifier: {image}")
    return image.replace("%%", "%")


def _resolve(root: Directory, path: str) -> Node | None:
    """What a path leads to, through links, none of which leaves the root; None if nothing."""
    left = [part for part in path.split("/")[::-1] if part]
    at: list[Directory] = [root]
    links = 0
    while left:
        part = left.pop()
        if part in ("", "."):
            continue
        if part == "..":
            at = at[:-1] or [root]
            continue
        node = at[-1].entries.get(os.fsencode(part))
        if isinstance(node, Directory):
            at.append(node)
        elif isinstance(node, Leaf) and isinstance(node.content, Symlink):
            links += 1
            target = os.fsdecode(node.content.target)
            if links > _LINKS_MAX:
                return None
            if target.startswith("/"):
                at = [root]
            left += [one for one in target.split("/")[::-1] if one]
        else:
            return node if not left else None
    return at[-1]


def pull_bound_images(sysroot: Sysroot, images: list[ImageReference]) -> None:
    """Bring those into bootc's container storage that it hasn't. Raises `BootcError`."""
    if not images:
        return
    if process.find_program("podman") is None:
        _log.warning(
            "podman is not installed, so %d images that are bound to this one are not pulled: %s",
            len(images),
            ", ".join(str(image) for image in images),
        )
        return
    from bootc.deploy.unified import make_unified_storage  # start-up time: few images bind others
    from bootc.podman.fetch import fetch_image

    with advised("images that are bound to the system's are not pulled", "does podman work here?"):
        storage = make_unified_storage(sysroot.root, sysroot.run)
    for image in images:
        if storage.find_image(image.image) is not None:
            continue
        hint = "may this machine read it? then try again; nothing was staged"
        with (
            step(f"pull {image}, which is bound to the system's image"),
            advised(f"{image}, which is bound to the system's image, was not pulled", hint),
        ):
            fetch_image(storage, image, _tell, owned=False)


def need_bound_images(repo: Repository, root: Directory) -> list[ImageReference]:
    """`read_bound_images`, with advice."""
    with advised(
        "the images that this one binds cannot be told", f"mend /{FOLDER} when the image is built"
    ):
        return read_bound_images(repo, root)


def _tell(line: PullLine) -> None:
    text = getattr(line, "text", None)
    if text is not None:
        _log.info("  %s", text)
