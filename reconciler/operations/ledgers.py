"""The ledger that a backup's source writes into: snapshots are in the catalog before they are in the world."""

from __future__ import annotations

from reconciler.base import crashes
from reconciler.catalog import snapshots
from reconciler.operations import sites
from reconciler.planning import sightings
from reconciler.sources import machines


def seen(snapshot: machines.Snapshot) -> sightings.Snapshot:
    """A source's snapshot as decisions see it."""
    return sightings.Snapshot(
        id=snapshot.id,
        vcenter=snapshot.vcenter,
        client=snapshot.machine,
        machine=snapshot.machine_name,
        job=snapshot.job,
        place=snapshot.place,
        reference=snapshot.reference,
        since=snapshot.created,
    )


class CatalogLedger:
    """Implements ``machines.Ledger`` on the catalog of a site."""

    def __init__(self, site: sites.Site) -> None:
        self._site = site

    def intend(self, snapshot: machines.Snapshot) -> None:
        """Note it."""
        snapshots.intend(self._site.db, seen(snapshot), self._site.clock.now())
        crashes.passing("snapshot.noted")

    def made(self, id: str, reference: str) -> None:
        """Note the source's name of it."""
        crashes.passing("snapshot.made")
        snapshots.made(self._site.db, id, reference)

    def read_by(self, id: str, process: int) -> None:
        """Note who reads it."""
        snapshots.read_by(self._site.db, id, process)

    def gone(self, id: str) -> None:
        """Forget it."""
        crashes.passing("snapshot.removed")
        snapshots.gone(self._site.db, id)
