# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Property tests have no time limit an example: a slow machine finds no defects that way."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "untimed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")
