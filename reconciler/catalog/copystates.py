"""What a unit was found to hold of a copy: it is there, damaged or lost.

Scrubs, verifications and whoever reads a copy tell it here. Separate from ``images``, which passes it on, because a
command that reads one copy needs nothing of what writing and expiring them takes.
"""

from __future__ import annotations

import datetime as dt
from typing import Final

from reconciler.catalog import audits, database, rows

_JUDGED: Final = ("Complete", "Lost", "Damaged")


def mark(
    db: database.Database,
    image_id: str,
    number: int,
    state: str,
    now: dt.datetime,
    actor: str,
    message: str,
) -> bool:
    """What the unit was found to hold: the copy is there, damaged, or lost. Whether that was news.

    Copies being written or expired keep their state: they are somebody's work. Raises ``NotFound``.
    """
    if state not in _JUDGED:
        raise ValueError(f"{state} cannot be found on a unit")
    with db.writing() as connection:
        copy = rows.require_copy(connection, image_id, number)
        if copy.state == state or copy.state not in _JUDGED:
            return False
        rows.update_copy(connection, image_id, number, state=state, changed_at=now, message=message)
        details = {"unit": copy.unit, "before": copy.state, "message": message}
        object = f"copy/{image_id}/{number}"
        audits.record(connection, now=now, actor=actor, event=f"Copy{state}", object=object, details=details)
        return True
