# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The Host document in its three forms, byte for byte.

`UPDATE_GOLDENS=1 pytest tests/unit/test_spec.py` writes the expected files anew.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from bootc.cli import render
from bootc.errors import BootcError
from bootc.oci.reference import ImageReference, Transport, parse_imgref
from bootc.spec import (
    BootEntry,
    Bootloader,
    BootOrder,
    BootType,
    ComposefsEntry,
    Host,
    HostSpec,
    HostStatus,
    ImageStatus,
    OstreeEntry,
    UsrOverlay,
)

GOLDEN = Path(__file__).parent.parent / "golden/status"
REFERENCE = ImageReference(image="quay.io/example/os:latest", transport=Transport.REGISTRY)
LOCAL = ImageReference(image="/run/image:tag", transport=Transport.OCI)


def _composefs(char: str, *, insecure: bool = False) -> ComposefsEntry:
    return ComposefsEntry(
        verity=char * 128,
        boot_type=BootType.BLS,
        bootloader=Bootloader.SYSTEMD,
        boot_digest="5" * 64,
        missing_verity_allowed=insecure,
    )


def _image(char: str, reference: ImageReference = REFERENCE) -> ImageStatus:
    return ImageStatus(
        image=reference,
        digest="sha256:" + char * 64,
        architecture="amd64",
        version=f"13.{int(char, 16)}",
        timestamp="2026-09-30T19:22:16.123456789Z",
    )


BOOTED = BootEntry(image=_image("b"), composefs=_composefs("b"))
STAGED = BootEntry(
    image=_image("a"), composefs=_composefs("a"), soft_reboot_capable=True, download_only=True
)
ROLLBACK = BootEntry(image=_image("c", LOCAL), composefs=_composefs("c", insecure=True))
OTHER = BootEntry(composefs=_composefs("d"))
PLAIN = replace(_image("e"), version=None)
UPDATE = replace(_image("f"), timestamp=None)
OSTREE = OstreeEntry(stateroot="default", checksum="9" * 64, deploy_serial=3)

HOSTS = {
    "booted": Host(spec=HostSpec(image=REFERENCE), status=HostStatus(booted=BOOTED, managed=True)),
    "all": Host(
        spec=HostSpec(image=REFERENCE, boot_order=BootOrder.ROLLBACK),
        status=HostStatus(
            staged=STAGED,
            booted=BOOTED,
            rollback=ROLLBACK,
            others=(OTHER, replace(OTHER, image=PLAIN, pinned=True)),
            rollback_queued=True,
            managed=True,
            usr_overlay=UsrOverlay(read_only=False),
            read_only=True,
        ),
    ),
    "ostree": Host(
        status=HostStatus(
            staged=BootEntry(ostree=OSTREE, store="ostreeContainer"),
            booted=BootEntry(
                image=replace(PLAIN, image=replace(REFERENCE, signature="containerPolicy")),
                cached_update=UPDATE,
                ostree=OSTREE,
                store="ostreeContainer",
            ),
            managed=True,
        )
    ),
    "none": Host(),
}


def _check(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDENS"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", HOSTS)
def test_json(name: str) -> None:
    text = render.host_json(HOSTS[name])
    _check(f"{name}.json", text)
    assert not text.endswith("\n")
    assert list(json.loads(text)) == sorted(json.loads(text))


@pytest.mark.parametrize("name", HOSTS)
def test_yaml(name: str) -> None:
    _check(f"{name}.yaml", render.host_yaml(HOSTS[name]))


@pytest.mark.parametrize("name", HOSTS)
def test_human(name: str) -> None:
    _check(f"{name}.txt", render.host_human(HOSTS[name]))


@pytest.mark.parametrize("name", HOSTS)
def test_human_verbose(name: str) -> None:
    _check(f"{name}-verbose.txt", render.host_human(HOSTS[name], verbose=True))


def test_ascii_mark_keeps_the_columns() -> None:
    plain = render.host_human(HOSTS["booted"], utf8=False)
    assert plain.isascii()
    assert plain == render.host_human(HOSTS["booted"]).replace("●", "*")


def test_unset_keys_that_are_omitted() -> None:
    document = json.loads(render.host_json(HOSTS["booted"]))
    assert document["metadata"] == {"name": "host"}
    assert "otherDeployments" not in document["status"]
    assert "signature" not in document["spec"]["image"]
    assert document["status"]["staged"] is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-09-30T19:22:16Z", "2026-09-30T19:22:16Z"),
        ("2026-09-30T19:22:16.999999999Z", "2026-09-30T19:22:16Z"),
        ("2026-09-30T21:22:16+02:00", "2026-09-30T19:22:16Z"),
        ("yesterday", "yesterday"),
    ],
)
def test_timestamp(text: str, expected: str) -> None:
    assert render.timestamp(text) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", "plain"),
        ("true", "'true'"),
        ("", "''"),
        ("it's", "'it''s'"),
        ("13", "'13'"),
        ("2026-09-30", "'2026-09-30'"),
        ("a: b", "'a: b'"),
        ("x #y", "'x #y'"),
        ("quay.io/x/y:latest", "quay.io/x/y:latest"),
        ("two\nlines", '"two\\nlines"'),
        (None, "null"),
        (True, "true"),
        (3, "3"),
    ],
)
def test_yaml_scalars(value: str | bool | int | None, expected: str) -> None:
    assert render.to_yaml({"key": value}) == f"key: {expected}\n"


def test_yaml_empty_and_nested() -> None:
    assert render.to_yaml({"a": [], "b": {}, "c": [{"d": [1, 2]}, "e"]}) == (
        "a: []\nb: {}\nc:\n- d:\n  - 1\n  - 2\n- e\n"
    )


@pytest.mark.parametrize(
    ("text", "transport", "image", "shown"),
    [
        ("docker://quay.io/x/y:1", Transport.REGISTRY, "quay.io/x/y:1", "quay.io/x/y:1"),
        ("registry:quay.io/x/y", Transport.REGISTRY, "quay.io/x/y", "quay.io/x/y"),
        ("oci:/a/b:tag", Transport.OCI, "/a/b:tag", "oci:/a/b:tag"),
        ("oci-archive:/a.tar", Transport.OCI_ARCHIVE, "/a.tar", "oci-archive:/a.tar"),
        (
            "containers-storage:localhost/b",
            Transport.CONTAINERS_STORAGE,
            "localhost/b",
            "containers-storage:localhost/b",
        ),
    ],
)
def test_parse_imgref(text: str, transport: Transport, image: str, shown: str) -> None:
    found = parse_imgref(text)
    assert found == ImageReference(image=image, transport=transport)
    assert str(found) == shown
    assert parse_imgref(found.imgref) == found


@pytest.mark.parametrize("text", ["quay.io/x/y", "oci:", "ftp:x", ""])
def test_parse_imgref_refuses(text: str) -> None:
    with pytest.raises(BootcError, match="does not say where") as caught:
        parse_imgref(text)
    assert "docker://" in (caught.value.hint or "")
