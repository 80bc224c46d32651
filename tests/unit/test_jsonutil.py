# SPDX-License-Identifier: Apache-2.0 OR MIT
"""JSON from outside: the getters' errors, and input that json.loads doesn't refuse by itself."""

import pytest

from bootc import jsonutil
from bootc.errors import FormatError


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b"\xff", "is not JSON"),
        (b'{"a":' * 100_000, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b'{"\\udfff": 1}', "surrogates not allowed"),
        ('{"a": "\\ud800"}', "surrogates not allowed"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": [-Infinity]}', "-Infinity is no number"),
    ],
)
def test_json_that_is_refused(text: str | bytes, problem: str) -> None:
    with pytest.raises(FormatError, match=f"^file: .*{problem}"):
        jsonutil.read_object(text, "file")


def test_json_escapes_are_read() -> None:
    found = jsonutil.read_object(b'{"a": "\\u00e9 \\ud83d\\ude00"}', "file")
    assert found.text("a") == "é 😀"


def test_json_errors_name_the_path() -> None:
    top = jsonutil.read_object(b'{"a": {"b": [1], "c": [{}, 1], "d": true}}', "file").table("a")
    with pytest.raises(FormatError, match=r"file at \.a\.b: is list, expected an array of strings"):
        top.texts("b")
    with pytest.raises(FormatError, match=r"file at \.a\.c\[1\]: expected an object"):
        list(top.tables("c"))
    with pytest.raises(FormatError, match=r"file at \.a\.d: is bool, expected an integer"):
        top.integer("d")
    with pytest.raises(FormatError, match=r"file at \.a\.e: is missing, expected a string"):
        top.text("e")
