"""The catalog as one compact file, written onto every storage unit after a pass that changed something.

JSON lines under zstd: a head, then for each table its name and columns and its rows, then a foot with their number.
Job logs stay behind. ``load_dump`` fills a fresh catalog with it, id included, so that the units' owner is back.
A unit keeps the newest two under ``catalog/``; each is complete, or was never given its name.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
import zstandard
from sqlalchemy import exc

from reconciler.base import crashes, errors, files
from reconciler.catalog import audits, database, migrations, servers, tables

FORMAT_VERSION: Final = 1
_FOLDER: Final = "catalog"
_NAME: Final = re.compile(r"dump-(\d{8,})\.jsonl\.zst\Z")
_KEPT: Final = 2
_BATCH: Final = 5000
_LEVEL: Final = 3
#: Events that a rebuilt catalog can do without. After a cancel, above all, no byte of a unit may change any more.
_PASSING: Final = ("AlarmTold", "AlarmNotTold", "CancelRequested", "LeaseTaken", "Requested")
_ENCODE: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def mark(db: database.Database) -> int:
    """A number that grows with every change worth a dump."""
    with db.reading() as connection:
        return audits.newest(connection, beside=_PASSING)


def is_current(root: Path, catalog: str, mark: int) -> bool:
    """Whether the unit's newest dump shows this catalog at this mark, and no unfinished one lies beside it."""
    known = list_dumps(root)
    if not known or any((root / _FOLDER).glob(f"{files.TEMPORARY_PREFIX}*")):
        return False
    try:
        with known[-1].open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as packed:
            head = json.loads(io.TextIOWrapper(packed, encoding="utf-8", newline="\n").readline())
    except (OSError, ValueError, zstandard.ZstdError):
        # Unreadable is not current: the next dump replaces it.
        return False
    return isinstance(head, dict) and head.get("catalog") == catalog and head.get("mark") == mark


def dump(db: database.Database) -> bytes:
    """One moment of the catalog, compressed. The whole result is held in memory: about 50 bytes an image."""
    target = io.BytesIO()
    packer = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    with packer.stream_writer(target, closefd=False) as stream, db.reading() as connection:
        head = {"holdfast": "catalog", "formatVersion": FORMAT_VERSION, "schema": migrations.HEAD}
        stream.write(_line({**head, "catalog": db.id, "mark": audits.newest(connection, beside=_PASSING)}))
        count = 0
        for table in _dumped():
            stream.write(_line({"table": table.name, "columns": [column.name for column in table.columns]}))
            rows = connection.execute(sa.select(table).order_by(*_key(table)), execution_options={"yield_per": _BATCH})
            for batch in rows.partitions():
                stream.write(b"".join(_line(list(row)) for row in batch))
                count += len(batch)
        stream.write(_line({"rows": count}))
    return target.getvalue()


def load_dump(db: database.Database, data: bytes) -> int:
    """Fill a fresh catalog with a dump, all of it or nothing; the number of rows.

    Raises ``FormatTooNew``, and ``CatalogError`` for a damaged dump or a catalog that holds something already.
    """
    with db.writing() as connection:
        for table in (tables.IMAGES, tables.OBJECTS, tables.CLIENTS, tables.JOBS):
            if connection.scalar(sa.select(sa.func.count()).select_from(table)):
                raise errors.CatalogError(
                    f"{db.location}: this catalog is in use", hint="load a dump into a new one: move this one aside"
                )
        for table in (tables.FACTS, tables.COUNTERS, tables.LEASES):
            connection.execute(table.delete())
        count = _load(connection, _lines(data))
        if db.shared:
            servers.count_on(connection)
    db.forget_id()
    return count


def write_dump(root: Path, data: bytes) -> Path:
    """Put a dump onto the unit at ``root``, durably, and drop all but the newest two; its path. Raises ``OSError``."""
    folder = root / _FOLDER
    if not folder.exists():
        folder.mkdir(exist_ok=True)
        files.sync_folder(root)
    for left in folder.glob(f"{files.TEMPORARY_PREFIX}*"):
        left.unlink(missing_ok=True)
    known = list_dumps(root)
    number = _number(known[-1]) + 1 if known else 1
    target = folder / f"dump-{number:08d}.jsonl.zst"
    temporary = files.temporary_name(target)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    crashes.passing("dump.written")
    temporary.replace(target)
    files.sync_folder(folder)
    for old in known[: len(known) + 1 - _KEPT]:
        old.unlink(missing_ok=True)
    return target


def list_dumps(root: Path) -> tuple[Path, ...]:
    """The complete dumps on a unit, newest last."""
    folder = root / _FOLDER
    found = [path for path in folder.iterdir() if _NAME.match(path.name)] if folder.is_dir() else []
    return tuple(sorted(found, key=_number))


def _number(path: Path) -> int:
    found = _NAME.match(path.name)
    return int(found[1]) if found else 0


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


def _line(value: object) -> bytes:
    return _ENCODE(value).encode() + b"\n"


def _damaged(why: object) -> errors.CatalogError:
    return errors.CatalogError(
        f"this dump of the catalog is damaged: {why}", hint="use the other one, or another unit's"
    )


def _lines(data: bytes) -> Iterator[Any]:
    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)) as packed:
            for line in io.TextIOWrapper(packed, encoding="utf-8", newline="\n"):
                yield json.loads(line)
    except (zstandard.ZstdError, ValueError) as error:
        raise _damaged(error) from error


def _load(connection: sa.Connection, lines: Iterator[Any]) -> int:
    head = next(lines, None)
    if not isinstance(head, dict) or head.get("holdfast") != "catalog":
        raise _damaged("it has no head")
    if head["formatVersion"] > FORMAT_VERSION or head["schema"] not in migrations.REVISIONS:
        raise errors.FormatTooNew("this dump was written by a newer Holdfast", hint="upgrade Holdfast")
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
        if "rows" in line:
            if line["rows"] != count or next(lines, None) is not None:
                raise _damaged(f"it holds {count} rows and says {line['rows']}")
            return count
        if line.get("table") not in plain:
            raise _damaged(f"it holds a table {line.get('table')}")
        statement, columns = plain[line["table"]].insert(), line["columns"]
    raise _damaged("it has no foot")


def _insert(connection: sa.Connection, statement: sa.Insert | None, columns: list[str], batch: list[list[Any]]) -> int:
    count = len(batch)
    if statement is not None and batch:
        try:
            connection.execute(statement, [dict(zip(columns, row, strict=True)) for row in batch])
        except (exc.SQLAlchemyError, ValueError) as error:
            # The checksum comes last: bytes that were turned may look like rows until then.
            raise _damaged(f"its rows do not fit: {error}") from error
    elif batch:
        raise _damaged("rows without a table")
    batch.clear()
    return count
