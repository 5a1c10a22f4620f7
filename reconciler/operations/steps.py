"""Steps of a trial: each has a verdict, says what was found and what to do next, and none keeps the others from it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Literal

from reconciler.base import errors

Verdict = Literal["Passed", "Warning", "Failed", "Skipped"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What came of one step."""

    verdict: Verdict
    message: str
    #: The next step for whoever reads it.
    hint: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step that was taken, or not."""

    #: Such as ``VCenter/main``.
    subject: str
    #: Such as ``login``.
    step: str
    said: Said
    seconds: float


def passed(message: str) -> Said:
    """As it should be."""
    return Said(verdict="Passed", message=message)


def warned(message: str, hint: str | None = None) -> Said:
    """Worth knowing; backups run all the same."""
    return Said(verdict="Warning", message=message, hint=hint)


def failed(message: str, hint: str | None = None) -> Said:
    """A backup would fail, or would not be what was meant."""
    return Said(verdict="Failed", message=message, hint=hint)


def skipped(message: str, hint: str | None = None) -> Said:
    """Not tried, and why."""
    return Said(verdict="Skipped", message=message, hint=hint)


class Steps:
    """The steps so far."""

    def __init__(self, hear: Callable[[Step], None] = lambda _step: None) -> None:
        """``hear`` is told of each as soon as it was taken."""
        self.taken: list[Step] = []
        self._hear = hear

    def take(self, subject: str, step: str, work: Callable[[], Said]) -> bool:
        """Take one; whether the next ones make sense. What it raises is its failure; only ``Cancelled`` ends it all."""
        began = time.monotonic()
        try:
            said = work()
        except errors.Cancelled:
            raise
        except errors.HoldfastError as error:
            said = failed(error.message, error.hint)
        self._keep(Step(subject=subject, step=step, said=said, seconds=round(time.monotonic() - began, 3)))
        return said.verdict != "Failed"

    def note(self, subject: str, step: str, said: Said) -> None:
        """Keep one that took no time."""
        self._keep(Step(subject=subject, step=step, said=said, seconds=0.0))

    def _keep(self, step: Step) -> None:
        self.taken.append(step)
        self._hear(step)

    @property
    def whole(self) -> bool:
        """Whether none failed."""
        return all(step.said.verdict != "Failed" for step in self.taken)
