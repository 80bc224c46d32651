# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What a run of the plans gives to which plan: combinations, images, disks, machines. No VM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from vmtests import main, paths
from vmtests.axes import Extra, Filesystem, Initrd
from vmtests.disk import BaseDisk
from vmtests.domain import Accel, Disk, MachineSpec, Uefi
from vmtests.hypervisor import Hypervisor
from vmtests.image import BuiltImage
from vmtests.machine import Machine
from vmtests.options import BcvkInstallOpts
from vmtests.plans import Plan, PlanImage, Start, load_plans
from vmtests.session import Session

DEFAULT = BcvkInstallOpts()
KNOWN = main.context(DEFAULT)
HYPERVISOR = cast(Hypervisor, object())
MACHINE = cast(Machine, object())


def file_name(image: str) -> str:
    return f"{image.replace('/', '-')}.qcow2"


def plan(start: Start = Start.BOOT, image: PlanImage = PlanImage.PLAIN) -> Plan:
    return Plan(name="/p", summary="", start=start, image=image, tests=())


@dataclass
class Recorder:
    """Steps that only say what they were asked for, and in which order things end."""

    folder: Path
    built: list[BcvkInstallOpts] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    specs: list[MachineSpec] = field(default_factory=list)
    cache_keys: list[str] = field(default_factory=list)

    def steps(self) -> main.Steps:
        return main.Steps(
            build=self.build,
            install=self.install,
            describe=self.describe,
            add_disks=self.add_disks,
            start=self.start,
            restore=self.restore,
        )

    def build(self, opts: BcvkInstallOpts) -> BuiltImage:
        self.built.append(opts)
        self.told.append(f"build {opts.base_img}")
        return BuiltImage(name=opts.base_img, id="1" * 64, labels={}, size=1, fresh=True)

    @contextmanager
    def install(
        self, built: BuiltImage, opts: BcvkInstallOpts, accel: Accel, hypervisor: object
    ) -> Iterator[BaseDisk]:
        assert opts.base_img == built.name
        self.told.append(f"install {built.name}")
        yield BaseDisk(path=self.folder / file_name(built.name), key=f"of {built.name}", size=1)
        self.told.append(f"forget {built.name}")

    def describe(self, base: BaseDisk, where: Path, *, name: str, session: Session) -> MachineSpec:
        return MachineSpec(
            name=name,
            boot=Uefi(code=where / "code", vars=where / "vars"),
            console=where / "console",
            disks=(Disk(path=where / f"on {base.path.name}"),),
        )

    @contextmanager
    def add_disks(self, built: BuiltImage, where: Path) -> Iterator[tuple[Disk, ...]]:
        yield Disk(path=where / f"storage of {file_name(built.name)}"), Disk(path=where / "spare")
        self.told.append("remove disks")

    @contextmanager
    def start(self, hypervisor: object, spec: MachineSpec, **more: object) -> Iterator[Machine]:
        assert hypervisor is HYPERVISOR
        self.specs.append(spec)
        yield MACHINE
        self.told.append("end machine")

    @contextmanager
    def restore(
        self, hypervisor: object, spec: MachineSpec, *, disk_key: str, **more: object
    ) -> Iterator[Machine]:
        self.cache_keys.append(disk_key)
        with self.start(hypervisor, spec):
            yield MACHINE


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(paths, "STATE", tmp_path / "state")
    return Recorder(tmp_path)


@pytest.fixture
def provider(recorder: Recorder, tmp_path: Path) -> Iterator[main.Provider]:
    with ExitStack() as stack:
        session = Session(DEFAULT, "test", stack, _hypervisor=HYPERVISOR, _accel=Accel.TCG)
        yield main.Provider(session, tmp_path / "scratch", stack, recorder.steps())


def test_a_plan_about_boots_gets_a_machine_that_boots(
    provider: main.Provider, recorder: Recorder, tmp_path: Path
) -> None:
    with provider(plan()) as machine:
        assert machine is MACHINE
    [spec] = recorder.specs
    [disk] = spec.disks
    assert disk.path == tmp_path / "scratch/booted" / f"on {file_name(DEFAULT.base_img)}"
    assert recorder.cache_keys == []


