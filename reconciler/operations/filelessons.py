"""The search cache of files, kept level with the catalog: an image is learned once it is there, and forgotten with it.

``backups`` teaches each image right after its commit. What a crash, an unreachable unit or a lost cache left out,
``catch_up`` teaches from the attachments on the units: the loop calls it now and then, and whoever searches, before.
Nothing here fails anybody's work: the cache is a convenience that can be made anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import time
from collections.abc import Callable
from typing import Final

from reconciler.base import errors, meters
from reconciler.catalog import database, listings
from reconciler.catalog.fileindexes import answers
from reconciler.operations import fileindexing, sites
from reconciler.storage import opening

#: Seconds between two comparisons of the whole cache with the whole catalog by the loop.
_EVERY: Final = 3_600.0
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Caught:
    """What catching up came to; counts of images."""

    learned: int
    forgotten: int
    #: Images that could not be learned now, and why.
    failed: tuple[tuple[str, str], ...]
    #: Whether nothing is left to learn but what failed.
    done: bool


def image_of(row: listings.Whereabouts) -> answers.Image:
    """An image as the cache calls it."""
    moment = row.time if row.time.tzinfo is not None else row.time.replace(tzinfo=dt.UTC)
    return answers.Image(
        id=row.image,
        client=row.client_id,
        time=(moment - _EPOCH) // dt.timedelta(microseconds=1) * 1000,
        sequence=row.sequence,
    )


def learn(site: sites.Site, image: str, log: Callable[[str], None]) -> None:
    """Teach an image that was just recorded. What goes wrong goes to the log."""
    if site.files is None:
        return
    try:
        for row in listings.whereabouts(site.db, image):
            _learn(site.units, site.files, row)
    except errors.HoldfastError as error:
        log(f"the files of {image} cannot be searched yet: {error}")


def forget(site: sites.Site, image: str, log: Callable[[str], None]) -> None:
    """Forget an image, unless another good copy of it is there."""
    if site.files is None:
        return
    try:
        if not listings.whereabouts(site.db, image):
            site.files.forget([image])
    except errors.HoldfastError as error:
        log(f"the files of {image} can still be searched: {error}")


def catch_up(
    db: database.Database,
    units: opening.OpenUnits,
    files: answers.Cache,
    *,
    meter: meters.Meter,
    client: str | None = None,
    seconds: float | None = None,
) -> Caught:
    """Learn every image that the cache does not know, and forget those that are gone. Raises ``Cancelled``.

    ``client``: an id, for its images alone. ``seconds``: after which no further image is begun; None for no bound.
    Raises ``CatalogError`` where the catalog or the cache cannot be used. ``meter`` counts images as ``scanned``.
    """
    began = time.monotonic()
    rows = [row for row in listings.whereabouts(db) if client is None or row.client_id == client]
    known = {one.image.id for one in files.learned(client)}
    gone = known.difference(row.image for row in rows)
    files.forget(gone)
    missing = [row for row in rows if row.image not in known]
    meter.add(total=len(missing))
    # Where there are very many images, comparing takes longer than that: what is compared for is worth more time.
    looked = time.monotonic()
    deadline = None if seconds is None else looked + max(seconds, 4 * (looked - began))
    learned = 0
    failed: list[tuple[str, str]] = []
    for row in missing:
        meter.check()
        if deadline is not None and learned and time.monotonic() > deadline:
            return Caught(learned=learned, forgotten=len(gone), failed=tuple(failed), done=False)
        try:
            learned += _learn(units, files, row)
        except (errors.UnitError, errors.FormatTooNew, errors.NotFound) as error:
            failed.append((row.image, error.message))
        meter.add(scanned=1)
    return Caught(learned=learned, forgotten=len(gone), failed=tuple(failed), done=True)


def _learn(units: opening.OpenUnits, files: answers.Cache, row: listings.Whereabouts) -> bool:
    """Learn from the first copy whose index can be read. Raises what the last one did."""
    trouble: errors.HoldfastError | None = None
    for name in row.units:
        try:
            with contextlib.closing(units.get(name).open(row.image)) as stored:
                return files.learn(image_of(row), fileindexing.index_of(stored))
        except (errors.UnitError, errors.FormatTooNew, errors.NotFound) as error:
            trouble = error
    if trouble is not None:
        raise trouble
    return False


class Keeper:
    """Catches up beside the loop, a little at each turn until all is learned, then once an hour."""

    def __init__(self, site: sites.Site) -> None:
        self._site = site
        self._next = 0.0

    def turn(self, log: Callable[[str], None]) -> None:
        """Go on for about a second. What goes wrong goes to the log."""
        files = self._site.files
        if files is None or time.monotonic() < self._next:
            return
        try:
            caught = catch_up(self._site.db, self._site.units, files, meter=meters.Meter(), seconds=1.0)
        except errors.HoldfastError as error:
            log(f"the search cache of files was not brought up to date: {error}")
            self._next = time.monotonic() + _EVERY
            return
        for image, why in caught.failed:
            log(f"the files of {image} cannot be searched: {why}")
        if caught.done:
            self._next = time.monotonic() + _EVERY
