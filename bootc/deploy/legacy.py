# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Which image a deployment was made from, also when its origin is older than that question.

Origins name the manifest since some version of bootc. Before, there was a file beside them,

    state/deploy/<id>/<id>.imginfo     JSON: {"config": {…}, "manifest": {…}}

with both documents parsed and printed anew, so their digests cannot be computed from it. But the
manifest names its config by digest, and so does the manifest in the repository. Without that file
either, it is the tagged image one of whose EROFS images is the deployment.
"""

from __future__ import annotations

import logging

from bootc import jsonutil, paths
from bootc.composefs.refs import STREAMS
from bootc.composefs.repository import Repository
from bootc.composefs.stored import load_image, open_stream
from bootc.deploy.sysroot import Deployment
from bootc.errors import BootcError
from bootc.oci.model import check_digest

_log = logging.getLogger(__name__)
_MANIFEST = "oci-manifest-"
_INFO_MAX = 16 << 20


def find_manifest_digest(repo: Repository, root: str, deployment: Deployment) -> str | None:
    """The digest (`sha256:…`) of the deployment's manifest; None when nothing tells it."""
    origin = deployment.origin
    if origin is not None and origin.manifest_digest is not None:
        return origin.manifest_digest
    config = read_config_digest(root, deployment.id)
    if config is not None:
        found = _manifest_of_config(repo, config)
        if found is not None:
            return found
    return _manifest_of_image(repo, deployment.id)


def read_config_digest(root: str, deployment: str) -> str | None:
    """The digest of the config that the `.imginfo` file names; None, and a warning, if it is bad.

    The digest is that of OCI, with its `sha256:`.
    """
    path = f"{root}/{paths.state_dir(deployment)}/{deployment}.imginfo"
    try:
        with open(path, "rb") as file:
            data = file.read(_INFO_MAX)
    except OSError:
        return None
    try:
        config = jsonutil.read_object(data, path).table("manifest").table("config")
        digest = config.text("digest")
        if ":" not in digest:
            digest = f"sha256:{digest}"
        return check_digest(digest, path, f"{config.path}.digest")
    except BootcError as error:
        _log.warning("%s", error)
        return None


def _manifest_of_config(repo: Repository, config: str) -> str | None:
    for entry in repo.links.entries(STREAMS):
        if not entry.name.startswith(_MANIFEST):
            continue
        try:
            if f"config:{config}" in open_stream(repo, entry.name).named_refs:
                return entry.name.removeprefix(_MANIFEST)
        except (BootcError, OSError) as error:
            _log.warning("the stream %s cannot be read: %s", entry.name, error)
    return None


def _manifest_of_image(repo: Repository, deployment: str) -> str | None:
    for tag, _ in repo.tags():
        try:
            image = load_image(repo, tag)
        except (BootcError, OSError):
            continue
        if deployment in (digest.hex() for digest in image.images.values()):
            return image.manifest_digest
    return None
