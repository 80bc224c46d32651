# SPDX-License-Identifier: Apache-2.0 OR MIT
"""podman, with the settings that it needs on this machine.

Without systemd, with low limits, or with a mixed cgroup hierarchy podman's defaults fail. The
settings that work are found by a probe (a container is really run), kept in the checkout's own
containers.conf, and passed by `CONTAINERS_CONF`; the host's configuration is never edited.
Without root what looks into a container's files goes through `podman unshare`: see `unshared`.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bootc import process
from bootc.errors import BootcError, ProcessError
from bootc.jsonutil import Reader, read_object
from vmtests import paths

_MISSING = "install podman: apt-get install podman (Debian) or dnf install podman (Fedora)"


def _candidates() -> Iterator[str]:
    """containers.conf texts, from podman's own defaults to the most careful."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    nofile = hard if 0 < hard < 1048576 else 1048576
    limits = f'[containers]\ndefault_ulimits = ["nofile={nofile}:{nofile}","nproc=32768:32768"]\n'
    yield ""
    yield limits
    for engine in (
        'cgroup_manager = "cgroupfs"\n',
        'runtime = "runc"\ncgroup_manager = "cgroupfs"\n',
        'runtime = "crun"\ncgroup_manager = "cgroupfs"\n',
    ):
        yield f"{limits}[engine]\n{engine}"


def _probe(conf: Path) -> str | None:
    """Run a program of the host in a container; None when it worked, else what podman said."""
    with tempfile.TemporaryDirectory(prefix="bootc-podman-") as root:
        for name in ("usr", "proc", "sys", "dev", "run", "tmp", "etc"):
            (Path(root) / name).mkdir()
        mounts = ["-v", "/usr:/usr:ro"]
        for name in ("bin", "lib", "lib64"):
            if Path("/", name).is_symlink():
                (Path(root) / name).symlink_to(f"usr/{name}")
            elif Path("/", name).is_dir():
                (Path(root) / name).mkdir()
                mounts += ["-v", f"/{name}:/{name}:ro"]
        done = process.run(
            ["podman", "run", "--rm", "--network=host", *mounts, "--rootfs", root, "/usr/bin/true"],
            env={"CONTAINERS_CONF": str(conf)},
            check=False,
            timeout=60,
        )
    return None if done.status == 0 else done.stderr.strip().splitlines()[-1]


def configuration() -> Path:
    """The containers.conf that works here; probed once per podman, kernel and limits."""
    process.need_program("podman", hint=_MISSING)
    conf = paths.CACHE / "podman" / "containers.conf"
    if os.environ.get("CONTAINERS_CONF") == str(conf) and conf.exists():
        # The kit started this process; in podman's namespaces the user id and limits are others.
        return conf
    version = process.run(["podman", "--version"], timeout=30).stdout.strip()
    limits = [resource.getrlimit(kind) for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC)]
    wanted = f"# {version}, kernel {platform.release()}, uid {os.getuid()}, limits {limits}\n"
    if conf.exists() and conf.read_text().startswith(wanted):
        return conf
    conf.parent.mkdir(parents=True, exist_ok=True)
    said = ""
    for text in _candidates():
        trial = conf.with_suffix(".trial")
        trial.write_text(wanted + text)
        problem = _probe(trial)
        if problem is None:
            trial.replace(conf)
            return conf
        said = problem
    raise BootcError(
        f"podman cannot run a container on this machine: {said}",
        hint="run `podman run --rm --rootfs / true` to see podman's own message",
    )


def environment() -> Mapping[str, str]:
    """What podman is run with."""
    return {"CONTAINERS_CONF": str(configuration()), "PODMAN_IGNORE_CGROUPSV1_WARNING": "1"}


def podman(
    *argv: str, timeout: float = 600, check: bool = True, capture: bool = True
) -> process.Completed:
    """Run podman with the settings that work here."""
    return process.run(
        ["podman", *argv], env=environment(), timeout=timeout, check=check, capture=capture
    )


@contextmanager
def build_base(base: str) -> Iterator[str]:
    """A second name for the image `base`, for one `podman build --layers=false` to start from.

    podman that is interrupted leaves its working container in the storage, mounted. By its image's
    name, which is this build's alone, ours is told from everybody else's.
    """
    name = f"localhost/bootc-building:{os.getpid()}"
    podman("tag", base, name, timeout=60)
    try:
        yield name
    finally:
        columns = "{{.ID}} {{.Image}}"
        done = podman("ps", "--all", "--external", "--format", columns, timeout=60, check=False)
        rows = [line.split() for line in done.stdout.splitlines()]
        left = [row[0] for row in rows if row[1:] == [name]]
        if left:
            podman("rm", "--force", *left, timeout=120, check=False)
        # Without the second argument every name of the image would go, the base's own too.
        podman("untag", name, name, timeout=60, check=False)


def in_namespace(argv: Sequence[str]) -> list[str]:
    """`argv` where the files of containers can be read: as it is for root, else in podman's own."""
    return list(argv) if os.geteuid() == 0 else ["podman", "unshare", *argv]


def find_image(name: str) -> Reader | None:
    """What `podman image inspect` tells of `name`, or None when there is no such image."""
    try:
        done = podman("image", "inspect", name, timeout=60)
    except ProcessError as error:
        if "no such image" in error.stderr.lower() or "image not known" in error.stderr.lower():
            return None
        raise
    return read_object(json.dumps(json.loads(done.stdout)[0]), f"image {name}")


def labels(image: Reader) -> dict[str, str]:
    """The labels of an inspected image."""
    table = image.optional_table("Labels")
    return {} if table is None else {key: table.text(key) for key in table.value}


@contextmanager
def mounted_image(name: str) -> Iterator[Path]:
    """The merged tree of an image, read-only, for as long as the block; root, or unshared."""
    tree = Path(podman("image", "mount", name, timeout=60).stdout.strip())
    try:
        yield tree
    finally:
        podman("image", "unmount", name, timeout=60, check=False)
