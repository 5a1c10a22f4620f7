"""What a collection would do with each container, and why not more: the half of it that decides.

``judge`` takes what ``reclaims.survey`` found and who is writing; it changes nothing. The dry run prints a ``Verdict``,
a collection acts on one, and capacity counts its bytes, so the three cannot disagree.
"""

from __future__ import annotations

import dataclasses
import enum
import os
from collections.abc import Mapping
from typing import Final

from reconciler.storage.dedupe import condemnations, containers, stores

#: Percent of a container's records that must be dead before its live ones are moved.
THRESHOLD: Final = 50
#: Bytes left free beside a container being rewritten, for the log and the index.
MARGIN: Final = 256 << 10


class Reason(enum.StrEnum):
    """Why dead bytes stay."""

    IN_USE = "InUse"
    BESIDE_WRITER = "BesideWriter"
    MOSTLY_LIVE = "MostlyLive"
    NO_ROOM = "NoRoom"
    UNCONFIRMED = "Unconfirmed"


#: Reasons that pass; after them a collection gives back more.
PASSING: Final = frozenset({Reason.IN_USE, Reason.BESIDE_WRITER, Reason.NO_ROOM})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sparse:
    """A container that holds live and dead records."""

    container: int
    kind: int
    #: Bytes of the file.
    size: int
    #: Bytes of live records, footer entries included.
    live: int
    #: Whether one of its records is on the list of damage.
    damaged: bool

    @property
    def dead(self) -> int:
        """Bytes of dead records, footer entries included."""
        return self.size - containers.FRAME - self.live


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """Dead bytes that a collection leaves where they are."""

    container: int
    kind: int
    reason: Reason
    #: Dead bytes.
    size: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a collection would do now."""

    #: Containers without a live record that go: id -> footer.
    dead: Mapping[int, containers.Footer]
    #: Containers whose live records are moved before they go, the deadest first.
    sparse: tuple[Sparse, ...]
    kept: tuple[Kept, ...]

    @property
    def dead_bytes(self) -> int:
        """Bytes that come back without copying."""
        return sum(footer.size for footer in self.dead.values())

    @property
    def net_bytes(self) -> int:
        """Bytes that come back by rewriting, what is written anew taken off."""
        return sum(one.dead for one in self.sparse)


def judge(
    store: stores.Store,
    dead: Mapping[int, containers.Footer],
    sparse: tuple[Sparse, ...],
    unconfirmed: tuple[Kept, ...],
    threshold: int = THRESHOLD,
) -> Verdict:
    """Sort the containers found into those that go and those that stay. Raises ``OSError``.

    ``threshold``: percent; a container of which a larger part is dead is rewritten.
    """
    users = condemnations.users(store)
    kept = list(unconfirmed)
    going = {}
    for container, footer in dead.items():
        reason = why_kept(store, users, container, footer.kind, moving=False)
        if reason is None:
            going[container] = footer
        else:
            kept.append(Kept(container=container, kind=footer.kind, reason=reason, size=footer.size))
    space = room(store) + sum(footer.size for footer in going.values())
    moving = []
    for one in sorted(sparse, key=lambda one: (one.live, one.container)):
        reason = why_kept(store, users, one.container, one.kind, moving=True)
        if not one.damaged and one.dead * 100 <= threshold * (one.dead + one.live):
            reason = Reason.MOSTLY_LIVE
        elif reason is None and one.live + containers.FRAME > space:
            reason = Reason.NO_ROOM
        if reason is None:
            moving.append(one)
            space += one.dead
        elif one.dead:
            kept.append(Kept(container=one.container, kind=one.kind, reason=reason, size=one.dead))
    return Verdict(dead=going, sparse=tuple(moving), kept=tuple(kept))


def why_kept(
    store: stores.Store, users: condemnations.Users, container: int, kind: int, *, moving: bool
) -> Reason | None:
    """Why a container may not be taken out of use now, None if it may.

    What a writer of another process found is not known here; it is told at its commit, which is fair for what was dead
    and not for what is live: so nothing is moved beside it.
    """
    if container in users.used:
        return Reason.IN_USE
    if (moving and users.foreign != condemnations.NEVER) or condemnations.younger(
        store, container, kind, users.foreign
    ):
        return Reason.BESIDE_WRITER
    return None


def room(store: stores.Store) -> int:
    """Bytes that a rewritten container may have; the reserve that writers leave is there for it."""
    space = os.statvfs(store.settings.root)
    return max(space.f_bavail * space.f_frsize - MARGIN, 0)
