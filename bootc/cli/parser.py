# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The command line of `bootc`: verbs, options, and which options exclude each other.

Verbs that exist in bootc and are not written here yet are known to the parser; `commands` says
"not yet" for them. Help texts are the user's manual: one line each. Modules with the choices of an
option are imported by who offers it, because start-up time is felt.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from bootc import __version__

Namespace = argparse.Namespace

NOT_YET = (
    "loader-entries",
    "container",
    "exec-in-host-mount-namespace",
    "state",
    "completion",
)
"""Verbs of bootc that this release does not have; their options are not looked at."""

_VISIBLE_NOT_YET = ("loader-entries", "container")
NOT_YET_INSTALL = ("to-existing-root", "reset", "finalize", "ensure-completion")
NOT_YET_INTERNALS = (
    "systemd-generator",
    "fixup-etc-fstab",
    "sysusers-sync",
    "cleanup",
    "relabel",
    "cfs",
    "blockdev",
    "uki",
)


def parse(argv: Sequence[str]) -> Namespace:
    """Parse, or exit with status 2 as argparse does; `verb` is the path of words (`install.…`)."""
    # Only the verb's own parser, if it is known at once: all of them take longer than `status`.
    top = build(argv[0] if argv else None)
    # What comes after is podman's, options too; argparse would look at those.
    words = list(argv[3:]) if tuple(argv[:3]) in _PODMANS else []
    found, rest = top.parse_known_args(list(argv[:3]) if words else list(argv))
    if words:
        found.words = words
    not_yet = getattr(found, "not_yet", False)
    if rest and not not_yet:
        build().error(f"unrecognized arguments: {' '.join(rest)}")
    if found.verb is None:
        build().error("name a VERB: bootc --help lists them")
    if not not_yet:
        _check_conflicts(found)
    return found


_PODMANS = (("image", "cmd", "list"), ("image", "cmd", "build"), ("image", "cmd", "push"))
UPGRADE_CONFLICTS = (
    ("check", "apply"),
    ("check", "soft_reboot"),
    ("check", "download_only"),
    ("check", "from_downloaded"),
    ("download_only", "apply"),
    ("from_downloaded", "download_only"),
)
"""Pairs of options of `upgrade` that exclude each other."""


def _check_conflicts(found: Namespace) -> None:
    if found.verb == "upgrade":
        for one, other in UPGRADE_CONFLICTS:
            if getattr(found, one) and getattr(found, other):
                names = [f"--{name.replace('_', '-')}" for name in (one, other)]
                build().error(f"argument {names[0]}: not allowed with argument {names[1]}")
    if found.verb == "switch" and found.allow_copy and not found.experimental_unified_storage:
        build().error("argument --allow-copy: needs --experimental-unified-storage")
    if found.verb == "internals.prep-soft-reboot" and found.reset == bool(found.deployment):
        build().error("prep-soft-reboot: give either DEPLOYMENT or --reset")
    if found.verb == "status" and found.booted and found.sysroot is not None:
        build().error("argument --booted: not allowed with --sysroot, where nothing is booted")
    if found.verb.startswith("install.to-"):
        if found.run_fetch_check and found.skip_fetch_check:
            build().error("argument --run-fetch-check: not allowed with --skip-fetch-check")
        if found.target_transport and not found.target_imgref:
            build().error("argument --target-transport: needs --target-imgref")
        if found.allow_copy and not found.experimental_unified_storage:
            build().error("argument --allow-copy: needs --experimental-unified-storage")
        if found.uki_addon and not found.composefs_backend:
            build().error("argument --uki-addon: needs --composefs-backend")


def build(verb: str | None = None) -> argparse.ArgumentParser:
    """The whole parser; with `verb`, maybe only what parses a command line that begins with it."""
    top = argparse.ArgumentParser(
        prog="bootc",
        description="Install, boot and update whole operating systems from container images.",
        allow_abbrev=False,
    )
    top.add_argument("-V", "--version", action="version", version=f"bootc {__version__}")
    verbs = top.add_subparsers(metavar="VERB")
    top.set_defaults(verb=None)
    one = {
        "status": _add_status,
        "upgrade": _add_upgrade,
        "update": _add_upgrade,
        "composefs-finalize-staged": _add_finalize,
        "image": _add_image,
        "install": _add_install,
        "internals": _add_internals,
    }
    if verb in one:
        one[verb](verbs)
        return top
    _add_status(verbs)
    _add_updates(verbs)
    _add_upkeep(verbs)
    _add_image(verbs)
    _add_install(verbs)
    _add_internals(verbs)
    for name in NOT_YET:
        help_text = "not in this release" if name in _VISIBLE_NOT_YET else None
        _add_not_yet(verbs, name, name, help_text)
    return top


