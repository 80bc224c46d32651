# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A validator for the part of JSON Schema 2020-12 that bootc's public schemas use.

Known: $ref into the same document, type, properties, required, additionalProperties, items, enum,
const, oneOf, anyOf, minimum, format. A keyword that is neither known nor a mere remark is an error,
so that a newer schema can't pass by being ignored.
"""

import datetime
from typing import Any

_REMARKS = {"$schema", "$defs", "$id", "title", "description", "default", "$comment", "examples"}
_KNOWN = {
    *("$ref", "type", "properties", "required", "additionalProperties", "items"),
    *("enum", "const", "oneOf", "anyOf", "minimum", "format"),
}
_TYPES: "dict[str, tuple[type, ...]]" = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
}


class SchemaError(Exception):
    """The schema uses something that this validator does not know."""


def problems(value: Any, schema: "dict[str, Any]") -> "list[str]":
    """Each violation as `.path: what is wrong`; none when `value` is valid."""
    return _check(value, schema, schema, "")


def _is_type(value: Any, name: str) -> bool:
    if isinstance(value, bool) and name in ("integer", "number"):
        return False
    return isinstance(value, _TYPES[name])


def _resolve(reference: str, root: "dict[str, Any]") -> "dict[str, Any]":
    if not reference.startswith("#/"):
        raise SchemaError(f"$ref {reference!r} leaves the document")
    found: Any = root
    for part in reference[2:].split("/"):
        found = found[part]
    schema: dict[str, Any] = found
    return schema


def _check(value: Any, schema: Any, root: "dict[str, Any]", path: str) -> "list[str]":
    if isinstance(schema, bool):
        return [] if schema else [f"{path or '.'}: is not allowed"]
    unknown = set(schema) - _KNOWN - _REMARKS
    if unknown:
        raise SchemaError(f"unknown keywords at {path or '.'}: {', '.join(sorted(unknown))}")
    found: list[str] = []
    if "$ref" in schema:
        found += _check(value, _resolve(schema["$ref"], root), root, path)
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            found += _alternatives(value, schema[keyword], root, path, keyword == "oneOf")
    found += _check_scalar(value, schema, path)
    if isinstance(value, dict):
        found += _check_object(value, schema, root, path)
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            found += _check(item, schema["items"], root, f"{path}[{index}]")
    return found


def _alternatives(
    value: Any, schemas: "list[Any]", root: "dict[str, Any]", path: str, one: bool
) -> "list[str]":
    each = [_check(value, schema, root, path) for schema in schemas]
    fits = sum(not found for found in each)
    if fits == 0:
        deepest = max(each, key=lambda found: max(len(text) for text in found))
        return [f"{path or '.'}: fits none of {len(schemas)} alternatives", *deepest]
    if one and fits > 1:
        return [f"{path or '.'}: fits {fits} alternatives, exactly one wanted"]
    return []


def _check_scalar(value: Any, schema: "dict[str, Any]", path: str) -> "list[str]":
    where = path or "."
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not any(_is_type(value, name) for name in names):
            return [f"{where}: is {type(value).__name__}, must be {' or '.join(names)}"]
    if "const" in schema and value != schema["const"]:
        return [f"{where}: is {value!r}, must be {schema['const']!r}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where}: is {value!r}, must be one of {schema['enum']}"]
    if "minimum" in schema and isinstance(value, (int, float)) and value < schema["minimum"]:
        return [f"{where}: is {value}, must be at least {schema['minimum']}"]
    if schema.get("format") == "date-time" and isinstance(value, str):
        try:
            moment = datetime.datetime.fromisoformat(value)
        except ValueError:
            return [f"{where}: {value!r} is not an RFC 3339 time"]
        if moment.tzinfo is None:
            return [f"{where}: {value!r} has no time zone"]
    return []


def _check_object(
    value: "dict[str, Any]", schema: "dict[str, Any]", root: "dict[str, Any]", path: str
) -> "list[str]":
    found = [f"{path}.{key}: is missing" for key in schema.get("required", []) if key not in value]
    properties = schema.get("properties", {})
    for key, item in value.items():
        if key in properties:
            found += _check(item, properties[key], root, f"{path}.{key}")
        elif "additionalProperties" in schema:
            found += _check(item, schema["additionalProperties"], root, f"{path}.{key}")
    return found
