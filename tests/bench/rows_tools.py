# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Our mkcomposefs and composefs-info beside the C ones, and how they grow with the input.

The C tools are found by C_MKCOMPOSEFS_PATH, composefs-info beside it, else on PATH. Ours are run as
their console scripts run them. Every pair has to print the same digest.

Growth: dump files of 250,000 and of a million inodes, one file with an object each, as many
directories as a system has. The value is what an inode takes on average, in microseconds.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from bootc import process
from bootc.composefs import Algorithm
from bootc.composefs.dumpfile import dump_lines
from bootc.composefs.scan import ScanOptions, find_digest, scan_directory
from tests.bench.frame import Make, Row, Side, in_process
from tests.bench.sample import Setup, retire
from tests.interop.compare_c import Tools, find_tools

_ENTRY = "import sys; from bootc.composefs.cli.{module} import entry; sys.exit(entry())"
_GROWTH = (250_000, 1_000_000)
_MILLION_MIB = 1200
_PER_INODE = """
import resource, sys, time
start = time.perf_counter()
from bootc.composefs.cli import mkcomposefs
status = mkcomposefs.main(["--from-file", "--print-digest", sys.argv[1], sys.argv[2]])
seconds = time.perf_counter() - start
print(seconds * 1e6 / int(sys.argv[3]))
sys.exit(status)
"""


def rows(setup: Setup) -> dict[str, Make]:
    """The rows of this module."""
    found: dict[str, Make] = {
        "mkcomposefs --print-digest-only TREE": functools.partial(_tree, setup),
        "mkcomposefs --digest-store, fresh": functools.partial(_fresh, setup),
        "mkcomposefs --digest-store, all there": functools.partial(_existing, setup),
        "mkcomposefs --from-file": functools.partial(_from_file, setup),
        "composefs-info dump": functools.partial(_info, setup, "dump"),
        "composefs-info ls": functools.partial(_info, setup, "ls"),
    }
    for count in _GROWTH:
        found[f"mkcomposefs --from-file, {count:,} inodes"] = functools.partial(
            _growth, setup, count
        )
    return found


def _ours(module: str, *argv: str) -> tuple[str, ...]:
    return (sys.executable, "-c", _ENTRY.format(module=module), *argv)


def _env(setup: Setup) -> dict[str, str]:
    """Byte code is kept, as it is for an installed program."""
    return {"PYTHONPYCACHEPREFIX": str(setup.folder / "pyc"), "PYTHONDONTWRITEBYTECODE": ""}


def _make_row(
    setup: Setup,
    arguments: tuple[str, ...],
    *,
    ratio_max: float | None,
    rss_max: float | None = None,
) -> Row:
    """mkcomposefs with these arguments; `{side}` in them is "ours" or "theirs"."""
    tools = find_tools()

    def side(label: str, argv: tuple[str, ...]) -> Side:
        name = label.split()[0]
        filled = tuple(argument.format(side=name) for argument in arguments)
        return Side(label=label, argv=(*argv, *filled), env=_env(setup))

    return Row(
        ours=side("ours", _ours("mkcomposefs")),
        theirs=side("theirs (C)", (tools.make,)),
        same_output=True,
        ratio_max=ratio_max,
        rss_max=rss_max,
    )


def _tree(setup: Setup) -> Row:
    return _make_row(setup, ("--print-digest-only", str(setup.tree())), ratio_max=1.2)


def _stores(setup: Setup) -> Path:
    return setup.scratch("digest-stores")


def _fresh(setup: Setup) -> Row:
    """C syncs every object; so that the work is compared, it syncs once here, as we do."""
    tools = find_tools()
    stores = _stores(setup)
    once = _without_fsync(setup)

    def side(name: str, argv: tuple[str, ...]) -> Side:
        def empty() -> None:
            for left in ("ours", "theirs"):
                retire(stores / left)
            os.sync()

        store, tree = stores / name, str(setup.tree())
        arguments = (f"--digest-store={store}", "--print-digest", tree, f"{store}.image")
        return Side(label=name, argv=(*argv, *arguments), env=_env(setup), prepare=empty)

    script = f'LD_PRELOAD="{once}" "$@" && sync -f "{stores}"'
    return Row(
        ours=side("ours", _ours("mkcomposefs")),
        theirs=side("theirs", ("sh", "-c", script, "sh", tools.make)),
        same_output=True,
        ratio_max=1.0,
    )


