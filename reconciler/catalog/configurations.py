"""The configuration in force: putting a revision there in one transaction, and reading it back.

The controller calls ``apply`` once it has decided what a revision changes; plans read the rest. With the objects go
the facts that only their history tells: since when a schedule's slots count, and which retention the images of earlier
revisions were promised.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any, Final

import pydantic
import sqlalchemy as sa

from reconciler.api import exceptions, lifecycles, models, policies, registry
from reconciler.base import digests, errors
from reconciler.catalog import approvals, audits, counters, database, fences, legalholds, renames, tables
from reconciler.planning import actions, desired, observed
from reconciler.planning import promises as promised

_IN_FORCE: Final = "in-force"
#: The key of the fact that names the catalog's last rebuild.
REBUILT: Final = "rebuilt"
_TIMING: Final = ("cron", "every", "timeZone")

_Document = Mapping[str, Any]
#: Rows of the objects table by kind and name, as they were before.
_Before = dict[desired.Key, sa.Row[Any]]


def apply_configuration(
    db: database.Database,
    *,
    revision: str,
    objects: Iterable[models.Object],
    changes: Iterable[actions.ConfigurationChange],
    now: dt.datetime,
    actor: str,
    fence: int | None = None,
) -> None:
    """Put a revision in force, all of it or nothing.

    ``objects`` are in force from now; those that ``changes`` orphan stay, marked so; any other object stays as it is.
    Raises ``Superseded`` for a stale fence.
    """
    wanted = tuple(objects)
    listed = tuple(changes)
    names = {item.key for item in wanted}
    with db.writing() as connection:
        fences.check(connection, fence)
        before: _Before = {(row.kind, row.name): row for row in connection.execute(sa.select(tables.OBJECTS)).all()}
        for item in wanted:
            gone = frozenset(name for name in renames.previous(item) if (item.kind, name) not in names)
            was = _was(before, item, gone)
            for name in gone:
                _delete(connection, (item.kind, name))
            renames.follow(connection, item, gone)
            _remember(connection, item, was.document if was is not None else None, now)
            _store(connection, item, before.get(item.key), revision, now)
            if isinstance(item, exceptions.LegalHold):
                legalholds.apply(connection, item, now, actor)
        for change in listed:
            if change.change == "Orphan":
                of_object = sa.and_(tables.OBJECTS.c.kind == change.kind, tables.OBJECTS.c.name == change.name)
                connection.execute(tables.OBJECTS.update().where(of_object).values(orphaned=True))
        set_fact(connection, _IN_FORCE, revision)
        _tell(connection, revision, listed, now, actor)


def applied(db: database.Database) -> dict[desired.Key, observed.Applied]:
    """Every object in force, or orphaned. Raises ``CatalogError`` for one that this version cannot read."""
    with db.reading() as connection:
        rows = connection.execute(
            sa.select(tables.OBJECTS).order_by(tables.OBJECTS.c.kind, tables.OBJECTS.c.name)
        ).all()
    return {
        (row.kind, row.name): observed.Applied(object=_parse(row), since=row.since, orphaned=row.orphaned)
        for row in rows
    }


def in_force(db: database.Database) -> str | None:
    """The revision in force, None before the first."""
    return _fact(db, _IN_FORCE)


def rebuilt(db: database.Database) -> str:
    """Names the last time that the catalog was rebuilt; empty where it never was."""
    return _fact(db, REBUILT) or ""


def anchors(db: database.Database) -> dict[tuple[str, str], dt.datetime]:
    """By policy and schedule: from when the slots count, which is when it was first applied with its present timing."""
    with db.reading() as connection:
        return {(row.policy, row.schedule): row.at for row in connection.execute(sa.select(tables.ANCHORS))}


def promises(db: database.Database) -> tuple[observed.Promise, ...]:
    """Retentions that revisions replaced, oldest first."""
    adapter: pydantic.TypeAdapter[lifecycles.Retention] = pydantic.TypeAdapter(lifecycles.Retention)
    with db.reading() as connection:
        rows = connection.execute(sa.select(tables.PROMISES).order_by(tables.PROMISES.c.number)).all()
    return tuple(
        observed.Promise(
            lifecycle=row.lifecycle,
            operation=row.operation,
            retention=adapter.validate_python(row.retention),
            up_to=row.up_to,
        )
        for row in rows
    )


def owed(db: database.Database) -> dict[str, lifecycles.StorageLifecyclePolicySpec]:
    """By digest: the lifecycle specs that fix what images are owed."""
    versions = tables.LIFECYCLE_VERSIONS.c
    with db.reading() as connection:
        rows = connection.execute(sa.select(versions.digest, versions.spec)).all()
    return {digest: lifecycles.StorageLifecyclePolicySpec.model_validate(spec) for digest, spec in rows if spec}


def _was(before: _Before, item: models.Object, gone: frozenset[str]) -> sa.Row[Any] | None:
    """The object's row before this revision: under its name, else under one that it had."""
    if item.key in before:
        return before[item.key]
    for name in renames.previous(item):
        if name in gone and (item.kind, name) in before:
            return before[(item.kind, name)]
    return None


