"""Clients, what the sources last showed of them, and the storage units that were used at least once.

A client gets its slug at first sight and keeps it for ever; its name and place may change. What a policy's selection
matched is kept with its time, so that a source that cannot be asked does not look like a source without machines.
``know`` is shared with ``imports``, which meets clients in the labels of images.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import difflib
from collections.abc import Container, Iterable
from typing import Any, Final

import sqlalchemy as sa
import sqlmodel

from reconciler.base import errors
from reconciler.catalog import audits, database, tables
from reconciler.planning import clients as slugs
from reconciler.planning import sightings

#: How often a source that shows nothing new is noted: what is known of it may be so much fresher than it says.
_REMEMBERED: Final = dt.timedelta(minutes=5)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class KnownUnit:
    """A storage unit as it was at its first use."""

    name: str
    #: The UUID in its ``unit.json``.
    id: str
    #: Directory or DedupePool.
    type: str
    #: Absolute path of its root folder.
    path: str


def see_machines(
    db: database.Database,
    policy: str,
    machines: Iterable[sightings.Machine],
    now: dt.datetime,
    contested: Container[str] = (),
) -> bool:
    """A source has shown what a policy matches: remember it, and the clients in it; whether a client is new, or has
    changed. Nothing is written where nothing is new, but every ``_REMEMBERED`` the time. ``contested``: ids that
    several machines claim; what is known of those clients stays as it is."""
    seen = tuple(machines)
    documents = [_plain(machine) for machine in seen]
    inventory = tables.INVENTORIES
    query = sa.select(inventory.c.machines, inventory.c.seen).where(inventory.c.policy == policy)
    with db.reading() as connection:
        before = connection.execute(query).first()
    recent = before is not None and before.seen <= now < before.seen + _REMEMBERED
    if before is not None and recent and before.machines == documents:
        return False
    with db.writing() as connection:
        first: dict[str, sightings.Machine] = {}
        for machine in seen:
            if machine.id not in contested:
                first.setdefault(machine.id, machine)
        # Read once: asked machine by machine, the first sight of ten thousand would take minutes.
        known = {row.id: row for row in connection.execute(sa.select(tables.CLIENTS))}
        taken = {row.slug for row in known.values()}
        fresh = [
            _refresh(connection, known.get(machine.id), taken, machine.id, machine.name, machine.source, None, now)
            for machine in first.values()
        ]
        connection.execute(inventory.delete().where(inventory.c.policy == policy))
        connection.execute(inventory.insert().values(policy=policy, machines=documents, seen=now))
    return any(fresh)


def know(connection: sa.Connection, *, id: str, name: str, source: str, slug: str | None, now: dt.datetime) -> None:
    """Make or refresh a client. ``slug`` is the one wished for by an image's label, None to derive it from the name."""
    client = tables.CLIENTS
    known = connection.execute(sa.select(client).where(client.c.id == id)).first()
    taken = set(connection.scalars(sa.select(client.c.slug))) if known is None else set()
    _refresh(connection, known, taken, id, name, source, slug, now)


def _refresh(
    connection: sa.Connection,
    known: sa.Row[Any] | None,
    taken: set[str],
    id: str,
    name: str,
    source: str,
    slug: str | None,
    now: dt.datetime,
) -> bool:
    """Whether anything about the client is new. ``taken``: every slug given so far; a new client's is added."""
    client = tables.CLIENTS
    if known is None:
        given = slug if slug and slug not in taken else slugs.slug(slug or name, taken)
        taken.add(given)
        connection.execute(client.insert().values(id=id, slug=given, name=name, source=source, first_seen=now))
        audits.record(
            connection, now=now, actor="catalog", event="ClientSeen", object=f"client/{given}",
            details={"id": id, "name": name, "source": source},
        )  # fmt: skip
        return True
    if (known.name, known.source) != (name, source):
        connection.execute(client.update().where(client.c.id == id).values(name=name, source=source))
        audits.record(
            connection, now=now, actor="catalog", event="ClientChanged", object=f"client/{known.slug}",
            details={"name": [known.name, name], "source": [known.source, source]},
        )  # fmt: skip
        return True
    return False


