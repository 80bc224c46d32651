# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The operations of `containers.bootc.update`, as the worker carries them out.

Each takes the task and the parameters that were given, and returns those of its last reply. It is
too late to cancel one when the file that says what is staged names something new.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bootc.deploy import machine, restart, state, update
from bootc.deploy.progress import UPDATING
from bootc.deploy.restart import SoftReboot
from bootc.deploy.rollback import rollback as roll_back
from bootc.deploy.stage import SameImageError
from bootc.deploy.sysroot import Sysroot
from bootc.deploy.unified import Unify
from bootc.deploy.update import Outcome, UpgradeOptions
from bootc.errors import BootcError, advised
from bootc.oci.reference import CONTAINER_POLICY, ImageReference, Transport, parse_imgref
from bootc.services.failures import OptionError, blaming
from bootc.services.host import image_reply
from bootc.services.task import Answer, Given, Task

INTERFACE = "containers.bootc.update"
CONFLICTS = (("downloadOnly", "apply"), ("fromDownloaded", "downloadOnly"))
"""Options of Upgrade that exclude each other, as on the command line."""


def check(task: Task, given: Given) -> Answer:
    options = UpgradeOptions(check=True, tag=_tag(given))
    with task.open_machine(writable=False) as sysroot:
        found = update.upgrade(sysroot, options)
    offer = None
    if found.offer is not None:
        offer = {
            "image": image_reply(found.offer.image),
            "imageDigest": found.offer.digest,
            "version": found.offer.version,
        }
    return {"update": offer, "messages": list(found.lines)}


def upgrade(task: Task, given: Given) -> Answer:
    for one, other in CONFLICTS:
        if given.get(one) and given.get(other):
            raise OptionError(one, f"it is not allowed together with {other}")
    options = UpgradeOptions(
        download_only=bool(given.get("downloadOnly")),
        from_downloaded=bool(given.get("fromDownloaded")),
        tag=_tag(given),
    )
    soft = _soft_reboot(given)
    with task.observed(UPDATING) as observer, task.open_machine(writable=True) as sysroot:
        _keep_what_is_staged(task, sysroot)
        outcome = update.upgrade(sysroot, options, observer=observer)
        is_soft = restart.prepare_staged(soft, sysroot, outcome)
    return _finish(given, outcome, is_soft)


def switch(task: Task, given: Given) -> Answer:
    unify = Unify(
        wanted=bool(given.get("experimentalUnifiedStorage")),
        allow_copy=bool(given.get("allowCopy")),
    )
    if unify.allow_copy and not unify.wanted:
        raise OptionError("allowCopy", "it needs experimentalUnifiedStorage")
    target = _target(given)
    soft = _soft_reboot(given)
    with task.observed(UPDATING) as observer, task.open_machine(writable=True) as sysroot:
        _keep_what_is_staged(task, sysroot)
        try:
            if given.get("mutateInPlace"):
                outcome = update.switch_in_place(sysroot, target)
            else:
                outcome = update.switch(sysroot, target, observer=observer, unify=unify)
        except SameImageError as error:
            raise OptionError("target", error.message, hint=error.hint) from error
        is_soft = restart.prepare_staged(soft, sysroot, outcome)
    return _finish(given, outcome, is_soft)


def rollback(task: Task, given: Given) -> Answer:
    soft = _soft_reboot(given)
    # The menu is exchanged at a stroke, and what comes after that belongs to it.
    task.interrupts.is_too_late = lambda: True
    with task.open_machine(writable=True) as sysroot:
        plan = roll_back(sysroot)
        is_soft = restart.prepare_rollback(soft, sysroot, plan)
    outcome = Outcome(lines=plan.lines, changed=True, ready=True)
    return {"outcome": _outcome_reply(_restarted(given, outcome, is_soft, restart.FOR_ROLLBACK))}


OPERATIONS: dict[str, Callable[[Task, Given], Answer]] = {
    "Check": check,
    "Upgrade": upgrade,
    "Switch": switch,
    "Rollback": rollback,
}


def _tag(given: Given) -> str | None:
    tag: str | None = given.get("tag")
    if tag is not None:
        with blaming("tag"):
            update.with_tag(ImageReference(image="any", transport=Transport.REGISTRY), tag)
    return tag


def _soft_reboot(given: Given) -> SoftReboot | None:
    wanted = given.get("softReboot")
    soft = SoftReboot(wanted) if wanted is not None else None
    with blaming("softReboot"):
        restart.check(soft)
    return soft


def _target(given: Given) -> ImageReference:
    transport = given.get("transport", Transport.REGISTRY.value)
    known = [item.value for item in Transport]
    if transport not in known:
        raise OptionError("transport", f"{transport!r} is none of {', '.join(known)}")
    with blaming("target"):
        target = parse_imgref(f"{transport}:{given['target']}")
    if given.get("enforceContainerSigpolicy"):
        target = replace(target, signature=CONTAINER_POLICY)
    return target


def _keep_what_is_staged(task: Task, sysroot: Sysroot) -> None:
    """From when something new is staged on, it is too late to cancel."""

    def read() -> state.Staged | None:
        try:
            return state.read_staged(sysroot.staged_file)
        except (BootcError, OSError):
            return None

    before = read()

    def is_too_late() -> bool:
        now = read()
        return now is not None and now != before

    task.interrupts.is_too_late = is_too_late


def _finish(given: Given, outcome: Outcome, is_soft: bool) -> Answer:
    done = _restarted(given, outcome, is_soft, restart.FOR_UPDATE)
    return {"outcome": _outcome_reply(done)}


def _restarted(given: Given, outcome: Outcome, is_soft: bool, reason: str) -> Outcome:
    """Ask for the reboot, if that is wanted; what is asked of systemd comes after the reply."""
    if given.get("apply") and outcome.ready:
        with advised("the change is made, the reboot was refused", "reboot by hand"):
            machine.request_reboot(reason, soft=is_soft)
    return outcome


def _outcome_reply(outcome: Outcome) -> Answer:
    staged = None
    if outcome.staged is not None:
        staged = {
            "verity": outcome.staged.id,
            "image": image_reply(outcome.staged.image),
            "imageDigest": outcome.staged.digest,
            "version": outcome.staged.version,
            "downloadOnly": outcome.staged.locked,
        }
    return {
        "changed": outcome.changed,
        "ready": outcome.ready,
        "staged": staged,
        "messages": list(outcome.lines),
    }
