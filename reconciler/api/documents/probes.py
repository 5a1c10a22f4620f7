"""What ``probe`` and ``validate --live`` print: each step that was tried, and what came of it."""

from __future__ import annotations

from typing import Literal

from reconciler.api.documents import shapes


class ProbeStep(shapes.Shape):
    """One thing that was tried."""

    subject: str
    """What it was tried on, such as ``VCenter/main``, ``BackupPolicy/gold`` or ``StorageUnit/fast``."""
    step: str
    """What was tried, such as ``login`` or ``snapshot``."""
    verdict: Literal["Passed", "Warning", "Failed", "Skipped"]
    """Only ``Failed`` makes the whole fail."""
    message: str
    """What was found."""
    hint: str | None
    """The next step, where there is one."""
    seconds: float
    """How long it took."""


class ProbeResult(shapes.Document):
    """``probe`` and ``validate --live``."""

    kind: Literal["ProbeResult"] = "ProbeResult"
    passed: bool
    """Whether no step failed."""
    steps: tuple[ProbeStep, ...]
    """In the order in which they were tried."""
