"""What objects say together that cannot be meant: lifecycles with policies, units with one another (HF4xx).

``estates`` calls ``check`` once, after ``references``. A check that needs an object which is not there says nothing:
the missing name has been reported. Paths are the absolute ones.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from reconciler.api import lifecycles, policies, restores, servicelevels, storage
from reconciler.intake import codes, documents, findings, promises
from reconciler.planning import calendars
from reconciler.planning import servicelevels as levels


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Estate:
    """The objects by kind and name; the first of each name, where there are several."""

    units: Mapping[str, findings.Located]
    groups: Mapping[str, findings.Located]
    servers: Mapping[str, findings.Located]
    lifecycles: Mapping[str, findings.Located]
    policies: Mapping[str, findings.Located]
    levels: Mapping[str, findings.Located]

    @classmethod
    def of(cls, objects: Iterable[findings.Located]) -> Estate:
        """Sort objects by kind."""
        kinds: dict[str, dict[str, findings.Located]] = {}
        for item in objects:
            kinds.setdefault(item.object.kind, {}).setdefault(item.object.name, item)
        return cls(
            units=kinds.get("StorageUnit", {}),
            groups=kinds.get("StorageUnitGroup", {}),
            servers=kinds.get("MediaServer", {}),
            lifecycles=kinds.get("StorageLifecyclePolicy", {}),
            policies=kinds.get("BackupPolicy", {}),
            levels=kinds.get("ServiceLevel", {}),
        )

    def members(self, name: str) -> tuple[storage.StorageUnit, ...]:
        """The units that a lifecycle means by a storage name; none for a name that nothing has."""
        group = self.groups.get(name)
        if group is not None and isinstance(group.object, storage.StorageUnitGroup):
            names = group.object.spec.members
        else:
            names = (name,)
        found = (self.units[member].object for member in names if member in self.units)
        return tuple(unit for unit in found if isinstance(unit, storage.StorageUnit))


def check(objects: Sequence[findings.Located], found: findings.Findings) -> None:
    """Every contradiction between objects, into ``found``."""
    estate = Estate.of(objects)
    _paths(estate, found)
    _targets(objects, estate, found)
    _shared_targets(objects, found)
    _reach(estate, found)
    for item in estate.lifecycles.values():
        if isinstance(item.object, lifecycles.StorageLifecyclePolicy):
            _domains(item, item.object.spec.operations, estate, found)
    for item in estate.levels.values():
        if isinstance(item.object, servicelevels.ServiceLevel):
            _level(item, item.object, estate, found)
    for item in estate.policies.values():
        if not isinstance(item.object, policies.BackupPolicy):
            continue
        lifecycle = estate.lifecycles.get(item.object.spec.lifecycle)
        if lifecycle is not None and isinstance(lifecycle.object, lifecycles.StorageLifecyclePolicy):
            _Pair(item, item.object, lifecycle, lifecycle.object.spec.operations, estate, found).check()


def _level(item: findings.Located, level: servicelevels.ServiceLevel, estate: Estate, found: findings.Findings) -> None:
    """A promise is about some policy, and one that its policies can keep."""
    chosen = [one.object for one in estate.policies.values() if isinstance(one.object, policies.BackupPolicy)]
    chosen = [policy for policy in chosen if levels.meant(level, policy)]
    if not chosen:
        message = "no BackupPolicy has these labels: the promise is about nothing"
        where = ("spec", "selector", "matchLabels")
        found.warn(codes.SERVICE_LEVEL, item, where, message, "correct the labels here or there", key=True)
    for policy in chosen:
        lifecycle = estate.lifecycles.get(policy.spec.lifecycle)
        if lifecycle is not None and isinstance(lifecycle.object, lifecycles.StorageLifecyclePolicy):
            operations = [(one, estate.members(one.storage)) for one in lifecycle.object.spec.operations]
            promises.keeps(item, level, policy, operations, found)


def _paths(estate: Estate, found: findings.Findings) -> None:
    """Units and holding areas own their folders: none may be another's, or lie in it."""
    placed = sorted(_owned(estate), key=lambda one: (one.parts, one.what != "unit", one.item.object.name))
    # In this order everything under a folder follows it at once.
    outer: list[_Owned] = []
    for one in placed:
        while outer and one.parts[: len(outer[-1].parts)] != outer[-1].parts:
            outer.pop()
        if outer:
            other = outer[-1]
            relation = "has the same folder as" if one.parts == other.parts else "lies inside the folder of"
            of = "" if other.what == "unit" else f"the {other.what} of "
            place = other.item.position(other.path)
            message = f"the {one.what} {relation} {of}{other.item.label} ({place.file}:{place.line}:{place.column})"
            found.error(
                codes.OVERLAPPING_PATHS, one.item, one.path, message, f"give each {one.what} a folder of its own"
            )
        outer.append(one)


