# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Where the kit keeps its things: everything below `.bootc/` of the checkout, which git ignores.

| folder | what | who removes it |
|---|---|---|
| `.bootc/cache` | disks, exported trees, saved memory, verdicts of probes | `invoke clean` |
| `.bootc/machines` | disks and consoles of machines that exist | `invoke bcvk-clean` |
| `.bootc/results` | what the last runs of `nox -s tmt` wrote | `invoke clean` |
"""

from __future__ import annotations

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
STATE = CHECKOUT / ".bootc"
CACHE = STATE / "cache"
MACHINES = STATE / "machines"
