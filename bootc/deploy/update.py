# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`upgrade` and `switch`: decide from facts what is to be done, then do it.

`decide_upgrade` and `decide_switch` are pure: from what is booted, staged and offered to a frozen
`Plan`. What is offered is compared by manifest digest; that an image with another manifest is the
same system is seen only when its composefs image is made, by its id.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from enum import StrEnum

from bootc.composefs.repository import Repository
from bootc.composefs.stored import load_image
from bootc.deploy import image as images
from bootc.deploy import machine, messages, state
from bootc.deploy.progress import Observer, Stage
from bootc.deploy.source import open_image
from bootc.deploy.stage import (
    SameImageError,
    StagedImage,
    check_image,
    clean_up_after,
    live_deployments,
    role_of,
    stage,
)
from bootc.deploy.state import Origin, Staged
from bootc.deploy.sysroot import Deployment, Sysroot, read_origin
from bootc.deploy.unified import Unify, through_storage
from bootc.errors import BootcError, advised
from bootc.log import show_size
from bootc.oci.layout import ImageSource
from bootc.oci.model import read_manifest
from bootc.oci.reference import ImageReference, Transport
from bootc.records import dataclass, replace

_log = logging.getLogger(__name__)

NO_UPDATE = "No update available."
KEPT = "Staged update present, not changed."
UNCHANGED = "Image specification is unchanged."

OpenImage = Callable[[ImageReference], AbstractContextManager[ImageSource]]


class Action(StrEnum):
    """What is done to the machine."""

    NOTHING = "nothing"
    STAGE = "stage"
    LOCK = "lock"
    UNLOCK = "unlock"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeOptions:
    check: bool = False
    download_only: bool = False
    from_downloaded: bool = False
    tag: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """An image that is deployed: its reference and its manifest digest (None: nobody knows)."""

    image: ImageReference
    digest: str | None
    locked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """`current` is what the machine follows: the staged image, if there is one, else the booted."""

    booted: Known | None
    staged: Known | None

    @property
    def current(self) -> ImageReference | None:
        known = self.staged or self.booted
        return known.image if known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What the source has."""

    image: ImageReference
    digest: str
    version: str | None = None
    layers: tuple[str, ...] = ()
    """Lines that compare its layers with those of the booted image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`lines` are said to the user. `locked` is for STAGE: wait for `--from-downloaded`."""

    action: Action
    lines: tuple[str, ...] = ()
    locked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`ready`: something waits for a reboot now, and may be finalized. `offer`: what `check` found
    that isn't booted."""

    lines: tuple[str, ...]
    changed: bool
    ready: bool
    staged: StagedImage | None = None
    offer: Offer | None = None


def read_facts(sysroot: Sysroot) -> Facts:
    """What is booted and what is staged, by their origins."""
    booted = read_origin(sysroot, sysroot.need_booted())
    mark = state.read_staged(sysroot.staged_file)
    staged = None
    if mark is not None:
        origin = read_origin(sysroot, mark.deployment)
        if origin is not None:
            staged = _known(origin, locked=mark.locked)
    return Facts(booted=_known(booted) if booted else None, staged=staged)


def _known(origin: Origin, *, locked: bool = False) -> Known:
    return Known(image=origin.image, digest=origin.manifest_digest, locked=locked)


def upgrade_target(facts: Facts, tag: str | None) -> ImageReference:
    """The image that an upgrade looks at. Raises `BootcError` when nobody knows."""
    if facts.current is None:
        raise BootcError(
            "no image reference is known for this system: its origin file is missing or damaged",
            hint="say where updates come from: bootc switch IMAGE",
        )
    return facts.current if tag is None else with_tag(facts.current, tag)


def with_tag(image: ImageReference, tag: str) -> ImageReference:
    """The same image by another tag, without a digest; of a path, what is after the last colon."""
    name = image.image.partition("@")[0]
    if image.transport in (Transport.REGISTRY, Transport.CONTAINERS_STORAGE):
        folder, slash, last = name.rpartition("/")
        base = f"{folder}{slash}{last.partition(':')[0]}"
    else:
        path, colon, rest = name.rpartition(":")
        base = path if colon and "/" not in rest else name
    if not tag or set(tag) & set("/:@"):
        raise BootcError(f"{tag!r} is not a tag", hint="give the part after the colon, like 1.2")
    return replace(image, image=f"{base}:{tag}")


def decide_from_downloaded(facts: Facts) -> Plan:
    """`upgrade --from-downloaded`: no image is looked at."""
    if facts.staged is None:
        raise BootcError(
            "No staged deployment found", hint="bootc upgrade --download-only stages one"
        )
    if not facts.staged.locked:
        line = "Staged deployment is already set to apply on reboot"
        return Plan(action=Action.NOTHING, lines=(line,))
    line = "Staged deployment will now be applied on reboot"
    return Plan(action=Action.UNLOCK, lines=(line,))


