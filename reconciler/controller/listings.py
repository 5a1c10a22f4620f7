"""The catalog and the units as list documents: what ``get`` and ``describe`` show."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from reconciler.api.documents import lists, shapes
from reconciler.catalog import audits, database, images, inventories, jobs
from reconciler.planning import actions, conditions, desired, observed


def image_list(db: database.Database, *, client_id: str | None = None, policy: str | None = None) -> lists.ImageList:
    """``get images``."""
    rows = images.list_images(db, client_id=client_id, policy=policy)
    return lists.ImageList(items=tuple(image_item(row) for row in sorted(rows, key=lambda row: row.id)))


def image_item(row: images.ImageRow) -> lists.ImageItem:
    """One image."""
    return lists.ImageItem(
        id=row.id,
        client=row.client,
        client_id=row.client_id,
        policy=row.policy,
        schedule=row.schedule,
        lifecycle=row.lifecycle,
        type=row.type,
        state=row.state,
        time=row.time,
        sequence=row.sequence,
        revision=row.revision,
        parent=row.parent,
        changes=row.changes,
        consistency=row.consistency,
        size_bytes=row.size_bytes,
        disks=tuple(lists.ImageDisk(name=d.name, size_bytes=d.size, digest=d.digest) for d in row.disks),
        warnings=tuple(shapes.CodeMessage(code=w["code"], message=w["message"]) for w in row.warnings),
        copies=row.copies,
    )


def copy_list(
    db: database.Database,
    decisions: Mapping[tuple[str, int], actions.CopyDecision],
    states: Mapping[str, observed.Unit],
    *,
    image: str | None = None,
    client_id: str | None = None,
    unit: str | None = None,
) -> lists.CopyList:
    """``get copies``. A complete copy whose unit is offline is Unreachable."""
    items = []
    for row in images.list_copies(db, image_id=image, client_id=client_id, unit=unit):
        decision = decisions.get((row.image, row.number))
        away = row.unit in states and states[row.unit].state == "Offline"
        items.append(
            lists.CopyItem(
                image=row.image,
                number=row.number,
                client=row.client,
                policy=row.policy,
                operation=row.operation,
                unit=row.unit,
                state="Unreachable" if away and row.state == "Complete" else row.state,
                created_at=row.created_at,
                stored_bytes=row.stored_bytes,
                expires_at=decision.expires_at if decision else None,
                decision=shapes.CodeMessage(code=decision.reason.code, message=decision.reason.message)
                if decision
                else None,
            )
        )
    return lists.CopyList(items=tuple(sorted(items, key=lambda item: (item.image, item.number))))


def job_list(db: database.Database, *, state: str | None = None, client_id: str | None = None) -> lists.JobList:
    """``get jobs``."""
    rows = jobs.list_jobs(db, state=state, client_id=client_id)
    return lists.JobList(items=tuple(job_item(row) for row in sorted(rows, key=lambda row: row.id)))


def job_item(row: jobs.JobRow) -> lists.JobItem:
    """One job."""
    reading = row.reading
    return lists.JobItem(
        id=row.id,
        address=row.address,
        type=row.type,
        state=row.state,
        attempt=row.attempt,
        client=row.client,
        policy=row.policy,
        image=row.image,
        copy_number=row.copy,
        unit=row.unit,
        source_unit=row.source_unit,
        started_at=row.started_at,
        finished_at=row.finished_at,
        wall_seconds=row.wall_seconds,
        scanned_bytes=reading.scanned,
        non_zero_bytes=reading.non_zero,
        sent_bytes=reading.sent,
        stored_bytes=reading.stored,
        cache_hit_ratio=round(reading.hits / reading.lookups, 4) if reading.lookups else None,
        streams=reading.streams,
        error=shapes.CodeMessage(code=row.error_code, message=row.error_message or "") if row.error_code else None,
    )


def client_list(
    db: database.Database, wanted: desired.Desired, seen: observed.Observed, now: dt.datetime
) -> lists.ClientList:
    """``get clients``, with each client's conditions over all its series."""
    rows = images.list_images(db)
    protected: dict[str, set[str]] = {}
    for policy, inventory in seen.inventories.items():
        for machine in inventory.machines:
            protected.setdefault(machine.id, set()).add(policy)
    judged: dict[str, list[lists.Condition]] = {}
    for series in seen.series:
        for one in conditions.conditions(wanted, seen, series, now):
            judged.setdefault(series.client, []).append(
                lists.Condition(
                    type=one.type, status=one.status, reason=one.reason, message=one.message, since=one.since
                )
            )
    items = []
    for client in seen.clients.values():
        own = [row for row in rows if row.client_id == client.id]
        times = [row.time for row in own]
        good = [row.time for row in own if row.state == "Complete"]
        items.append(
            lists.ClientItem(
                id=client.id,
                name=client.name,
                slug=client.slug,
                source=client.source,
                policies=tuple(sorted(protected.get(client.id, set()) | {row.policy for row in own})),
                images=len(own),
                oldest_image=min(times, default=None),
                newest_image=max(times, default=None),
                last_success=max(good, default=None),
                conditions=tuple(judged.get(client.id, [])),
            )
        )
    return lists.ClientList(items=tuple(sorted(items, key=lambda item: item.id)))


