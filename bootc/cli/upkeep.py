# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The verbs that look after a machine and at its /etc. As in `commands`, imports wait."""

from __future__ import annotations

import sys

from bootc.cli import lifecycle, render
from bootc.cli.parser import Namespace
from bootc.errors import BootcError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bootc.deploy.cleanup import CleanupResult


def config_diff(arguments: Namespace) -> None:
    """What was changed in /etc; and, when something is staged, what would conflict with it."""
    from bootc.deploy.etc_changes import read_etc_changes
    from bootc.deploy.sysroot import open_booted

    with open_booted(writable=False) as sysroot:
        plan = read_etc_changes(sysroot)
    render.say_exactly(render.etc_changes(plan, color=sys.stdout.isatty()))


def dir_diff(arguments: Namespace) -> None:
    """The merge of /etc on any three folders."""
    from bootc.deploy.etc_merge import apply_merge, plan_merge
    from bootc.deploy.etc_tree import read_live

    pristine, current, new = arguments.pristine, arguments.current, arguments.new
    plan = plan_merge(read_live(pristine), read_live(current), read_live(new))
    render.say_exactly(render.etc_changes(plan, color=sys.stdout.isatty()))
    if arguments.merge:
        apply_merge(plan, current, new)


def composefs_gc(arguments: Namespace) -> None:
    from bootc.deploy.cleanup import clean_up
    from bootc.deploy.sysroot import open_booted

    only_look = arguments.dry_run or arguments.assert_no_op
    with open_booted(writable=False) if only_look else lifecycle.opened() as sysroot:
        result = clean_up(
            sysroot,
            prune=arguments.prune_repo,
            dry_run=arguments.dry_run,
            assert_no_op=arguments.assert_no_op,
        )
    _say_cleanup(result)


def _say_cleanup(result: CleanupResult) -> None:
    for line in result.plan.describe():
        render.say(line)
    gone = result.collected
    if gone is not None:
        render.say(f"Objects: {gone.objects_removed} removed ({gone.objects_bytes} bytes)")
        render.say(f"Pruned symlinks: {gone.images_pruned} images, {gone.streams_pruned} streams")


def usr_overlay(arguments: Namespace) -> None:
    from bootc.deploy.sysroot import open_booted
    from bootc.deploy.usr_overlay import mount_usr_overlay

    with open_booted(writable=False) as sysroot:
        done = mount_usr_overlay(sysroot, read_only=arguments.read_only)
    if not done:
        render.say("/usr has an overlay already; nothing was done.")
    elif arguments.read_only:
        render.say("/usr has an overlay now; it is mounted read-only and gone after a reboot.")
    else:
        render.say("/usr can be written to now; what is written is gone after a reboot.")


def prep_soft_reboot(arguments: Namespace) -> None:
    from bootc.deploy import machine, soft_reboot
    from bootc.deploy.sysroot import open_booted

    with open_booted(writable=False) as sysroot:
        if arguments.reset:
            if soft_reboot.reset_live():
                render.say("The next root was given up.")
            else:
                render.say("No next root was prepared.")
            return
        soft_reboot.check_systemd()
        render.say(soft_reboot.prepare(sysroot, arguments.deployment))
    if arguments.reboot:
        machine.reboot("Soft reboot by bootc", soft=True)


def print_json_schema(arguments: Namespace) -> None:
    from importlib.resources import files

    name = {"host": "host-v1", "progress": "progress-v0"}[arguments.of]
    text = files("bootc").joinpath("data", "schema", f"{name}.schema.json").read_text()
    render.say_exactly(text)


def fsck(arguments: Namespace) -> None:
    from bootc.deploy.check import check_system
    from bootc.deploy.sysroot import open_booted

    with open_booted(writable=False) as sysroot:
        checks = check_system(sysroot)
    for check in checks:
        if check.ok:
            render.say(f"ok: {check.name}")
        for problem in check.problems:
            render.say(f"fsck error: {check.name}: {problem}")
    if not all(check.ok for check in checks):
        raise BootcError(
            "the system is not whole",
            hint="`bootc upgrade` or `bootc switch` pulls what is missing in the repository",
        )
