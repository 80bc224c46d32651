# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Whether containers-policy.json(5) verifies anything about an image.

An image whose origin says `containerPolicy` is read through skopeo, which obeys the policy file and
refuses what isn't signed as it wants. That is worth nothing where the policy accepts anything; so
that is refused here.

    {"default": [REQUIREMENT, …],
     "transports": {TRANSPORT: {SCOPE: [REQUIREMENT, …], "": [REQUIREMENT, …]}}}

The requirements are those of the longest scope that fits (for `docker`: the image with its tag or
digest, without it, then each folder of the name, the host, `*.` and each domain above it), then
those of the scope `""`, then the default. `insecureAcceptAnything` is a type that asks for nothing.

Source: containers-policy.json(5).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from bootc import jsonutil
from bootc.errors import BootcError, FormatError
from bootc.oci.reference import ImageReference, Transport

POLICY_FILES = ("/etc/containers/policy.json", "/usr/share/containers/policy.json")
_VARIABLE = "CONTAINERS_POLICY_JSON"
_ANYTHING = "insecureAcceptAnything"
_NAMES = {Transport.REGISTRY: "docker"}


def need_enforcing_policy(image: ImageReference, path: str | None = None) -> None:
    """Raises `BootcError` when this machine's policy would take any image for `image`."""
    where = path or find_policy()
    if where is None:
        raise BootcError(
            f"the signature of {image} is to be verified, and there is no policy that says how",
            hint=f"write {POLICY_FILES[0]}, see containers-policy.json(5)",
        )
    with open(where, "rb") as file:
        kinds = requirements(file.read(), where, image)
    if not kinds or all(kind == _ANYTHING for kind in kinds):
        raise BootcError(
            f"the signature of {image} is to be verified, but {where} accepts anything for it",
            hint="put a requirement like sigstoreSigned or signedBy for it into that file",
        )


def find_policy() -> str | None:
    """The policy file that counts, or None."""
    told = os.environ.get(_VARIABLE)
    if told:
        return told
    return next((path for path in POLICY_FILES if os.path.exists(path)), None)


def requirements(text: bytes, source: str, image: ImageReference) -> list[str]:
    """The types of the requirements for an image."""
    policy = jsonutil.read_object(text, source)
    transports = policy.optional_table("transports")
    if transports is not None:
        own = transports.optional_table(_NAMES.get(image.transport, image.transport.value))
        if own is not None:
            for scope in scopes(image):
                if scope in own.value:
                    return _types(own, scope)
    return _types(policy, "default")


def _types(table: jsonutil.Reader, key: str) -> list[str]:
    found: Mapping[str, object] = table.value
    if key not in found:
        raise FormatError(table.source, f"{table.path}.{key}", "is missing")
    return [item.text("type") for item in table.tables(key)]


def scopes(image: ImageReference) -> Iterator[str]:
    """The scopes of an image, the narrowest first."""
    yield image.image
    if image.transport is Transport.REGISTRY:
        name = image.image.partition("@")[0]
        folder, slash, last = name.rpartition("/")
        name = f"{folder}{slash}{last.partition(':')[0]}"
        while name:
            yield name
            name = name.rpartition("/")[0]
        host = image.image.partition("/")[0].partition(":")[0]
        while "." in host:
            host = host.partition(".")[2]
            yield f"*.{host}"
    else:
        path = image.layout()[0]
        while path.strip("/"):
            yield path
            path = os.path.dirname(path)
    yield ""
