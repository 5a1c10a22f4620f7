"""Single rows of images and copies inside a transaction of the caller: found, or refused with the next step.

Shared by ``images``, ``departures`` and ``rulings``, which change them.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from reconciler.base import errors
from reconciler.catalog import tables


def find_image(connection: sa.Connection, image_id: str) -> sa.Row[Any] | None:
    """Id, state, type, client id and policy of an image, None where there is none."""
    columns = tables.IMAGES.c
    query: sa.Select[Any] = sa.select(columns.id, columns.state, columns.type, columns.client_id, columns.policy)
    return connection.execute(query.where(columns.id == image_id)).first()


def require_image(connection: sa.Connection, image_id: str) -> sa.Row[Any]:
    """The same. Raises ``NotFound``."""
    found = find_image(connection, image_id)
    if found is None:
        raise errors.NotFound(f"there is no image {image_id}", hint="holdfast get images lists them")
    return found


def require_copy(connection: sa.Connection, image_id: str, number: int) -> sa.Row[Any]:
    """The whole row of a copy. Raises ``NotFound``."""
    copy = tables.COPIES.c
    query = sa.select(tables.COPIES).where(copy.image_id == image_id, copy.number == number)
    found = connection.execute(query).first()
    if found is None:
        raise errors.NotFound(f"image {image_id} has no copy {number}", hint="holdfast get copies lists them")
    return found


def update_copy(connection: sa.Connection, image_id: str, number: int, **values: Any) -> None:
    """Change columns of a copy."""
    copy = tables.COPIES.c
    connection.execute(tables.COPIES.update().where(copy.image_id == image_id, copy.number == number).values(**values))
