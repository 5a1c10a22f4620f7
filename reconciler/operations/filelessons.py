"""The search cache of files, kept level with the catalog: an image is learned once it is there, and forgotten with it.

``backups`` teaches each image right after its commit. What a crash, an unreachable unit or a lost cache left out,
``catch_up`` teaches from the attachments on the units: beside the loop now and then, and for whoever searches, before.
Nothing here fails anybody's work: the cache is a convenience that can be made anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import threading
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
#: Seconds that a job waits for others that write in the cache, and that an image being learned may keep the loop from
#: ending; what is left out is learned later.
_PATIENCE: Final = 5.0
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Caught:
    """What catching up came to; counts of images."""

    learned: int
    forgotten: int
    #: Images that could not be learned now, and why.
    failed: tuple[tuple[str, str], ...]

    def told(self) -> tuple[str, ...]:
        """What failed, in a line for each cause: thousands of images may lie on one unit that is not there."""
        causes: dict[str, list[str]] = {}
        for image, why in self.failed:
            causes.setdefault(why, []).append(image)
        return tuple(
            f"the files of {of[0]}{f' and {len(of) - 1} more' if len(of) > 1 else ''} cannot be searched: {why}"
            for why, of in causes.items()
        )


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
            _learn(site.units, site.files, row, {}, patience=_PATIENCE)
    except errors.HoldfastError as error:
        log(f"the files of {image} cannot be searched yet: {error}")


def relearn(site: sites.Site, image: str) -> None:
    """Have the search cache look at an image anew; what goes wrong is made good by the next look."""
    if site.files is None:
        return
    with contextlib.suppress(errors.CatalogError):
        try:
            site.files.head(image)
        except errors.NotFound:
            # Not known, or known as one without an index.
            site.files.forget([image], patience=_PATIENCE)
            learn(site, image, lambda _line: None)


def forget(site: sites.Site, image: str, log: Callable[[str], None]) -> None:
    """Forget an image, unless another good copy of it is there."""
    if site.files is None:
        return
    try:
        if not listings.whereabouts(site.db, image):
            site.files.forget([image], patience=_PATIENCE)
    except errors.HoldfastError as error:
        log(f"the files of {image} can still be searched: {error}")


def catch_up(
    db: database.Database,
    units: opening.OpenUnits,
    files: answers.Cache,
    *,
    meter: meters.Meter,
    client: str | None = None,
) -> Caught:
    """Learn every image that the cache does not know, and forget those that are gone. Raises ``Cancelled``.

    ``client``: an id, for its images alone. Raises ``CatalogError`` where the catalog or the cache cannot be used.
    ``meter`` counts images as ``scanned``.
    """
    rows = [row for row in listings.whereabouts(db) if client is None or row.client_id == client]
    wanted = {row.image: image_of(row) for row in rows}
    known = {one.id: one for one in files.images(client)}
    # An image that another catalog told otherwise of is learned as this one tells of it.
    gone = {id for id, one in known.items() if wanted.get(id) != one}
    files.forget(gone)
    missing = [row for row in rows if row.image not in known or row.image in gone]
    meter.add(total=len(missing))
    learned = 0
    failed: list[tuple[str, str]] = []
    lost: dict[str, errors.HoldfastError] = {}
    for row in missing:
        meter.check()
        try:
            learned += _learn(units, files, row, lost)
        except (errors.UnitError, errors.FormatTooNew, errors.NotFound) as error:
            failed.append((row.image, error.message))
            if isinstance(error, errors.AttachmentDamaged):
                # Known as one without an index, until that is made anew; so it is said once.
                files.learn(image_of(row), None)
        meter.add(scanned=1)
    return Caught(learned=learned, forgotten=len(gone.difference(wanted)), failed=tuple(failed))


def _learn(
    units: opening.OpenUnits,
    files: answers.Cache,
    row: listings.Whereabouts,
    lost: dict[str, errors.HoldfastError],
    *,
    patience: float | None = None,
) -> bool:
    """Learn from the first copy whose index can be read.

    Raises ``AttachmentDamaged`` where every copy has none that can be, else what kept the last one from being read.

    ``lost``: units that are not there, which are not asked again.
    """
    trouble: errors.HoldfastError | None = None
    for name in row.units:
        try:
            if name in lost:
                raise lost[name]
            with contextlib.closing(units.get(name).open(row.image)) as stored:
                return files.learn(image_of(row), fileindexing.index_of(stored), patience=patience)
        except (errors.UnitError, errors.FormatTooNew, errors.NotFound) as error:
            if isinstance(error, errors.UnitOffline | errors.NotFound):
                lost[name] = error
            if trouble is None or not isinstance(error, errors.AttachmentDamaged):
                trouble = error
    if trouble is not None:
        raise trouble
    return False


class Keeper:
    """Catches up beside the loop, once it has begun and every hour from then on, in a thread of its own. Close it.

    The cache is worth no delay of a backup: what is learned may be much, and a unit may be slow to say that it is away.
    """

    def __init__(self, site: sites.Site) -> None:
        self._site = site
        self._next = 0.0
        #: What was told the last time.
        self._told: frozenset[str] = frozenset()
        self._meter = meters.Meter()
        self._thread: threading.Thread | None = None

    def turn(self, log: Callable[[str], None]) -> None:
        """Begin where it is time; returns at once. What goes wrong goes to the log."""
        if self._site.files is None or time.monotonic() < self._next or (self._thread and self._thread.is_alive()):
            return
        # Set here and once more at the end, so that one that dies is not begun again at every tick.
        self._next = time.monotonic() + _EVERY
        self._thread = threading.Thread(target=self._catch_up, args=(self._site.files, log), name="files", daemon=True)
        self._thread.start()

    def _catch_up(self, files: answers.Cache, log: Callable[[str], None]) -> None:
        try:
            caught = catch_up(self._site.db, self._site.units, files, meter=self._meter)
        except errors.Cancelled:
            return
        except errors.HoldfastError as error:
            log(f"the search cache of files was not brought up to date: {error}")
        else:
            lines = caught.told()
            for line in lines:
                if line not in self._told:
                    log(line)
            self._told = frozenset(lines)
        self._next = time.monotonic() + _EVERY

    def close(self) -> None:
        """Stop, after the image that is being learned, which is waited for a few seconds. Idempotent."""
        self._meter.cancel()
        if self._thread is not None:
            self._thread.join(_PATIENCE)
