"""What a source recorded of an image's reading: bitmaps, hidden ranges, whatever its next incremental needs.

``images`` keeps it with each image and calls ``forget`` when a newer one is committed; ``operations`` asks for that of
a parent. It is worth having only while an incremental may name the image as its parent, and may be large.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from reconciler.base import errors
from reconciler.catalog import database, tables

#: How many of the newest images, and of the newest fulls, of a machine and policy keep it: those still copied to the
#: unit where they become parents are among them.
_KEPT: Final = 3


def recorded(db: database.Database, image_id: str) -> dict[str, str]:
    """What the source recorded at the image's reading, empty where that was forgotten. Raises ``NotFound``."""
    with db.reading() as connection:
        known = connection.execute(
            sa.select(tables.IMAGES.c.source_state).where(tables.IMAGES.c.id == image_id)
        ).first()
    if known is None:
        raise errors.NotFound(f"the catalog has no image {image_id}")
    return dict(known[0])


def forget(connection: sa.Connection, client_id: str, policy: str) -> None:
    """Drop it for images that no incremental will name as its parent any more.

    An image without it can still become one, after others expired: its child is then read whole.
    """
    image = tables.IMAGES.c
    mine = (image.spent == sa.false(), image.client_id == client_id, image.policy == policy, image.state == "Complete")
    newest = sa.select(image.id).where(*mine).order_by(image.sequence.desc()).limit(_KEPT)
    fulls = sa.select(image.id).where(*mine, image.type == "Full").order_by(image.sequence.desc()).limit(_KEPT)
    kept = {row.id for query in (newest, fulls) for row in connection.execute(query)}
    connection.execute(
        tables.IMAGES.update().where(*mine, image.source_state != {}, image.id.not_in(kept)).values(source_state={})
    )