def _store(
    connection: sa.Connection, item: models.Object, row: sa.Row[Any] | None, revision: str, now: dt.datetime
) -> None:
    document = item.written()
    if row is not None and row.document == document and not row.orphaned:
        return
    unchanged = row is not None and row.document == document
    _delete(connection, item.key)
    connection.execute(
        tables.OBJECTS.insert().values(
            kind=item.kind, name=item.name, document=document, orphaned=False, revision=revision,
            since=row.since if row is not None and unchanged else now,
        )
    )  # fmt: skip


def _delete(connection: sa.Connection, key: desired.Key) -> None:
    connection.execute(tables.OBJECTS.delete().where(tables.OBJECTS.c.kind == key[0], tables.OBJECTS.c.name == key[1]))


def _remember(connection: sa.Connection, item: models.Object, was: _Document | None, now: dt.datetime) -> None:
    if isinstance(item, policies.BackupPolicy):
        _set_anchors(connection, item, was, now)
    elif isinstance(item, lifecycles.StorageLifecyclePolicy):
        if was is not None:
            _keep_promises(connection, item, was)
        for operation in item.spec.operations:
            approvals.promised_anew(connection, item.name, operation.name, promised.written(operation.retention))


def _set_anchors(
    connection: sa.Connection, item: policies.BackupPolicy, was: _Document | None, now: dt.datetime
) -> None:
    anchor = tables.ANCHORS
    known = {
        row.schedule: row.at for row in connection.execute(sa.select(anchor).where(anchor.c.policy == item.name)).all()
    }
    earlier = {schedule["name"]: schedule for schedule in was["spec"]["schedules"]} if was is not None else {}
    kept = {}
    for schedule in item.written()["spec"]["schedules"]:
        # A catalog made again from labels alone knows when schedules began, and not what they said.
        name = next((n for n in (schedule["name"], *schedule["previousNames"]) if n in (earlier or known)), None)
        same = name in known and (not earlier or all(earlier[name][field] == schedule[field] for field in _TIMING))
        kept[schedule["name"]] = known[name] if same else now
    if kept != known:
        connection.execute(anchor.delete().where(anchor.c.policy == item.name))
        rows = [{"policy": item.name, "schedule": name, "at": at} for name, at in kept.items()]
        connection.execute(anchor.insert(), rows)


def _keep_promises(connection: sa.Connection, item: lifecycles.StorageLifecyclePolicy, was: _Document) -> None:
    """What was promised to the images so far, for every operation whose retention is no longer what it was."""
    newest = counters.current(connection, counters.IMAGE_SEQUENCE)
    if not newest:
        return
    now_by_old: dict[str, tuple[str, _Document]] = {}
    for operation in item.written()["spec"]["operations"]:
        for name in (*operation["previousNames"], operation["name"]):
            now_by_old[name] = (operation["name"], operation["retention"])
    for operation in was["spec"]["operations"]:
        name, retention = now_by_old.get(operation["name"], (operation["name"], None))
        if retention != operation["retention"]:
            _promise(connection, item.name, name, operation["retention"], newest)


def _promise(connection: sa.Connection, lifecycle: str, operation: str, retention: _Document, up_to: int) -> None:
    promise, digest = tables.PROMISES, digests.json_digest(retention)
    same = sa.and_(promise.c.lifecycle == lifecycle, promise.c.operation == operation, promise.c.digest == digest)
    if not connection.execute(promise.update().where(same).values(up_to=up_to)).rowcount:
        values = {"lifecycle": lifecycle, "operation": operation, "digest": digest}
        connection.execute(promise.insert().values(retention=dict(retention), up_to=up_to, **values))


def _fact(db: database.Database, key: str) -> str | None:
    with db.reading() as connection:
        found = connection.scalar(sa.select(tables.FACTS.c.value).where(tables.FACTS.c.key == key))
    return None if found is None else str(found)


def set_fact(connection: sa.Connection, key: str, value: str) -> None:
    """Write down one fact of the catalog, in the place of what it was."""
    connection.execute(tables.FACTS.delete().where(tables.FACTS.c.key == key))
    connection.execute(tables.FACTS.insert().values(key=key, value=value))


def _tell(
    connection: sa.Connection,
    revision: str,
    changes: Iterable[actions.ConfigurationChange],
    now: dt.datetime,
    actor: str,
) -> None:
    audits.record(connection, now=now, actor=actor, event="RevisionInForce", object=revision)
    for change in changes:
        fields = [{"path": one.path, "before": one.before, "after": one.after} for one in change.fields]
        audits.record(
            connection, now=now, actor=actor, event=f"Configuration{change.change}",
            object=f"{change.kind}/{change.name}", details={"revision": revision, "fields": fields},
        )  # fmt: skip


def _parse(row: sa.Row[Any]) -> models.Object:
    kind = registry.KINDS.get(row.kind)
    if kind is None:
        raise errors.FormatTooNew(
            f"the catalog holds {row.kind}/{row.name}, a kind this Holdfast does not know", hint="upgrade Holdfast"
        )
    try:
        return kind.model_validate(row.document)
    except pydantic.ValidationError as error:
        raise errors.CatalogError(
            f"the catalog holds {row.kind}/{row.name} in a form this Holdfast cannot read: {error}",
            hint="apply its manifest with the version that wrote it, or upgrade Holdfast",
        ) from error
