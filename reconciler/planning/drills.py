"""Verify actions for copies: their digests read again, their files opened, their machine started, as often as asked.

``content`` is about every copy of an operation (of any operation, where a ServiceLevel asks): each is due a period
after it was made or last proven. ``files`` and ``boot`` are drills of a series: its newest copy that can be read is
tried at once, then a period after the last trial, whether that one's image is still there or not; where it failed, as
soon as there is another image. One that found a copy wanting is done all the same: what it found is a fact, and the
next backup is the cure.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Final

from reconciler.planning import actions, histories, nevers, observed, retries, verifications

_WORDS: Final = {
    verifications.CONTENT: "every digest is read again",
    verifications.FILES: "its volumes are opened and files are read",
    verifications.BOOT: "the machine is started",
}


class Desk:
    """The verifications of every series of one plan."""

    def __init__(
        self,
        seen: observed.Observed,
        rules: nevers.Rules,
        now: dt.datetime,
        horizon: dt.datetime,
    ) -> None:
        self._seen = seen
        self._asked = rules.asked
        self._units = rules.units
        #: Ids of images that somebody declared wrong.
        self._wrong = rules.register.orders()
        self._now = now
        self._horizon = horizon
        self._live = {job.address for job in seen.jobs}

    def answer(self, history: histories.History, slug: str) -> Iterator[actions.Action]:
        """What is to be verified of one series."""
        made: dict[str, actions.Action] = {}
        for asked in self._asked(history.series.policy):
            found = self._content if asked.kind == verifications.CONTENT else self._drill
            for action in found(history, slug, asked):
                known = made.get(action.address)
                # Two may ask for the same proof: the earlier one speaks.
                if known is None or (action.at or self._now) < (known.at or self._now):
                    made[action.address] = action
        yield from made.values()

    def _content(self, history: histories.History, slug: str, asked: verifications.Asked) -> Iterator[actions.Action]:
        for image, copy, proven in verifications.contents(history, self._seen.verifications, asked):
            at = verifications.due(asked, proven)
            if at <= self._horizon:
                yield self._action(history, slug, asked, image, copy, at)

    def _drill(self, history: histories.History, slug: str, asked: verifications.Asked) -> Iterator[actions.Action]:
        chosen = self._newest(history, asked)
        if chosen is None:
            return
        image, copy = chosen
        result = verifications.last(history, self._seen, asked.kind, asked.operation)
        made = self._seen.believed(copy.created_at, self._now)
        at = verifications.due(asked, result.at) if result is not None else made
        if result is not None and result.state == "Failed" and _later(history, image, result):
            # Where the clock was set back, the failure may seem to be the later one.
            before = result.at - histories.AHEAD
            own = self._seen.verifications.get(image.id, ())
            if not any(one.kind == asked.kind and one.at > before and _by(asked, history, one) for one in own):
                at = min(at, made)
        if at <= self._horizon:
            yield self._action(history, slug, asked, image, copy, at)

    def _newest(
        self, history: histories.History, asked: verifications.Asked
    ) -> tuple[observed.Image, observed.Copy] | None:
        """The newest image with a copy that is meant and can be read, and that copy; one that is online first."""
        offline: tuple[observed.Image, observed.Copy] | None = None
        for image in self._candidates(history):
            copies = [copy for copy in history.good(image) if verifications.meant(asked, copy.operation)]
            online = [copy for copy in copies if not self._units.offline(copy.unit)]
            if online:
                return image, min(online, key=lambda one: (self._units.standalone(one.unit), one.number))
            if copies and offline is None:
                offline = image, copies[0]
        return offline

    def _candidates(self, history: histories.History) -> Iterator[observed.Image]:
        """Images that can be read, newest first; one that somebody declared wrong only where all are."""
        if not self._wrong or all(image.id in self._wrong for image in history.newest()):
            return history.newest()
        return (image for image in history.newest() if image.id not in self._wrong)

    def _action(
        self,
        history: histories.History,
        slug: str,
        asked: verifications.Asked,
        image: observed.Image,
        copy: observed.Copy,
        at: dt.datetime,
    ) -> actions.Action:
        place = address(image.id, copy.number, asked.kind)
        attempts = self._seen.attempts.get(place)
        state, until, reason = self._state(place, self._units.refuses_read(copy.unit), attempts, at)
        return actions.Action(
            address=place,
            type=actions.Type.VERIFY,
            state=state,
            at=until,
            reason=reason or _reason(asked),
            policy=history.series.policy,
            schedule=image.schedule,
            client=slug,
            client_id=history.series.client,
            image=image.id,
            copy=copy.number,
            operation=copy.operation,
            source_unit=copy.unit,
            bytes=image.size_bytes,
            proof=asked.kind,
            attempt=retries.number(attempts),
            # Proofs wait for the work that makes what they prove.
            priority=-1000,
        )

    def _state(
        self, place: str, refusal: actions.Reason | None, attempts: observed.Attempts | None, at: dt.datetime
    ) -> tuple[actions.State, dt.datetime | None, actions.Reason | None]:
        if place in self._live:
            return actions.State.DUE, at, actions.Reason(code="Running", message="it is running")
        if at > self._now:
            return actions.State.PLANNED, at, None
        if refusal is not None:
            return actions.State.BLOCKED, at, refusal
        resting = retries.resting(attempts, self._now)
        return (actions.State.WAITING, *resting) if resting is not None else (actions.State.DUE, at, None)


def address(image: str, copy: int, kind: str) -> str:
    """The address of one verification of one copy."""
    return f"verify/{image}/{copy}/{kind.lower()}"


def _by(asked: verifications.Asked, history: histories.History, result: observed.Verification) -> bool:
    return asked.operation in (None, verifications.operation_of(history, result))


def _later(history: histories.History, image: observed.Image, result: observed.Verification) -> bool:
    """Whether an image came after the one that a result is about, or is what is left where that one is gone."""
    before = history.by_id(result.image)
    return before is None or image.sequence > before.sequence or verifications.gone(history, result)


def _reason(asked: verifications.Asked) -> actions.Reason:
    words = f"{asked.by} asks that {_WORDS[asked.kind]} every {asked.period}"
    return actions.Reason(code=f"Verify{asked.kind}", message=words)
