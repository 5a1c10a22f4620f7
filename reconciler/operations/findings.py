"""What reading a copy brought to light, written into the catalog.

``failovers`` tells of each copy that cannot be read; restores and mounts pass it on to ``recorder``. Separate, because
those who only read need no catalog.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from reconciler.base import clocks, errors
from reconciler.catalog import copystates, database
from reconciler.operations import failovers

_LOGGER = logging.getLogger(__name__)


def recorder(
    db: database.Database, clock: clocks.Clock, actor: str, log: Callable[[str], None], notes: list[str]
) -> Callable[[failovers.Failure], None]:
    """Records in the catalog what is wrong with a copy, says so by ``log``, and adds a sentence to ``notes``.

    A catalog that refuses stops nothing: the copies are read on.
    """

    def record(failure: failovers.Failure) -> None:
        found = failure.finding
        notes.append(str(failure))
        # Said even where the catalog is lost: whoever reads on must know from where.
        _LOGGER.warning("%s", failure)
        try:
            log(str(failure))
            if found is not None:
                number, now = failure.source.number, clock.now()
                copystates.mark(db, failure.image, number, found, now, actor, failure.said)
        except (errors.CatalogError, errors.NotFound) as error:
            _LOGGER.warning("not recorded: %s", error)

    return record
