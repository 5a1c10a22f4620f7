"""Images and copies as plain rows, with every field that ``get images`` and ``get copies`` show but a plan's words.

Read by the command line and the reports; decisions read ``histories``. An image whose last copy expired is no longer
listed unless asked for; its copies are, as Expired.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa

from reconciler.catalog import database, histories, tables
from reconciler.planning import sightings


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DiskFacts:
    """One disk of an image."""

    name: str
    #: Virtual size in bytes.
    size: int
    #: Logical sector size in bytes.
    sector: int
    #: ``blake3-1m:<hex>``, None where it was not read.
    digest: str | None
    #: Hex of the plain BLAKE3 of the whole disk, where the whole disk was read.
    blake3: str | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ImageRow:
    """One committed image."""

    id: str
    #: Slug of the client.
    client: str
    client_id: str
    policy: str
    schedule: str
    lifecycle: str
    #: Full, Incremental or Cumulative.
    type: str
    #: Complete or Partial.
    state: str
    time: dt.datetime
    slot: dt.datetime
    sequence: int
    revision: str
    parent: str | None
    #: Known or FullRead.
    changes: str
    consistency: str
    size_bytes: int
    disks: tuple[DiskFacts, ...]
    #: ``{"code": ..., "message": ...}`` each.
    warnings: tuple[Mapping[str, str], ...]
    #: Numbers of the copies that are not Expired.
    copies: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CopyRow:
    """One copy, in whatever state."""

    image: str
    number: int
    #: Slug of the client.
    client: str
    client_id: str
    policy: str
    operation: str
    unit: str
    #: Writing, Complete, Damaged, Lost, Expiring or Expired.
    state: str
    created_at: dt.datetime
    stored_bytes: int
    #: Image on the same unit that this copy needs, None where it stands alone.
    base: str | None
    imported: bool
    #: When the state last changed, and why.
    changed_at: dt.datetime
    message: str
    #: Writing copies: Damaged or Lost where such a copy is made anew.
    fallback: str | None = None

    @property
    def readable(self) -> bool:
        """Whether it may hold something; a damaged one that is made anew does until the new one has its place."""
        return self.state in sightings.READABLE or (self.state == "Writing" and self.fallback == "Damaged")


_PLAIN: Final = tuple(
    field.name for field in dataclasses.fields(ImageRow) if field.name not in ("client", "disks", "warnings", "copies")
)


def list_images(
    db: database.Database,
    *,
    client_id: str | None = None,
    policy: str | None = None,
    image_id: str | None = None,
    expired: bool = False,
) -> tuple[ImageRow, ...]:
    """Committed images that match all that is given, by id; with ``expired``, those without any copy left too."""
    image = tables.IMAGES.c
    chosen = _chosen({image.client_id: client_id, image.policy: policy, image.id: image_id})
    slug = tables.CLIENTS.c.slug.label("client")
    images = (
        sa.select(slug, image.disks, image.warnings, *(image[name] for name in _PLAIN))
        .join_from(tables.IMAGES, tables.CLIENTS, image.client_id == tables.CLIENTS.c.id)
        .where(image.state.in_(histories.COMMITTED), *chosen)
        .order_by(image.id)
    )
    copy = tables.COPIES.c
    copies = (
        sa.select(copy.image_id, copy.number)
        .join_from(tables.COPIES, tables.IMAGES, copy.image_id == image.id)
        .where(copy.state != "Expired", *chosen)
        .order_by(copy.image_id, copy.number)
    )
    numbers: dict[str, list[int]] = {}
    with db.reading() as connection:
        for id, number in connection.execute(copies):
            numbers.setdefault(id, []).append(number)
        rows = connection.execute(images).all()
    return tuple(_image(row._mapping, numbers.get(row.id, [])) for row in rows if expired or row.id in numbers)


def list_copies(
    db: database.Database, *, image_id: str | None = None, client_id: str | None = None, unit: str | None = None
) -> tuple[CopyRow, ...]:
    """Copies in every state that match all that is given, by image and number."""
    image, copy = tables.IMAGES.c, tables.COPIES.c
    query = (
        sa.select(
            copy.image_id.label("image"), copy.number, tables.CLIENTS.c.slug.label("client"), image.client_id,
            image.policy, copy.operation, copy.unit, copy.state, copy.created_at, copy.stored_bytes, copy.base,
            copy.imported, copy.changed_at, copy.message, copy.fallback,
        )
        .join_from(tables.COPIES, tables.IMAGES, copy.image_id == image.id)
        .join(tables.CLIENTS, image.client_id == tables.CLIENTS.c.id)
        .where(*_chosen({copy.image_id: image_id, image.client_id: client_id, copy.unit: unit}))
        .order_by(copy.image_id, copy.number)
    )  # fmt: skip
    with db.reading() as connection:
        return tuple(CopyRow(**row._mapping) for row in connection.execute(query))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Whereabouts:
    """An image and the units that hold a copy of it that can be read."""

    image: str
    client_id: str
    time: dt.datetime
    sequence: int
    #: Names, good copies first, by copy number; never empty.
    units: tuple[str, ...]


def whereabouts(db: database.Database, image_id: str | None = None) -> tuple[Whereabouts, ...]:
    """Every committed image with a copy that can be read, or that one, in the order in which they were made.

    A damaged copy is better than none: what is damaged may be another part of it than the one that is wanted.
    """
    image, copy = tables.IMAGES.c, tables.COPIES.c
    query = (
        sa.select(image.id, image.client_id, image.time, image.sequence, copy.unit)
        .join_from(tables.COPIES, tables.IMAGES, copy.image_id == image.id)
        .where(
            image.state.in_(histories.COMMITTED),
            copy.state.in_(sightings.READABLE),
            *_chosen({image.id: image_id}),
        )
        .order_by(image.sequence, image.id, copy.state.not_in(sightings.GOOD), copy.number)
    )
    with db.reading() as connection:
        rows = connection.execute(query).all()
    found: dict[str, Whereabouts] = {}
    for id, client_id, time, sequence, unit in rows:
        before = found[id].units if id in found else ()
        found[id] = Whereabouts(image=id, client_id=client_id, time=time, sequence=sequence, units=(*before, unit))
    return tuple(found.values())


def _chosen(wanted: Mapping[sa.ColumnElement[Any], str | None]) -> list[sa.ColumnElement[bool]]:
    return [column == value for column, value in wanted.items() if value is not None]


def _image(row: Mapping[Any, Any], copies: list[int]) -> ImageRow:
    return ImageRow(
        disks=tuple(DiskFacts(**disk) for disk in row["disks"]),
        warnings=tuple(row["warnings"]),
        copies=tuple(copies),
        client=row["client"],
        **{name: row[name] for name in _PLAIN},
    )