def _targets(objects: Sequence[findings.Located], estate: Estate, found: findings.Findings) -> None:
    """Nothing is restored into a folder that belongs to a unit or a holding area."""
    owned = list(_owned(estate))
    for item in objects:
        folder = item.object.spec.target.folder if isinstance(item.object, restores.Restore) else None
        parts = _parts(folder) if folder is not None else ()
        other = next((one for one in owned if parts[: len(one.parts)] == one.parts), None)
        if other is not None:
            message = f"the target is the folder of {other.item.label}, or lies inside it"
            where = ("spec", "target", "folder")
            found.error(codes.RESTORE_SETTING, item, where, message, "restore to a folder of its own")


def _shared_targets(objects: Sequence[findings.Located], found: findings.Findings) -> None:
    """Two Restores that write to one place, where one of them may replace what the other made."""
    first: dict[tuple[str, str], tuple[findings.Located, restores.RestoreSpec]] = {}
    for item in objects:
        spec = item.object.spec if isinstance(item.object, restores.Restore) else None
        if spec is None or spec.target.vmware is not None:
            continue
        other, known = first.setdefault((os.path.normpath(spec.target.place), spec.form), (item, spec))
        if other is not item and (spec.overwrite or known.overwrite):
            message = f"{other.label} has the same target: what is restored last replaces what the other one made there"
            hint = "give each a target of its own, or remove the one that is no longer needed"
            found.warn(codes.RESTORE_SETTING, item, ("spec", "target"), message, hint)


@dataclasses.dataclass(frozen=True, slots=True)
class _Owned:
    """A folder that belongs to one thing alone."""

    parts: tuple[str, ...]
    #: ``unit`` or ``holding area``.
    what: str
    item: findings.Located
    path: documents.Path


def _owned(estate: Estate) -> Iterator[_Owned]:
    for item in estate.units.values():
        if isinstance(item.object, storage.StorageUnit):
            yield _Owned(_parts(item.object.spec.path), "unit", item, ("spec", "path"))
    for item in estate.policies.values():
        source = item.object.spec.source.vmware if isinstance(item.object, policies.BackupPolicy) else None
        if source is not None and source.holding_area is not None:
            path: documents.Path = ("spec", "source", "vmware", "holdingArea", "path")
            yield _Owned(_parts(source.holding_area.path), "holding area", item, path)


def _parts(path: str) -> tuple[str, ...]:
    return pathlib.PurePath(os.path.normpath(path)).parts


def _reach(estate: Estate, found: findings.Findings) -> None:
    """A pool belongs to one media server; a unit in use is reached by one at least, where any are declared."""
    reached: dict[str, str] = {}
    for item in estate.servers.values():
        if not isinstance(item.object, storage.MediaServer):
            continue
        for index, name in enumerate(item.object.spec.storage_units):
            unit = estate.units.get(name)
            first = reached.setdefault(name, item.object.name)
            if unit is None or first == item.object.name or not isinstance(unit.object, storage.StorageUnit):
                continue
            if unit.object.spec.type == "DedupePool":
                message = (
                    f"the pool {name} is reached by the media server {first} already; one alone may write to a pool"
                )
                found.error(codes.SHARED_POOL, item, ("spec", "storageUnits", index), message, "remove it from one")
    if not estate.servers:
        return
    for item in estate.lifecycles.values():
        if not isinstance(item.object, lifecycles.StorageLifecyclePolicy):
            continue
        for index, operation in enumerate(item.object.spec.operations):
            lost = sorted(unit.name for unit in estate.members(operation.storage) if unit.name not in reached)
            if lost:
                message = f"no MediaServer reaches {', '.join(lost)}: nothing can be written there"
                hint = "add it to a MediaServer's storageUnits"
                found.warn(codes.UNREACHED_UNIT, item, ("spec", "operations", index, "storage"), message, hint)


def _domains(
    item: findings.Located, operations: Sequence[lifecycles.Operation], estate: Estate, found: findings.Findings
) -> None:
    """Copies that fail together protect against little."""
    before: dict[str, str] = {}
    for index, operation in enumerate(operations):
        # A unit without a domain is one by itself; the slash keeps it apart from every declared name.
        domains = {
            unit.spec.failure_domain or f"unit/{unit.name}": unit.spec.failure_domain or f"the unit {unit.name}"
            for unit in estate.members(operation.storage)
        }
        shared = sorted(domains[domain] for domain in domains if domain in before)
        if shared:
            other = before[next(domain for domain in sorted(domains) if domain in before)]
            message = f"copies of {operation.name} and {other} may both lie in the failure domain {', '.join(shared)}"
            hint = "write them to units that do not fail together"
            found.warn(codes.SHARED_FAILURE_DOMAIN, item, ("spec", "operations", index, "storage"), message, hint)
        for domain in domains:
            before.setdefault(domain, operation.name)


