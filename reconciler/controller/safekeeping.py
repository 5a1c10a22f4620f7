"""The catalog's dumps on the storage units: what is known, kept beside the bytes it is about.

The loop writes them at the end of a pass that changed something; a command that records a ruling while no controller
lives writes them itself, so that what it recorded survives the catalog's disk. Both do it through ``write_dumps``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from reconciler.catalog import database, dumps, inventories
from reconciler.controller import observations
from reconciler.planning import desired
from reconciler.storage import opening

_log = logging.getLogger(__name__)


def write_dumps(
    db: database.Database, wanted: desired.Desired, written: dict[str, int], *, anew: bool = False
) -> tuple[str, ...]:
    """A dump onto every unit that is online and has not the present one; the units that could not be written.

    ``written`` remembers, by unit, the mark of the dump that this process wrote there, and is brought up to date.
    ``anew``: write it also where it seems to be there.
    """
    mark = dumps.mark(db)
    behind = {
        name: declared
        for name, declared in _writable(db, wanted).items()
        if anew or (written.get(name) != mark and not dumps.is_current(declared.path, db.id, mark))
    }
    data = dumps.dump(db) if behind else b""
    failed = []
    for name, declared in behind.items():
        try:
            dumps.write_dump(declared.path, data)
        except OSError as error:
            _log.warning("storage unit %s: the catalog's dump was not written: %s", name, error)
            failed.append(name)
            continue
        written[name] = mark
    return tuple(failed)


def _writable(db: database.Database, wanted: desired.Desired) -> Mapping[str, opening.Declared]:
    known = inventories.known_units(db)
    return {
        name: unit
        for name, unit in observations.declared_units(wanted).items()
        if name in known and opening.look(unit, known_id=known[name].id, owner=db.id).state == "Online"
    }
