"""Fencing: a controller that was suspended and succeeded must not decide anything once it wakes.

``leases`` grows the token with every new holder; whatever a holder decides carries its token, and is checked here
inside the transaction that writes it.
"""

from __future__ import annotations

import sqlalchemy as sa

from reconciler.base import errors
from reconciler.catalog import tables

CONTROLLER = "controller"


class Superseded(errors.CatalogError):
    """Another controller took the lease meanwhile."""


def check(connection: sa.Connection, token: int | None) -> None:
    """Refuse a token that is not the newest; None, from work outside a controller, passes. Raises ``Superseded``."""
    if token is None:
        return
    newest = connection.scalar(sa.select(tables.LEASES.c.token).where(tables.LEASES.c.name == CONTROLLER))
    if newest != token:
        raise Superseded(
            f"another controller took over (lease {newest}, this one holds {token})",
            hint="this process stops; see holdfast status for the one that leads",
        )
