"""The destructive part of a plan: what would go before its promise, its digest, and what an approval of it lets go.

``expirations`` adds to it series by series, ``planner`` asks which beginning of it somebody has approved. The digest
covers the causes and the image that was counted last, not the copies: it stays the same while copies leave, and while
images are added that keep their promise. It also covers the catalog's last rebuild: what was approved before that was
approved by what was known then. What is held since an approval was given is told apart by looking for its
digest at every beginning of the part, in the order in which the rules let copies go.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from reconciler.api import lifecycles
from reconciler.base import digests, times
from reconciler.planning import actions, approvals, configuration, expiry, observed, placements, promises, rulings

_FIRST: Final = dt.datetime.min.replace(tzinfo=times.UTC)


class _Cause(NamedTuple):
    """Why copies are held; rules as canonical JSON."""

    lifecycle: str
    operation: str
    before: str
    after: str


class _Held(NamedTuple):
    """One copy that is held."""

    item: actions.Destroyed
    sequence: int
    cause: _Cause
    #: The promises that an approval ends, as releases name them.
    ends: tuple[str, ...]
    #: Client id and slug.
    client: str
    slug: str


@dataclasses.dataclass(slots=True)
class _Oldest:
    """A client's oldest restore point with and without the copies that a brake holds."""

    before: dt.datetime | None = None
    after: dt.datetime | None = None
    held: bool = False

    def see(self, before: dt.datetime | None, after: dt.datetime | None, held: bool) -> None:
        """Add one series of the client."""
        self.before = min((m for m in (self.before, before) if m is not None), default=None)
        self.after = min((m for m in (self.after, after) if m is not None), default=None)
        self.held = self.held or held


class Granted(NamedTuple):
    """A beginning of the part that somebody has approved."""

    consent: approvals.Consent
    #: How many copies it holds.
    copies: int
    releases: tuple[observed.Release, ...]

    def question(self) -> actions.Question:
        """It, as answered."""
        return question(self.consent.digest, self.copies, approved=True)


def question(digest: str, copies: int, *, approved: bool) -> actions.Question:
    """A destructive part as what is to be approved, or has been."""
    words = "1 copy goes before its promise ends" if copies == 1 else f"{copies} copies go before their promise ends"
    return actions.Question(digest=digest, what="Destruction", copies=copies, message=words, approved=approved)


