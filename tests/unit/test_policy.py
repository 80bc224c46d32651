# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Spec §14, 20: signature policies, which requirement counts and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bootc.deploy import policy, source
from bootc.errors import BootcError
from bootc.oci.reference import (
    CONTAINER_POLICY,
    OSTREE_REMOTE,
    ImageReference,
    Transport,
    parse_imgref,
)

ANYTHING = [{"type": "insecureAcceptAnything"}]
SIGNED = [{"type": "sigstoreSigned", "keyPath": "/key"}]
REJECT = [{"type": "reject"}]


def test_scopes_of_a_registry() -> None:
    assert list(policy.scopes(parse_imgref("docker://a.quay.io:5000/x/y:1@sha256:00"))) == [
        "a.quay.io:5000/x/y:1@sha256:00",
        "a.quay.io:5000/x/y",
        "a.quay.io:5000/x",
        "a.quay.io:5000",
        "*.quay.io",
        "*.io",
        "",
    ]


def test_scopes_of_a_layout() -> None:
    assert list(policy.scopes(parse_imgref("oci:/a/b:1"))) == ["/a/b:1", "/a/b", "/a", ""]


@pytest.mark.parametrize(
    ("document", "image", "expected"),
    [
        ({"default": ANYTHING}, "docker://quay.io/x/y:1", ["insecureAcceptAnything"]),
        ({"default": REJECT}, "oci:/a", ["reject"]),
        (
            {"default": ANYTHING, "transports": {"docker": {"quay.io/x": SIGNED, "": REJECT}}},
            "docker://quay.io/x/y:1",
            ["sigstoreSigned"],
        ),
        (
            {"default": ANYTHING, "transports": {"docker": {"quay.io/x": SIGNED, "": REJECT}}},
            "docker://quay.io/z:1",
            ["reject"],
        ),
        (
            {"default": REJECT, "transports": {"docker": {"quay.io": ANYTHING}}},
            "docker://quay.io/z:1",
            ["insecureAcceptAnything"],
        ),
        (
            {"default": REJECT, "transports": {"docker": {"*.quay.io": SIGNED}}},
            "docker://a.quay.io/z",
            ["sigstoreSigned"],
        ),
        (
            {"default": REJECT, "transports": {"oci": {"/a": SIGNED}}},
            "oci:/a/b",
            ["sigstoreSigned"],
        ),
    ],
)
def test_which_requirement_counts(
    document: dict[str, object], image: str, expected: list[str]
) -> None:
    text = json.dumps(document).encode()
    assert policy.requirements(text, "policy.json", parse_imgref(image)) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not JSON"),
        ("{}", "default"),
        ('{"default": [{}]}', r"default\[0\]\.type"),
        ('{"default": []}', "accepts anything"),
        ('{"default": [{"type": "insecureAcceptAnything"}]}', "accepts anything"),
    ],
)
def test_policies_that_verify_nothing(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "policy.json"
    path.write_text(text)
    with pytest.raises(BootcError, match=problem):
        policy.need_enforcing_policy(parse_imgref("docker://quay.io/a"), str(path))


def test_a_policy_that_verifies(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"default": SIGNED}))
    policy.need_enforcing_policy(parse_imgref("docker://quay.io/a"), str(path))


def test_what_an_ostree_remote_verifies() -> None:
    image = ImageReference(
        image="quay.io/a", transport=Transport.REGISTRY, signature=f"{OSTREE_REMOTE}fedora"
    )
    with pytest.raises(BootcError, match=r"by an ostree remote \(fedora\)") as caught:
        source.check_signature_policy(image)
    assert caught.value.hint is not None
    assert "--enforce-container-sigpolicy" in caught.value.hint
    assert image.to_json()["signature"] == {"ostreeRemote": "fedora"}


def test_an_image_without_a_policy_needs_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINERS_POLICY_JSON", "/nonexistent")
    source.check_signature_policy(parse_imgref("docker://quay.io/a"))


def test_skopeo_is_asked_to_read_what_has_a_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layout would be read natively, past the policy."""
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"default": SIGNED}))
    monkeypatch.setenv("CONTAINERS_POLICY_JSON", str(path))
    fake = tmp_path / "skopeo"
    log = tmp_path / "log"
    fake.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\n[ "$1" != --version ] || echo "skopeo version 1.19.0"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    image = ImageReference(image="/layout:1", transport=Transport.OCI, signature=CONTAINER_POLICY)
    with pytest.raises(BootcError, match=r"^skopeo "), source.open_image(image):
        pass
    said = log.read_text().splitlines()
    assert said[0] == "--version"
    words = said[1].split()
    assert [word.partition("/")[0] for word in words if "user-agent" in word] == [
        "--user-agent-prefix=bootc"
    ]
    assert f"--policy={path}" in words[: words.index("experimental-image-proxy")]


@pytest.mark.parametrize(
    ("said", "expected"), [("skopeo version 1.18.0-dev", (1, 18)), ("what?", (0, 0))]
)
def test_skopeo_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, expected: tuple[int, int]
) -> None:
    fake = tmp_path / "skopeo"
    fake.write_text(f"#!/bin/sh\necho '{said}'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert source.skopeo_version() == expected
    assert source.proxy_options(expected).user_agent is None


def test_a_skopeo_that_knows_no_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"default": SIGNED}))
    monkeypatch.setenv("CONTAINERS_POLICY_JSON", str(path))
    fake = tmp_path / "skopeo"
    fake.write_text("#!/bin/sh\necho 'skopeo version 1.9.3'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    image = ImageReference(
        image="quay.io/a", transport=Transport.REGISTRY, signature=CONTAINER_POLICY
    )
    with pytest.raises(BootcError, match=r"which skopeo 1\.9 does not do") as caught:
        source.open_image(image)
    assert caught.value.hint == "install skopeo 1.14 or newer"
