# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`bootc edit`: what is read back from an editor, and what is done about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootc.cli import edit, render
from bootc.errors import BootcError, FormatError, find_hint
from bootc.oci.reference import CONTAINER_POLICY, ImageReference, Transport
from bootc.spec import BootOrder, Host, HostSpec

IMAGE = ImageReference(image="quay.io/a/b:1", transport=Transport.REGISTRY)
SPEC = HostSpec(image=IMAGE)

specs = st.builds(
    HostSpec,
    image=st.none()
    | st.builds(
        ImageReference,
        image=st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1),
        transport=st.sampled_from(Transport),
        signature=st.sampled_from([None, CONTAINER_POLICY]),
    ),
    boot_order=st.sampled_from(BootOrder),
)


@given(specs)
def test_what_we_write_is_what_we_read(spec: HostSpec) -> None:
    host = Host(spec=spec)
    assert edit.read_spec(render.host_yaml(host), "x") == spec
    assert edit.read_spec(render.host_json(host), "x") == spec


def test_what_people_write() -> None:
    text = (
        "# my machine\napiVersion: nonsense\nspec:\n\n"
        "    # the next one\n    image:\n        image: 'quay.io/a/b:2'\n"
        '        transport: "registry"\n    bootOrder: rollback\nstatus: [1, 2]\n'
    )
    found = edit.read_spec(text, "x")
    assert found == HostSpec(
        image=replace(IMAGE, image="quay.io/a/b:2"), boot_order=BootOrder.ROLLBACK
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "x at spec: is missing"),
        ("spec: {}\n", "x at spec: is missing"),
        ("spec:\n  bootOrder: sideways\n", "neither default nor rollback"),
        ("spec:\n  bootOrder: default\n  bootOrder: default\n", "line 3: bootOrder is there twice"),
        ("spec:\n  colour: red\n", "is none of image, bootOrder"),
        ("spec:\n  - a\n", "line 2: '- a' is not `key: value`"),
        ("spec:\n  image: [a]\n", "more than a plain value"),
        ('spec:\n  image: "a\n', "is no string"),
        ("spec:\n  image: a\n", "image: is str, expected an object"),
        ("spec:\n  image:\n    image: a\n", "transport is missing|transport: is missing"),
        ("spec:\n  image:\n    image: a\n    transport: floppy\n", "does not say where"),
        ("spec:\n  image:\n    image: a\n    transport: oci\n    signature: x\n", "neither"),
        ('{"spec": 1}', "expected an object"),
        ("{", "is not JSON"),
    ],
)
def test_what_is_refused(text: str, problem: str) -> None:
    with pytest.raises(BootcError, match=problem):
        edit.read_spec(text, "x")


def test_what_is_done() -> None:
    other = HostSpec(image=replace(IMAGE, image="quay.io/a/b:2"))
    back = HostSpec(image=IMAGE, boot_order=BootOrder.ROLLBACK)
    assert edit.decide_edit(SPEC, SPEC) is None
    assert edit.decide_edit(SPEC, other) == "image"
    assert edit.decide_edit(SPEC, back) == "order"
    assert edit.decide_edit(back, SPEC) == "order"
    with pytest.raises(BootcError, match="cannot be changed at once"):
        edit.decide_edit(SPEC, replace(other, boot_order=BootOrder.ROLLBACK))
    for gone in (HostSpec(), HostSpec(boot_order=BootOrder.ROLLBACK)):
        with pytest.raises(BootcError, match="cannot be removed"):
            edit.decide_edit(SPEC, gone)


def test_documents_and_editors_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(spec=SPEC)
    for filename, editor, said in (
        (f"{tmp_path}/none", "true", "cannot read .*/none: No such file"),
        (str(tmp_path), "true", "cannot read .*: Is a directory"),
        (None, f"{tmp_path}/none", "there is no document"),
        (None, "false", "ended with status 1"),
    ):
        monkeypatch.setenv("EDITOR", editor)
        with pytest.raises(BootcError, match=said) as caught:
            edit.edited_text(host, filename)
        assert find_hint(caught.value)


def test_an_editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "editor"
    program.write_text('#!/bin/sh\nsed -i "s/$1/$2/" "$3"\n')
    program.chmod(0o755)
    monkeypatch.setenv("EDITOR", f"{program} b:1 b:2")
    found = edit.read_spec(edit.edited_text(Host(spec=SPEC), None), "x")
    assert found.image == replace(IMAGE, image="quay.io/a/b:2")
    program.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(BootcError, match="ended with status 3"):
        edit.edited_text(Host(spec=SPEC), None)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "host.yaml"
    path.write_text(render.host_yaml(Host(spec=SPEC)))
    assert edit.read_spec(edit.edited_text(Host(), str(path)), str(path)) == SPEC
    path.write_bytes(b"#" * (2 << 20))
    with pytest.raises(FormatError, match="larger than any Host document"):
        edit.edited_text(Host(), str(path))
