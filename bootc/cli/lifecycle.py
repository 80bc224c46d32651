# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The verbs that change what a machine boots. As in `commands`, imports wait for the verb."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from bootc import log
from bootc.cli import render
from bootc.cli.parser import Namespace
from bootc.errors import BootcError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bootc.deploy.progress import Observer
    from bootc.deploy.restart import SoftReboot
    from bootc.deploy.sysroot import Sysroot
    from bootc.deploy.update import Outcome
    from bootc.oci.reference import ImageReference


def opened() -> AbstractContextManager[Sysroot]:
    """The running machine's system, to be changed, and brought into today's form if it is old."""
    from bootc.deploy.migrate import open_for_change

    return open_for_change()


@contextmanager
def observed(arguments: Namespace) -> Iterator[Observer]:
    """Who is told of the progress: people, unless `--quiet`, and the reader of `--progress-fd`."""
    from bootc.deploy.progress import (
        Observers,
        ProgressLog,
        ProgressWriter,
        adopt_pipe,
    )

    if arguments.quiet:
        log.setup(level="warning")
    with ExitStack() as stack:
        told: list[Observer] = [] if arguments.quiet else [ProgressLog()]
        if arguments.progress_fd is not None:
            fd = adopt_pipe(arguments.progress_fd)
            told.append(stack.enter_context(ProgressWriter(fd)))
        yield Observers(told)


def upgrade(arguments: Namespace) -> None:
    from bootc.deploy import restart, update
    from bootc.deploy.sysroot import open_booted

    options = update.UpgradeOptions(
        check=arguments.check,
        download_only=arguments.download_only,
        from_downloaded=arguments.from_downloaded,
        tag=arguments.tag,
    )
    with observed(arguments) as observer:
        if options.check:
            with open_booted(writable=False) as sysroot:
                _say(update.upgrade(sysroot, options, observer=observer))
            return
        wanted = _soft_reboot(arguments)
        with opened() as sysroot:
            outcome = update.upgrade(sysroot, options, observer=observer)
            soft = restart.prepare_staged(wanted, sysroot, outcome)
    _say(outcome)
    _restart(arguments, restart.FOR_UPDATE, ready=outcome.ready, soft=soft)


def switch(arguments: Namespace) -> None:
    from bootc.deploy import restart, update
    from bootc.deploy.unified import Unify

    unify = Unify(wanted=arguments.experimental_unified_storage, allow_copy=arguments.allow_copy)
    target = _target(arguments)
    with observed(arguments) as observer:
        wanted = _soft_reboot(arguments)
        with opened() as sysroot:
            if arguments.mutate_in_place:
                outcome = update.switch_in_place(sysroot, target)
            else:
                outcome = update.switch(sysroot, target, observer=observer, unify=unify)
            soft = restart.prepare_staged(wanted, sysroot, outcome)
    _say(outcome)
    _restart(arguments, restart.FOR_UPDATE, ready=outcome.ready, soft=soft)


def _target(arguments: Namespace) -> ImageReference:
    from dataclasses import replace

    from bootc.oci.reference import CONTAINER_POLICY, parse_imgref

    if not arguments.target:
        raise BootcError(
            "TARGET is empty", hint="bootc switch quay.io/example/os:latest follows that image"
        )
    target = parse_imgref(f"{arguments.transport}:{arguments.target}")
    if arguments.enforce_container_sigpolicy:
        target = replace(target, signature=CONTAINER_POLICY)
    return target


def _say(outcome: Outcome) -> None:
    for line in outcome.lines:
        render.say(line)


def _soft_reboot(arguments: Namespace) -> SoftReboot | None:
    """What `--soft-reboot` asks for; refuses what systemd cannot do before anything is changed."""
    from bootc.deploy import restart

    soft = restart.SoftReboot(arguments.soft_reboot) if arguments.soft_reboot else None
    restart.check(soft)
    return soft


def _restart(arguments: Namespace, reason: str, *, ready: bool, soft: bool) -> None:
    """Reboot, if that was asked for and if something waits for it."""
    from bootc.deploy import machine

    if arguments.apply and ready:
        machine.reboot(reason, soft=soft)


def rollback(arguments: Namespace) -> None:
    from bootc.deploy import restart
    from bootc.deploy.rollback import rollback as roll_back

    wanted = _soft_reboot(arguments)
    with opened() as sysroot:
        plan = roll_back(sysroot)
        soft = restart.prepare_rollback(wanted, sysroot, plan)
    for line in plan.lines:
        render.say(line)
    _restart(arguments, restart.FOR_ROLLBACK, ready=True, soft=soft)


def edit(arguments: Namespace) -> None:
    from bootc.cli import edit as edits
    from bootc.deploy import restart, update
    from bootc.deploy.rollback import rollback as roll_back
    from bootc.status import read_host

    host = read_host()
    if not host.status.managed:
        raise BootcError(render.NOT_DEPLOYED, hint="bootc install installs a system")
    text = edits.edited_text(host, arguments.filename)
    spec = edits.read_spec(text, arguments.filename or "the edited document")
    what = edits.decide_edit(host.spec, spec)
    if what is None:
        render.say(edits.CANCELLED)
        return
    with observed(arguments) as observer, opened() as sysroot:
        if what == "order":
            lines = roll_back(sysroot).lines
        else:
            assert spec.image is not None
            lines = update.switch(sysroot, spec.image, observer=observer).lines
        restart.forget_next_root()
    for line in lines:
        render.say(line)


def delete_deployment(arguments: Namespace) -> None:
    from bootc.deploy.delete import delete_deployment as delete

    with opened() as sysroot:
        said = delete(sysroot, arguments.deployment)
    render.say(said)


def finalize_staged(arguments: Namespace) -> None:
    from bootc.deploy.finalize import finalize_staged as finalize

    with opened() as sysroot:
        done = finalize(sysroot)
    if done is None:
        render.say("Nothing is staged that waits for the shutdown.")
    else:
        render.say(f"Next boot: {done.id}")


def reboot(arguments: Namespace) -> None:
    from bootc.cli.commands import need_root
    from bootc.deploy import machine

    need_root("a reboot")
    machine.reboot("Rebooting")