class Part:
    """Adds up what is held over all series of one plan."""

    def __init__(self, rebuilt: str = "") -> None:
        """``rebuilt``: what the observed state says of the catalog's last rebuild."""
        self._born = {"rebuilt": rebuilt} if rebuilt else {}
        self._held: list[_Held] = []
        self._oldest: dict[str, _Oldest] = {}
        #: Few rules hold many copies: each is written once. Kept with the rule, so that its address stays its own.
        self._rules: dict[int, tuple[lifecycles.Retention | None, str]] = {}

    def add(self, verdict: expiry.Verdict, held: expiry.Held, client: str, slug: str) -> None:
        """One copy that a brake holds."""
        image, copy = verdict.image, verdict.copy
        item = actions.Destroyed(
            image=image.id,
            copy=copy.number,
            unit=copy.unit,
            bytes=copy.stored_bytes,
            expires_before=held.until,
            expires_after=verdict.at,
        )
        before, ends = self._written(held.before), tuple(self._written(one) for one in held.holding)
        if held.order is not None:
            # The order that an image goes is approved like the end of a promise.
            before, ends = rulings.named(held.order), (rulings.named(held.order),)
        elif held.before is None:
            ends = (promises.NONE, *ends)
        cause = _Cause(held.lifecycle, held.operation, before, self._written(held.after))
        self._held.append(_Held(item, image.sequence, cause, ends, client, slug))

    def _written(self, rule: lifecycles.Retention | None) -> str:
        found = self._rules.get(id(rule))
        if found is None:
            found = self._rules[id(rule)] = (rule, promises.written(rule))
        return found[1]

    def restore_points(self, slug: str, before: dt.datetime | None, after: dt.datetime | None, held: bool) -> None:
        """The oldest restore point of one series with and without what is held of it."""
        self._oldest.setdefault(slug, _Oldest()).see(before, after, held)

    def whole(self, units: placements.Units) -> actions.Destruction:
        """Everything that a brake holds."""
        if not self._held:
            return actions.Destruction()
        return actions.Destruction(
            digest=next(self._beginnings())[1],
            # Bytes of a copy that shares segments with others come back only in part.
            estimated=any(units.standalone(one.item.unit) for one in self._held),
            items=tuple(sorted((one.item for one in self._held), key=lambda item: (item.image, item.copy))),
            clients=tuple(
                actions.OldestPoint(client=slug, before=oldest.before, after=oldest.after)
                for slug, oldest in sorted(self._oldest.items())
                if oldest.held and oldest.before != oldest.after
            ),
        )

    def beginnings(self) -> dict[str, int]:
        """Digest of every beginning of the part -> how many copies it holds."""
        return {digest: count for count, digest in self._beginnings()}

    def granted(self, consents: Sequence[approvals.Consent]) -> Granted | None:
        """The largest beginning of the part that a consent covers."""
        if not consents or not self._held:
            return None
        asked: dict[str, list[approvals.Consent]] = {}
        for consent in consents:
            asked.setdefault(consent.digest, []).append(consent)
        for count, digest in self._beginnings():
            for consent in asked.get(digest, ()):
                if count <= consent.copies:
                    return Granted(consent, count, _releases(self._in_order()[:count], consent))
        return None

    def _in_order(self) -> list[_Held]:
        """In the order in which their rules let them go, as far as that is a time; those that newer images push out
        first, in the order of the images. What is held since an approval was given so comes last."""
        return sorted(self._held, key=_turn)

    def _beginnings(self) -> Iterator[tuple[int, str]]:
        """How many copies each beginning of the part holds, the whole first, and its digest."""
        ordered = self._in_order()
        left = collections.Counter((one.cause, one.slug) for one in ordered)
        causes = _causes(left)
        for end in range(len(ordered), 0, -1):
            last = ordered[end - 1]
            # Copies whose turn came together stay together.
            if end == len(ordered) or _turn(last) != _turn(ordered[end]):
                yield end, digests.json_digest({"causes": causes, "newest": last.sequence, **self._born})
            left[last.cause, last.slug] -= 1
            # Serialised anew only where a cause or a client is no longer among them: rare, as older ones go first.
            if not left[last.cause, last.slug]:
                del left[last.cause, last.slug]
                causes = _causes(left)


def _turn(one: _Held) -> tuple[dt.datetime, int]:
    return one.item.expires_after or _FIRST, one.sequence


def _causes(held: Iterable[tuple[_Cause, str]]) -> str:
    """Digest of the causes and of the clients, by slug, that each touches."""
    clients: dict[_Cause, set[str]] = {}
    for cause, slug in held:
        clients.setdefault(cause, set()).add(slug)
    return digests.json_digest([{**cause._asdict(), "clients": sorted(clients[cause])} for cause in sorted(clients)])


def _releases(held: Sequence[_Held], consent: approvals.Consent) -> tuple[observed.Release, ...]:
    """What an approval of these copies ends: each promise, client by client, up to the newest image counted there."""
    newest: dict[tuple[str, str, str, str], int] = {}
    for one in held:
        for before in one.ends:
            key, up_to = (one.cause.lifecycle, one.cause.operation, before, one.client), one.sequence
            if before == promises.NONE:
                # Who came back has no promise to keep: one approval ends the waiting of all that are there.
                key, up_to = (promises.ANY, promises.ANY, before, promises.ANY), configuration.EVERY_IMAGE
            newest[key] = max(newest.get(key, 0), up_to)
    return tuple(
        observed.Release(
            lifecycle=lifecycle,
            operation=operation,
            before=before,
            client=client,
            up_to=up_to,
            digest=consent.digest,
            by=consent.by,
        )
        for (lifecycle, operation, before, client), up_to in sorted(newest.items())
    )
