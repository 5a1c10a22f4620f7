"""Which storage unit can take a copy, give one or lose one, and through which media server.

``planner`` and ``dispatch`` ask the same questions here, so that nothing is called due that dispatch could never
start: what only somebody's action would change is a refusal with a reason, what passes by itself (a busy unit) is not.
Without any MediaServer there is one implicit local one without limits.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping

from reconciler.api import storage
from reconciler.planning import actions, capacities, desired, observed

#: Name of the implicit media server.
LOCAL = "local"


class Units:
    """The storage units of a desired state as they are now."""

    def __init__(self, wanted: desired.Desired, seen: observed.Observed) -> None:
        self._wanted = wanted
        self._seen = seen
        self._aliases = {old: name for name, unit in sorted(wanted.units.items()) for old in unit.spec.previous_names}
        self._refusals: dict[tuple[str, str], actions.Reason | None] = {}
        #: By unit: the most bytes for which a job waits that no unit has room for.
        self.wanting: dict[str, int] = {}
        self._commitments = capacities.commitments(seen.jobs, self.name)

    def name(self, unit: str) -> str:
        """The present name of a unit."""
        return unit if unit in self._wanted.units else self._aliases.get(unit, unit)

    def members(self, storage_name: str) -> tuple[str, ...]:
        """The units behind a storage name: itself, or a group's members in order."""
        group = self._wanted.groups.get(storage_name)
        if group is None or storage_name in self._wanted.units:
            return (self.name(storage_name),)
        return tuple(self.name(member) for member in group.spec.members)

    def standalone(self, unit: str) -> bool:
        """Whether each image on the unit stands alone."""
        seen = self._seen.units.get(unit)
        if seen is not None:
            return seen.standalone
        declared = self._wanted.units.get(unit)
        return declared is not None and declared.spec.type == "DedupePool"

    def offline(self, unit: str) -> bool:
        """Whether nothing on the unit can be read now."""
        seen = self._seen.units.get(unit)
        return unit not in self._wanted.units or seen is None or seen.state == "Offline"

    def refuses_new(self, unit: str) -> actions.Reason | None:
        """Why the unit takes no new copies, or None."""
        return self._cached("new", unit) or self._cached("full", unit)

    def refuses_delete(self, unit: str) -> actions.Reason | None:
        """Why nothing can be deleted from the unit, or None."""
        return self._cached("delete", unit)

    def refuses_read(self, unit: str) -> actions.Reason | None:
        """Why nothing can be read from the unit, or None."""
        return self._cached("read", unit)

    def _cached(self, use: str, unit: str) -> actions.Reason | None:
        key = (use, unit)
        if key not in self._refusals:
            self._refusals[key] = self._full(unit) if use == "full" else self._refusal(use, unit)
        return self._refusals[key]

    def _refusal(self, use: str, unit: str) -> actions.Reason | None:
        declared, seen = self._wanted.units.get(unit), self._seen.units.get(unit)
        if declared is None:
            return actions.Reason(code="UnitUnknown", message=f"no manifest and no catalog entry describes unit {unit}")
        if seen is None or seen.state == "Offline":
            why = f": {seen.message}" if seen is not None and seen.message else ""
            return actions.Reason(code="UnitOffline", message=f"unit {unit} is offline{why}")
        if seen.state == "ReadOnly" and use != "read":
            why = f": {seen.message}" if seen.message else ""
            return actions.Reason(code="UnitReadOnly", message=f"unit {unit} can only be read{why}")
        if declared.spec.max_concurrent_jobs == 0:
            return actions.Reason(code="UnitDisabled", message=f"unit {unit} is disabled (maxConcurrentJobs: 0)")
        if use == "new" and declared.spec.state != "Active":
            return actions.Reason(
                code=f"Unit{declared.spec.state}",
                message=f"unit {unit} takes nothing new (state: {declared.spec.state})",
            )
        if not any(True for _ in servers(self._wanted, (unit,))):
            return actions.Reason(code="NoMediaServer", message=f"no enabled media server reaches unit {unit}")
        return None

    def _full(self, unit: str) -> actions.Reason | None:
        room = self.space(unit)
        return capacities.full(unit, self._wanted.units[unit].spec, room) if room is not None else None

    def space(self, unit: str) -> capacities.Space | None:
        """The room of a unit, less what live jobs will add; None where it is not known."""
        seen = self._seen.units.get(unit)
        return capacities.space(seen, self._commitments.get(unit, 0)) if seen is not None else None

    def lacks(self, unit: str, need: int | None) -> actions.Reason | None:
        """Why ``need`` more bytes do not fit onto the unit, or None."""
        room = self.space(unit) if need is not None else None
        return capacities.lacks(unit, room, need) if room is not None else None

    def able(
        self, names: Iterable[str], source: str | None = None, need: Callable[[str], int | None] | None = None
    ) -> tuple[tuple[str, ...], actions.Reason | None]:
        """Those of ``names`` that can take a new copy (read from ``source``), and why the first other one cannot.

        ``need`` says how many bytes the copy is expected to add to a unit, where that is known. Where no unit has room,
        the first of them with too little is remembered in ``wanting``.
        """
        result = []
        first: actions.Reason | None = None
        short: dict[str, int] = {}
        for unit in names:
            reason = self.refuses_new(unit) or self._together(unit, source)
            if reason is None and need is not None:
                reason = self.lacks(unit, bytes := need(unit))
                if reason is not None and bytes is not None:
                    short[unit] = bytes
            if reason is None:
                result.append(unit)
            else:
                first = first or reason
        if short and not result:
            unit = next(iter(short))
            self.wanting[unit] = max(short[unit], self.wanting.get(unit, 0))
        return tuple(result), first

    def _together(self, unit: str, source: str | None) -> actions.Reason | None:
        if source is None or any(True for _ in servers(self._wanted, (unit, source))):
            return None
        return actions.Reason(code="NoMediaServer", message=f"no enabled media server reaches both {source} and {unit}")

    def domain(self, unit: str) -> str:
        """What fails together with the unit; one without a failure domain is one by itself."""
        declared = self._wanted.units.get(unit)
        # The slash keeps it apart from every declared name.
        return (declared.spec.failure_domain if declared is not None else None) or f"unit/{unit}"

    def apart(self, able: tuple[str, ...], others: Iterable[str]) -> tuple[str, ...]:
        """Those of ``able`` in another failure domain than the units ``others``; all of them where none is."""
        taken = {self.domain(unit) for unit in others}
        return tuple(unit for unit in able if self.domain(unit) not in taken) or able

    def preferred(
        self,
        storage_name: str,
        able: tuple[str, ...],
        *,
        running: Mapping[str, int] | None = None,
        last_used: Mapping[str, dt.datetime] | None = None,
    ) -> tuple[str, ...]:
        """``able`` in the order of the group's selection; ``running`` jobs and ``last_used`` times are by unit."""
        group = self._wanted.groups.get(storage_name)
        if group is None or len(able) < 2:
            return able
        place = {unit: index for index, unit in enumerate(self.members(storage_name))}
        if group.spec.selection == "RoundRobin":
            never = dt.datetime.min.replace(tzinfo=dt.UTC)
            used = last_used or {}
            return tuple(sorted(able, key=lambda unit: (used.get(unit, never), place[unit])))
        if group.spec.selection == "LoadBalance":
            return tuple(
                sorted(able, key=lambda unit: (self._load(unit, running or {}), -self._free(unit), place[unit]))
            )
        return tuple(sorted(able, key=lambda unit: place[unit]))

    def selection(self, storage_name: str) -> str:
        """How a group chooses; ``Prioritized`` for a single unit."""
        group = self._wanted.groups.get(storage_name)
        return group.spec.selection if group is not None and storage_name not in self._wanted.units else "Prioritized"

    def _load(self, unit: str, running: Mapping[str, int]) -> float:
        return running.get(unit, 0) / max(1, self._wanted.units[unit].spec.max_concurrent_jobs)

    def _free(self, unit: str) -> int:
        room = self.space(unit)
        return room.available if room is not None else 0


def servers(wanted: desired.Desired, units: Iterable[str]) -> Iterable[tuple[str, storage.MediaServer | None]]:
    """The enabled media servers that reach all of ``units``, by name; the implicit local one where none is declared."""
    declared = {name: one for name, one in wanted.media_servers.items() if not wanted.is_orphaned("MediaServer", name)}
    if not declared:
        yield LOCAL, None
        return
    needed = set(units)
    for name in sorted(declared):
        if declared[name].spec.max_concurrent_jobs > 0 and needed <= set(declared[name].spec.storage_units):
            yield name, declared[name]
