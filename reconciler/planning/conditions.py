"""Conditions of a series, in Kubernetes form: is the configuration in force, is the newest image recent, does it fail.

Called by ``get clients`` and ``describe``. ``Protected`` goes by the age of the last success, not by the last failure:
a failure alone shows as ``Failing``. ``Recoverable`` goes by what verifications found, and how long ago.
"""

from __future__ import annotations

import dataclasses
import datetime as dt

from reconciler.base import times
from reconciler.planning import (
    backups,
    configuration,
    desired,
    histories,
    nevers,
    observed,
    schedules,
    servicelevels,
    verifications,
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """One statement about a series."""

    #: Synced, Protected, Recoverable or Failing.
    type: str
    #: True, False or Unknown.
    status: str
    #: One CamelCase word.
    reason: str
    message: str
    #: Since when it has been so, None where nobody knows.
    since: dt.datetime | None


def conditions(
    wanted: desired.Desired, seen: observed.Observed, series: observed.Series, now: dt.datetime
) -> tuple[Condition, ...]:
    """The conditions of one series; for a machine without images yet, pass a series without any."""
    effective = configuration.effective(wanted, seen.applied)
    history = histories.History(series, now)
    return (
        _synced(effective, seen, series),
        _protected(effective, seen, history, now),
        _recoverable(effective, seen, history, now),
        _failing(effective, seen, history, now),
    )


def _synced(effective: desired.Desired, seen: observed.Observed, series: observed.Series) -> Condition:
    applied = seen.applied.get(("BackupPolicy", series.policy))
    since = applied.since if applied is not None else None
    if series.policy not in effective.policies or effective.is_orphaned("BackupPolicy", series.policy):
        reason, message = "Orphaned", f"no manifest describes policy {series.policy}; nothing new is backed up"
        return Condition(type="Synced", status="False", reason=reason, message=message, since=since)
    if applied is None or applied.object != effective.policies[series.policy]:
        message = f"policy {series.policy} is not in force as its manifest says"
        return Condition(type="Synced", status="False", reason="NotApplied", message=message, since=None)
    message = f"policy {series.policy} is in force"
    return Condition(type="Synced", status="True", reason="InForce", message=message, since=since)


def _protected(
    effective: desired.Desired, seen: observed.Observed, history: histories.History, now: dt.datetime
) -> Condition:
    rules = nevers.Rules(effective, seen, now)
    objective = rules.objective(history.series.policy)
    # One that failed a verification is not the last good one.
    newest = next(rules.proven(history), None)
    if newest is None:
        if problem := _problem(seen, history.series):
            return Condition(type="Protected", status="False", reason=problem[0], message=problem[1], since=None)
        failed = next(history.newest(), None)
        if failed is not None:
            when = times.show_minutes(failed.time)
            words = f"every image that can be read failed its verification; the newest is of {when}"
            return Condition(type="Protected", status="False", reason="VerificationFailed", message=words, since=None)
        words = "the series has no complete image that can be read"
        return Condition(type="Protected", status="False", reason="NoImage", message=words, since=None)
    when = times.show_minutes(newest.time)
    if not objective:
        words = f"newest image {when}; no schedule says how old it may be"
        return Condition(type="Protected", status="Unknown", reason="NoObjective", message=words, since=None)
    if now - newest.time > objective:
        words = f"newest image {when}, older than the objective"
        return Condition(
            type="Protected", status="False", reason="Overdue", message=words, since=newest.time + objective
        )
    for level, missed in servicelevels.shortfalls(effective, rules.units, history, now):
        words = f"{missed.message}, as ServiceLevel/{level} asks"
        return Condition(type="Protected", status="False", reason=missed.code, message=words, since=None)
    return Condition(
        type="Protected", status="True", reason="Recent", message=f"newest image {when}", since=newest.time
    )


def _recoverable(
    effective: desired.Desired, seen: observed.Observed, history: histories.History, now: dt.datetime
) -> Condition:
    """Whether what is asked to be proven was proven, and lately; without such a wish, what was found last."""

    def said(status: str, reason: str, message: str, since: dt.datetime | None) -> Condition:
        return Condition(type="Recoverable", status=status, reason=reason, message=message, since=since)

    asked = verifications.asked(effective, history.series.policy)
    found = [(one, verifications.judged(history, seen, one)) for one in asked]
    known = [result for _, result in found if result is not None]
    if not asked:
        # What nobody asks for is not tried again: it is told of images that are there.
        lasts = (verifications.last(history, seen, kind, None, remembered=False) for kind in verifications.KINDS)
        known = [one for one in lasts if one is not None]
    wanting = verifications.wanting(history, seen.verifications)
    for result in (*known, *wanting):
        if result.state == "Failed":
            words = f"{result.kind} of {result.image} failed: {result.message}"
            words += "; it has expired since" if verifications.gone(history, result) else ""
            return said("False", "VerificationFailed", words, result.at)
    if known and next(history.newest(), None) is None:
        last = max(known, key=lambda result: result.at)
        words = f"no image of the series can be read; the last was verified {_when(history, last)}"
        return said("Unknown", "NotVerified", words, None)
    for one, maybe in found:
        proofs = verifications.contents(history, seen.verifications, one) if one.kind == verifications.CONTENT else ()
        # Of contents the one that was proven the longest time ago counts: each copy is asked for.
        at = min((proven for _, _, proven in proofs), default=maybe.at if maybe is not None else None)
        due = verifications.due(one, at) if at is not None else None
        if at is not None and due is not None and now - due > one.slack:
            last_time = _when(history, maybe) if maybe is not None and maybe.at == at else times.show_minutes(at)
            words = f"{one.kind} was last verified {last_time}; {one.by} asks for every {one.period}"
            return said("False", "VerificationOverdue", words, due)
        # What has just been written counts as proven, where something else says that it is good.
        if maybe is None and (at is None or not known):
            return said("Unknown", "NotVerified", f"{one.kind} is asked by {one.by}, and was never verified", None)
    if not known:
        return said("Unknown", "NotVerified", "no image of the series has been verified", None)
    last = max(known, key=lambda result: result.at)
    kinds = ", ".join(sorted({result.kind for result in known}))
    return said("True", "Verified", f"{kinds} verified, the last {_when(history, last)}", last.at)


def _when(history: histories.History, result: observed.Verification) -> str:
    """When something was proven, and of which image."""
    gone = ", which has expired since" if verifications.gone(history, result) else ""
    return f"{times.show_minutes(result.at)} of {result.image}{gone}"


def _problem(seen: observed.Observed, series: observed.Series) -> tuple[str, str] | None:
    """What keeps the machine of a series from being backed up at all, as code and message."""
    inventory = seen.inventories.get(series.policy)
    machines = inventory.machines if inventory is not None else ()
    return next((one.problem for one in machines if one.id == series.client), None)


def _failing(
    effective: desired.Desired, seen: observed.Observed, history: histories.History, now: dt.datetime
) -> Condition:
    policy = effective.policies.get(history.series.policy)
    client = seen.clients.get(history.series.client)
    if policy is not None and client is not None and not effective.is_orphaned("BackupPolicy", policy.name):
        desk = backups.Desk(policy, effective, seen, nevers.Rules(effective, seen, now).units, now)
        found = desk.failing(client.slug, schedules.record(history, client.first_seen), history)
        if found is not None:
            return Condition(
                type="Failing", status="True", reason=found.reason, message=found.message, since=found.since
            )
    return Condition(type="Failing", status="False", reason="NoFailure", message="no slot was given up", since=None)
