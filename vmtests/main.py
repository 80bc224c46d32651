# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What `nox -s tmt`, `tmt-full` and `interop` run: image → disk → machines → results.

    python -m vmtests.main tmt [FILTER …]       the plans, with the options of the environment
    python -m vmtests.main tmt-full [FILTER …]  every plan; those about boots on each combination
    python -m vmtests.main interop [FILTER …]   the plans by our runner and by tmt, compared

Exit status, as tmt's: 0 all passed, 1 a test failed, 2 an error or our own infrastructure,
3 nothing was run; 130 interrupted.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bootc.errors import BootcError
from vmtests import constraints, dev, disk, image, machine, paths, report, runner, snapshot
from vmtests import interop as interops
from vmtests.axes import Filesystem, Initrd
from vmtests.disk import BaseDisk
from vmtests.domain import Disk, MachineSpec
from vmtests.guest_storage import podman_disks, with_podman
from vmtests.image import BuiltImage
from vmtests.machine import Machine
from vmtests.options import BcvkInstallOpts
from vmtests.plans import Plan, PlanImage, Start, load_plans, select_plans
from vmtests.results import RunResult
from vmtests.runner import Settings
from vmtests.session import Session, open_session
from vmtests.tell import answer, reported

MEMORY = "memory"
"""The cache of booted machines."""


def context(opts: BcvkInstallOpts) -> dict[str, str]:
    """What plans and tests can be adjusted for, by fmf's `when`."""
    axes = {axis: str(getattr(opts, axis)) for axis in constraints.AXES}
    return {"distro": "debian-13", "running_env": "image_mode", "initrd": str(opts.initrd), **axes}


def host_versions(session: Session) -> dict[str, str]:
    """What machines ran on, for the page of a failure."""

    def text(number: int) -> str:
        return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"

    qemu, libvirt = session.hypervisor().versions()
    return {"QEMU": text(qemu), "libvirt": text(libvirt), "accelerator": str(session.accel())}


def results_folder(opts: BcvkInstallOpts) -> Path:
    return paths.CHECKOUT / opts.log_dir


def _build(opts: BcvkInstallOpts) -> BuiltImage:
    built = image.build_image(opts)
    image.check_image(built, opts)
    return built


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What a provider does, one after the other; each can be another's."""

    build: Callable[[BcvkInstallOpts], BuiltImage] = _build
    install: Callable[..., AbstractContextManager[BaseDisk]] = disk.installed_disk
    describe: Callable[..., MachineSpec] = dev.installed_spec
    add_disks: Callable[[BuiltImage, Path], AbstractContextManager[Sequence[Disk]]] = podman_disks
    start: Callable[..., AbstractContextManager[Machine]] = machine.start_machine
    restore: Callable[..., AbstractContextManager[Machine]] = snapshot.booted_machine


