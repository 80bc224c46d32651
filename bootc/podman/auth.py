# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Credentials for registries, from the files where bootc looks for them.

The first of `AUTH_FILES` that exists counts, as for every other pull of bootc; without one pulls
are anonymous. containers-auth.json(5):

    {"auths": {"quay.io/name": {"auth": "<base64 of USER:PASSWORD>"}, …}, "credHelpers": {…}}

podman gets the file itself as REGISTRY_AUTH_FILE. Its API does not look at that variable, so for
the API what the file says is read here and sent along. Entries without an `auth` (credential
helpers) cannot be sent, and are left to podman.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping, Sequence

from bootc.errors import FormatError
from bootc.jsonutil import read_object

AUTH_FILES = ("/run/ostree/auth.json", "/etc/ostree/auth.json", "/usr/lib/ostree/auth.json")
_SIZE_MAX = 1 << 20

Credentials = Mapping[str, tuple[str, str]]
"""(user, password) by registry, or by a registry's folder."""


def find_auth_file(files: Sequence[str] = AUTH_FILES) -> str | None:
    """The file that counts, or None."""
    return next((path for path in files if os.path.exists(path)), None)


def read_auth_file(path: str) -> dict[str, tuple[str, str]]:
    """What a containers-auth.json(5) says. Raises `FormatError`, `OSError`; shows no secret."""
    with open(path, "rb") as file:
        data = file.read(_SIZE_MAX + 1)
    if len(data) > _SIZE_MAX:
        raise FormatError(path, None, "is too large for credentials")
    top = read_object(data, path)
    found: dict[str, tuple[str, str]] = {}
    auths = top.optional_table("auths")
    for registry in auths.value if auths is not None else ():
        assert auths is not None
        secret = auths.table(registry).optional_text("auth")
        if not secret:
            continue
        where = f".auths.{registry}.auth"
        try:
            text = base64.b64decode(secret, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise FormatError(path, where, "is not base64 of text") from None
        user, colon, password = text.rstrip("\0").partition(":")
        if not colon:
            raise FormatError(path, where, "is not USER:PASSWORD")
        found[registry] = (user, password)
    return found
