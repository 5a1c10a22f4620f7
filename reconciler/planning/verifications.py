"""What the last verifications of images say: which images failed, and how recently a series was proven.

Read by ``nevers`` (an image that failed is not the last good one), by ``drills`` (when the next one is due), by
``conditions`` (``Recoverable``) and by ``planner`` (what a ServiceLevel was promised and does not get). Copies of an
image are bit-identical, so what a drill found of one of them was found of the image; where two differ, the later word
counts. A content that proves false is about its copy alone, until that one is made anew. Results from a time that the
clock has not reached yet (it was set back) date nothing.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from reconciler.api import lifecycles
from reconciler.base import quantities, times
from reconciler.planning import desired, histories, observed, preferences, servicelevels, sightings

CONTENT: Final = sightings.CONTENT
FILES: Final = sightings.FILES
BOOT: Final = sightings.BOOT
DRILLS: Final = sightings.DRILLS
KINDS: Final = (CONTENT, *DRILLS)
#: How long after its time a verification may still be on its way.
_SLACK: Final = dt.timedelta(hours=24)


class Asked(NamedTuple):
    """One kind of proof that is asked of a series."""

    #: Content, Files or Boot.
    kind: str
    period: quantities.Duration
    #: The operation whose copies are meant; None where any copy will do.
    operation: str | None
    #: Who asks, such as ``operation dedupe`` or ``ServiceLevel/erp``.
    by: str
    #: Name of the ServiceLevel that asks; None for an operation.
    level: str | None = None

    @property
    def slack(self) -> dt.timedelta:
        """For how long one that is due may still be on its way."""
        return min(_SLACK, self.period.approximate)


def asked(wanted: desired.Desired, policy: str) -> tuple[Asked, ...]:
    """What the lifecycle of a policy and its ServiceLevels ask for."""
    known = wanted.policies.get(policy)
    if known is None:
        return ()
    lifecycle = wanted.lifecycles.get(known.spec.lifecycle)
    found: list[Asked] = []
    for operation in lifecycle.spec.operations if lifecycle is not None else ():
        found += _of(operation.verify, operation.name, f"operation {operation.name}")
    for level in servicelevels.of(wanted, policy):
        promised = _of(level.spec.verified, None, f"ServiceLevel/{level.name}")
        found += (one._replace(level=level.name) for one in promised)
    if known.spec.source.catalog is not None:
        # It has no volumes to open, and is no machine that could be started.
        found = [one for one in found if one.kind == CONTENT]
    return tuple(found)


def _of(verify: lifecycles.Verify | None, operation: str | None, by: str) -> Iterator[Asked]:
    if verify is None:
        return
    for kind, period in ((CONTENT, verify.content), (FILES, verify.files), (BOOT, verify.boot)):
        if period:
            yield Asked(kind=kind, period=period, operation=operation, by=by)


def failure(history: histories.History, seen: observed.Observed, image: str) -> observed.Verification | None:
    """The last drill of an image of a series, if the last one of some kind failed."""
    # An image may have come back with a unit after its results became trials.
    trials = seen.trials.get((history.series.client, history.series.policy), ())
    back = [trial.found for trial in trials if trial.found.image == image]
    found = (*seen.verifications.get(image, ()), *back)
    return preferences.failed(found).get(image) if found else None


def last(
    history: histories.History,
    seen: observed.Observed,
    kind: str,
    operation: str | None,
    *,
    remembered: bool = True,
    passed: bool = False,
) -> observed.Verification | None:
    """The latest result of a kind in a series, up to now; with ``operation``, of its copies alone.

    With ``passed`` the latest success that is still known of: a later result of the same copy takes its place.

    Contents that proved false are ``wanting`` instead; of a copy that was made anew since, that was its last proof.
    With ``remembered`` also what was found of copies that have expired: it dates the next one as any other does.
    """
    found = seen.verifications
    best: observed.Verification | None = None
    for image in history.images.ids if found else ():
        for result in found.get(image, ()):
            one = _anew(history, result) if kind == CONTENT and result.state == "Failed" else result
            if result.kind != kind or one is None or one.at > history.latest:
                continue
            if (best is not None and one.at <= best.at) or (passed and one.state != "Passed"):
                continue
            if operation is None or operation_of(history, one) == operation:
                best = one
    series = (history.series.client, history.series.policy)
    for trial in seen.trials.get(series, ()) if remembered else ():
        one = trial.found
        if one.kind != kind or one.at > history.latest or operation not in (None, trial.operation):
            continue
        if passed and one.state != "Passed":
            continue
        if best is None or one.at > best.at:
            best = one
    return best


def judged(history: histories.History, seen: observed.Observed, asked: Asked) -> observed.Verification | None:
    """The latest result that answers for what is asked.

    Of an operation none of whose copies is left (a buffer) what was found of any copy counts, for they are alike.
    """
    found = last(history, seen, asked.kind, asked.operation)
    if found is None or asked.operation is None or asked.kind == CONTENT:
        return found
    left = any(meant(asked, copy.operation) for image in history.newest() for copy in history.good(image))
    return found if left else last(history, seen, asked.kind, None)


def gone(history: histories.History, result: observed.Verification) -> bool:
    """Whether no copy is left of the image that a result is about."""
    image = history.by_id(result.image)
    return image is None or all(copy.state == "Expired" for copy in image.copies)


def _anew(history: histories.History, result: observed.Verification) -> observed.Verification | None:
    """What making a copy anew proved after its content had proved false; None where it was not."""
    image = history.by_id(result.image)
    for copy in image.copies if image is not None else ():
        if copy.number == result.copy and copy.state in observed.GOOD:
            return result._replace(state="Passed", at=copy.created_at, message="it was made anew")
    return None


def contents(
    history: histories.History, found: Mapping[str, tuple[observed.Verification, ...]], asked: Asked
) -> Iterator[tuple[observed.Image, observed.Copy, dt.datetime]]:
    """The good copies that are meant, each with when its bytes were last proven.

    Making a copy proved it: a backup by what it read, a duplicate by reading it back.
    """
    shapes = [
        shape
        for shape in history.images.kinds
        if any(part.state in observed.GOOD and meant(asked, part.operation) for part in shape.parts)
    ]
    for place in history.images.where(shapes):
        image = history.images[place]
        results = [one for one in found.get(image.id, ()) if one.kind == CONTENT and one.at <= history.latest]
        for copy in image.copies:
            if copy.state in observed.GOOD and meant(asked, copy.operation):
                found_at = (one.at for one in results if one.copy == copy.number)
                known = (one for one in (copy.created_at, *found_at) if one <= history.latest)
                yield image, copy, max(known, default=times.EPOCH)


def meant(asked: Asked, operation: str) -> bool:
    """Whether the copies of an operation are asked about."""
    return asked.operation is None or asked.operation == operation


def wanting(
    history: histories.History, found: Mapping[str, tuple[observed.Verification, ...]]
) -> Iterator[observed.Verification]:
    """Contents that proved false of copies that were not made anew since."""
    for image in history.images.ids if found else ():
        for one in found.get(image, ()):
            if one.kind == CONTENT and one.state == "Failed":
                known = history.by_id(image)
                copies = known.copies if known is not None else ()
                if any(copy.number == one.copy and copy.state in ("Damaged", "Lost") for copy in copies):
                    yield one


def operation_of(history: histories.History, result: observed.Verification) -> str | None:
    """The operation that made the copy a result is about."""
    image = history.by_id(result.image)
    copies = image.copies if image is not None else ()
    return next((copy.operation for copy in copies if copy.number == result.copy), None)


def due(asked: Asked, last: dt.datetime) -> dt.datetime:
    """When the next one is due after one at ``last``."""
    try:
        return asked.period.after(last)
    except OverflowError:
        return dt.datetime.max.replace(tzinfo=dt.UTC)


def shortfalls(
    asked: Iterable[Asked], seen: observed.Observed, history: histories.History, now: dt.datetime
) -> Iterator[tuple[str, str]]:
    """ServiceLevels whose proofs of the series are older than they may be, by name, with what is missing.

    The age of the last success counts, not a failure since, which is told by itself; a series of which nothing can be
    read has none to miss.
    """
    promised = [(one.level, one) for one in asked if one.level is not None]
    if not promised or next(history.newest(), None) is None:
        return
    for level, one in promised:
        words = _shortfall(one, seen, history, now)
        if words is not None:
            yield level, words


def _shortfall(asked: Asked, seen: observed.Observed, history: histories.History, now: dt.datetime) -> str | None:
    if asked.kind == CONTENT:
        at = min((proven for _, _, proven in contents(history, seen.verifications, asked)), default=None)
        overdue = due(asked, at) if at is not None else None
        # What only a wrong clock dates was not proven at any time that can be said.
        at = None if at == times.EPOCH else at
    else:
        success = last(history, seen, asked.kind, asked.operation, passed=True)
        at = success.at if success is not None else None
        overdue = due(asked, at) if at is not None else _first_due(asked, seen, history)
    if overdue is None or now - overdue <= asked.slack:
        return None
    known = f"was last proven {times.show_minutes(at)}" if at is not None else "was never proven"
    words = f"{asked.kind} {known} and is promised every {asked.period}"
    latest = last(history, seen, asked.kind, asked.operation) if asked.kind != CONTENT else None
    if latest is not None and latest.state == "Failed":
        words += f"; it failed {times.show_minutes(latest.at)}"
    return words


def _first_due(asked: Asked, seen: observed.Observed, history: histories.History) -> dt.datetime | None:
    """By when a series of which no success is known must have had its first; None before the promise is in force."""
    promised = seen.applied.get(("ServiceLevel", asked.level or ""))
    client = seen.clients.get(history.series.client)
    if promised is None or client is None:
        return None
    # A machine that has come from another policy has nothing here yet that could have been tried.
    return max(due(asked, max(promised.since, client.first_seen)), history.sound[0].time)
