# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The interface files say what the public schemas and the command line say."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bootc.cli import parser
from bootc.install.config import InstallConfig, merge_fragment
from bootc.oci.reference import OSTREE_REMOTE, ImageReference, Transport
from bootc.services import installing, updating
from bootc.services.configuration import configuration_reply
from bootc.services.host import host_reply, image_reply, with_plain_signatures
from bootc.services.server import make_service, read_interface
from bootc.spec import Host
from bootc.varlink.idl import Interface
from bootc.varlink.types import Enum, Optional, Struct

TOP = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (TOP / "bootc/services").glob("*.varlink"))
SCHEMAS = TOP / "bootc/data/schema"
HOST: dict[str, Any] = json.loads((TOP / "tmt/tests/booted/host-v1.schema.json").read_text())
PROGRESS: dict[str, Any] = json.loads((SCHEMAS / "progress-v0.schema.json").read_text())
GOLDENS = sorted((TOP / "tests/golden/status").glob("*.json"))
FIELD = re.compile(r"[A-Za-z](_?[A-Za-z0-9])*")
SIGNATURE = "ImageSignature"
"""The type of the schema that is an object or a string; in an interface file a string."""


def names_of(schema: dict[str, Any]) -> list[str] | None:
    """The values of a type that is an enum."""
    if "enum" in schema:
        return list(schema["enum"])
    found = [one.get("const") for one in schema.get("oneOf", [{}])]
    return None if None in found else found


def is_enum(name: str) -> bool:
    """Whether an interface file can have this type of the schema as an enum.

    By the grammar one name is enough for it. Not all that read interface files think so.
    """
    names = names_of(HOST["$defs"][name])
    return names is not None and len(names) > 1 and all(FIELD.fullmatch(one) for one in names)


def named(reference: str) -> str:
    name = reference.removeprefix("#/$defs/")
    if name != SIGNATURE and (names_of(HOST["$defs"][name]) is None or is_enum(name)):
        return name
    return "string"


def plain(schema: dict[str, Any], kind: str) -> str:
    match kind:
        case "array":
            return f"[]{type_of(schema['items'], required=True)}"
        case "object":
            return f"[string]{schema['additionalProperties']['type']}"
        case _:
            return {"string": "string", "boolean": "bool", "integer": "int"}[kind]


def type_of(schema: dict[str, Any], *, required: bool) -> str:
    """How an interface file writes what a property of the schema may be."""
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    choices = schema.get("anyOf", [])
    nullable = "null" in kinds or {"type": "null"} in choices
    if "$ref" in schema:
        found = named(schema["$ref"])
    elif choices:
        found = named(next(one["$ref"] for one in choices if "$ref" in one))
    else:
        found = plain(schema, next(one for one in kinds if one != "null"))
    missing = not required and "default" not in schema
    return f"?{found}" if nullable or missing else found


def fields(found: object) -> dict[str, str]:
    assert isinstance(found, Struct)
    return {name: str(item) for name, item in found.fields.items()}


def structs() -> dict[str, dict[str, Any]]:
    defs = {name: one for name, one in HOST["$defs"].items() if one.get("type") == "object"}
    return {"Host": HOST, **defs}


def wanted_fields(schema: dict[str, Any]) -> dict[str, str]:
    required = schema.get("required", [])
    return {
        name: type_of(one, required=name in required) for name, one in schema["properties"].items()
    }


@pytest.mark.parametrize("name", structs())
def test_the_status_has_the_types_of_its_schema(name: str) -> None:
    found = read_interface("containers.bootc").types[name]
    assert fields(found) == wanted_fields(structs()[name])


def test_the_status_has_the_enums_of_its_schema_and_no_other_types() -> None:
    types = read_interface("containers.bootc").types
    enums = [name for name in HOST["$defs"] if name != SIGNATURE and is_enum(name)]
    for name in enums:
        found = types[name]
        assert isinstance(found, Enum)
        assert sorted(found.names) == sorted(names_of(HOST["$defs"][name]) or [])
    assert set(types) == {*structs(), *enums}
    said = {*HOST["$defs"], "Host"} - set(types)
    assert said == {"Bootloader", "HostType", "Store", SIGNATURE}, (
        "what an interface file cannot say"
    )


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_documents_are_replies(path: Path) -> None:
    document = json.loads(path.read_text())
    reply = {"host": with_plain_signatures(document)}
    read_interface("containers.bootc").methods["GetStatus"].reply.check(reply)
    if OSTREE_REMOTE not in json.dumps(reply):
        assert reply["host"] == document


