"""Where scrubbing is: which containers this round has proven, kept in the pool itself.

Containers are proven in the order in which they came into place. Those of before the round began and beyond the
``Position`` were proven longest ago; those that came later were proven by their writer since. A small sealed file is
replaced after each container, so that a scrub goes on where one was interrupted, killed or out of time; after the last
one it says when the round ended.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from reconciler.base import crashes, errors, files, times
from reconciler.storage import labels
from reconciler.storage.dedupe import containers, journals, stores

NAME: Final = "scrub.json"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """How far a round is."""

    #: When the round began, on the catalog's clock.
    started: dt.datetime
    #: The same, as nanoseconds of the file system's clock; no earlier than when any container of then came into place.
    began: int
    #: Nanoseconds and id of the last container proven; all that come after it in this order are left.
    proven: tuple[int, int] = (-1, -1)
    #: When it was last gone on with.
    resumed: dt.datetime | None = None
    #: When the round ended, None while it is under way.
    ended: dt.datetime | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """When a pool was proven last."""

    #: The end of the last round; when one that is under way was last gone on with; of a pool that had none, when it
    #: was made.
    since: dt.datetime
    #: Whether a round is under way.
    under_way: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Candidate:
    """A container to be proven; ordered as scrubs go."""

    #: When it came into place, nanoseconds of the file system's clock.
    since: int
    container: int
    kind: int
    #: Bytes of the file.
    size: int


def read(root: Path) -> Position | None:
    """The position of the round that is under way, None where none is, or where what is there cannot be proven."""
    last = _last(root)
    return last if last is not None and last.ended is None else None


def standing(root: Path) -> Standing | None:
    """When the pool under ``root`` was proven last; None where nothing there tells."""
    last = _last(root)
    if last is not None:
        return Standing(since=last.ended or last.resumed or last.started, under_way=last.ended is None)
    made = journals.made(root)
    return None if made is None else Standing(since=made, under_way=False)


def _last(root: Path) -> Position | None:
    path = root / NAME
    try:
        document = labels.unseal(path.read_bytes(), str(path))
        started = times.parse(document["startedAt"])
        since, container = document["proven"]
        resumed, ended = document.get("resumedAt"), document.get("endedAt")
        return Position(
            started=started,
            began=int(document["began"]),
            proven=(int(since), int(container, 16)),
            resumed=None if resumed is None else times.parse(resumed),
            ended=None if ended is None else times.parse(ended),
        )
    except (FileNotFoundError, errors.ImageDamaged, KeyError, TypeError, ValueError):
        # A round too many does no harm.
        return None


def write(store: stores.Store, position: Position) -> None:
    """Keep the position, durably. Raises ``UnitError`` kinds."""
    document: dict[str, object] = {
        "kind": "PoolScrub",
        "startedAt": times.show(position.started),
        "began": position.began,
        "proven": [position.proven[0], f"{position.proven[1]:x}" if position.proven[1] >= 0 else "-1"],
    }
    for key, moment in (("resumedAt", position.resumed), ("endedAt", position.ended)):
        if moment is not None:
            document[key] = times.show(moment)
    # Under the lock, as a sweep takes every unfinished file of the folder for a leftover.
    with store.journal.locked():
        files.write_atomically(store.settings.root / NAME, labels.seal(document))
    crashes.passing("pool.scrub-placed")


def begin(store: stores.Store, now: dt.datetime) -> Position:
    """A new round, durably begun. Raises ``UnitError`` kinds."""
    with store.journal.locked():
        probe = files.temporary_name(store.settings.root / NAME)
        probe.touch()
        began = probe.stat().st_mtime_ns
        probe.unlink()
    # A clock that was ahead once, or a copy of the pool made since, leaves containers of a time to come.
    position = Position(started=now, began=max([began, *(one.since for one in _candidates(store))]))
    write(store, position)
    return position


def left(store: stores.Store, position: Position) -> list[Candidate]:
    """The containers that this round has not proven yet, in its order. Raises ``OSError``."""
    return sorted(
        one
        for one in _candidates(store)
        if one.since <= position.began and (one.since, one.container) > position.proven
    )


def _candidates(store: stores.Store) -> Iterator[Candidate]:
    for container, kind in store.files():
        try:
            seen = containers.path(store.folder, container, kind).stat()
        except FileNotFoundError:
            continue
        yield Candidate(since=seen.st_mtime_ns, container=container, kind=kind, size=seen.st_size)
