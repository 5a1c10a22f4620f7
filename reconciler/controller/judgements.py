"""List documents that need what is in force and what the units say: copies, clients, units and policies."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping

from reconciler.api.documents import lists, shapes
from reconciler.catalog import database, images, inventories
from reconciler.planning import actions, conditions, configuration, desired, observed


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
    for series in (*seen.series, *_beginnings(wanted, seen)):
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
    return lists.ClientList(items=tuple(sorted(items, key=lambda item: item.slug)))


def _beginnings(wanted: desired.Desired, seen: observed.Observed) -> Iterator[observed.Series]:
    """The series that machines would begin: who has no image yet is not protected, and has to be told so."""
    known = {(one.client, one.policy) for one in configuration.renames(wanted).follow(seen.series)}
    for policy, inventory in sorted(seen.inventories.items()):
        if policy not in wanted.policies or wanted.is_orphaned("BackupPolicy", policy):
            continue
        for machine in inventory.machines:
            if (machine.id, policy) not in known:
                yield observed.Series(client=machine.id, policy=policy, images=())


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