def test_the_empty_document_is_a_reply() -> None:
    reply = host_reply(Host())
    read_interface("containers.bootc").methods["GetStatus"].reply.check(reply)
    jsonschema.validate(reply["host"], HOST, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("signature", "said"),
    [(None, None), ("containerPolicy", "containerPolicy"), ("ostreeRemote:x", "ostreeRemote:x")],
)
def test_signatures_are_strings(signature: str | None, said: str | None) -> None:
    image = ImageReference(image="a", transport=Transport.REGISTRY, signature=signature)
    assert image_reply(image).get("signature") == said


def events() -> list[dict[str, Any]]:
    """The two kinds of events that are more than a beginning."""
    found = [one for one in PROGRESS["oneOf"] if "task" in one["properties"]]
    assert len(found) == 2
    return found


def merged(schemas: list[dict[str, Any]]) -> dict[str, str]:
    """The fields of a record that can be any of them."""
    found: dict[str, str] = {}
    for name in {name: None for one in schemas for name in one["properties"]}:
        kinds = {one["properties"][name]["type"] for one in schemas if name in one["properties"]}
        kind = {"integer": "int", "string": "string", "boolean": "bool", "array": "[]Subtask"}
        everywhere = all(name in one["required"] for one in schemas)
        found[name] = f"{'' if everywhere else '?'}{kind[kinds.pop()]}"
        assert not kinds
    return found


@pytest.mark.parametrize("name", ["containers.bootc.update", "containers.bootc.install"])
def test_progress_has_the_types_of_its_schema(name: str) -> None:
    types = read_interface(name).types
    assert fields(types["Progress"]) == {**merged(events()), "type": "ProgressType"}
    kinds = types["ProgressType"]
    assert isinstance(kinds, Enum)
    assert sorted(kinds.names) == sorted(one["properties"]["type"]["const"] for one in events())
    subtasks = [PROGRESS["$defs"][one] for one in ("SubTaskBytes", "SubTaskStep")]
    assert fields(types["Subtask"]) == merged(subtasks)


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_alike_and_everything_is_explained(name: str) -> None:
    interface = read_interface(name)
    message = {"message": "string", "hint": "?string"}
    wanted = {
        "Busy": message,
        "Failed": message,
        "NotManaged": message,
        "InvalidOption": {"field": "string", **message},
        "Cancelled": {},
    }
    for error, parameters in interface.errors.items():
        assert fields(parameters) == wanted[error]
    assert {"InvalidOption", "Failed"} <= set(interface.errors)
    assert interface.documentation
    assert all(method.documentation for method in interface.methods.values())


def test_every_method_is_served_but_one() -> None:
    served = make_service().interfaces
    assert [name for name in NAMES if name not in served] == []
    operations = {"containers.bootc.update": updating, "containers.bootc.install": installing}
    for name, module in operations.items():
        methods = set(read_interface(name).methods) - {"GetConfiguration", "ToExistingRoot"}
        assert methods == set(module.OPERATIONS)


# -- Options are those of the command line


def camel(option: str) -> str:
    first, *rest = re.split("[-_]", option.strip("-"))
    return "".join([first, *(word.capitalize() for word in rest)])


def command(*words: str) -> dict[str, argparse.Action]:
    """The options and arguments of a command, as the interfaces spell them."""
    top = parser.build()
    for word in words:
        [action] = [one for one in top._actions if isinstance(one, argparse._SubParsersAction)]
        top = action.choices[word]
    found = {camel((one.option_strings or [one.dest])[0]): one for one in top._actions}
    # What is about the terminal of the command; and -h.
    return {name: one for name, one in found.items() if name not in ("h", "quiet", "progressFd")}


