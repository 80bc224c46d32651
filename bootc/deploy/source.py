# SPDX-License-Identifier: Apache-2.0 OR MIT
"""How the image of an update is reached: by whom it is read, with which credentials and policy.

An OCI layout and podman's storage are read natively, everything else by skopeo, which obeys
containers-policy.json(5). Where the origin asks for a policy, those two go through skopeo, too, and
the policy must be one that verifies something.
"""

from __future__ import annotations

import re
from dataclasses import replace

from bootc import __version__, process
from bootc.deploy.policy import find_policy, need_enforcing_policy
from bootc.errors import BootcError
from bootc.oci.layout import ImageSource, open_source
from bootc.oci.proxy import ProxyOptions, ProxySource
from bootc.oci.reference import CONTAINER_POLICY, OSTREE_REMOTE, ImageReference, Transport
from bootc.podman.auth import find_auth_file

_NATIVE = (Transport.OCI, Transport.CONTAINERS_STORAGE)
_USER_AGENT_SINCE = (1, 19)
_POLICY_SINCE = (1, 14)
"""Before, skopeo's image proxy opened images without a look at the policy."""


def open_image(image: ImageReference) -> ImageSource:
    """The image, for `with`. Raises `BootcError` if its signature cannot be verified as asked."""
    check_signature_policy(image)
    if image.transport in _NATIVE and image.signature is None:
        return open_source(image.imgref)
    version = skopeo_version()
    options = proxy_options(version)
    if image.signature is not None:
        if version < _POLICY_SINCE:
            raise BootcError(
                f"the signature of {image} is to be verified, which skopeo "
                f"{version[0]}.{version[1]} does not do for others",
                hint="install skopeo {}.{} or newer".format(*_POLICY_SINCE),
            )
        options = replace(options, policy=find_policy())
    return ProxySource(image.imgref, options)


def check_signature_policy(image: ImageReference) -> None:
    """Refuse an image whose origin wants a verification that this machine doesn't do."""
    if image.signature is None:
        return
    if image.signature.startswith(OSTREE_REMOTE):
        raise BootcError(
            f"the signature of {image} is to be verified by an ostree remote "
            f"({image.signature.removeprefix(OSTREE_REMOTE)}), which needs ostree",
            hint=f"bootc switch --enforce-container-sigpolicy --transport {image.transport} "
            f"{image.image}",
        )
    if image.signature == CONTAINER_POLICY:
        need_enforcing_policy(image)


def proxy_options(version: tuple[int, int]) -> ProxyOptions:
    """Our name, where skopeo can pass it on, and ostree's credentials, where there are any."""
    authfile = find_auth_file()
    agent = f"bootc/{__version__}" if version >= _USER_AGENT_SINCE else None
    return ProxyOptions(authfile=authfile, user_agent=agent)


def skopeo_version() -> tuple[int, int]:
    """Major and minor version; (0, 0) when skopeo doesn't tell."""
    program = process.need_program("skopeo", hint="install skopeo, or use an oci: layout")
    said = process.run([program, "--version"], timeout=60, check=False).stdout
    found = re.search(r"(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)
