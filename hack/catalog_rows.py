"""The rows that nightly backups leave in a catalog, many at a time: used by ``hack/make-catalog`` and by tests.

Column by column what ``images.begin_image``, ``commit_image``, ``begin_copy``, ``commit_copy`` and the job engine write
(a test compares them), as plain numbers and texts: a million images one by one would take a day.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

import sqlalchemy as sa

from reconciler.base import digests, times
from reconciler.catalog import jobs
from reconciler.planning import backups, duplications

#: Values in the order of ``COLUMNS``.
Row = tuple[Any, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One operation of a lifecycle."""

    operation: str
    unit: str
    #: Whether copies on the unit build on each other.
    chained: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Night:
    """One backup of one machine with all its copies."""

    image: str
    client: str
    slug: str
    policy: str
    schedule: str
    lifecycle: str
    #: Digest of the lifecycle's spec.
    owed: str
    #: Full or Incremental.
    type: str
    parent: str | None
    revision: str
    #: When its slot was, when it was frozen, and when its first copy was complete, in microseconds since 1970.
    slot: int
    frozen: int
    done: int
    sequence: int
    #: Number of the job that made copy 1; the next copies have the next numbers.
    job: int
    size: int
    stored: int
    #: What the disk's digest and BLAKE3 are made of: 64 hexadecimal digits each.
    digest: str
    blake3: str
    inode: int
    #: Whether an incremental may still name it as its parent.
    remembered: bool
    steps: Sequence[Step]


#: The columns of a row, in order, by table.
COLUMNS: Final = {
    "images": "id client_id policy schedule lifecycle owed type state time sequence slot revision parent changes "
    "consistency size_bytes disk_names disks warnings source_state spent",
    "copies": "image_id number operation unit state created_at stored_bytes base imported job changed_at message",
    "jobs": "number address type state attempt worker client_id policy image copy_number unit source_unit "
    "media_server parent queued_at started_at finished_at wall_seconds reading cancel_requested heartbeat",
    "audit": "at actor event object details",
}
#: Numbers that the database counts up where a row does not say.
COUNTED: Final = ("number",)
#: Microseconds between a backup's end and the end of each duplication after it.
_COPYING: Final = 40_000_000
_LASTED: Final = 3_000_000
_DISK: Final = "system.img"
_NAMES: Final = json.dumps([_DISK], separators=(",", ":"))
WORKER: Final = "backup1:4711:00000000.1:00000000"


def image(night: Night) -> Row:
    """The row of ``images`` once the backup was committed."""
    disks = (
        f'[{{"blake3":"{night.blake3}","digest":"blake3-1m:{night.digest}","name":"{_DISK}","sector":512,'
        f'"size":{night.size}}}]'
    )
    state = "{}"
    if night.remembered:
        known = f'{{"size":{night.size},"inode":{night.inode},"bitmap":null}}'
        state = digests.canonical_json({f"disk:{_DISK}": known}).decode()
    return (
        night.image, night.client, night.policy, night.schedule, night.lifecycle, night.owed, night.type, "Complete",
        night.frozen, night.sequence, night.slot, night.revision, night.parent, "FullRead", "Offline", night.size,
        _NAMES, disks, "[]", state, False,
    )  # fmt: skip


def copies(night: Night) -> list[Row]:
    """The rows of ``copies``, all complete."""
    return [
        (
            night.image, place + 1, step.operation, step.unit, "Complete", done, night.stored,
            night.parent if step.chained else None, False, jobs.job_id(night.job + place), done, "",
        )
        for place, step, done in _ends(night)
    ]  # fmt: skip


def _ends(night: Night) -> Iterable[tuple[int, Step, int]]:
    for place, step in enumerate(night.steps):
        yield place, step, night.done + place * _COPYING


def work(night: Night) -> list[Row]:
    """The rows of ``jobs``, all succeeded."""
    result = []
    reading = digests.canonical_json(
        {
            "hits": 0, "lookups": 0, "non_zero": night.size, "scanned": night.size, "sent": night.size,
            "stored": night.stored, "streams": 1, "total": night.size,
        }
    ).decode()  # fmt: skip
    for place, step, done in _ends(night):
        slot = times.to_moment(night.slot)
        first = place == 0
        result.append(
            (
                night.job + place,
                backups.address(night.policy, night.slug, slot)
                if first
                else duplications.address(night.image, step.operation),
                "Backup" if first else "Duplicate", "Succeeded", 1, WORKER, night.client, night.policy, night.image,
                1 if first else place, step.unit, None if first else night.steps[place - 1].unit, "local",
                night.parent if step.chained else None, done - 2 * _LASTED, done - _LASTED, done, _LASTED / 1e6,
                reading, False, done,
            )
        )  # fmt: skip
    return result


def trail(night: Night, actor: str) -> list[Row]:
    """The rows of ``audit``, without their numbers."""
    result: list[Row] = []
    for place, step, done in _ends(night):
        if place == 0:
            details = {"state": "Complete", "type": night.type, "policy": night.policy, "storedBytes": night.stored}
            event, object = "ImageCommitted", f"image/{night.image}"
        else:
            details = {"unit": step.unit, "operation": step.operation, "storedBytes": night.stored}
            event, object = "CopyCommitted", f"copy/{night.image}/{place + 1}"
        result.append((done, actor, event, object, digests.canonical_json(details).decode()))
    return result


def insert(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Many rows of plain values in the order of ``COLUMNS``; what is not named there gets its default."""
    if not rows:
        return
    named = COLUMNS[table.name].split()
    others = (column for column in table.columns if column.computed is None)
    rest = {column.name: _default(column) for column in others if column.name not in (*named, *COUNTED)}
    columns = ", ".join([*named, *rest])
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
        marks = ", ".join([*"?" * len(named), *map(_literal, rest.values())])
        driver.executemany(f"INSERT INTO {table.name} ({columns}) VALUES ({marks})", rows)
        return
    tail = "".join(f"\t{_spelled(value)}" for value in rest.values()) + "\n"
    text = "".join("\t".join(map(_spelled, row)) + tail for row in rows)
    driver.cursor().execute(f"COPY {table.name} ({columns}) FROM STDIN", stream=io.BytesIO(text.encode()))


def _default(column: sa.Column[Any]) -> object:
    """What a row that says nothing of a column has there."""
    return getattr(column.default, "arg", None)


def _literal(value: object) -> str:
    """A default as SQLite's SQL spells it."""
    if value is None:
        return "NULL"
    return str(int(value)) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"


def _spelled(value: object) -> str:
    """As PostgreSQL's COPY reads it."""
    if value is None:
        return r"\N"
    if isinstance(value, bool):
        return "t" if value else "f"
    text = str(value)
    return text.replace("\\", "\\\\") if "\\" in text else text


def number(moment: dt.datetime) -> int:
    """Microseconds since 1970."""
    return times.to_number(moment)