def test_a_plan_that_only_looks_gets_one_from_memory_on_what_stays(
    provider: main.Provider, recorder: Recorder, tmp_path: Path
) -> None:
    """The cache's entries outlive the run's overlays, so they stand on the installed disk."""
    with provider(plan(Start.MEMORY)):
        pass
    [spec] = recorder.specs
    assert [disk.path for disk in spec.disks] == [tmp_path / file_name(DEFAULT.base_img)]
    assert recorder.cache_keys == [f"of {DEFAULT.base_img}"]


def test_a_plan_with_podman_gets_an_image_and_disks_of_its_own(
    provider: main.Provider, recorder: Recorder
) -> None:
    with provider(plan(image=PlanImage.PODMAN)):
        pass
    [opts] = recorder.built
    assert Extra.PODMAN in opts.extras
    [spec] = recorder.specs
    own = file_name(opts.base_img)
    names = [disk.path.name for disk in spec.disks]
    assert names == [f"on {own}", f"storage of {own}", "spare"]
    # The machine ends before its disks go.
    assert recorder.told[-2:] == ["end machine", "remove disks"]


def test_an_image_is_made_once_and_stays_to_the_end(recorder: Recorder, tmp_path: Path) -> None:
    with ExitStack() as stack:
        session = Session(DEFAULT, "test", stack, _hypervisor=HYPERVISOR, _accel=Accel.TCG)
        provide = main.Provider(session, tmp_path / "scratch", stack, recorder.steps())
        for wanted in (
            plan(),
            plan(Start.MEMORY),
            plan(image=PlanImage.PODMAN),
            plan(image=PlanImage.PODMAN),
        ):
            with provide(wanted):
                pass
        assert [opts.extras for opts in recorder.built] == [(), (Extra.PODMAN,)]
        assert not [one for one in recorder.told if one.startswith("forget")]
    plain, podman = (opts.base_img for opts in recorder.built)
    assert recorder.told[-2:] == [f"forget {podman}", f"forget {plain}"]


@pytest.mark.parametrize(
    ("images", "made"),
    [((PlanImage.PODMAN,), 0), ((PlanImage.PODMAN, PlanImage.PLAIN), 1), ((), 0)],
)
def test_only_what_most_plans_need_is_made_beforehand(
    provider: main.Provider, recorder: Recorder, images: tuple[PlanImage, ...], made: int
) -> None:
    provider.prepare_for([plan(image=image) for image in images])
    assert [opts.base_img for opts in recorder.built] == [DEFAULT.base_img] * made


def test_the_default_combination_runs_every_plan() -> None:
    assert main.wanted_plans(DEFAULT, KNOWN) == ()


def test_other_combinations_run_what_they_may_change() -> None:
    dracut = BcvkInstallOpts.from_env({}, overrides={"initrd": str(Initrd.DRACUT)})
    everywhere = main.wanted_plans(dracut, KNOWN)
    assert everywhere == ("plans/readonly", "plans/reboot", "plans/update")
    assert main.wanted_plans(dracut, main.context(dracut)) == ()


def test_files_are_shared_where_both_reflinks_and_verity_are() -> None:
    btrfs, ext4 = (
        BcvkInstallOpts.from_env({}, overrides={"filesystem": str(kind)})
        for kind in (Filesystem.BTRFS, Filesystem.EXT4)
    )
    given = main.context(btrfs)
    assert main.wanted_plans(btrfs, given) == ()
    assert "plans/podman" in main.wanted_plans(btrfs, main.context(ext4))
    assert "plans/podman" not in main.wanted_plans(ext4, given)


def test_filters_name_plans_that_exist() -> None:
    """A filter that selects nothing would end that combination with an error."""
    names = [one.name for one in load_plans(paths.CHECKOUT, KNOWN)]
    btrfs = BcvkInstallOpts.from_env({}, overrides={"filesystem": str(Filesystem.BTRFS)})
    for text in main.wanted_plans(btrfs, KNOWN):
        assert any(text in name for name in names), text
