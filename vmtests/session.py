# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What one run of the kit shares: its options, how it runs machines, one hypervisor.

The hypervisor is opened when a machine is first needed, not before: a run that finds everything in
its cache starts in a fraction of a second.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vmtests import accel, hypervisor, paths, ssh
from vmtests.axes import Accel as WantedAccel
from vmtests.domain import Accel
from vmtests.hypervisor import Hypervisor
from vmtests.options import BcvkInstallOpts
from vmtests.ssh import KeyPair

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Session:
    """One run. `name` is the hypervisor root's: two runs of one name exclude each other."""

    opts: BcvkInstallOpts
    name: str
    _stack: ExitStack
    _hypervisor: Hypervisor | None = field(default=None)
    _accel: Accel | None = field(default=None)

    @property
    def root(self) -> Path:
        return hypervisor.runtime_root(paths.CHECKOUT, self.name)

    @property
    def key(self) -> KeyPair:
        return ssh.load_or_make_key(paths.STATE)

    def hypervisor(self) -> Hypervisor:
        """The one connection of this run."""
        if self._hypervisor is None:
            uri = self.opts.libvirt_uri or None
            self._hypervisor = self._stack.enter_context(hypervisor.open_hypervisor(uri, self.root))
        return self._hypervisor

    def accel(self) -> Accel:
        """How machines are run here: as asked for, or what a probe guest's boot tells."""
        if self._accel is None:
            match self.opts.accel:
                case WantedAccel.KVM:
                    self._accel = Accel.KVM
                case WantedAccel.TCG:
                    self._accel = Accel.TCG
                case WantedAccel.AUTO:
                    verdict = accel.choose_accel(paths.CACHE)
                    _log.info("machines run by %s: %s", verdict.accel, verdict.reason)
                    self._accel = verdict.accel
        return self._accel


@contextmanager
def open_session(opts: BcvkInstallOpts, name: str | None = None) -> Iterator[Session]:
    """A run of the kit. Without a `name` it has a hypervisor root of its own, gone afterwards."""
    with ExitStack() as stack:
        if name is None:
            name = f"run-{os.getpid()}"
            own = hypervisor.runtime_root(paths.CHECKOUT, name)
            stack.callback(shutil.rmtree, own, ignore_errors=True)
        hypervisor.sweep_checkout(paths.CHECKOUT)
        yield Session(opts, name, stack)
