# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The verbs that change what a machine boots. As in `commands`, imports wait for the verb."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bootc import log
from bootc.cli import render
from bootc.cli.parser import Namespace
from bootc.errors import BootcError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bootc.deploy.progress import Observer
    from bootc.deploy.sysroot import Sysroot
    from bootc.deploy.update import Outcome
    from bootc.oci.reference import ImageReference

_log = logging.getLogger(__name__)
REBOOT_FOR_UPDATE = "Rebooting to update the system"
REBOOT_FOR_ROLLBACK = "Rebooting to roll the system back"


@contextmanager
def opened() -> Iterator[Sysroot]:
    """The running machine's system, to be changed, and brought into today's form if it is old."""
    from bootc.deploy.migrate import migrate
    from bootc.deploy.sysroot import open_booted

    with open_booted(writable=True) as sysroot:
        try:
            migrate(sysroot)
        except (BootcError, OSError) as error:
            # What is not migrated boots as well.
            _log.warning("the boot files were not brought into today's form: %s", error)
        yield sysroot


@contextmanager
def _observer(arguments: Namespace) -> Iterator[Observer]:
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
    from bootc.deploy import update
    from bootc.deploy.sysroot import open_booted

    options = update.UpgradeOptions(
        check=arguments.check,
        download_only=arguments.download_only,
        from_downloaded=arguments.from_downloaded,
        tag=arguments.tag,
    )
    with _observer(arguments) as observer:
        if options.check:
            with open_booted(writable=False) as sysroot:
                _say(update.upgrade(sysroot, options, observer=observer))
            return
        _check_soft_reboot(arguments)
        with opened() as sysroot:
            outcome = update.upgrade(sysroot, options, observer=observer)
            soft = _prepare_restart(arguments, sysroot, outcome)
    _say(outcome)
    _restart(arguments, REBOOT_FOR_UPDATE, ready=outcome.ready, soft=soft)


def switch(arguments: Namespace) -> None:
    from bootc.deploy import update

    if arguments.experimental_unified_storage:
        raise BootcError("--experimental-unified-storage cannot be done yet", hint="leave it out")
    target = _target(arguments)
    with _observer(arguments) as observer:
        _check_soft_reboot(arguments)
        with opened() as sysroot:
            if arguments.mutate_in_place:
                outcome = update.switch_in_place(sysroot, target)
            else:
                outcome = update.switch(sysroot, target, observer=observer)
            soft = _prepare_restart(arguments, sysroot, outcome)
    _say(outcome)
    _restart(arguments, REBOOT_FOR_UPDATE, ready=outcome.ready, soft=soft)


def _target(arguments: Namespace) -> ImageReference:
    from dataclasses import replace

    from bootc.oci.reference import CONTAINER_POLICY, parse_imgref

    target = parse_imgref(f"{arguments.transport}:{arguments.target}")
    if arguments.enforce_container_sigpolicy:
        target = replace(target, signature=CONTAINER_POLICY)
    return target


def _say(outcome: Outcome) -> None:
    for line in outcome.lines:
        render.say(line)


def _check_soft_reboot(arguments: Namespace) -> None:
    """Refuse what systemd cannot do before anything is changed."""
    from bootc.deploy import soft_reboot

    if arguments.soft_reboot is not None:
        soft_reboot.check_systemd()


def _prepare_restart(arguments: Namespace, sysroot: Sysroot, outcome: Outcome) -> bool:
    """Make the next root of what is staged, if that is wanted; whether it was made."""
    from bootc.deploy import state

    mark = state.read_staged(sysroot.staged_file)
    if not outcome.ready or mark is None:
        _forget_next_root(outcome.changed)
        return False
    return _prepare(arguments, sysroot, mark.deployment)


def _prepare(arguments: Namespace, sysroot: Sysroot, deployment: str) -> bool:
    from bootc.deploy import soft_reboot

    _forget_next_root(True)
    if arguments.soft_reboot is None:
        return False
    if arguments.soft_reboot == "auto":
        reason = soft_reboot.why_not(sysroot, deployment)
        if reason is not None:
            _log.info("A whole reboot is needed: %s", reason)
            return False
    _log.info("%s", soft_reboot.prepare(sysroot, deployment))
    return True


def _forget_next_root(stale: bool) -> None:
    """What was prepared for a soft reboot is not what is to be booted any more."""
    from bootc.deploy import soft_reboot

    if stale and os.path.ismount(soft_reboot.NEXT_ROOT):
        soft_reboot.reset_live()


def _restart(arguments: Namespace, reason: str, *, ready: bool, soft: bool) -> None:
    """Reboot, if that was asked for and if something waits for it."""
    from bootc.deploy import machine, soft_reboot

    if not arguments.apply or not ready:
        return
    if soft:
        soft_reboot.soft_reboot(reason)
    else:
        machine.reboot(reason)


def rollback(arguments: Namespace) -> None:
    from bootc.deploy.rollback import rollback as roll_back

    _check_soft_reboot(arguments)
    with opened() as sysroot:
        plan = roll_back(sysroot)
        soft = False
        if plan.reverting:
            _forget_next_root(True)
        else:
            soft = _prepare(arguments, sysroot, plan.order[0].id)
    for line in plan.lines:
        render.say(line)
    _restart(arguments, REBOOT_FOR_ROLLBACK, ready=True, soft=soft)


def edit(arguments: Namespace) -> None:
    from bootc.cli import edit as edits
    from bootc.deploy import update
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
    with _observer(arguments) as observer, opened() as sysroot:
        if what == "order":
            lines = roll_back(sysroot).lines
        else:
            assert spec.image is not None
            lines = update.switch(sysroot, spec.image, observer=observer).lines
        _forget_next_root(True)
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