@dataclasses.dataclass(frozen=True, slots=True)
class _Pair:
    """A policy with the lifecycle it uses."""

    item: findings.Located
    policy: policies.BackupPolicy
    lifecycle: findings.Located
    operations: Sequence[lifecycles.Operation]
    estate: Estate
    found: findings.Findings

    def check(self) -> None:
        """Judge every operation against the schedules whose images it receives."""
        fulls = any(_makes_fulls(schedule) for schedule in self.policy.spec.schedules)
        chain = False
        for index, operation in enumerate(self.operations):
            path: documents.Path = ("spec", "operations", index)
            wanted = operation.schedules
            received = [
                schedule for schedule in self.policy.spec.schedules if wanted is None or schedule.name in wanted
            ]
            self._period(path, operation, received)
            if not any(unit.spec.type == "Directory" for unit in self.estate.members(operation.storage)):
                continue
            chain = chain or bool(received)
            if fulls and wanted is not None:
                self._filter(path, received)
        if chain and not fulls:
            message = "no schedule makes a Full, and the lifecycle writes to a Directory: its chain would grow for ever"
            hint = "add a Full schedule, or fullEvery to the Incremental one"
            self.found.error(codes.SERIES_WITHOUT_FULL, self.item, ("spec", "schedules"), message, hint, key=True)

    def _filter(self, path: documents.Path, received: Sequence[policies.Schedule]) -> None:
        partial = [schedule.name for schedule in received if schedule.type != "Full"]
        if partial and not any(_makes_fulls(schedule) for schedule in received):
            fulls = [schedule.name for schedule in self.policy.spec.schedules if _makes_fulls(schedule)]
            message = (
                f"of {self.item.label} this operation gets {', '.join(partial)} without the fulls of "
                f"{', '.join(fulls)}; on a Directory an incremental needs its full beside it"
            )
            hint = f"add {fulls[0]} to schedules, or write to a DedupePool"
            self.found.error(codes.CHAIN_WITHOUT_FULL, self.lifecycle, (*path, "schedules"), message, hint)

    def _period(
        self, path: documents.Path, operation: lifecycles.Operation, received: Sequence[policies.Schedule]
    ) -> None:
        """Copies must outlive the wait for the next one."""
        if not isinstance(operation.retention, lifecycles.Fixed) or not operation.retention.period:
            return
        period = operation.retention.period.approximate
        waits = [(wait, schedule) for schedule in received if (wait := _wait(schedule)) is not None]
        if not waits:
            return
        wait, schedule = min(waits, key=lambda entry: entry[0])
        if period < wait:
            message = (
                f"copies leave after {operation.retention.period}, but the schedule {schedule.name} of "
                f"{self.item.label} makes the next one only after {_show(wait)}"
            )
            hint = "lengthen the period, or back up more often"
            where = (*path, "retention", "period")
            self.found.error(codes.RETENTION_TOO_SHORT, self.lifecycle, where, message, hint)


def _makes_fulls(schedule: policies.Schedule) -> bool:
    return schedule.type == "Full" or schedule.full_every is not None


def _wait(schedule: policies.Schedule) -> dt.timedelta | None:
    """The longest time between two slots, None where there are none."""
    if (schedule.cron is None) == (schedule.every is None):
        return None
    if schedule.every is not None:
        return schedule.every.approximate if schedule.every else None
    fields = (schedule.cron or "").split()
    # The time of day moves all slots alike. Without it, a thousand staggered schedules are one search.
    return _longest_gap(
        " ".join("0" if field.isdecimal() and place < 2 else field for place, field in enumerate(fields))
    )


@functools.lru_cache(maxsize=256)
def _longest_gap(cron: str) -> dt.timedelta | None:
    # In UTC: a week that a change of the clocks makes an hour longer is still a week.
    return calendars.interval(cron, None, "UTC") if calendars.check_cron(cron) is None else None


def _show(span: dt.timedelta) -> str:
    hours = round(span.total_seconds() / 3600)
    if span < dt.timedelta(hours=1):
        return f"{round(span.total_seconds() / 60)}m"
    return f"{hours // 24}d" if hours % 24 == 0 else f"{hours}h"
