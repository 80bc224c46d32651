# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What reads a whole repository: Fsck, Gc and ImageObjects, and org.composefs.Oci's Check."""

from __future__ import annotations

from dataclasses import asdict

from bootc.composefs.erofs_reader import collect_objects
from bootc.composefs.fsck import check_repository
from bootc.composefs.gc import collect_garbage
from bootc.composefs.oci_fsck import check_images
from bootc.composefs.repository import NotFoundError
from bootc.composefs.services.handles import need_handle, while_wanted
from bootc.composefs.services.replies import REPOSITORY, fail
from bootc.composefs.services.stored_images import need_image
from bootc.varlink import Call, Reply


def fsck(call: Call) -> Reply:
    repo = need_handle(call).repo
    metadata_only = bool(call.parameters.get("metadata_only"))
    return Reply(check_repository(repo, metadata_only=metadata_only).to_json())


def check(call: Call) -> Reply:
    repo, image = need_handle(call).repo, call.parameters.get("image")
    if image is not None:
        need_image(repo, image)
    return Reply(check_images(repo, image=image).to_json())


def gc(call: Call) -> Reply:
    repo, dry_run = need_handle(call).repo, call.parameters["dry_run"]
    roots: list[str] = call.parameters["roots"]
    for root in roots:
        if "\0" in root:
            raise fail(REPOSITORY, "NoSuchRef", reference=root)
    try:
        with while_wanted():
            give_up = call.cancelled.wait
            result = collect_garbage(repo, roots=roots, dry_run=dry_run, give_up=give_up)
    except NotFoundError as error:
        missing = next((root for root in roots if root in error.message), error.message)
        raise fail(REPOSITORY, "NoSuchRef", reference=missing) from error
    return Reply({"result": asdict(result), "dry_run": dry_run})


def image_objects(call: Call) -> Reply:
    repo, name = need_handle(call).repo, call.parameters["name"]
    try:
        image = repo.read_image(name)
    except NotFoundError as error:
        raise fail(REPOSITORY, "NoSuchRef", reference=name) from error
    prefix = repo.algorithm.value
    found = sorted(collect_objects(image, name))
    return Reply({"object_ids": [f"{prefix}:{digest.hex()}" for digest in found]})
