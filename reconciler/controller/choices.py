"""Which image a restore reads, and its copies in the order in which they are read: good ones, the fastest unit first.

The newest image at or before a time that has a good copy and, for a restore, failed no drill; where there is none, the
best of the others by ``planning.preferences``. Copies that
are known to be damaged are read behind all others: every block is proven as it is read, so trying costs nothing, and
what is false on one of them may be whole on another. Commands and the loop choose here, ``operations.failovers`` reads;
between the two stands the job's row, which keeps every copy of the image from expiring: ``staying`` is asked once it is
there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import functools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Final

from reconciler.base import errors, times

# Not through images and inventories, which know how to write and so load what decides.
from reconciler.catalog import database, jobs, listings, machines, standings, verifications
from reconciler.jobs import engines
from reconciler.operations import failovers
from reconciler.planning import doubts, preferences, sightings
from reconciler.storage import opening, units

#: What is known of a copy of which nobody says where it is damaged.
_UNTOLD: Final = {"Writing": "it is being made anew"}
#: Restores that an estimate looks through, and takes at most.
_REMEMBERED: Final = 50
_JUDGING: Final = 5


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """One copy that may be read."""

    number: int
    unit: str
    #: ``Directory`` or ``DedupePool``.
    type: str
    path: Path
    #: Why it stands where it does.
    why: str
    #: What is known to be damaged of it, empty for a good copy.
    damage: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One image to restore, and its copies in the order in which they are read; there is one at least."""

    client: sightings.Client
    policy: str | None
    image: str
    time: dt.datetime
    copies: tuple[Copy, ...]
    #: Copies whose units cannot be reached now, ``why`` says how; they may have what the others turn out to lack.
    away: tuple[Copy, ...] = ()
    #: Newer images that were passed over, and why; a sentence each.
    passed: tuple[str, ...] = ()
    #: Why the image may not do, empty where nothing speaks against it: a drill that failed.
    doubt: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever restores must know before: a sentence each."""
        found = [
            f"copy {one.number} on {one.unit} is known to be damaged ({one.damage}); what proves true of it is read"
            for one in self.copies
            if one.damage
        ]
        return (*([self.doubt] if self.doubt else []), *self.passed, *found)

    @property
    def copy(self) -> int:
        """Number of the copy that is read first."""
        return self.copies[0].number

    @property
    def unit(self) -> str:
        """The unit it lies on."""
        return self.copies[0].unit

    def order(self, type: str, at: str) -> engines.Order:
        """What a command that reads it does under a row of its own; ``at`` tells one from the next."""
        return engines.Order(
            address=f"{type.lower()}/{self.client.slug}@{at}", type=type, client_id=self.client.id, policy=self.policy,
            image=self.image, copy=self.copy, source_unit=self.unit,
        )  # fmt: skip

    def open(self, cache: Path | None, failed: Callable[[failovers.Failure], None]) -> failovers.FailoverImage:
        """Open it for reading over all its copies; ``cache`` is the folder of the estate's caches.

        Copies that are away are asked last, so that a block which only they may have is not taken for missing.

        ``failed`` is told of copies that cannot be read. Raises ``UnitOffline``, ``ImageMissing`` or ``ImageDamaged``
        where none can.
        """
        sources = [
            failovers.Source(number=one.number, unit=one.unit, path=one.path, open=self._opener(one, cache))
            for one in self.copies
        ]
        sources += [
            failovers.Source(number=one.number, unit=one.unit, path=one.path, open=functools.partial(_offline, one))
            for one in self.away
        ]
        return failovers.FailoverImage(self.image, sources, failed)

    def _opener(self, copy: Copy, cache: Path | None) -> Callable[[], units.StoredImage]:
        def opened() -> units.StoredImage:
            # The image outlives the unit that it was opened through.
            with contextlib.closing(opening.open_folder(copy.path, cache)) as unit:
                return unit.open(self.image)

        return opened


def _offline(copy: Copy) -> units.StoredImage:
    raise errors.UnitOffline(copy.why)


def choose(
    db: database.Database,
    client: str,
    *,
    image: str | None,
    as_of: dt.datetime | None,
    copy: int | None,
    now: dt.datetime,
    proven: bool = False,
    way: str = "--image",
) -> Choice:
    """The image to restore and its copies; with ``copy`` that one alone. ``proven``: rather one that failed no drill.

    One that a wrong clock made later than ``now`` is not taken for the newest.
    ``way``: what whoever reads the notes writes before the id of an image to have it by name. Raises ``NotFound`` with
    what there is instead.
    """
    known = machines.find_client(db, client)
    every = listings.list_images(db, client_id=known.id)
    misdated = doubts.doubtful(every, now)
    rows = [row for row in every if image is None or row.id == image]
    if image is not None and not rows:
        raise errors.NotFound(f"client {known.name} has no image {image}", hint="holdfast get images lists them")
    if image is None:
        rows = [row for row in rows if row.state == "Complete" and (as_of is None or row.time <= as_of)]
    # One that somebody declared wrong is the last choice, as long as nobody asks for it by name.
    wrong = {one.object for one in standings.read(db).rulings if one.kind == "Expire"}
    failures = preferences.failed(verifications.of_client(db, known.id)) if proven else {}
    rows.sort(key=lambda row: (row.id not in wrong, row.time, row.sequence), reverse=True)
    units_known = machines.known_units(db)
    best: tuple[preferences.Rank, Choice] | None = None
    passed: list[str] = []
    refused: list[str] = []
    for row in rows:
        trusted, failed = row.id not in wrong, failures.get(row.id)
        if best is not None and not trusted:
            break
        copies, away, why = _copies(db, row.id, copy, units_known)
        whole = bool(copies) and not copies[0].damage
        if copies:
            dated = row.id not in misdated
            rank = preferences.Rank(trusted, whole, failed is None, dated, row.time, row.sequence)
            chosen = Choice(
                client=known, policy=row.policy, image=row.id, time=row.time, copies=copies, away=away,
                passed=tuple(passed), doubt=_doubt(row.id, failed, named=image is not None),
            )  # fmt: skip
            if rank.sound:
                return chosen
            best = (rank, chosen) if best is None or rank > best[0] else best
        if copies and not whole:
            why.append(f"it has damaged copies alone; {way} {row.id} reads what proves true of them")
        refused += why
        if trusted and whole and failed is not None:
            passed.append(preferences.passed_over(row.id, row.time, failed, f"{way} {row.id}"))
        elif trusted and whole:
            passed.append(preferences.misdated(row.id, row.time, f"{way} {row.id}"))
        elif trusted:
            passed.append(f"image {row.id} of {times.show(row.time)} is newer: {'; '.join(why) or 'it has no copy'}")
    if best is not None:
        return best[1]
    moment = f" at or before {times.show(as_of)}" if as_of else ""
    wanted = "a copy" if copy is None else f"a copy {copy}"
    raise errors.NotFound(
        f"client {known.name} has no complete image with {wanted} that can be read{moment}",
        hint="; ".join(refused[:5]) or "holdfast get images lists what there is",
    )


def _doubt(image: str, failed: sightings.Verification | None, *, named: bool) -> str:
    if failed is None:
        return ""
    return preferences.known_bad(image, failed) if named else preferences.no_better(image, failed)


def staying(db: database.Database, choice: Choice) -> Choice:
    """The choice without the copies that somebody began to expire since. To be asked once a job's row keeps the rest.

    Raises ``NotFound`` where none is left.
    """
    there = {one.number for one in listings.list_copies(db, image_id=choice.image) if one.readable}
    copies = tuple(one for one in choice.copies if one.number in there)
    if not copies:
        raise errors.NotFound(
            f"the copies of {choice.image} have begun to expire",
            hint=f"holdfast hold {choice.image} may bring them back",
        )
    return dataclasses.replace(choice, copies=copies)


def _copies(
    db: database.Database, image: str, number: int | None, known: dict[str, machines.KnownUnit]
) -> tuple[tuple[Copy, ...], tuple[Copy, ...], list[str]]:
    """The copies of an image that may be read, good ones first and the fastest of them; those whose units are away; and
    why those and all others may not be read."""
    found: list[Copy] = []
    away: list[Copy] = []
    refused: list[str] = []
    rows = [one for one in listings.list_copies(db, image_id=image) if number is None or one.number == number]
    for row in sorted(rows, key=lambda one: (one.state not in sightings.GOOD, _speed(known, one.unit), one.number)):
        why = _refusal(known, row)
        if why is not None:
            refused.append(f"copy {row.number} of {image}: {why}")
            if row.readable and (gone := known.get(row.unit)) is not None:
                away.append(Copy(number=row.number, unit=row.unit, type=gone.type, path=Path(gone.path), why=why))
            continue
        unit = known[row.unit]
        damage = "" if row.state in sightings.GOOD else row.message or _UNTOLD.get(row.state, "nobody wrote down where")
        words = "asked for by --copy" if number is not None else _order(unit.type, damage, first=not found)
        found.append(
            Copy(number=row.number, unit=row.unit, type=unit.type, path=Path(unit.path), why=words, damage=damage)
        )
    return tuple(found), tuple(away), refused


def _order(type: str, damage: str, *, first: bool) -> str:
    if damage:
        place = "no good copy is left" if first else "read where all before it fail"
        return f"{place}: known to be damaged, each block is proven"
    speed = "a Directory unit is read fastest" if type == "Directory" else "a pool is read after Directory units"
    return f"the first good copy: {speed}" if first else f"read where the ones before it fail: {speed}"


def _speed(known: dict[str, machines.KnownUnit], name: str) -> int:
    return 0 if name in known and known[name].type == "Directory" else 1


def _refusal(known: dict[str, machines.KnownUnit], copy: listings.CopyRow) -> str | None:
    if not copy.readable:
        way = f"; until its deletion begins holdfast hold {copy.image} brings it back"
        return f"is {copy.state}{way if copy.state == 'Expiring' else ''}"
    if copy.unit not in known:
        return f"its unit {copy.unit} is not known"
    unit = known[copy.unit]
    declared = opening.declared(unit.name, unit.type, unit.path, None, None)
    look = opening.look(declared, known_id=unit.id, owner=None)
    return look.message if look.state == "Offline" else None


def rate(db: database.Database, unit: str) -> float | None:
    """Bytes of data a second that the newest restores from a unit came to, their median; None without any."""
    found: list[float] = []
    for job in reversed(jobs.list_jobs(db, type="Restore", state="Succeeded", limit=_REMEMBERED)):
        if job.source_unit == unit and job.reading.non_zero and job.wall_seconds:
            found.append(job.reading.non_zero / job.wall_seconds)
    return statistics.median(found[:_JUDGING]) if found else None


def of_folder(label: units.ImageLabel, folder: Path) -> Choice:
    """The choice that a unit's folder alone offers."""
    client = sightings.Client(
        id=label.client_id, slug=label.client_slug, name=label.client_name, source=label.source, first_seen=label.time
    )
    copy = Copy(number=label.copy, unit=folder.name, type="", path=folder, why="the unit that was named")
    return Choice(client=client, policy=label.policy, image=label.id, time=label.time, copies=(copy,))