def decide_upgrade(facts: Facts, offer: Offer, options: UpgradeOptions) -> Plan:
    """`upgrade`, when it is known what the source has."""
    booted = facts.booted is not None and facts.booted.digest == offer.digest
    if options.check:
        if booted:
            return Plan(action=Action.NOTHING, lines=(f"No changes in: {offer.image.imgref}",))
        return Plan(action=Action.NOTHING, lines=_available(offer))
    if facts.staged is not None and facts.staged.digest == offer.digest:
        if facts.staged.locked and not options.download_only:
            line = "Staged deployment will now be applied on reboot"
            return Plan(action=Action.UNLOCK, lines=(line,))
        if options.download_only and not facts.staged.locked:
            line = "Staged deployment will not be applied on reboot"
            return Plan(action=Action.LOCK, lines=(line,))
        return Plan(action=Action.NOTHING, lines=(KEPT,))
    if booted:
        return Plan(action=Action.NOTHING, lines=(NO_UPDATE,))
    return Plan(action=Action.STAGE, locked=options.download_only)


def _available(offer: Offer) -> tuple[str, ...]:
    lines = [f"Update available for: {offer.image.imgref}"]
    if offer.version is not None:
        lines.append(f"  Version: {offer.version}")
    return (*lines, f"  Digest: {offer.digest}", *offer.layers)


def compare_layers(old: bytes | None, new: bytes) -> tuple[str, ...]:
    """For people: how many layers the manifest `new` has, and how they differ from those of `old`.

    Sizes are those of the layers as they are transferred.
    """
    there = _layers(new)
    lines = [("Total new layers", there)]
    if old is not None:
        here = _layers(old)
        lines += [
            ("Removed layers", {key: size for key, size in here.items() if key not in there}),
            ("Added layers", {key: size for key, size in there.items() if key not in here}),
        ]
    return tuple(
        f"  {name}: {len(found)}  Size: {show_size(sum(found.values()))}" for name, found in lines
    )


def _layers(manifest: bytes) -> dict[str, int]:
    return {one.digest: one.size for one in read_manifest(manifest, "manifest").layers}


def _read_booted_manifest(sysroot: Sysroot, facts: Facts) -> bytes | None:
    """None, if it isn't in the repository any more."""
    if facts.booted is None or facts.booted.digest is None:
        return None
    try:
        with Repository.open(sysroot.repository, insecure=sysroot.insecure) as repo:
            return load_image(repo, f"@{facts.booted.digest}").manifest
    except (BootcError, OSError) as error:
        _log.debug("the booted image's manifest cannot be read: %s", error)
        return None


def decide_switch(facts: Facts, target: ImageReference) -> Plan:
    """`switch`, before anything is fetched."""
    if facts.current == target:
        return Plan(action=Action.NOTHING, lines=(UNCHANGED,))
    return Plan(action=Action.STAGE)


def upgrade(
    sysroot: Sysroot,
    options: UpgradeOptions,
    *,
    open_image: OpenImage = open_image,
    observer: Observer | None = None,
) -> Outcome:
    """Follow the image that this machine follows. With `check`, nothing is changed."""
    facts = read_facts(sysroot)
    if options.from_downloaded:
        return _relock(sysroot, facts, decide_from_downloaded(facts))
    target = upgrade_target(facts, options.tag)
    with _opened(open_image, target) as source:
        offer = _read_offer(target, source, _read_booted_manifest(sysroot, facts))
        plan = decide_upgrade(facts, offer, options)
        if plan.action is not Action.STAGE:
            if options.check:
                booted = facts.booted is not None and facts.booted.digest == offer.digest
                return Outcome(
                    lines=plan.lines,
                    changed=False,
                    ready=False,
                    offer=None if booted else offer,
                )
            same = facts.staged is not None and facts.staged.digest == offer.digest
            return _relock(sysroot, facts if same else replace(facts, staged=None), plan)
        try:
            with _image_to_stage(sysroot, facts, target, source, observer) as (found, tell):
                made = stage(sysroot, found, target, locked=plan.locked, observer=tell)
        except SameImageError as error:
            return _same_upgrade(target, error)
    return _finish(sysroot, made, offer.layers, messages.STAGE, observer)


def switch(
    sysroot: Sysroot,
    target: ImageReference,
    *,
    open_image: OpenImage = open_image,
    observer: Observer | None = None,
    unify: Unify | None = None,
) -> Outcome:
    """Follow another image, by bootc's container storage if that is in use or `unify` wants it.

    Raises `SameImageError` if one is deployed that is the same."""
    facts = read_facts(sysroot)
    plan = decide_switch(facts, target)
    if plan.action is Action.NOTHING:
        return Outcome(lines=plan.lines, changed=False, ready=_is_ready(facts))
    with _opened(open_image, target) as source:
        layers = compare_layers(_read_booted_manifest(sysroot, facts), source.manifest)
        try:
            _refuse_same_manifest(sysroot, source)
            with _image_to_stage(sysroot, facts, target, source, observer, unify) as (found, tell):
                made = stage(sysroot, found, target, observer=tell)
        except SameImageError as error:
            hint = _instead(error.existing, error.role, target)
            raise SameImageError(error.existing, error.role, hint=hint) from None
    return _finish(sysroot, made, layers, messages.SWITCH, observer)


