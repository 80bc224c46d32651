# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What images are called in bootc's own container storage, and which of them are bootc's.

An image that was brought there for a deployment has a name more, our claim:

    localhost/bootc-sha256:<the manifest's digest, hexadecimal>

Images with a claim are bootc's to remove when no deployment is left that has this digest; others
are not.
"""

from __future__ import annotations

import re

from bootc import paths
from bootc.oci.reference import ImageReference, Transport
from bootc.podman.storage import StoredImage, normalized

_ID = re.compile(r"[0-9a-f]{64}")
_CLAIM = re.compile(re.escape(paths.TAG_PREFIX) + r"(sha256:[0-9a-f]{64})")


def claim_name(digest: str) -> str:
    """The name by which bootc claims the image with this manifest digest."""
    return f"{paths.TAG_PREFIX}{digest}"


def claims(image: StoredImage) -> dict[str, str]:
    """The claims among an image's names, with the digests that they name."""
    found = ((name, _CLAIM.fullmatch(name)) for name in image.names)
    return {name: match[1] for name, match in found if match is not None}


def stored_name(reference: ImageReference) -> str | None:
    """What an image is called in a storage; None where its source has no names for images."""
    if reference.transport not in (Transport.REGISTRY, Transport.CONTAINERS_STORAGE):
        return None
    if _ID.fullmatch(reference.image) or reference.image.startswith("["):
        return None
    return normalized(reference.image)
