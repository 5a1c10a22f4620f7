"""Scrubbing: every byte of every container is read again and proven, the containers proven longest ago first.

What is false leaves the index at once and is put on the list of damage. A page is healed from its twin, a segment that
another container holds is found there from then on, and of a container whose end is gone every record that still
proves true moves into a new one. What remains lost is mapped to images and ranges of their disks. Scrubs and
collections exclude each other only where they change something, so both may run beside backups.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from blake3 import blake3

from reconciler.base import crashes, errors, meters
from reconciler.storage import units
from reconciler.storage.dedupe import (
    appenders,
    containers,
    damages,
    findings,
    manifests,
    registrations,
    rewrites,
    rounds,
    salvages,
    stores,
    wounds,
)

#: The lock of a pool that a scrub holds.
LOCK: Final = "scrubbing"
#: Bytes read at once.
_STEP: Final = 4 << 20


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much one scrub may do; what it leaves is where the next one begins."""

    #: Bytes per second, None for as fast as it goes.
    rate: int | None = None
    #: Bytes, None for all that is left of the round. A container that was begun is finished.
    size: int | None = None
    #: Seconds, likewise.
    seconds: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a scrub did and found."""

    #: Whether the round ended.
    complete: bool
    #: When the round began.
    started: dt.datetime
    #: Proven, a count.
    containers: int
    #: Bytes read.
    read: int
    #: Bytes of containers that the round has not proven yet.
    remaining: int
    #: Records found to be false, a count; what a broken container lost is not counted, as nobody knows.
    false: int
    #: Containers whose footer proved false, a count.
    broken: int
    #: Of those, the ones whose segment is in place nevertheless.
    healed: int
    #: Data segments that images need and no container holds, a count.
    lost: int
    #: Object and message of each thing found.
    findings: tuple[tuple[str, str], ...]
    #: Image -> ranges of its disks that cannot be read.
    wounded: Mapping[str, tuple[units.Damage, ...]]


@dataclasses.dataclass(slots=True)
class _Tally:
    containers: int = 0
    read: int = 0
    false: list[damages.Record] = dataclasses.field(default_factory=list)
    #: Containers whose footer proved false, a count.
    broken: int = 0
    findings: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def scrub(store: stores.Store, meter: meters.Meter, limits: Limits, now: dt.datetime) -> Report:
    """Go on with the round, or begin one. Raises ``UnitError`` where another scrub runs, ``Cancelled``, ``OSError``.

    Whatever stops it, what was proven stays proven and what was found stays found.
    """
    with store.journal.alone(LOCK, "another scrub"):
        store.follow(thorough=True)
        position = dataclasses.replace(rounds.read(store.settings.root) or rounds.begin(store, now), resumed=now)
        waiting = rounds.left(store, position)
        total = sum(one.size for one in waiting)
        meter.add(total=total if limits.size is None else min(total, limits.size))
        tally = _Tally()
        pace = _Pace(limits, meter)
        for done, one in enumerate(waiting):
            if pace.over(tally.read):
                waiting = waiting[done:]
                break
            meter.check()
            _prove(store, one, pace, tally)
            position = dataclasses.replace(position, proven=(one.since, one.container))
            rounds.write(store, position)
        else:
            waiting = []
            rounds.write(store, dataclasses.replace(position, ended=now))
        return _report(store, meter, tally, position, waiting)


class _Pace:
    """Keeps a scrub to its limits."""

    def __init__(self, limits: Limits, meter: meters.Meter) -> None:
        self._limits, self._meter = limits, meter
        self._began = time.monotonic()
        self._bytes = 0

    def over(self, read: int) -> bool:
        """Whether no further container may be begun."""
        limits = self._limits
        return (limits.size is not None and read >= limits.size) or (
            limits.seconds is not None and time.monotonic() - self._began >= limits.seconds
        )

    def count(self, size: int) -> None:
        """``size`` bytes more were read; waits where that was too fast. Raises ``Cancelled``."""
        self._bytes += size
        self._meter.add(scanned=size)
        while self._limits.rate:
            self._meter.check()
            ahead = self._bytes / self._limits.rate - (time.monotonic() - self._began)
            if ahead <= 0:
                break
            time.sleep(min(ahead, 0.2))


def _prove(store: stores.Store, one: rounds.Candidate, pace: _Pace, tally: _Tally) -> None:
    """Prove one container and deal with what is false in it. One that was collected meanwhile is no finding."""
    path = containers.path(store.folder, one.container, one.kind)
    tally.containers += 1
    tally.read += one.size
    try:
        footer = containers.read_footer(path, store.header.id)
        false, whole = _read(store, footer, pace)
    except FileNotFoundError:
        return
    except errors.FormatTooNew as error:
        tally.findings.append((path.name, error.message))
        return
    except containers.Damaged as error:
        with contextlib.suppress(FileNotFoundError):
            moved = salvages.salvage(store, one.container, one.kind)
            tally.findings.append((path.name, f"{error}; {moved} segments of it proved true and were moved"))
            tally.broken += 1
        return
    if false:
        tally.findings.append((path.name, f"{len(false)} segments are false"))
        tally.false += _withdraw(store, footer, false)
    elif not whole:
        tally.findings.append((path.name, "bytes beside its segments differ; no segment is concerned"))
    known = [record for record in store.damages.records if record.container == one.container]
    good = [record for record in known if record.number not in false]
    if good:
        # A reading that failed once, on a device that has recovered.
        findings.clear(store, good, [])
        store.index.add(footer, store.present, without=false)


def _read(store: stores.Store, footer: containers.Footer, pace: _Pace) -> tuple[set[int], bool]:
    """The numbers of false records, and whether all bytes before the footer are as they were written."""
    path = containers.path(store.folder, footer.container, footer.kind)
    false: set[int] = set()
    content = blake3()
    with containers.opened(path) as file:
        handle = file.fileno()
        # The device is asked, not what memory still holds of the file.
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        content.update(containers.pread(handle, containers.HEADER.size, 0))
        for run in _runs(footer):
            start = run[0][1].offset
            length = run[-1][1].offset + containers.RECORD.size + run[-1][1].stored - start
            data = memoryview(containers.pread(handle, length, start))
            content.update(data)
            for number, record in run:
                at = record.offset - start
                part = data[at : at + containers.RECORD.size + record.stored]
                if not _true(store, part, record) and not _true(store, _again(handle, record), record):
                    false.add(number)
            pace.count(length)
    return false, content.digest() == footer.content_digest


def _again(handle: int, record: containers.Record) -> bytes:
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    return containers.pread(handle, containers.RECORD.size + record.stored, record.offset)


def _true(store: stores.Store, data: bytes | memoryview, record: containers.Record) -> bool:
    try:
        containers.decode(data, record.fingerprint, store.header.key)
    except containers.Damaged:
        return False
    return True


def _runs(footer: containers.Footer) -> Iterator[list[tuple[int, containers.Record]]]:
    run: list[tuple[int, containers.Record]] = []
    size = 0
    for number, record in enumerate(footer.records):
        run.append((number, record))
        size += record.stored
        if size >= _STEP:
            yield run
            run, size = [], 0
    if run:
        yield run


def _withdraw(store: stores.Store, footer: containers.Footer, false: set[int]) -> list[damages.Record]:
    """Nobody finds these records from now on; what they are."""
    records = rewrites.listed(footer, false)
    findings.note(store, records)
    _end_users(store, footer.container)
    if footer.kind != containers.DATA:
        _heal_pages(store, footer.kind, records)
    return records


def withdraw_false(store: stores.Store, kinds: Iterable[int], fingerprints: Sequence[bytes]) -> None:
    """Prove these segments where lookups lead to; those that are false are dealt with as a scrub does.

    What cannot be proven because its whole container is broken is left to a scrub. Raises ``UnitError``, ``OSError``.
    """
    for kind in kinds:
        numbers: dict[int, set[int]] = {}
        for location in store.locate(kind, fingerprints):
            if location is not None:
                numbers.setdefault(location.container, set()).add(location.number)
        for container, wanted in numbers.items():
            with contextlib.suppress(containers.Damaged, FileNotFoundError):
                path = containers.path(store.folder, container, kind)
                footer = containers.read_footer(path, store.header.id)
                with containers.opened(path) as file:
                    false = {
                        number
                        for number in wanted
                        if not _true(store, _again(file.fileno(), footer.records[number]), footer.records[number])
                    }
                if false:
                    _withdraw(store, footer, false)


def _in_place(store: stores.Store, record: damages.Record) -> bool:
    """Whether another record of the same kind holds the segment."""
    return store.locate(record.kind, [record.fingerprint]) != [None]


def _end_users(store: stores.Store, container: int) -> None:
    """End the writers that rely on a container, or may: what they would commit may not be readable.

    What a writer of another process relies on is not known here. It is told at its commit, and its next attempt goes
    on from what is stored.
    """
    with store.journal.locked():
        known = {claims.registration.id: claims.all() for claims in store.users() if claims.registration is not None}
        for entry in registrations.entries(store.settings.root / "writers"):
            if container in known.get(entry.folder.name, (container,)):
                registrations.remove(entry.folder)


def _heal_pages(store: stores.Store, kind: int, records: list[damages.Record]) -> None:
    """Store pages and spans anew from their twins, durably."""
    healing = appenders.Claims("scrub")
    store.join(healing)
    try:
        for record in records:
            data = rewrites.twin(store, kind, record.fingerprint)
            if data is not None:
                store.place(kind, {record.fingerprint: data}, healing)
        store.flush(healing)
    finally:
        store.leave(healing)
    crashes.passing("pool.scrub-healed")


def _report(
    store: stores.Store, meter: meters.Meter, tally: _Tally, position: rounds.Position, left: list[rounds.Candidate]
) -> Report:
    """Map what is lost to images, and settle the list of the lost by what images really need."""
    followed, wounded = wounds.of_all(store, meter)
    if followed.missing - store.damages.lost:
        findings.note(store, (), followed.missing)
    # Pages that cannot be read may need any of them.
    if store.damages.lost - followed.missing and followed.readable and not _pinned(store):
        findings.clear(store, (), store.damages.lost - followed.missing)
    tally.findings += sorted(store.damaged.items())
    return Report(
        complete=not left,
        started=position.started,
        containers=tally.containers,
        read=tally.read,
        remaining=sum(one.size for one in left),
        false=len(tally.false),
        broken=tally.broken,
        healed=sum(_in_place(store, record) for record in tally.false),
        lost=len(followed.missing),
        findings=tuple(dict.fromkeys(tally.findings)),
        wounded=wounded,
    )


def _pinned(store: stores.Store) -> bool:
    """Whether a running writer builds on an image that was deleted since."""
    root = store.settings.root
    held = set(manifests.names(root / "manifests"))
    return any(image not in held for image, _ in registrations.pins(root / "writers"))
