# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The part of `pack` that runs in the interpreter that the initrd will hold, fed through stdin.

Its arguments: the folder that holds the package `bootc`, then the modules to import. It imports
them and prints one JSON document about every module that came with them: `modules` (path in the
initrd without its suffix → compiled code in base64), `extensions` (paths), `executable`, `stdlib`.

Code is compiled afresh without docstrings, so the same sources give the same bytes whatever caches
lie around. Modules that are frozen into the interpreter or built in need no file.
"""

import sys


def trace(folder: str, wanted: list[str]) -> list[tuple[str, str]]:
    """(name, origin) of each module that importing `wanted` takes, those of start-up included."""
    sys.path.append(folder)
    for name in wanted:
        __import__(name)
    found: list[tuple[str, str]] = []
    for name, module in sys.modules.items():
        spec = getattr(module, "__spec__", None)
        if spec is not None and spec.origin not in (None, "built-in", "frozen"):
            found.append((name, spec.origin))
    return sorted(found)


def describe(folder: str, wanted: list[str]) -> dict[str, object]:
    """The document."""
    traced = trace(folder, wanted)
    # Only now, or they would be traced too.
    import base64
    import os
    from importlib.util import MAGIC_NUMBER
    from marshal import dumps

    stdlib = os.path.dirname(os.__file__)
    modules: dict[str, str] = {}
    extensions: list[str] = []
    for name, origin in traced:
        if not origin.endswith(".py"):
            extensions.append(origin)
            continue
        parts = name.split(".")
        if os.path.basename(origin) == "__init__.py":
            parts.append("__init__")
        path = "/".join([stdlib, *parts])
        with open(origin, "rb") as file:
            code = compile(file.read(), f"{path}.py", "exec", dont_inherit=True, optimize=2)
        modules[path] = base64.b64encode(MAGIC_NUMBER + bytes(12) + dumps(code)).decode()
    return {
        "modules": modules,
        "extensions": extensions,
        "executable": os.path.realpath(sys.executable),
        "stdlib": stdlib,
    }


if __name__ == "__main__":
    document = describe(sys.argv[1], sys.argv[2:])
    import json

    sys.stdout.write(json.dumps(document))
