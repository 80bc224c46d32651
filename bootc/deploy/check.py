# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Whether an installed system is whole: its repository, and what each deployment needs.

A check has a name and finds problems, each one line; a check without problems passed. Nothing is
changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from bootc import paths
from bootc.composefs.fsck import check_repository
from bootc.composefs.repository import Repository
from bootc.composefs.stored import manifest_content_id
from bootc.deploy import state
from bootc.deploy.sysroot import Deployment, Sysroot, read_deployments
from bootc.errors import BootcError


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The result of one check."""

    name: str
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def check_system(sysroot: Sysroot) -> tuple[Check, ...]:
    """Check all; the repository is read as a whole, which takes its time."""
    try:
        with Repository.open(sysroot.repository, insecure=sysroot.insecure) as repo:
            return (
                Check(name="deployments", problems=tuple(_deployments(sysroot, repo))),
                Check(
                    name="composefs",
                    problems=tuple(str(one) for one in check_repository(repo).findings),
                ),
            )
    except (BootcError, OSError) as error:
        return (Check(name="composefs", problems=(str(error),)),)


def _deployments(sysroot: Sysroot, repo: Repository) -> Iterator[str]:
    mark = None
    try:
        mark = state.read_staged(sysroot.staged_file)
    except BootcError as error:
        yield str(error)
    for one in read_deployments(sysroot):
        if not one.staged or (mark is not None and mark.deployment == one.id):
            for problem in _problems(sysroot, repo, one):
                yield f"{one.id[:16]}…: {problem}"


def _problems(sysroot: Sysroot, repo: Repository, one: Deployment) -> Iterator[str]:
    if one.entry is None:
        yield "it is booted and has no boot entry"
    else:
        files = (one.entry.linux, one.entry.efi, one.entry.uki, *one.entry.initrd)
        for path in files:
            if path is not None and not os.path.isfile(f"{sysroot.need_esp()}/{path.lstrip('/')}"):
                yield f"{path} is not on the ESP"
    folder = f"{sysroot.root}/{paths.state_dir(one.id)}"
    if not os.path.isdir(f"{folder}/etc"):
        yield f"{folder}/etc is missing"
    if not os.path.isdir(f"{folder}/var"):
        yield f"{folder}/var leads nowhere"
    if one.origin is None:
        yield "its origin is missing or damaged"
    elif one.origin.manifest_digest is not None:
        digest = one.origin.manifest_digest
        if repo.find_stream(manifest_content_id(digest)) is None:
            yield f"the manifest {digest} is not in the repository"
        elif repo.find_tag(f"{paths.TAG_PREFIX}{digest}") is None:
            yield f"the image {digest} has no tag that keeps it"
    if len(one.id) != 2 * repo.algorithm.size or not repo.has_image(bytes.fromhex(one.id)):
        yield "its image is not in the repository"
