"""Numbers of the catalog that only grow: the sequence that orders images whose clocks disagree."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from reconciler.catalog import tables

IMAGE_SEQUENCE: Final = "image-sequence"


def current(connection: sa.Connection, name: str) -> int:
    """The last number given out, 0 before the first."""
    return int(connection.scalar(sa.select(tables.COUNTERS.c.value).where(tables.COUNTERS.c.name == name)) or 0)


def next_number(connection: sa.Connection, name: str) -> int:
    """The next number, within the caller's writing transaction."""
    number = current(connection, name) + 1
    raise_to(connection, name, number)
    return number


def raise_to(connection: sa.Connection, name: str, number: int) -> None:
    """Make sure that numbers up to ``number`` are never given out again."""
    counter = tables.COUNTERS
    known = connection.scalar(sa.select(counter.c.value).where(counter.c.name == name))
    if known is None:
        connection.execute(counter.insert().values(name=name, value=number))
    elif known < number:
        connection.execute(counter.update().where(counter.c.name == name).values(value=number))
