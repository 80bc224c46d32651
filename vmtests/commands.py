# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What `tasks.py` calls: one function a task, each with its whole answer."""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from pathlib import Path
from types import ModuleType

from bootc.errors import BootcError
from vmtests import cache, dev, image, machine, paths
from vmtests import doctor as doctors
from vmtests import explain as explaining
from vmtests import sync as syncing
from vmtests.options import BcvkInstallOpts, read_options
from vmtests.tell import answer, answer_json, reported

_log = logging.getLogger(__name__)


def build(*, as_json: bool = False) -> None:
    with reported():
        built = image.build_image(BcvkInstallOpts.from_env())
        if as_json:
            answer_json(
                {"name": built.name, "id": built.id, "size": built.size, "fresh": built.fresh}
            )
        else:
            said = "built" if built.fresh else "unchanged"
            answer(f"{built.name} {built.id[:12]} {built.size / 1e6:.0f} MB, {said}")


def why_rebuild() -> None:
    with reported():
        reasons = image.why_rebuild(BcvkInstallOpts.from_env())
        answer(*(reasons or ["nothing changed: the image would not be built again"]))


def variants(*, as_json: bool = False) -> None:
    with reported():
        if as_json:
            answer(explaining.ci_matrix())
        else:
            found = read_options(os.environ)
            for problem in found.problems:
                _log.warning("%s, so nothing is marked as in force", problem)
            answer(
                *explaining.variants_table(None if found.problems else found.options.combination)
            )


def explain() -> None:
    with reported():
        answer(*explaining.explain())


def doctor(*, as_json: bool = False) -> None:
    with reported():
        findings = doctors.check(paths.STATE)
        if as_json:
            rows = [[str(found.severity), found.what, found.mend] for found in findings]
            answer_json([dict(zip(("severity", "what", "mend"), row, strict=True)) for row in rows])
        else:
            for found in findings:
                answer(f"{found.severity:8} {found.what}")
                if found.mend:
                    answer(f"{'':8} → {found.mend}")
        if any(found.severity is doctors.Severity.MISSING for found in findings):
            raise SystemExit(1)


def up(*, replace: bool = False) -> None:
    with reported():
        begin = time.monotonic()
        times = dev.up(BcvkInstallOpts.from_env(), replace=replace)
        found = dev.status()
        if times:
            boot = f"booted in {times.get('ready', 0.0):.1f} s, "
            answer(f"{dev.NAME} is up: {boot}{time.monotonic() - begin:.1f} s in all")
        else:
            answer(f"{dev.NAME} is up already")
        answer(
            f"  shell: ./dev invoke bcvk-ssh (root, 127.0.0.1:{found.port})",
            "  after an edit of bootc/: ./dev invoke bcvk-sync",
            "  end it: ./dev invoke bcvk-down",
        )
        raise SystemExit(dev.shell())


def ssh(command: str) -> None:
    with reported(quiet=True):
        raise SystemExit(dev.shell(command or None))


def status(*, as_json: bool = False) -> None:
    with reported():
        found = dev.status()
        if as_json:
            answer_json(found.to_json())
            return
        answer(f"{dev.NAME}: {'running' if found.running else 'not running'}")
        if found.seconds is not None:
            answer(f"  for {found.seconds:.0f} s, QEMU's process {found.pid}")
        if found.port is not None:
            answer(f"  ssh root@127.0.0.1 -p {found.port} -i {paths.STATE / 'id_ed25519'}")
        if found.image is not None:
            answer(f"  image {found.image[:12]}")
        if found.disk is not None:
            answer(f"  disk {found.disk / 1e6:.0f} MB over its base, console {found.console}")
        for kind, size in sorted(cache.sizes().items()):
            answer(f"  cache {kind}: {size / 1e6:.0f} MB")


def logs(*, journal: bool = False) -> None:
    with reported(quiet=True):
        if journal:
            raise SystemExit(dev.shell("journalctl --no-pager -b"))
        console = Path(dev.status().console)
        if not console.exists():
            raise BootcError(f"{dev.NAME} has not been started yet", hint="./dev invoke bcvk-up")
        answer(console.read_text(errors="replace"))


def sync(*, watch: bool = False) -> None:
    with reported(), machine.attach_machine(dev.runtime_root(), dev.NAME) as running:
        last = ""
        while True:
            if last != (now := syncing.wanted_build_id()):
                live, seconds = syncing.sync_package(running)
                answer(f"{dev.NAME} runs build {live[:16]}: proved, {seconds:.1f} s")
                last = now
            if not watch:
                return
            time.sleep(0.5)


def restart() -> None:
    with reported():
        times = dev.restart()
        answer(f"{dev.NAME} is up again: {times.get('ready', 0.0):.1f} s")


def down() -> None:
    with reported():
        answer(f"{dev.NAME} is down" if dev.down() else f"{dev.NAME} was not running")


def clean(*, caches: bool = False) -> None:
    with reported():
        ended = dev.clean()
        answer(f"ended: {', '.join(ended)}" if ended else "no machine was running")
        if caches:
            cache.remove_all()
            answer("removed the cache of disks, trees and memory images, and the results")


def ephemeral(command: str) -> None:
    with reported():
        raise SystemExit(dev.ephemeral(BcvkInstallOpts.from_env(), command or None))


def _packaging(name: str) -> ModuleType:
    """A module of packaging/, loaded by its path: that folder must not be a package."""
    path = paths.CHECKOUT / "packaging" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"bootc_packaging_{name}", path)
    if spec is None or spec.loader is None:
        raise BootcError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package_srpm(outdir: str, *, allow_dirty: bool = False) -> None:
    with reported():
        module = _packaging("srpm")
        try:
            built = module.build_srpm(
                paths.CHECKOUT, Path(outdir).resolve(), allow_dirty=allow_dirty
            )
        except module.SrpmError as error:
            raise BootcError(error.message, hint=error.hint) from error
        answer(str(built))


def vendor(outdir: str) -> None:
    with reported():
        module = _packaging("vendor")
        try:
            archive = module.build_vendor_archive(Path(outdir).resolve())
        except module.VendorError as error:
            raise BootcError(error.message, hint=error.hint) from error
        answer(str(archive))
