# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Where the kit keeps its things: everything below `.bootc/` of the checkout, which git ignores.

| folder | what | who removes it |
|---|---|---|
| `.bootc/cache` | disks, exported trees, saved memory, verdicts of probes | `invoke clean` |
| `.bootc/machines` | disks and consoles of machines that exist | `invoke bcvk-clean` |
| `.bootc/results` | what the last runs of `nox -s tmt` wrote | `invoke clean` |
"""

from __future__ import annotations

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
STATE = CHECKOUT / ".bootc"
CACHE = STATE / "cache"
MACHINES = STATE / "machines"


def results_folder() -> Path:
    """Where results go: `TMT_LOG_DIR`, or a folder of the checkout."""
    named = os.environ.get("TMT_LOG_DIR")
    return Path(named) if named else STATE / "results"