def inventories(db: database.Database) -> dict[str, sightings.Inventory]:
    """What each policy's selection matched when its source last answered."""
    with db.reading() as connection:
        rows = connection.execute(sa.select(tables.INVENTORIES)).all()
    return {
        row.policy: sightings.Inventory(machines=tuple(_machine(**one) for one in row.machines), seen=row.seen)
        for row in rows
    }


def clients(db: database.Database) -> dict[str, sightings.Client]:
    """Every client, by id."""
    with db.reading() as connection:
        rows = connection.execute(sa.select(tables.CLIENTS).order_by(tables.CLIENTS.c.slug)).all()
    return {row.id: sightings.Client(**row._mapping) for row in rows}


def find_client(db: database.Database, text: str) -> sightings.Client:
    """The client with this slug, else this id, else this name.

    Raises ``NotFound``: with near names where nothing fits, with the slugs where several clients have the name.
    """
    known = clients(db).values()
    for matches in (
        [one for one in known if one.slug == text],
        [one for one in known if one.id == text],
        [one for one in known if one.name == text],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            listed = ", ".join(one.slug for one in matches)
            raise errors.NotFound(f"{len(matches)} clients are named {text}", hint=f"name one by its slug: {listed}")
    words = sorted({one.slug for one in known} | {one.name for one in known})
    near = difflib.get_close_matches(text, words, 3) or difflib.get_close_matches(text.lower(), words, 3)
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else "holdfast get clients lists them, and a plan what policies leave out"
    )
    raise errors.NotFound(f"there is no client {text}", hint=hint)


def known_units(db: database.Database) -> dict[str, KnownUnit]:
    """Storage units that were used at least once, by name."""
    with db.reading() as connection:
        rows = connection.execute(sa.select(tables.UNITS).order_by(tables.UNITS.c.name)).all()
    return {row.name: KnownUnit(name=row.name, id=row.id, type=row.type, path=row.path) for row in rows}


def learn_unit(db: database.Database, unit: KnownUnit, now: dt.datetime, actor: str) -> None:
    """Remember who a unit is; repeating it changes nothing, a new path of the same unit is remembered.

    Raises ``CatalogError`` where the name belongs to another unit, or the unit is known under another name.
    """
    with db.writing() as connection, sqlmodel.Session(connection) as session:
        same = session.exec(sqlmodel.select(tables.UnitRow).where(tables.UnitRow.id == unit.id)).first()
        if same is not None and same.name != unit.name:
            raise errors.CatalogError(
                f"storage unit {unit.name} at {unit.path} is known as {same.name}",
                hint=f"add previousNames: [{same.name}] to it, or give each its own folder",
            )
        found = session.get(tables.UnitRow, unit.name)
        if found is not None and found.id != unit.id:
            raise errors.CatalogError(
                f"storage unit {unit.name}: {unit.path} holds unit {unit.id}, and the catalog knows {found.id}",
                hint="mount the right file system, or declare this one under a new name",
            )
        if found is not None and (found.type, found.path) == (unit.type, unit.path):
            return
        row = found or tables.UnitRow(name=unit.name, id=unit.id, type=unit.type, path=unit.path, learned=now)
        row.type, row.path = unit.type, unit.path
        session.add(row)
        session.flush()
        details = {"id": unit.id, "type": unit.type, "path": unit.path}
        object = f"StorageUnit/{unit.name}"
        audits.record(connection, now=now, actor=actor, event="UnitLearned", object=object, details=details)


_FIELDS: Final = tuple(field.name for field in dataclasses.fields(sightings.Machine))


def _plain(machine: sightings.Machine) -> dict[str, object]:
    """As JSON gives it back: lists for tuples."""

    def plain(value: object) -> object:
        return [plain(part) for part in value] if isinstance(value, tuple) else value

    return {name: plain(getattr(machine, name)) for name in _FIELDS}


def _machine(
    id: str,
    name: str,
    source: str,
    disks: Iterable[str],
    problem: tuple[str, str] | None = None,
    left_out: Iterable[str] = (),
    notes: Iterable[tuple[str, str]] = (),
    host: str | None = None,
    datastores: Iterable[str] = (),
) -> sightings.Machine:
    known = (problem[0], problem[1]) if problem else None
    return sightings.Machine(
        id=id,
        name=name,
        source=source,
        disks=tuple(disks),
        problem=known,
        left_out=tuple(left_out),
        notes=tuple((code, message) for code, message in notes),
        host=host,
        datastores=tuple(datastores),
    )
