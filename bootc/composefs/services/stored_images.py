# SPDX-License-Identifier: Apache-2.0 OR MIT
"""org.composefs.Oci: what is said of the images in a repository, and their tags."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bootc.composefs.assemble import XattrMode, assemble, encode_image, transform_for_boot
from bootc.composefs.described import describe_image, inspect_image
from bootc.composefs.digest import digest_bytes
from bootc.composefs.repository import NotFoundError, Repository, escape_tag
from bootc.composefs.services.handles import need_handle
from bootc.composefs.services.replies import OCI, fail, invalid_digest, invalid_request
from bootc.composefs.stored import (
    PulledImage,
    load_image,
    load_images,
    load_named,
    manifest_content_id,
)
from bootc.errors import BootcError, FormatError
from bootc.oci.model import check_digest
from bootc.varlink import Call, Reply

_XATTRS = {"AllowlistOnly": XattrMode.ALLOWLIST_ONLY, "KeepUserXattrs": XattrMode.KEEP_USER}


def xattr_mode(call: Call) -> XattrMode | None:
    """The `xattrs` of a call, if it says them."""
    said = call.parameters.get("xattrs")
    return None if said is None else _XATTRS[said]


def check_image_name(image: str) -> None:
    """Refuse what can be neither a tag nor `@DIGEST`: NoSuchImage, InvalidDigest."""
    if image.startswith("@"):
        need_digest(image[1:])
        return
    try:
        escape_tag(image)
    except BootcError as error:
        raise fail(OCI, "NoSuchImage", image=image) from error


def need_digest(text: str) -> str:
    try:
        return check_digest(text, "the call", "digest")
    except FormatError as error:
        raise invalid_digest(error) from error


def check_tag(name: str) -> None:
    """Refuse what can't be a tag: InvalidRequest."""
    try:
        escape_tag(name)
    except BootcError as error:
        raise invalid_request(error) from error


@contextmanager
def no_such_image(image: str) -> Iterator[None]:
    """NoSuchImage, with this name, for what the block doesn't find."""
    try:
        yield
    except NotFoundError as error:
        raise fail(OCI, "NoSuchImage", image=image) from error


def need_image(repo: Repository, image: str) -> PulledImage:
    """The image of that name, or NoSuchImage."""
    check_image_name(image)
    with no_such_image(image):
        return load_image(repo, image)


def list_images(call: Call) -> Reply:
    repo, wanted = need_handle(call).repo, call.parameters.get("filter") or ""
    images = [describe_image(repo, image) for image in load_images(repo, containing=wanted)]
    return Reply({"images": images})


def inspect(call: Call) -> Reply:
    repo = need_handle(call).repo
    return Reply(inspect_image(repo, need_image(repo, call.parameters["image"])))


def tag(call: Call) -> Reply:
    repo, name = need_handle(call).repo, call.parameters["name"]
    digest = need_digest(call.parameters["manifest_digest"])
    check_tag(name)
    with no_such_image(digest):
        repo.tag(manifest_content_id(digest), name)
    return Reply()


def untag(call: Call) -> Reply:
    repo, name = need_handle(call).repo, call.parameters["name"]
    check_image_name(name)
    with no_such_image(name):
        repo.untag(name)
    return Reply()


def compute_id(call: Call) -> Reply:
    repo, image = need_handle(call).repo, call.parameters["image"]
    check_image_name(image)
    with no_such_image(image):
        found = load_named(repo, image, call.parameters.get("verity"))
    root = assemble(repo, found, xattrs=xattr_mode(call) or XattrMode.ALLOWLIST_ONLY)
    if call.parameters["bootable"]:
        transform_for_boot(root, repo)
    data = encode_image(repo, root)
    return Reply({"image_id": digest_bytes(data, repo.algorithm).hex()})


def get_info(call: Call) -> Reply:
    return Reply({"features": ["splitdirfdstream-v0"]})
