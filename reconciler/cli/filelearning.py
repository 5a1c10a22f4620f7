"""What the search cache of files lacks, learned from the storage units before a search; loaded only where that is so.

The loop does the same now and then (``operations.filelessons``), so a search has to wait only after the cache was lost,
or where no loop runs.
"""

from __future__ import annotations

import contextlib
import logging

from reconciler.base import meters
from reconciler.catalog import inventories
from reconciler.catalog.fileindexes import answers
from reconciler.cli import progress, sessions, settings
from reconciler.operations import filelessons
from reconciler.storage import opening

_LOGGER = logging.getLogger(__name__)


def catch_up(chosen: settings.Settings, found: answers.Cache) -> None:
    """Learn all that can be. Raises ``CatalogError`` and ``Cancelled``; an index that cannot be read is a warning."""
    sessions.start_logging()
    meter = meters.Meter()
    with (
        sessions.writing(chosen) as db,
        contextlib.closing(opening.OpenUnits(owner=None, cache=chosen.caches)) as units,
        sessions.cancelling(meter),
        progress.metered(meter, "indexes of files"),
    ):
        known = inventories.known_units(db)
        units.declare({one.name: opening.declared(one.name, one.type, one.path, None, None) for one in known.values()})
        caught = filelessons.catch_up(db, units, found, meter=meter)
    for line in caught.told():
        _LOGGER.warning("%s", line)
