"""What a catalog holds, as JSON lines: a head, then for each table its name, columns and rows, then a foot.

The form behind ``dumps`` (compressed, on every storage unit) and ``pages`` (a backup of the catalog). The head names
the catalog and how far it had come; the foot says how many rows there were: a part is never taken for the whole.
Job logs stay behind. Columns keep the values of the database, so that loading them brings back the very same rows.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy import exc

from reconciler.base import errors, times
from reconciler.catalog import audits, migrations, servers, tables

FORMAT_VERSION: Final = 1
_BATCH: Final = 5000
#: Events that a rebuilt catalog can do without. After a cancel, above all, no byte of a unit may change any more.
_PASSING: Final = ("AlarmTold", "AlarmNotTold", "CancelRequested", "LeaseTaken", "Requested")
_ENCODE: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """Whose contents these are, and of when."""

    #: UUID of the catalog.
    catalog: str
    #: Number of the newest line of the audit trail that is worth a dump.
    mark: int
    #: The latest time of the trail up to there; None before its first line, and in dumps of earlier versions.
    at: dt.datetime | None


class Damaged(errors.CatalogError):
    """What was read are no contents of a catalog, or not all of them."""


class Lines(NamedTuple):
    """Some lines that follow one another."""

    #: What tells a row from others of its table; None for lines that are no rows.
    keys: list[str | None]
    lines: list[bytes]


def mark(connection: sa.Connection) -> int:
    """A number that grows with every change worth a dump."""
    return audits.newest(connection, beside=_PASSING)


def written(connection: sa.Connection, catalog: str, *, by_age: bool = False) -> Iterator[Lines]:
    """All of it within the caller's reading transaction. ``by_age``: images and copies in the order they were made."""
    newest = mark(connection)
    # The latest one: where a clock was set back, the newest line is not the youngest.
    at = connection.scalar(sa.select(sa.func.max(tables.AUDIT.c.at)).where(tables.AUDIT.c.number <= newest))
    head = {"holdfast": "catalog", "formatVersion": FORMAT_VERSION, "schema": migrations.HEAD, "catalog": catalog}
    yield _single({**head, "mark": newest, "at": times.to_number(at) if at is not None else None})
    count = 0
    for table in _dumped():
        yield _single({"table": table.name, "columns": [column.name for column in table.columns]})
        chosen = _by_age(table) if by_age else None
        if chosen is None:
            chosen = sa.select(table).order_by(*_key(table))
        keys = [table.columns.keys().index(column.name) for column in _key(table)]
        for batch in connection.execute(chosen, execution_options={"yield_per": _BATCH}).partitions():
            yield Lines(["/".join(str(row[key]) for key in keys) for row in batch], [_line(list(row)) for row in batch])
            count += len(batch)
    yield _single({"rows": count})


def head(line: Any) -> Head:
    """What the first line says. Raises ``CatalogError`` where it is no head, ``FormatTooNew``."""
    if not isinstance(line, dict) or line.get("holdfast") != "catalog":
        raise damaged("it has no head")
    try:
        if line["formatVersion"] > FORMAT_VERSION or line["schema"] not in migrations.REVISIONS:
            raise errors.FormatTooNew("this dump was written by a newer Holdfast", hint="upgrade Holdfast")
        at = line.get("at")
        return Head(
            catalog=str(line["catalog"]), mark=int(line["mark"]), at=times.to_moment(at) if at is not None else None
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise damaged(f"its head says too little: {error}") from error


def load(connection: sa.Connection, lines: Iterator[Any]) -> int:
    """Fill an empty catalog within the caller's writing transaction; the number of rows. ``lines``: parsed.

    Raises ``FormatTooNew``, and ``CatalogError`` for what was not written so.
    """
    for table in (tables.FACTS, tables.COUNTERS, tables.LEASES):
        connection.execute(table.delete())
    count = _load(connection, lines)
    if connection.dialect.name != "sqlite":
        servers.count_on(connection)
    return count


def parsed(lines: Iterable[str | bytes]) -> Iterator[Any]:
    """The values of lines. Raises ``CatalogError`` for text that is none."""
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError as error:
            raise damaged(error) from error


def damaged(why: object) -> Damaged:
    """What is said of contents that were not written so."""
    return Damaged(f"this dump of the catalog is damaged: {why}", hint="use the other one, or another unit's")


def _dumped() -> list[sa.TableClause]:
    """The tables without their typed columns, in an order in which rows find what they refer to."""
    return [_plain(table) for table in tables.METADATA.sorted_tables if table is not tables.JOB_LINES]


def _plain(table: sa.Table) -> sa.TableClause:
    # What the database computes from other columns it computes again.
    kept = (column for column in table.columns if column.computed is None)
    return sa.table(table.name, *(sa.column(column.name, _stored(column.type)) for column in kept))


def _stored(type: sa.types.TypeEngine[Any]) -> sa.types.TypeEngine[Any]:
    return type.impl_instance if isinstance(type, sa.types.TypeDecorator) else type


def _key(table: sa.TableClause) -> list[sa.ColumnElement[Any]]:
    return [table.c[column.name] for column in tables.METADATA.tables[table.name].primary_key.columns]


def _by_age(table: sa.TableClause) -> sa.Select[Any] | None:
    """Images and copies oldest first: what is new comes last, so that the lines before it stay where they are."""
    image = tables.IMAGES.c
    if table.name == tables.IMAGES.name:
        return sa.select(table).order_by(table.c.sequence, table.c.id)
    if table.name == tables.COPIES.name:
        joined = sa.select(table).join_from(table, tables.IMAGES, table.c.image_id == image.id)
        return joined.order_by(image.sequence, image.id, table.c.number)
    return None


def _single(value: object) -> Lines:
    return Lines([None], [_line(value)])


def _line(value: object) -> bytes:
    return _ENCODE(value).encode() + b"\n"


def _load(connection: sa.Connection, lines: Iterator[Any]) -> int:
    head(next(lines, None))
    plain = {table.name: table for table in _dumped()}
    statement: sa.Insert | None = None
    columns: list[str] = []
    batch: list[list[Any]] = []
    count = 0
    for line in lines:
        if isinstance(line, list):
            batch.append(line)
            if len(batch) >= _BATCH:
                count += _insert(connection, statement, columns, batch)
            continue
        count += _insert(connection, statement, columns, batch)
        if not isinstance(line, dict):
            raise damaged(f"it holds {line!r} in place of a row")
        if "rows" in line:
            if line["rows"] != count or next(lines, None) is not None:
                raise damaged(f"it holds {count} rows and says {line['rows']}")
            return count
        table, columns = plain.get(str(line.get("table"))), line.get("columns", [])
        if table is None or not columns:
            raise damaged(f"it holds a table {line.get('table')}")
        statement = table.insert()
    raise damaged("it has no foot")


def _insert(connection: sa.Connection, statement: sa.Insert | None, columns: list[str], batch: list[list[Any]]) -> int:
    count = len(batch)
    if statement is not None and batch:
        try:
            connection.execute(statement, [dict(zip(columns, row, strict=True)) for row in batch])
        except (exc.SQLAlchemyError, ValueError, TypeError) as error:
            # The checksum comes last: bytes that were turned may look like rows until then.
            raise damaged(f"its rows do not fit: {error}") from error
    elif batch:
        raise damaged("rows without a table")
    batch.clear()
    return count