def _without_fsync(setup: Setup) -> Path:
    """A library to be preloaded that makes fsync(2) do nothing."""
    compiler = process.need_program("cc", hint="apt-get install -y gcc (Fedora: dnf install gcc)")
    source, library = setup.folder / "fsync.c", setup.folder / "fsync.so"
    source.write_text("int fsync(int fd) { return fd < 0; }\n")
    process.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)])
    return library


def _existing(setup: Setup) -> Row:
    stores = _stores(setup)
    tree = str(setup.tree())
    tools = find_tools()
    for side in ("ours", "theirs"):
        store = f"--digest-store={stores / side}"
        process.run([tools.make, store, tree, f"{stores / side}.image"], timeout=600)
    option = f"--digest-store={stores}/{{side}}"
    return _make_row(
        setup, (option, "--print-digest", tree, f"{stores}/{{side}}.image"), ratio_max=1.2
    )


def _dump_of_tree(setup: Setup) -> Path:
    path = setup.folder / "tree.dump"
    if not path.exists():
        in_process(f"rows_tools:write_dump({str(setup.tree())!r}, {str(path)!r})")
    return path


def write_dump(tree: str, path: str) -> None:
    """The dump file of a directory."""
    root = scan_directory(tree, find_digest(Algorithm.SHA256), ScanOptions(links=False))
    with open(path, "w", encoding="ascii") as file:
        file.writelines(line + "\n" for line in dump_lines(root))


def _from_file(setup: Setup) -> Row:
    return _make_row(
        setup,
        ("--from-file", "--print-digest-only", str(_dump_of_tree(setup))),
        ratio_max=3.5,
        rss_max=100,
    )


def _info(setup: Setup, command: str) -> Row:
    tools: Tools = find_tools()
    theirs = tools.info or process.need_program(
        "composefs-info", hint="install composefs (Debian, Fedora: composefs)"
    )
    image = setup.folder / "tree.image"
    if not image.exists():
        process.run([tools.make, "--from-file", str(_dump_of_tree(setup)), str(image)])
    return Row(
        ours=Side(label="ours", argv=_ours("composefs_info", command, str(image)), env=_env(setup)),
        theirs=Side(label="theirs (C)", argv=(theirs, command, str(image))),
        same_output=True,
    )


def _growth(setup: Setup, count: int) -> Row:
    path = setup.folder / f"{count}.dump"
    if not path.exists():
        write_large_dump(path, count)
    image = str(setup.folder / f"{count}.image")
    argv = (sys.executable, "-c", _PER_INODE, str(path), image, str(count))
    return Row(
        ours=Side(
            label="ours", argv=argv, env=_env(setup), value=lambda text: float(text.split()[-1])
        ),
        unit="us/inode",
        rss_max=_MILLION_MIB * count / _GROWTH[-1],
        runs=2,
    )


def write_large_dump(path: Path, count: int) -> None:
    """A dump file of `count` inodes: a tenth of them directories, the others files with objects."""
    with open(path, "w", encoding="ascii") as file:
        file.writelines(line + "\n" for line in itertools.islice(_large_dump(), count))


def _large_dump() -> Iterator[str]:
    label = "security.selinux=system_u:object_r:lib_t:s0\\x00"
    yield "/ 4096 40755 2 0 0 0 0.0 - - -"
    top = folder = ""
    for number in itertools.count():
        if number % 10_000 == 0:
            top = f"/folder-{number}"
            yield f"{top} 0 40755 2 0 0 0 1600000000.0 - - - {label}"
        if number % 10 == 0:
            folder = f"{top}/package-{number}"
            yield f"{folder} 0 40755 2 0 0 0 1600000000.0 - - - {label}"
        digest = hashlib.sha256(b"%d" % number).hexdigest()
        yield (
            f"{folder}/lib-{number}.so.1 {number % 99991 + 100} 100644 1 0 0 0"
            f" {1600000000 + number % 4099}.{number % 997} {digest[:2]}/{digest[2:]} -"
            f" {digest} {label}"
        )