def _add_not_yet(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    verb: str,
    help_text: str | None = None,
) -> None:
    if help_text is None:
        one = verbs.add_parser(name, add_help=False)
    else:
        one = verbs.add_parser(name, help=help_text, add_help=False)
    one.set_defaults(verb=verb, not_yet=True)


def _add_status(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    one = verbs.add_parser(
        "status", help="what is booted, staged and kept for rollback", allow_abbrev=False
    )
    one.add_argument("--json", action="store_true", help="the same as --format json")
    one.add_argument("--format", choices=("humanreadable", "yaml", "json"))
    one.add_argument("--format-version", type=int, metavar="N", help="0 or 1, for yaml and json")
    one.add_argument("--booted", action="store_true", help="only what is booted")
    one.add_argument(
        "--sysroot", metavar="PATH", help="of the system whose root file system is mounted there"
    )
    one.add_argument("-v", "--verbose", action="store_true", help="more, for people")
    one.set_defaults(verb="status")


def _add_updates(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verbs that change what is booted next."""
    _add_upgrade(verbs)
    _add_switch(verbs)
    one = verbs.add_parser(
        "rollback", help="boot the previous deployment next; again undoes it", allow_abbrev=False
    )
    _add_applying(one)
    one.set_defaults(verb="rollback")
    one = verbs.add_parser(
        "edit", help="change the image or the boot order in an editor", allow_abbrev=False
    )
    one.add_argument("-f", "--filename", metavar="FILE", help="take the document from there")
    one.add_argument("--quiet", action="store_true", help="no progress")
    one.set_defaults(verb="edit", progress_fd=None)
    one = verbs.add_parser("delete-deployment", allow_abbrev=False)
    one.add_argument("deployment", metavar="ID", help="as `bootc status` has it, or its beginning")
    one.set_defaults(verb="delete-deployment")
    _add_finalize(verbs)


def _add_upgrade(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for name in ("upgrade", "update"):
        one = verbs.add_parser(
            name, help="stage what the image that is followed has become", allow_abbrev=False
        )
        one.add_argument("--check", action="store_true", help="only say whether there is an update")
        _add_applying(one)
        one.add_argument(
            "--download-only", action="store_true", help="stage it, but don't boot it yet"
        )
        one.add_argument(
            "--from-downloaded", action="store_true", help="let the next boot take what is staged"
        )
        one.add_argument("--tag", metavar="TAG", help="of the same image, this tag")
        _add_telling(one)
        one.set_defaults(verb="upgrade")


def _add_switch(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from bootc.oci.reference import Transport

    one = verbs.add_parser("switch", help="follow another image", allow_abbrev=False)
    one.add_argument("target", metavar="TARGET", help="like quay.io/example/os:latest")
    _add_applying(one)
    one.add_argument(
        "--transport",
        default=Transport.REGISTRY.value,
        choices=[item.value for item in Transport],
        metavar="NAME",
        help="where TARGET is: registry (the default), oci, oci-archive, containers-storage, …",
    )
    one.add_argument("--no-signature-verification", action="store_true", help=argparse.SUPPRESS)
    one.add_argument(
        "--enforce-container-sigpolicy",
        action="store_true",
        help="refuse images that containers-policy.json(5) doesn't verify",
    )
    one.add_argument("--mutate-in-place", action="store_true", help=argparse.SUPPRESS)
    one.add_argument("--retain", action="store_true", help="accepted; nothing is dropped anyway")
    _add_unified(one)
    _add_telling(one)
    one.set_defaults(verb="switch")


def _add_finalize(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    one = verbs.add_parser(
        "composefs-finalize-staged",
        help="what the shutdown does with a staged deployment",
        allow_abbrev=False,
    )
    one.set_defaults(verb="composefs-finalize-staged")


def _add_applying(one: argparse.ArgumentParser) -> None:
    one.add_argument("--apply", action="store_true", help="reboot into it at once")
    one.add_argument(
        "--soft-reboot",
        choices=("required", "auto"),
        help="restart userspace only: or fail, or where that can be done",
    )


def _add_telling(one: argparse.ArgumentParser) -> None:
    one.add_argument("--quiet", action="store_true", help="no progress")
    one.add_argument("--progress-fd", type=int, metavar="N", help=argparse.SUPPRESS)


def _add_unified(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--experimental-unified-storage",
        action="store_true",
        help="pull into bootc's container storage, and share the files with the repository",
    )
    _add_allow_copy(one)


def _add_allow_copy(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--allow-copy",
        action="store_true",
        help="unified storage on a file system without reflinks: store each file twice",
    )


def _add_image(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    image = verbs.add_parser("image", help="images in bootc's container storage, and out of it")
    kinds = image.add_subparsers(metavar="KIND", required=True)
    one = kinds.add_parser("list", help="of deployments, and in the storage", allow_abbrev=False)
    one.add_argument("--type", choices=("all", "logical", "host"), default="all")
    one.add_argument("--format", choices=("table", "json"), default="table")
    one.set_defaults(verb="image.list")
    one = kinds.add_parser(
        "copy-to-storage", help="a deployed image, for podman", allow_abbrev=False
    )
    one.add_argument("--source", metavar="REF", help="as in `bootc status` (the booted one)")
    one.add_argument("--target", metavar="NAME", default="localhost/bootc")
    one.set_defaults(verb="image.copy-to-storage")
    one = kinds.add_parser(
        "set-unified", help="bring the booted image into the storage", allow_abbrev=False
    )
    _add_allow_copy(one)
    _add_telling(one)
    one.set_defaults(verb="image.set-unified")
    one = kinds.add_parser(
        "pull-from-default-storage", help="copy an image of podman's", allow_abbrev=False
    )
    one.add_argument("image", metavar="IMAGE")
    one.set_defaults(verb="image.pull-from-default-storage")
    command = kinds.add_parser("cmd", help="`podman image …` in bootc's container storage")
    words = command.add_subparsers(metavar="COMMAND", required=True)
    for *_, name in _PODMANS:
        one = words.add_parser(name, add_help=False)
        one.set_defaults(verb="image.cmd", command=name, words=[])
    one = words.add_parser("pull", allow_abbrev=False)
    one.add_argument("images", nargs="+", metavar="IMAGE")
    one.set_defaults(verb="image.cmd.pull")


def _add_upkeep(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for name in ("usr-overlay", "usroverlay"):
        one = verbs.add_parser(name, help="a /usr to write to until the next reboot")
        one.add_argument("--read-only", action="store_true", help="mounted read-only")
        one.set_defaults(verb="usr-overlay")
    one = verbs.add_parser("config-diff")
    one.set_defaults(verb="config-diff")


def _add_upkeep_internals(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    one = kinds.add_parser("dir-diff", help="the merge of /etc, on three folders")
    for name in ("pristine", "current", "new"):
        one.add_argument(name, metavar=name.upper())
    one.add_argument("--merge", action="store_true", help="carry the changes over to NEW")
    one.set_defaults(verb="internals.dir-diff")
    one = kinds.add_parser("composefs-gc", help="remove what no deployment needs")
    one.add_argument("--dry-run", action="store_true", help="only say what would go")
    one.add_argument("--assert-no-op", action="store_true", help="fail if anything would go")
    one.add_argument("--prune-repo", action="store_true", help="not only kernels on the ESP")
    one.set_defaults(verb="internals.composefs-gc")
    one = kinds.add_parser("prep-soft-reboot", help="assemble the next root at /run/nextroot")
    one.add_argument("deployment", metavar="DEPLOYMENT", nargs="?")
    one.add_argument("--reboot", action="store_true", help="and go over to it")
    one.add_argument("--reset", action="store_true", help="give up what was assembled")
    one.set_defaults(verb="internals.prep-soft-reboot")
    one = kinds.add_parser("print-json-schema", help="of a document that other programs read")
    one.add_argument("--of", choices=("host", "progress"), required=True)
    one.set_defaults(verb="internals.print-json-schema")
    one = kinds.add_parser("fsck", help="check the deployments and the repository")
    one.set_defaults(verb="internals.fsck")


def _add_install(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from bootc.install.options import BlockSetup, Replace, RootFilesystem

    install = verbs.add_parser("install", help="put an image onto a disk or a file system")
    kinds = install.add_subparsers(metavar="KIND", required=True)
    disk = kinds.add_parser(
        "to-disk", help="partition a disk and install onto it", allow_abbrev=False
    )
    disk.add_argument("device", metavar="DEVICE", help="the whole disk, like /dev/vdb")
    disk.add_argument("--wipe", action="store_true", help="destroy what is on the disk")
    disk.add_argument("--block-setup", choices=[item.value for item in BlockSetup])
    disk.add_argument("--filesystem", choices=[item.value for item in RootFilesystem])
    disk.add_argument("--root-size", metavar="N[M|G|T]", help="of the root partition (the rest)")
    disk.add_argument("--esp-size", metavar="N[M|G]", help="of the EFI partition (1024M)")
    disk.add_argument("--via-loopback", action="store_true", help="DEVICE is a file")
    _add_shared(disk)
    disk.set_defaults(verb="install.to-disk")

    target = kinds.add_parser(
        "to-filesystem", help="install into a mounted, empty file system", allow_abbrev=False
    )
    target.add_argument("root_path", metavar="ROOT_PATH", help="where it is mounted")
    target.add_argument("--root-mount-spec", metavar="SPEC", help="the value of root=; empty: none")
    target.add_argument("--boot-mount-spec", metavar="SPEC", help="not yet")
    target.add_argument("--replace", choices=[item.value for item in Replace])
    target.add_argument("--acknowledge-destructive", action="store_true")
    target.add_argument("--skip-finalize", action="store_true", help="leave it mounted writable")
    _add_shared(target)
    target.set_defaults(verb="install.to-filesystem")

    config = kinds.add_parser("print-configuration", help="the merged install configuration")
    config.add_argument("--all", action="store_true", help="with the kernel arguments")
    config.set_defaults(verb="install.print-configuration")
    for name in NOT_YET_INSTALL:
        _add_not_yet(kinds, name, f"install.{name}")


def _add_shared(one: argparse.ArgumentParser) -> None:
    """The options of §source, §target, §config and §composefs that all installs share."""
    from bootc.spec import Bootloader

    one.add_argument("--source-imgref", metavar="REF", help="the image: oci:PATH[:TAG], docker://…")
    one.add_argument("--target-imgref", metavar="IMAGE", help="where updates come from")
    one.add_argument("--target-transport", metavar="NAME", help="of --target-imgref (registry)")
    one.add_argument(
        "--target-no-signature-verification", action="store_true", help=argparse.SUPPRESS
    )
    one.add_argument(
        "--enforce-container-sigpolicy",
        action="store_true",
        help="take only updates that containers-policy.json(5) verifies",
    )
    one.add_argument(
        "--run-fetch-check",
        action="store_true",
        help="look, before anything is changed, whether updates can be read from --target-imgref",
    )
    one.add_argument("--skip-fetch-check", action="store_true", help="don't (the default)")
    _add_unified(one)
    one.add_argument("--disable-selinux", action="store_true", help="not yet")
    one.add_argument("--karg", action="append", default=[], metavar="ARG", help="a kernel argument")
    one.add_argument(
        "--karg-delete", action="append", default=[], metavar="ARG", help="KEY, or KEY=VALUE"
    )
    one.add_argument("--root-ssh-authorized-keys", metavar="FILE", help="keys that let root in")
    one.add_argument("--generic-image", action="store_true", help="for any machine (the default)")
    one.add_argument("--bound-images", choices=("stored", "pull", "skip"))
    one.add_argument("--stateroot", metavar="NAME", help="default, for composefs")
    one.add_argument("--bootupd-skip-boot-uuid", action="store_true", help=argparse.SUPPRESS)
    one.add_argument("--bootloader", choices=[item.value for item in Bootloader])
    one.add_argument(
        "--composefs-backend", action="store_true", help="the only backend of this release"
    )
    one.add_argument(
        "--allow-missing-verity", action="store_true", help="boot although nothing enforces digests"
    )
    one.add_argument("--uki-addon", action="append", default=[], metavar="NAME", help="not yet")
    one.add_argument("--progress-fd", type=int, metavar="N", help=argparse.SUPPRESS)
    one.add_argument("--dry-run", action="store_true", help="print the plan and change nothing")


def _add_internals(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    internals = verbs.add_parser("internals")
    kinds = internals.add_subparsers(metavar="KIND", required=True)
    build_id = kinds.add_parser("build-id", help="a digest of the code that is running")
    build_id.set_defaults(verb="internals.build-id")
    reboot = kinds.add_parser("reboot", help="by systemd, and wait for it")
    reboot.set_defaults(verb="internals.reboot")
    verity = kinds.add_parser("fsverity", help="fs-verity of a file (SHA-256)")
    actions = verity.add_subparsers(metavar="ACTION", required=True)
    for action in ("measure", "enable"):
        one = actions.add_parser(action)
        one.add_argument("path", metavar="PATH")
        one.set_defaults(verb=f"internals.fsverity.{action}")
    _add_upkeep_internals(kinds)
    for name in NOT_YET_INTERNALS:
        _add_not_yet(kinds, name, f"internals.{name}")
