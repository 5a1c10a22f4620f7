"""Hypothesis runs the same examples every time, so that a red build is red for everybody."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile(
    "planning",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.load_profile("planning")
