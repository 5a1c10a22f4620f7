"""The record that a restore leaves: begun before the first byte, ended after the last one is proven.

The command and the loop restore inside a ``Record``. Who, what, from where, where to and why stand in the catalog and
in the audit log, of restores that failed too. A command goes on without a catalog that refuses: a restore needs it
least when it is needed most.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from types import TracebackType
from typing import Final

from reconciler.base import clocks
from reconciler.catalog import database, restores
from reconciler.controller import choices
from reconciler.jobs import engines
from reconciler.operations import failovers, findings, restoreworks

#: Files without some of their bytes that the audit log names.
_NAMED: Final = 20


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What was asked for, and by whom."""

    #: Of the manifest; None for a command.
    name: str | None
    #: Of what was asked.
    digest: str
    #: Where to, before anything is decided.
    target: str
    #: ``machine``, ``staged``, or the format of disks.
    format: str
    by: str
    reason: str


class Record:
    """A context manager around one restore: ``done`` says that it succeeded, an exception that it did not."""

    def __init__(
        self,
        db: database.Database,
        clock: clocks.Clock,
        choice: choices.Choice,
        said: Said,
        context: engines.JobContext,
        guard: Callable[[str], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        """``guard``: what to do about a catalog that refuses; it is told what was to be recorded."""
        #: What was found on the way, a sentence each.
        self.notes: list[str] = []
        for note in choice.notes:
            context.log(note)
        #: To be told of copies that cannot be read.
        self.failed = findings.recorder(db, clock, said.by, context.log, self.notes)
        self._db, self._clock, self._choice, self._guard = db, clock, choice, guard
        self._said, self._job = said, context.id
        self._number: int | None = None
        self._outcome: restoreworks.Outcome | None = None
        self._source: failovers.Source | None = None

    def done(self, outcome: restoreworks.Outcome, source: failovers.Source) -> None:
        """It is proven, but for what is missing of it; ``source`` is the copy that was read last."""
        self._outcome, self._source = outcome, source

    def __enter__(self) -> Record:
        said, choice = self._said, self._choice
        begun = restores.Begun(
            name=said.name,
            digest=said.digest,
            client_id=choice.client.id,
            image=choice.image,
            copy=choice.copy,
            unit=choice.unit,
            target=said.target,
            format=said.format,
            by=said.by,
            reason=said.reason,
            job=self._job,
            at=self._clock.now(),
        )
        with self._guard("that the restore begins"):
            self._number = restores.begin(self._db, begun)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        details: dict[str, object] = {
            "notes": [*self._choice.notes, *self.notes, *(self._outcome.notes if self._outcome else ())]
        }
        if self._outcome is not None:
            details["target"] = self._outcome.target
        if self._outcome is not None and self._outcome.via is not None:
            details |= {"via": self._outcome.via, "identity": self._outcome.identity}
        state, message = "Verified", ""
        if error is not None:
            state, message = "Failed", str(error) or type(error).__name__
            details["code"] = getattr(error, "code", type(error).__name__)
        elif self._outcome is not None and self._outcome.lacking is not None:
            state, message = "Partial", self._outcome.lacking.message
            details["missingBytes"] = self._outcome.missing
            details["missingFiles"] = [one.path for one in self._outcome.missing_files[:_NAMED]]
        source = self._source
        with self._guard("how the restore ended"):
            if self._number is not None:
                restores.end(
                    self._db,
                    self._number,
                    state=state,
                    now=self._clock.now(),
                    message=message,
                    copy=None if source is None else source.number,
                    unit=None if source is None else source.unit,
                    disks=[disk.to_json() for disk in self._outcome.disks] if self._outcome else (),
                    details=details,
                )
