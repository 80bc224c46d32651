# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Things that last on a machine, one call each. `./dev invoke --list` tells all.

The options are variables of the environment: see docs/variables.md and `invoke variants`.
"""

from invoke.context import Context
from invoke.tasks import task

from vmtests import commands


@task
def build(_c: Context, json: bool = False) -> None:
    """Build the image localhost/bootc (only if an input changed)."""
    commands.build(as_json=json)


@task
def why_rebuild(_c: Context) -> None:
    """Say which inputs changed since the image was built."""
    commands.why_rebuild()


@task
def variants(_c: Context, json: bool = False) -> None:
    """List the legal combinations of options and the one in force."""
    commands.variants(as_json=json)


@task
def explain(_c: Context) -> None:
    """Say what the options in force mean, or why they are refused."""
    commands.explain()


@task
def doctor(_c: Context, json: bool = False) -> None:
    """Say what is missing on this machine, what will be slow, and the command that mends it."""
    commands.doctor(as_json=json)


@task
def bcvk_up(_c: Context, replace: bool = False) -> None:
    """Build, install, boot the development machine, and open a shell in it."""
    commands.up(replace=replace)


@task
def bcvk_ssh(c: Context) -> None:
    """A shell in the development machine, or a command: invoke bcvk-ssh -- COMMAND."""
    commands.ssh(c.remainder)


@task
def bcvk_status(_c: Context, json: bool = False) -> None:
    """Say whether the development machine runs, on what and where."""
    commands.status(as_json=json)


@task
def bcvk_logs(_c: Context, journal: bool = False) -> None:
    """Print the development machine's console, or its journal."""
    commands.logs(journal=journal)


@task
def bcvk_sync(_c: Context, watch: bool = False) -> None:
    """Put the edited bootc/ into the development machine, and prove that it runs there."""
    commands.sync(watch=watch)


@task
def bcvk_restart(_c: Context) -> None:
    """Reboot the development machine."""
    commands.restart()


@task
def bcvk_down(_c: Context) -> None:
    """Shut the development machine down; its disk stays."""
    commands.down()


@task
def bcvk_clean(_c: Context) -> None:
    """End all machines of this checkout and remove their disks."""
    commands.clean()


@task
def bcvk_ephemeral(c: Context) -> None:
    """A machine that runs the image's tree without an install, gone with its shell."""
    commands.ephemeral(c.remainder)


@task
def package_srpm(_c: Context, outdir: str = "dist", allow_dirty: bool = False) -> None:
    """Make the source RPM."""
    commands.package_srpm(outdir, allow_dirty=allow_dirty)


@task
def vendor(_c: Context, outdir: str = "dist") -> None:
    """Make the archive of pinned wheels for building offline."""
    commands.vendor(outdir)


@task
def clean(_c: Context) -> None:
    """Remove everything that the kit made in this checkout, machines and caches included."""
    commands.clean(caches=True)
