# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The booted tests' own validator and YAML reader, against the libraries that the guest lacks."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import plain_yaml
import pytest
import schema_check
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from bootc.cli.render import host_yaml, to_yaml
from bootc.oci.reference import ImageReference, Transport
from bootc.spec import (
    BootEntry,
    Bootloader,
    BootType,
    ComposefsEntry,
    Host,
    HostSpec,
    HostStatus,
    ImageStatus,
)

BOOTED = Path(__file__).resolve().parents[2] / "tmt/tests/booted"

SCHEMA: dict[str, Any] = json.loads((BOOTED / "host-v1.schema.json").read_text())


def sample_host() -> Host:
    reference = ImageReference(image="quay.io/a/b:latest", transport=Transport.REGISTRY)
    entry = BootEntry(
        image=ImageStatus(
            image=reference,
            digest="sha256:" + "0a" * 32,
            architecture="amd64",
            version="43.1",
            timestamp="2026-01-02T03:04:05Z",
        ),
        composefs=ComposefsEntry(
            verity="9f" * 64,
            boot_type=BootType.BLS,
            bootloader=Bootloader.SYSTEMD,
            boot_digest="7c" * 32,
            missing_verity_allowed=False,
        ),
    )
    status = HostStatus(booted=entry, others=(entry, BootEntry(pinned=True)), managed=True)
    return Host(spec=HostSpec(image=reference), status=status)


def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(sample_host().to_json()))
    return found


def is_valid(value: Any) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(value)


def test_our_document_is_valid() -> None:
    assert is_valid(document())
    assert schema_check.problems(document(), SCHEMA) == []


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("kind", None, ".kind: is NoneType, must be string"),
        ("spec.bootOrder", "sideways", ".spec.bootOrder: fits none of 2 alternatives"),
        ("status.booted.pinned", "yes", ".status.booted.pinned: is str, must be boolean"),
        ("status.booted.composefs.bootType", "bls", "must be one of ['Bls', 'Uki']"),
        ("status.booted.composefs.verity", 3, ".status.booted.composefs.verity: is int"),
        ("status.otherDeployments", {}, ".status.otherDeployments: is dict, must be array"),
        ("metadata.labels", {"a": 1}, ".metadata.labels.a: is int, must be string"),
        ("status.booted.image.imageDigest", ..., ".status.booted.image.imageDigest: is missing"),
        ("apiVersion", ..., ".apiVersion: is missing"),
    ],
)
def test_a_document_that_is_not(path: str, value: Any, problem: str) -> None:
    broken = document()
    *folders, last = path.split(".")
    inner = broken
    for folder in folders:
        inner = inner[folder]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    assert not is_valid(broken)
    assert problem in "\n".join(schema_check.problems(broken, SCHEMA))


def test_a_time_without_a_zone() -> None:
    broken = document()
    broken["status"]["booted"]["image"]["timestamp"] = "yesterday"
    assert "'yesterday' is not an RFC 3339 time" in "\n".join(schema_check.problems(broken, SCHEMA))


def test_an_unknown_keyword_is_no_pass() -> None:
    with pytest.raises(schema_check.SchemaError, match="maxLength"):
        schema_check.problems("text", {"type": "string", "maxLength": 3})


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path of everything inside a document."""
    inside: list[tuple[str | int, ...]] = []
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in pairs:
        inside.append((*path, key))
        if isinstance(item, (dict, list)):
            inside += places(item, (*path, key))
    return inside


@settings(max_examples=150)
@given(
    place=st.sampled_from(places(document())),
    value=st.one_of(
        st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from(["default", "x"]), st.just([])
    ),
)
def test_the_validator_agrees_with_jsonschema(place: tuple[str | int, ...], value: Any) -> None:
    changed = copy.deepcopy(document())
    inner: Any = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    found = schema_check.problems(changed, SCHEMA)
    # jsonschema takes `format` for a remark; we don't.
    strict = [line for line in found if "RFC 3339" not in line and "time zone" not in line]
    if place[-1] != "timestamp":
        assert (strict == []) is is_valid(changed)


def test_yaml_of_the_status() -> None:
    text = host_yaml(sample_host())
    assert plain_yaml.load(text) == document()
    assert YAML(typ="safe", pure=True).load(text)["kind"] == "BootcHost"


values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.text(max_size=12),
        st.sampled_from(["null", "yes", "- a", "a: b", "'q'", "# c", "12", "1.5", "~", "x y", ""]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.from_regex(r"[a-zA-Z]{1,8}", fullmatch=True), inner, max_size=3),
    ),
    max_leaves=12,
)


@settings(max_examples=200)
@given(value=st.dictionaries(st.from_regex(r"[a-zA-Z]{1,8}", fullmatch=True), values, min_size=1))
def test_yaml_round_trip(value: dict[str, Any]) -> None:
    assert plain_yaml.load(to_yaml(value)) == value


@pytest.mark.parametrize("text", ["a: &x 1", "a: |\n  b", "a: 1\na: 2", "a: 1\n   b: 2", "a: [1]"])
def test_yaml_that_bootc_does_not_write(text: str) -> None:
    with pytest.raises(ValueError, match="line"):
        plain_yaml.load(text)
