# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Advice travels with errors, and is given only where there is none."""

from __future__ import annotations

import pytest

from bootc.errors import BootcError, advised, chain_text, find_hint


def test_advice_for_who_has_none() -> None:
    with pytest.raises(BootcError) as caught, advised("the pull failed", "try again"):
        raise BootcError("no answer")
    assert chain_text(caught.value) == "the pull failed: no answer"
    assert find_hint(caught.value) == "try again"


def test_other_advice_stays() -> None:
    with pytest.raises(BootcError) as caught, advised("the pull failed", "try again"):
        raise BootcError("no answer", hint="plug it in")
    assert chain_text(caught.value) == "no answer"
    assert find_hint(caught.value) == "plug it in"


def test_advice_of_the_cause_counts() -> None:
    def fail() -> None:
        try:
            raise BootcError("no answer", hint="plug it in")
        except BootcError as error:
            raise BootcError("the layer is missing") from error

    with pytest.raises(BootcError) as caught, advised("the pull failed", "try again"):
        fail()
    assert find_hint(caught.value) == "plug it in"


def test_other_exceptions_pass() -> None:
    with pytest.raises(KeyboardInterrupt), advised("the pull failed", "try again"):
        raise KeyboardInterrupt
    assert find_hint(OSError(1, "x")) is None