class Provider:
    """Machines for plans: from the booted-memory cache, or booted, with the image that they want.

    An image and its disk are made when the first plan wants them, and stay until the end.
    """

    def __init__(
        self, session: Session, scratch: Path, stack: ExitStack, steps: Steps | None = None
    ) -> None:
        self.session = session
        self.scratch = scratch
        self._stack = stack
        self._steps = steps or Steps()
        self._ready: dict[PlanImage, _Ready] = {}

    def __call__(self, plan: Plan) -> AbstractContextManager[Machine]:
        return self._memory() if plan.start is Start.MEMORY else self._boot(plan.image)

    def prepare(self, wanted: PlanImage) -> _Ready:
        """The image and its disk, from the cache or made now."""
        found = self._ready.get(wanted)
        if found is None:
            opts = self.session.opts
            if wanted is PlanImage.PODMAN:
                opts = with_podman(opts)
            built = self._steps.build(opts)
            base = self._stack.enter_context(
                self._steps.install(built, opts, self.session.accel(), self.session.hypervisor)
            )
            found = self._ready[wanted] = _Ready(image=built, base=base)
        return found

    def prepare_for(self, plans: Sequence[Plan]) -> None:
        """What most of these plans need, if any of them does; the rest waits for its plan."""
        if any(plan.image is PlanImage.PLAIN for plan in plans):
            self.prepare(PlanImage.PLAIN)

    @contextmanager
    def _memory(self) -> Iterator[Machine]:
        where = self.scratch / "memory"
        base = self.prepare(PlanImage.PLAIN).base
        spec = self._steps.describe(base, where, name="bootc-tmt", session=self.session)
        # The cache makes its own overlays; its entries must stand on what stays.
        disks = tuple(replace(one, path=base.path) for one in spec.disks)
        spec = replace(spec, disks=disks)
        cache = paths.CACHE / MEMORY
        snapshot.prune_snapshots(cache)
        with self._steps.restore(
            self.session.hypervisor(),
            spec,
            key=self.session.key,
            cache=cache,
            disk_key=base.key,
            scratch=self.scratch / "restored",
        ) as booted:
            yield booted

    @contextmanager
    def _boot(self, wanted: PlanImage) -> Iterator[Machine]:
        where = self.scratch / "booted"
        ready = self.prepare(wanted)
        spec = self._steps.describe(ready.base, where, name="bootc-tmt", session=self.session)
        with ExitStack() as stack:
            if wanted is PlanImage.PODMAN:
                more = stack.enter_context(self._steps.add_disks(ready.image, where))
                spec = replace(spec, disks=(*spec.disks, *more))
            yield stack.enter_context(
                self._steps.start(self.session.hypervisor(), spec, key=self.session.key)
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """An image, and the disk that it is installed on."""

    image: BuiltImage
    base: BaseDisk


@contextmanager
def _provider(opts: BcvkInstallOpts, plans: Sequence[Plan]) -> Iterator[Provider]:
    """Machines for these plans; what most of them need is made before the first one begins."""
    with ExitStack() as stack:
        session = stack.enter_context(open_session(opts))
        scratch = paths.MACHINES / session.name
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        provide = Provider(session, scratch, stack)
        provide.prepare_for(plans)
        yield provide


def run_tmt(
    opts: BcvkInstallOpts, filters: Sequence[str], out: Path, *, full: bool = False
) -> RunResult:
    """The selected plans with `opts`, their reports in `out`."""
    known = context(opts)
    # Selected before anything is built.
    plans = select_plans(load_plans(paths.CHECKOUT, known), filters, full=full)
    with _provider(opts, plans) as provide:
        return runner.run_plans(
            filters,
            provide,
            out,
            root=paths.CHECKOUT,
            context=known,
            settings=Settings(host_versions=host_versions(provide.session)),
            full=full,
        )


def _tmt(opts: BcvkInstallOpts, filters: Sequence[str]) -> int:
    out = results_folder(opts)
    result = run_tmt(opts, filters, out)
    answer(report.summary(result, out) + report.tally(result))
    return result.exit_status


def _combinations() -> Iterator[tuple[str, BcvkInstallOpts]]:
    """Every supported combination with the small initrd, and the default with the other one."""
    for one in constraints.legal_combinations():
        settings = {axis: str(getattr(one, axis)) for axis in constraints.AXES}
        try:
            opts = BcvkInstallOpts.from_env(overrides=settings)
        except BootcError:
            continue  # legal, but not supported yet: `invoke variants` lists them
        yield "-".join(settings.values()), opts
    yield "dracut", BcvkInstallOpts.from_env(overrides={"initrd": str(Initrd.DRACUT)})


_EVERYWHERE = ("plans/readonly", "plans/reboot", "plans/update")
"""What a file system or an initrd may change. The other plans are about files that are the same on
each, so the default combination runs them for all."""
_SHARING = "plans/podman"
"""Where files share extents it takes another way; btrfs has both that and fs-verity."""


def wanted_plans(opts: BcvkInstallOpts, default: Mapping[str, str]) -> Sequence[str]:
    """The filters of a combination in a full run, when `default` is the context of the given one.

    None: every plan.
    """
    if context(opts) == default:
        return ()
    return (*_EVERYWHERE, _SHARING) if opts.filesystem is Filesystem.BTRFS else _EVERYWHERE


def _tmt_full(given: BcvkInstallOpts, filters: Sequence[str]) -> int:
    worst, rows = 0, []
    default = context(given)
    for name, opts in _combinations():
        begin = time.monotonic()
        out = results_folder(opts) / name
        try:
            result = run_tmt(opts, filters or wanted_plans(opts, default), out, full=True)
            answer(report.summary(result, out))
            status, said = result.exit_status, report.tally(result).strip()
        except BootcError as error:
            status, said = 2, str(error)
        worst = max(worst, status)
        rows.append(f"{name:40} {status} {time.monotonic() - begin:6.1f} s  {said}")
    answer("combination, exit status, time", *rows)
    return worst


def _interop(opts: BcvkInstallOpts, filters: Sequence[str]) -> int:
    known = context(opts)
    plans = select_plans(load_plans(paths.CHECKOUT, known), filters)
    with _provider(opts, plans) as provide:
        compared = interops.compare_plans(
            filters,
            provide,
            results_folder(opts) / "interop",
            root=paths.CHECKOUT,
            context=known,
            key=provide.session.key.private,
        )
    for name, results in compared.theirs.items():
        answer(f"{name}: {len(results)} tests by tmt")
    answer(*(compared.differences or ["the same outcomes, test by test"]))
    return 1 if compared.differences else compared.ours.exit_status


VERBS = {"tmt": _tmt, "tmt-full": _tmt_full, "interop": _interop}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="vmtests.main", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("verb", choices=VERBS)
    parser.add_argument(
        "filters", nargs="*", metavar="FILTER", help="part of a plan's or test's name"
    )
    arguments = parser.parse_args(argv)
    try:
        with reported():
            return VERBS[arguments.verb](BcvkInstallOpts.from_env(), arguments.filters)
    except SystemExit as stop:
        # An error before or beside the plans is ours, not a test's.
        return 2 if stop.code == 1 else int(stop.code or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
