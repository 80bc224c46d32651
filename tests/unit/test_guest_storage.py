# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The image with podman, and what its base is made from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmtests import base
from vmtests.axes import Extra
from vmtests.guest_storage import with_podman
from vmtests.options import BcvkInstallOpts

PLAIN = BcvkInstallOpts()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("localhost/bootc", "localhost/bootc-podman"),
        ("localhost/bootc:1", "localhost/bootc-podman:1"),
        ("localhost:5000/bootc", "localhost:5000/bootc-podman"),
    ],
)
def test_the_image_with_podman_has_a_name_of_its_own(name: str, expected: str) -> None:
    opts = with_podman(replace(PLAIN, base_img=name))
    assert (opts.base_img, opts.extras) == (expected, (Extra.PODMAN,))
    assert with_podman(opts) == opts
    assert opts.labels() != PLAIN.labels()


def test_a_base_that_is_given_stays_as_it_is() -> None:
    given = replace(PLAIN, base="quay.io/example/os")
    assert with_podman(given) == given


def test_extras_make_another_base() -> None:
    plain, more = base.base_inputs(base.MIRROR), base.base_inputs(base.MIRROR, (Extra.PODMAN,))
    assert [line.partition(":")[0] for line in more.changes(plain.digests)] == ["extra podman"]


def test_what_the_base_leaves_out_comes_back_with_podman() -> None:
    rules = list(base.path_rules((Extra.PODMAN,)))
    assert rules.index("path-include=/usr/lib/podman/*") > rules.index(
        "path-exclude=/usr/lib/podman/*"
    )
    assert "path-include=/usr/lib/podman/*" not in base.path_rules(())


@pytest.mark.parametrize("extra", list(Extra))
def test_each_extra_has_its_packages(extra: Extra) -> None:
    assert base.packages((extra,))[: len(base.packages(()))] == base.packages(())
    assert str(extra) in base.packages((extra,))
