"""Conditions of a series, in Kubernetes form: is the configuration in force, is the newest image recent, does it fail.

Called by ``get clients`` and ``describe``. ``Protected`` goes by the age of the last success, not by the last failure:
a failure alone shows as ``Failing``. ``Recoverable`` is unknown until images are verified.
"""

from __future__ import annotations

import dataclasses
import datetime as dt

from reconciler.base import times
from reconciler.planning import backups, configuration, desired, histories, nevers, observed, schedules


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
        Condition(
            type="Recoverable", status="Unknown", reason="NotVerified",
            message="no image of the series has been verified", since=None,
        ),
        _failing(effective, seen, history, now),
    )  # fmt: skip


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
    objective = nevers.Rules(effective, seen, now).objective(history.series.policy)
    newest = next(history.newest(), None)
    if newest is None:
        if problem := _problem(seen, history.series):
            return Condition(type="Protected", status="False", reason=problem[0], message=problem[1], since=None)
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
    return Condition(
        type="Protected", status="True", reason="Recent", message=f"newest image {when}", since=newest.time
    )


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