def check_options(options: dict[str, argparse.Action], given: dict[str, str]) -> None:
    assert set(options) == set(given)
    for name, action in options.items():
        is_flag = isinstance(action, argparse._StoreTrueAction)
        assert (given[name] == "?bool") == is_flag, name
        assert given[name].startswith("?") == bool(action.option_strings), name
        assert given[name].startswith("?[]") == isinstance(action, argparse._AppendAction), name


def enum_values(interface: Interface, text: str) -> set[str] | None:
    found = interface.types.get(text.removeprefix("?"))
    return set(found.names) if isinstance(found, Enum) else None


def check_choices(interface: Interface, options: dict[str, argparse.Action], given: Any) -> None:
    for name, action in options.items():
        values = enum_values(interface, str(given[name]))
        if values is not None:
            assert values == set(action.choices or ()), name


@pytest.mark.parametrize(
    ("method", "words", "apart"),
    [
        ("Upgrade", ["upgrade"], {"check"}),
        ("Switch", ["switch"], {"noSignatureVerification"}),
        ("Rollback", ["rollback"], set()),
    ],
)
def test_updates_have_the_options_of_the_commands(
    method: str, words: list[str], apart: set[str]
) -> None:
    interface = read_interface("containers.bootc.update")
    given = fields(interface.methods[method].parameters)
    options = {name: one for name, one in command(*words).items() if name not in apart}
    check_options(options, given)
    check_choices(interface, options, given)


@pytest.mark.parametrize(
    ("method", "verb"), [("ToDisk", "to-disk"), ("ToFilesystem", "to-filesystem")]
)
def test_installs_have_the_options_of_the_commands(method: str, verb: str) -> None:
    interface = read_interface("containers.bootc.install")
    given = fields(interface.methods[method].parameters)
    assert given.pop("options") == "?Options"
    shared = fields(interface.types["Options"])
    assert not set(shared) & set(given)
    options = command("install", verb)
    check_options(options, {**given, **shared})
    check_choices(interface, options, {**given, **shared})
    both = set(command("install", "to-disk")) & set(command("install", "to-filesystem"))
    assert set(shared) == both


def test_options_that_exclude_each_other_are_those_of_the_command() -> None:
    told = {frozenset(map(camel, pair)) for pair in parser.UPGRADE_CONFLICTS if "check" not in pair}
    assert {frozenset(pair) for pair in updating.CONFLICTS} == told


def test_options_that_are_refused_are_in_the_interface() -> None:
    interface = read_interface("containers.bootc.install")
    methods = ("ToDisk", "ToFilesystem")
    known = {name for one in methods for name in interface.methods[one].parameters.fields}
    known |= {f"options.{name}" for name in fields(interface.types["Options"])}
    assert set(installing.NOT_YET) <= known


CONFIGURATION = """
[install]
block = ["tpm2-luks", "direct"]
kargs = ["a", "b=c"]
karg-deletes = ["d"]
root-mount-spec = "UUID=1"
boot-mount-spec = ""
stateroot = "s"
bootloader = "grub-cc"
discoverable-partitions = false
enforce-container-sigpolicy = true
[install.filesystem.root]
type = "btrfs"
[install.ostree]
bls-append-except-default = "x"
[install.bootupd]
skip-boot-uuid = true
"""


def test_the_install_configuration() -> None:
    config = merge_fragment(InstallConfig(), CONFIGURATION, "a.toml", "x86_64")
    reply = configuration_reply(config, everything=True)
    method = read_interface("containers.bootc.install").methods["GetConfiguration"]
    method.reply.check({"configuration": reply})
    assert None not in reply.values()
    struct = read_interface("containers.bootc.install").types["Configuration"]
    assert isinstance(struct, Struct)
    assert set(reply) == set(struct.fields)
    assert all(isinstance(one, Optional) for one in struct.fields.values())
    document = config.to_json(everything=True)
    assert isinstance(document, dict)
    for key, value in document.items():
        if not isinstance(value, dict):
            assert reply[camel(key)] == value
    few = configuration_reply(config, everything=False)
    assert (few["kargs"], few["kargDeletes"]) == (None, None)
    method.reply.check({"configuration": configuration_reply(InstallConfig(), everything=False)})
