"""``previousNames``: a policy, schedule, operation or unit gets a new name, and its history follows.

Called by ``configurations`` inside the transaction that puts a revision in force. What images, copies, jobs and
promises remember by name is rewritten; the lifecycle specs that fix what images are owed name operations, units and
schedules too, so they are rewritten under their new digests, else every copy would be owed again. The same rows are
looked for at every apply that still lists the name: work that was under way while its policy was renamed comes along.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from reconciler.api import lifecycles, models, policies, storage
from reconciler.catalog import imports, tables

_Spec = dict[str, Any]


def previous(item: models.Object) -> tuple[str, ...]:
    """Names the object had before; kinds without such a field have none."""
    if isinstance(item, storage.StorageUnit):
        return item.spec.previous_names
    return item.spec.previous_names if isinstance(item, policies.BackupPolicy) else ()


def follow(connection: sa.Connection, item: models.Object, gone: frozenset[str]) -> None:
    """Bring history along to ``item``; ``gone`` are those of its previous names that no other object has now."""
    if isinstance(item, storage.StorageUnit):
        for old in gone:
            _unit(connection, old, item.name)
    elif isinstance(item, policies.BackupPolicy):
        for old in gone:
            _policy(connection, old, item.name)
        names = {schedule.name for schedule in item.spec.schedules}
        for schedule in item.spec.schedules:
            for old in schedule.previous_names:
                if old not in names:
                    _schedule(connection, item.name, old, schedule.name)
    elif isinstance(item, lifecycles.StorageLifecyclePolicy):
        names = {operation.name for operation in item.spec.operations}
        for operation in item.spec.operations:
            for old in operation.previous_names:
                if old not in names:
                    _operation(connection, item.name, old, operation.name)


def _unit(connection: sa.Connection, old: str, new: str) -> None:
    unit = tables.UNITS
    if connection.scalar(sa.select(unit.c.name).where(unit.c.name == new)) is None:
        connection.execute(unit.update().where(unit.c.name == old).values(name=new))
    _replace(connection, tables.COPIES, "unit", old, new)
    _replace(connection, tables.JOBS, "unit", old, new)
    _replace(connection, tables.JOBS, "source_unit", old, new)
    _owed(connection, sa.true(), lambda spec: _rename_in(spec, "storage", old, new))


def _policy(connection: sa.Connection, old: str, new: str) -> None:
    _replace(connection, tables.IMAGES, "policy", old, new)
    _replace(connection, tables.JOBS, "policy", old, new)
    for table in (tables.INVENTORIES, tables.ANCHORS):
        known = sa.select(sa.literal(1)).select_from(table).where(table.c.policy == new).limit(1)
        if connection.scalar(known) is None:
            _replace(connection, table, "policy", old, new)
        else:
            connection.execute(table.delete().where(table.c.policy == old))


def _schedule(connection: sa.Connection, policy: str, old: str, new: str) -> None:
    of_policy = tables.IMAGES.c.policy == policy
    _replace(connection, tables.IMAGES, "schedule", old, new, of_policy)

    def rename(spec: _Spec) -> None:
        for operation in spec.get("operations", ()):
            filtered = operation.get("schedules")
            if filtered:
                operation["schedules"] = [new if name == old else name for name in filtered]

    _owed(connection, of_policy, rename)


def _operation(connection: sa.Connection, lifecycle: str, old: str, new: str) -> None:
    of_lifecycle = tables.IMAGES.c.lifecycle == lifecycle
    images = sa.select(tables.IMAGES.c.id).where(of_lifecycle)
    _replace(connection, tables.COPIES, "operation", old, new, tables.COPIES.c.image_id.in_(images))
    promise = tables.PROMISES
    both = sa.select(promise.c.digest).where(promise.c.lifecycle == lifecycle, promise.c.operation == new)
    movable = sa.and_(promise.c.lifecycle == lifecycle, promise.c.digest.not_in(both))
    _replace(connection, promise, "operation", old, new, movable)
    released, other = tables.RELEASES, tables.RELEASES.alias()
    of_old = sa.and_(released.c.lifecycle == lifecycle, released.c.operation == old)
    known = sa.exists().where(
        other.c.lifecycle == lifecycle, other.c.operation == new, other.c.before == released.c.before,
        other.c.client_id == released.c.client_id, other.c.up_to == released.c.up_to,
    )  # fmt: skip
    connection.execute(released.delete().where(of_old, known))
    _replace(connection, released, "operation", old, new, of_old)

    def rename(spec: _Spec) -> None:
        _rename_in(spec, "name", old, new)
        _rename_in(spec, "source", old, new)

    _owed(connection, of_lifecycle, rename)


def _rename_in(spec: _Spec, field: str, old: str, new: str) -> None:
    for operation in spec.get("operations", ()):
        if operation.get(field) == old:
            operation[field] = new


def _replace(connection: sa.Connection, table: sa.Table, column: str, old: str, new: str, where: Any = None) -> None:
    chosen = table.c[column] == old
    if where is not None:
        chosen = sa.and_(chosen, where)
    connection.execute(table.update().where(chosen).values({column: new}))


def _owed(connection: sa.Connection, images: sa.ColumnElement[bool], rename: Callable[[_Spec], None]) -> None:
    """Move images from the specs that ``rename`` changes to the changed ones."""
    version = tables.LIFECYCLE_VERSIONS
    for digest, spec in connection.execute(sa.select(version.c.digest, version.c.spec)).all():
        changed = copy.deepcopy(spec)
        rename(changed)
        if changed == spec:
            continue
        moved = imports.remember_owed(connection, changed)
        connection.execute(tables.IMAGES.update().where(tables.IMAGES.c.owed == digest, images).values(owed=moved))
        used = sa.exists().where(tables.IMAGES.c.owed == digest)
        connection.execute(version.delete().where(version.c.digest == digest, ~used))
