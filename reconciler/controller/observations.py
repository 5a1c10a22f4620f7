"""Observe: what the sources, the storage units and the catalog say now, as one ``Observed`` value.

Used by the loop and by ``plan`` alike. Reading a catalog that does not exist yet gives an empty one.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Collection, Mapping

from reconciler.api import policies, storage
from reconciler.base import errors
from reconciler.catalog import (
    approvals,
    attempts,
    database,
    images,
    inventories,
    jobs,
    requests,
    restores,
    snapshots,
    verifications,
)
from reconciler.operations import ledgers
from reconciler.planning import desired, observed
from reconciler.sources import machines
from reconciler.sources import opening as sources
from reconciler.storage import opening as units


def declared_units(wanted: desired.Desired) -> dict[str, units.Declared]:
    """The units of a desired state, orphaned ones included, as ``storage`` wants them."""
    return {name: declared_unit(unit) for name, unit in wanted.units.items()}


def declared_unit(unit: storage.StorageUnit) -> units.Declared:
    """One unit as ``storage`` wants it."""
    spec = unit.spec
    level = spec.compression.level if spec.compression else None
    return units.declared(unit.name, spec.type, spec.path, spec.segment_size, level)


def survey(
    wanted: desired.Desired, known: Mapping[str, observed.Inventory], now: dt.datetime, owner: str | None = None
) -> dict[str, observed.Inventory]:
    """Ask every policy's source what it matches. One that cannot be asked keeps what was last known of it.

    ``owner``: id of the catalog, whose snapshots are ours; None before there is one.
    """
    opened = sources.Sources(wanted.vcenters, owner or "nobody")
    return {name: _survey_one(opened, policy, known.get(name), now) for name, policy in wanted.policies.items()}


def _survey_one(
    opened: sources.Sources, policy: policies.BackupPolicy, known: observed.Inventory | None, now: dt.datetime
) -> observed.Inventory:
    try:
        found = opened.of(policy).inventory()
    except errors.SourceError as error:
        found = machines.Inventory(machines=(), unreachable=machines.Found(code=error.code, message=str(error)))
    if found.unreachable is not None:
        told = (found.unreachable.code, found.unreachable.message)
        last = known or observed.Inventory(machines=(), seen=now)
        return observed.Inventory(machines=last.machines, seen=last.seen, unreachable=told)
    shown = tuple(
        observed.Machine(
            id=machine.id,
            name=machine.name,
            source=machine.source,
            disks=machine.disks,
            problem=(machine.problem.code, machine.problem.message) if machine.problem else None,
            left_out=machine.left_out,
            notes=_told(machine.notes),
            host=machine.host,
            datastores=machine.datastores,
        )
        for machine in found.machines
    )
    ours = tuple(ledgers.seen(one) for one in found.snapshots)
    return observed.Inventory(machines=shown, seen=now, notes=_told(found.notes), snapshots=ours)


def _told(notes: tuple[machines.Found, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((one.code, one.message) for one in notes)


def look_at_units(
    wanted: desired.Desired,
    known: Mapping[str, inventories.KnownUnit],
    catalog_id: str | None,
    open_units: units.OpenUnits | None,
) -> dict[str, observed.Unit]:
    """The state and space of every unit. Without ``open_units`` nothing is opened for writing: space is measured from
    the folder alone."""
    result = {}
    for name, declared in declared_units(wanted).items():
        seen = units.look(declared, known_id=known[name].id if name in known else None, owner=catalog_id)
        standalone = declared.type == "DedupePool"
        state, message = seen.state, seen.message
        capacity = None
        if state != "Offline":
            try:
                capacity = units.measure(declared, open_units if seen.identity else None)
            except errors.UnitError as error:
                state, message = "Offline", str(error)
        proven = units.proven(declared) if state != "Offline" else None
        result[name] = observed.Unit(
            name=name,
            state=state,
            id=seen.identity.id if seen.identity else None,
            message=message,
            total_bytes=capacity.total if capacity else 0,
            free_bytes=capacity.free if capacity else 0,
            used_bytes=capacity.used if capacity else 0,
            reclaimable_bytes=capacity.reclaimable if capacity else 0,
            surveyed=capacity is None or capacity.surveyed,
            standalone=standalone,
            proven=proven.since if proven else None,
            proving=proven is not None and proven.under_way,
        )
    return result


def look(
    db: database.Database | None, wanted: desired.Desired, open_units: units.OpenUnits | None
) -> dict[str, observed.Unit]:
    """``look_at_units`` with what the catalog knows of them."""
    if db is None:
        return look_at_units(wanted, {}, None, None)
    return look_at_units(wanted, inventories.known_units(db), db.id, open_units)


def gather(
    db: database.Database | None,
    wanted: desired.Desired,
    surveyed: Mapping[str, observed.Inventory],
    looked: Mapping[str, observed.Unit],
    clock_jump: str | None,
) -> observed.Observed:
    """Everything decisions are made from; ``looked`` is what ``look`` says of the units."""
    if db is None:
        return observed.Observed(inventories=surveyed, units=looked, clock_jump=clock_jump)
    standing = inventories.standing(db)
    # The jobs before the snapshots: a job that ends in between has taken its snapshot with it.
    alive, noted = jobs.live(db), inventories.snapshots(db)
    return observed.Observed(
        series=images.series(db),
        clients=inventories.clients(db),
        inventories=_without_stale(db, surveyed, noted),
        units=looked,
        applied=inventories.applied(db),
        in_force=inventories.in_force(db),
        anchors=inventories.anchors(db),
        promises=inventories.promises(db),
        holds=standing.holds,
        rulings=standing.rulings,
        approvals=approvals.approvals(db),
        releases=approvals.releases(db),
        rebuilt=inventories.rebuilt(db),
        owed=inventories.owed(db),
        verifications=verifications.verifications(db),
        trials=verifications.trials(db),
        restores=restores.restores(db),
        requests=_requests(db),
        jobs=alive,
        snapshots=noted,
        attempts=attempts.failed(db),
        last_used=jobs.last_used(db) if _rotates(wanted) else {},
        clock_jump=clock_jump,
    )


def _without_stale(
    db: database.Database, surveyed: Mapping[str, observed.Inventory], noted: Collection[observed.Snapshot]
) -> Mapping[str, observed.Inventory]:
    """The inventories without the snapshots that were there when the sources were asked and may be gone by now,
    because the job that made or removed them has ended since; the next survey tells."""
    known = {one.id for one in noted}
    doubtful = {
        name: found
        for name, one in surveyed.items()
        if (found := [shown for shown in one.snapshots if shown.id not in known])
    }
    result = dict(surveyed)
    for name, found in doubtful.items():
        gone = snapshots.over(db, found, surveyed[name].seen)
        kept = tuple(one for one in surveyed[name].snapshots if one.id not in gone)
        result[name] = dataclasses.replace(surveyed[name], snapshots=kept)
    return result


def _rotates(wanted: desired.Desired) -> bool:
    return any(group.spec.selection == "RoundRobin" for group in wanted.groups.values())


def _requests(db: database.Database) -> tuple[observed.Request, ...]:
    return tuple(
        observed.Request(
            id=row.id,
            policy=str(row.payload["policy"]),
            client=str(row.payload["client"]),
            at=row.at,
            after=row.payload.get("afterImage"),
        )
        for row in requests.pending(db, "Backup")
    )
