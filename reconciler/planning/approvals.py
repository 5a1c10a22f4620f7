"""Who has consented to what: the Approvals of the manifests and those given by command, as one list.

``planner`` asks which of them are in force, ``destructions`` which covers a destructive part; ``consenting`` marks a
desired state with the digests whose guarded change may go ahead. An approval that matches nothing is told as drift,
never an error: the world may have moved on, or the work may be done.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from reconciler.base import times
from reconciler.planning import actions, desired, observed


class Consent(NamedTuple):
    """One approval."""

    digest: str
    #: How many copies may go at most.
    copies: int
    by: str
    until: dt.datetime
    reason: str
    #: Name of its manifest; None for one given by command.
    manifest: str | None

    @property
    def label(self) -> str:
        """What drift calls it."""
        return f"Approval/{self.manifest or self.digest}"


def consents(wanted: desired.Desired, given: Iterable[observed.Approval]) -> tuple[Consent, ...]:
    """Every approval, expired ones included: manifests that are not orphaned, then those by command."""
    written = [
        Consent(one.spec.destruction, one.spec.copies, one.spec.by, one.spec.until, one.spec.reason, name)
        for name, one in sorted(wanted.approvals.items())
        if not wanted.is_orphaned("Approval", name)
    ]
    return (*written, *(Consent(one.digest, one.copies, one.by, one.until, one.reason, None) for one in given))


def consenting(wanted: desired.Desired, given: Iterable[observed.Approval], now: dt.datetime) -> desired.Desired:
    """The desired state with the digests that somebody consents to now, for ``configuration.guard``."""
    live = frozenset(one.digest for one in consents(wanted, given) if one.until > now)
    return wanted if live == wanted.consents else dataclasses.replace(wanted, consents=live)


def drift(
    known: Iterable[Consent],
    waiting: Mapping[str, int],
    used: Collection[str],
    releases: Iterable[observed.Release],
    now: dt.datetime,
) -> Iterator[actions.Drift]:
    """Approvals that do nothing, and why. ``waiting``: digests that wait for one, with their copies; ``used``: digests
    that this plan makes use of."""
    done = {one.digest for one in releases}
    for one in known:
        if one.digest in used:
            continue
        if one.until <= now:
            # One by command that has run out is history, unless what it was meant for still waits.
            if one.digest in waiting or (one.manifest is not None and one.digest not in done):
                message = f"it ended at {times.show_minutes(one.until)}; approve anew what still waits"
                yield actions.Drift(code="ApprovalExpired", object=one.label, message=message)
        elif one.digest in waiting:
            message = f"{waiting[one.digest]} copies would go, and it lets {one.copies} go at most; nothing goes"
            yield actions.Drift(code="ApprovalTooSmall", object=one.label, message=message)
        elif one.digest not in done:
            message = "nothing that waits has this digest: what it approved is done, or is no longer what it was"
            yield actions.Drift(code="ApprovalUnused", object=one.label, message=message)
        elif one.manifest is not None:
            yield actions.Drift(
                code="ApprovalUsed", object=one.label, message="it has been made use of; its manifest may be removed"
            )