def switch_in_place(sysroot: Sysroot, target: ImageReference) -> Outcome:
    """Only say where updates of the booted deployment come from; nothing is fetched."""
    booted = sysroot.need_booted()
    origin = read_origin(sysroot, booted)
    if origin is None:
        raise BootcError(
            f"the origin of the booted deployment {booted[:16]}… is missing or damaged",
            hint="bootc switch IMAGE, without --mutate-in-place, makes a new deployment",
        )
    if origin.image == target:
        return Outcome(lines=(UNCHANGED,), changed=False, ready=False)
    state.write_origin(sysroot.root, booted, replace(origin, image=target))
    machine.announce(sysroot)
    return Outcome(lines=(f"Updates will come from: {target.imgref}",), changed=True, ready=False)


def _image_to_stage(
    sysroot: Sysroot,
    facts: Facts,
    target: ImageReference,
    source: ImageSource,
    observer: Observer | None,
    unify: Unify | None = None,
) -> AbstractContextManager[tuple[ImageSource, Observer]]:
    """The image as it is offered, or, on a unified system, as bootc's storage has it then."""
    booted = facts.booted
    return through_storage(
        sysroot,
        target,
        source,
        observer or Observer(),
        booted=(booted.image, booted.digest) if booted else None,
        unify=unify,
    )


@contextmanager
def _opened(open_image: OpenImage, target: ImageReference) -> Iterator[ImageSource]:
    """The image; if it cannot be read at all, with advice."""
    with ExitStack() as stack:
        with advised(
            "the image cannot be read", f"is {target} there, and may this machine read it?"
        ):
            source = stack.enter_context(open_image(target))
        yield source


def _read_offer(target: ImageReference, source: ImageSource, old: bytes | None) -> Offer:
    check_image(images.read_facts(target, source.manifest_digest, source.manifest, source.config))
    return Offer(
        image=target,
        digest=source.manifest_digest,
        version=images.image_version(source.manifest, source.config, str(target)),
        layers=compare_layers(old, source.manifest),
    )


def _relock(sysroot: Sysroot, facts: Facts, plan: Plan) -> Outcome:
    """Carry out a plan that stages nothing."""
    mark = state.read_staged(sysroot.staged_file)
    if plan.action in (Action.LOCK, Action.UNLOCK):
        assert mark is not None
        locked = plan.action is Action.LOCK
        machine.arm_finalize(sysroot)
        state.write_staged(Staged(deployment=mark.deployment, locked=locked), sysroot.staged_file)
        if locked:
            machine.clear_reboot_required(sysroot)
        elif facts.staged is not None and facts.staged.digest is not None:
            machine.mark_reboot_required(sysroot, facts.staged.digest)
        machine.announce(sysroot)
        return Outcome(lines=plan.lines, changed=True, ready=not locked)
    return Outcome(lines=plan.lines, changed=False, ready=_is_ready(facts))


def _is_ready(facts: Facts) -> bool:
    return facts.staged is not None and not facts.staged.locked


def _same_upgrade(target: ImageReference, error: SameImageError) -> Outcome:
    lines = [f"No changes in: {target.imgref}"]
    if error.role == "rollback":
        lines.append("  It is the image of the rollback deployment: `bootc rollback` boots it")
    return Outcome(lines=tuple(lines), changed=False, ready=False)


def _refuse_same_manifest(sysroot: Sysroot, source: ImageSource) -> None:
    """The same manifest is the same image; that is known before it is pulled."""
    mark = state.read_staged(sysroot.staged_file)
    for one in live_deployments(sysroot):
        if one.origin is not None and one.origin.manifest_digest == source.manifest_digest:
            raise SameImageError(one, role_of(sysroot, one, mark))


def _instead(existing: Deployment, role: str, target: ImageReference) -> str:
    transport = "" if target.transport is Transport.REGISTRY else f"--transport {target.transport} "
    match role:
        case "booted":
            return (
                f"to take updates from there: bootc switch --mutate-in-place "
                f"{transport}{target.image}"
            )
        case "staged":
            return f"reboot to boot it, or drop it: bootc delete-deployment {existing.id[:16]}"
        case "rollback":
            return "bootc rollback boots it"
        case _:
            return f"bootc delete-deployment {existing.id[:16]} removes it"


def _finish(
    sysroot: Sysroot,
    made: StagedImage,
    layers: tuple[str, ...],
    message: str,
    observer: Observer | None,
) -> Outcome:
    tell = observer or Observer()
    tell.stage(Stage.CLEANUP)
    clean_up_after(sysroot)
    machine.announce(sysroot)
    tell.end()
    _log.info("Staged %s", made.digest, extra={"MESSAGE_ID": message})
    lines = [f"Queued for next boot: {made.image.imgref}"]
    if made.locked:
        lines = [f"Downloaded, not to be applied on reboot: {made.image.imgref}"]
    if made.version is not None:
        lines.append(f"  Version: {made.version}")
    lines += [f"  Digest: {made.digest}", *layers]
    return Outcome(lines=tuple(lines), changed=True, ready=not made.locked, staged=made)
