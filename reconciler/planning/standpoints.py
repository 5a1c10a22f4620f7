"""One revision seen as if it were in force: the ground on which two of them are compared over one catalog.

``comparisons`` makes two. A revision that is not in force has promised nothing, and what is in force must not count as
a promise against it, so each standpoint gets the applied objects that it would have. Promises that the catalog recorded
stand: they hold whatever comes.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping

from reconciler.api import models
from reconciler.base import diagnostics
from reconciler.planning import backups, configuration, desired, expiry, observed, planner


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Revision:
    """What is compared: manifests and what was found with them."""

    #: What the manifests say.
    manifests: desired.Desired
    #: What decisions would be made from: the manifests and what else the catalog would still hold.
    effective: desired.Desired
    #: By policy: what each source matches.
    inventories: Mapping[str, observed.Inventory]
    #: Of reading the manifests.
    problems: tuple[diagnostics.Diagnostic, ...] = ()


def of_catalog(applied: configuration.Applied, in_force: str | None) -> desired.Desired:
    """What is in force, without what is orphaned."""
    return desired.gather(in_force or "none", [item.object for item in applied.values() if not item.orphaned])


def in_place(manifests: desired.Desired, applied: configuration.Applied) -> desired.Desired:
    """The state in which these manifests would be in force: nothing guards against them; what else the catalog holds
    is orphaned, but for what is the same under a later name."""
    keys = {item.key for item in manifests.objects() if item.key not in manifests.orphaned}
    left = [item.object for key, item in applied.items() if key not in keys and not _later_name(item.object, keys)]
    objects = [item for item in manifests.objects() if item.key in keys]
    return desired.gather(manifests.revision, objects, orphaned=left)


def follows(manifests: desired.Desired, before: desired.Desired, now: dt.datetime) -> desired.Desired:
    """The state to which these manifests would lead from ``before``; the guard against omission is on."""
    return configuration.effective(manifests, as_applied(before, {}, now))


def _later_name(item: models.Object, keys: set[desired.Key]) -> bool:
    return any((item.kind, name) in keys for name in configuration.previous_names(item))


def as_applied(
    state: desired.Desired, applied: configuration.Applied, now: dt.datetime
) -> dict[desired.Key, observed.Applied]:
    """The catalog's objects as they would be with ``state`` in force."""
    return {
        item.key: observed.Applied(
            object=item,
            since=applied[item.key].since if item.key in applied else now,
            orphaned=item.key in state.orphaned,
        )
        for item in state.objects()
    }


class Standpoint:
    """The decisions of one revision."""

    def __init__(self, revision: Revision, seen: observed.Observed, now: dt.datetime) -> None:
        self.wanted = revision.effective
        self.seen = dataclasses.replace(
            seen, applied=as_applied(self.wanted, seen.applied, now), inventories=revision.inventories
        )
        self.judge = expiry.Judge(self.wanted, self.seen, now)
        self.renames = _both_ways(self.wanted, seen.applied)
        self.desks = {
            name: backups.Desk(policy, self.wanted, self.seen, self.judge.units, now)
            for name, policy in self.wanted.policies.items()
            if not self.wanted.is_orphaned("BackupPolicy", name)
        }
        #: Client id -> policies that back it up.
        self.protected: dict[str, list[str]] = {}
        #: Client id -> the machine's name.
        self.names: dict[str, str] = {}
        for name in sorted(self.desks):
            for machine in revision.inventories[name].machines if name in revision.inventories else ():
                if machine.problem is None and self.desks[name].usable:
                    self.protected.setdefault(machine.id, []).append(name)
                    self.names[machine.id] = machine.name

    def objective(self, client: str) -> dt.timedelta | None:
        """How old the newest image of a client may become; None where nothing says."""
        found = [self.judge.objective(policy) for policy in self.protected.get(client, ())]
        return min((one for one in found if one), default=None)


def problems(
    revision: Revision, before: desired.Desired | None, seen: observed.Observed, now: dt.datetime
) -> list[diagnostics.Diagnostic]:
    """What a plan would complain of, with ``before`` in force (None: the revision itself)."""
    applied = as_applied(before if before is not None else revision.effective, seen.applied, now)
    # Nothing but the words of a hold is judged by the series; without one they need not be read.
    series = seen.series if revision.manifests.legal_holds else ()
    bare = dataclasses.replace(seen, applied=applied, inventories=revision.inventories, series=series)
    return [*revision.problems, *planner.plan(revision.manifests, bare, now).problems]


def _both_ways(state: desired.Desired, applied: configuration.Applied) -> configuration.Renames:
    """The revision's own renames, and those that it does not know yet, backwards."""
    ahead = configuration.renames(state)
    policies, units = dict(ahead.policies), dict(ahead.units)
    for (kind, name), item in applied.items():
        for old in configuration.previous_names(item.object):
            if kind == "BackupPolicy" and name not in state.policies and old in state.policies:
                policies[name] = old
            if kind == "StorageUnit" and name not in state.units and old in state.units:
                units[name] = old
    return configuration.Renames(policies=policies, units=units)