def unit_list(db: database.Database, wanted: desired.Desired, seen: observed.Observed) -> lists.UnitList:
    """``get units``."""
    known = inventories.known_units(db)
    items = []
    for name, unit in sorted(wanted.units.items()):
        state = seen.units[name]
        items.append(
            lists.UnitItem(
                name=name,
                id=known[name].id if name in known else None,
                type=unit.spec.type,
                path=unit.spec.path,
                state=unit_state(unit.spec.state, unit.spec.max_concurrent_jobs, state.state),
                failure_domain=unit.spec.failure_domain,
                capacity_bytes=state.total_bytes or None,
                free_bytes=state.free_bytes if state.total_bytes else None,
                used_bytes=state.used_bytes if state.total_bytes else None,
                images=sum(row.state in observed.PRESENT for row in images.list_copies(db, unit=name)),
                running_jobs=sum(name in (job.unit, job.source_unit) for job in seen.jobs),
                max_concurrent_jobs=unit.spec.max_concurrent_jobs,
            )
        )
    return lists.UnitList(items=tuple(items))


def unit_state(asked: str, limit: int, found: str) -> str:
    """The one word for a unit: what keeps it from working comes before what the manifest asks."""
    if found != "Online":
        return found
    if asked != "Active":
        return asked
    return "Disabled" if limit == 0 else "Online"


def policy_list(
    db: database.Database, wanted: desired.Desired, seen: observed.Observed, plan: actions.Plan
) -> lists.PolicyList:
    """``get policies``."""
    rows = images.list_images(db)
    items = []
    for name, policy in sorted(wanted.policies.items()):
        own = [row for row in rows if row.policy == name]
        slots = [a.at for a in plan.actions if a.type is actions.Type.BACKUP and a.policy == name and a.at is not None]
        state = (
            "Orphaned" if wanted.is_orphaned("BackupPolicy", name) else "Suspended" if policy.spec.suspend else "Active"
        )
        items.append(
            lists.PolicyItem(
                name=name,
                lifecycle=policy.spec.lifecycle,
                schedules=tuple(schedule.name for schedule in policy.spec.schedules),
                clients=len(seen.inventories[name].machines) if name in seen.inventories else 0,
                images=len(own),
                last_success=max((row.time for row in own if row.state == "Complete"), default=None),
                next_slot=min(slots, default=None),
                state=state,
            )
        )
    return lists.PolicyList(items=tuple(items))


def audit_list(db: database.Database, limit: int | None) -> lists.AuditList:
    """``get audit``."""
    return lists.AuditList(
        items=tuple(
            lists.AuditItem(
                id=entry.number,
                time=entry.at,
                actor=entry.actor,
                event=entry.event,
                object=entry.object,
                details=dict(entry.details),
            )
            for entry in sorted(audits.entries(db, limit), key=lambda entry: entry.number)
        )
    )
