"""What a retention rule says of the copies of one series and one operation: which it keeps, which it lets go, and why.

Called by ``expiry`` for the rule in force and for every rule promised earlier, and by ``retention preview``. Separate
because it knows nothing of units, children or brakes: ``keep`` is a function of the rule, the candidates and ``now``.
``Keep`` follows restic 0.14: rules are OR-ed, a natural bucket keeps its newest, empty buckets do not count, ``within``
counts from the newest candidate and keeps what is strictly newer. A test compares it with restic itself. Days in
``within`` are 24 hours; months and years are calendar units of the declared zone.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from reconciler.api import lifecycles
from reconciler.base import quantities, times
from reconciler.planning import calendars


class Candidate(NamedTuple):
    """A copy that a rule judges."""

    #: Image id: one candidate per image.
    id: str
    #: Image time, UTC.
    time: dt.datetime
    #: Orders equal times.
    sequence: int
    #: Whether the image is a full, for ``prefer: Full``.
    full: bool = True
    #: How many direct children the copy is owed.
    children: int = 0
    #: Names of the direct children that are not paid yet.
    unpaid: tuple[str, ...] = ()
    #: Whether the next incremental needs the copy.
    chained: bool = False


class Match(NamedTuple):
    """One rule of ``Keep`` that keeps an image."""

    #: ``daily``, ``within``, ``withinDaily`` and so on.
    rule: str
    #: Which of the rule's images this is, from 1; 0 under ``within*``.
    rank: int
    #: The rule's count, or its period as written.
    limit: str
    #: The natural bucket, such as ``2026-11-20``; empty under ``last`` and ``within``.
    bucket: str


class Decision(NamedTuple):
    """What a rule says of one candidate."""

    keeps: bool
    #: Fixed, Keep, ExpireAfterCopy, CapacityManaged or Forever.
    code: str
    #: When the copy leaves, or became eligible; None where time alone does not decide.
    at: dt.datetime | None
    #: The sentence without its first word.
    text: str = ""
    matches: tuple[Match, ...] = ()

    @property
    def message(self) -> str:
        """``kept: daily 3 of 7 (2026-11-20)``, ``expires: Fixed 7d passed 2026-11-21T22:00Z``."""
        text = self.text or ", ".join(_show(match) for match in self.matches)
        return f"{'kept' if self.keeps else 'expires'}: {text}"


_COUNTED: Final = ("last", "hourly", "daily", "weekly", "monthly", "quarterly", "yearly")
_WITHIN: Final = ("hourly", "daily", "weekly", "monthly", "yearly")


def _hour(local: dt.datetime) -> str:
    return f"{local:%Y-%m-%dT%H}"


def _day(local: dt.datetime) -> str:
    return f"{local:%Y-%m-%d}"


def _week(local: dt.datetime) -> str:
    year, week, _ = local.isocalendar()
    return f"{year}-W{week:02d}"


def _month(local: dt.datetime) -> str:
    return f"{local:%Y-%m}"


def _quarter(local: dt.datetime) -> str:
    return f"{local.year}-Q{(local.month + 2) // 3}"


def _year(local: dt.datetime) -> str:
    return f"{local.year}"


_BUCKETS: Final[dict[str, Callable[[dt.datetime], str]]] = {
    "hourly": _hour,
    "daily": _day,
    "weekly": _week,
    "monthly": _month,
    "quarterly": _quarter,
    "yearly": _year,
}


def keep(rule: lifecycles.Retention, candidates: Iterable[Candidate], now: dt.datetime) -> dict[str, Decision]:
    """Judge the candidates of one series and operation. The order of ``candidates`` does not matter."""
    if isinstance(rule, lifecycles.Keep):
        return _keep(rule, candidates)
    return {candidate.id: single(rule, candidate, now) for candidate in candidates}


def single(rule: lifecycles.Retention, candidate: Candidate, now: dt.datetime) -> Decision:
    """Judge one candidate under a rule that looks at no other one. Raises ``TypeError`` for ``Keep``."""
    if isinstance(rule, lifecycles.Fixed):
        return _fixed(rule, candidate, now)
    if isinstance(rule, lifecycles.ExpireAfterCopy):
        return _after_copy(candidate)
    if isinstance(rule, lifecycles.CapacityManaged):
        wish = f", desired {rule.desired}" if rule.desired is not None else ""
        return Decision(True, "CapacityManaged", None, f"CapacityManaged{wish}, until its unit is too full")
    if isinstance(rule, lifecycles.Forever):
        return Decision(True, "Forever", None, "Forever")
    raise TypeError("Keep judges all candidates together")


def end(rule: lifecycles.Fixed, time: dt.datetime) -> dt.datetime | None:
    """When the period of a copy made at ``time`` has passed; None past the year 9999."""
    try:
        return rule.period.after(time)
    except OverflowError:
        return None


def _fixed(rule: lifecycles.Fixed, candidate: Candidate, now: dt.datetime) -> Decision:
    passes = end(rule, candidate.time)
    if passes is None or passes > now:
        until = f" until {times.show_minutes(passes)}" if passes else ""
        return Decision(True, "Fixed", passes, f"Fixed {rule.period}{until}")
    text = f"Fixed {rule.period} passed {times.show_minutes(passes)}"
    if candidate.unpaid:
        return Decision(True, "Fixed", passes, f"{text}, still owes {', '.join(candidate.unpaid)}")
    return Decision(False, "Fixed", passes, text)


def _after_copy(candidate: Candidate) -> Decision:
    if not candidate.children:
        return Decision(True, "ExpireAfterCopy", None, "ExpireAfterCopy, and no copy is made of it")
    if candidate.unpaid:
        return Decision(True, "ExpireAfterCopy", None, f"ExpireAfterCopy, still owes {', '.join(candidate.unpaid)}")
    if candidate.chained:
        return Decision(True, "ExpireAfterCopy", None, "ExpireAfterCopy, the next incremental needs it")
    return Decision(False, "ExpireAfterCopy", None, "ExpireAfterCopy, every copy owed is made")


# -- Keep --------------------------------------------------------------------------------------------------------------


class _Word(NamedTuple):
    """One word of a rule, such as ``daily: 7``, and the places of the candidates it keeps, the newest first."""

    rule: str
    limit: str
    places: list[int]
    #: What the places are counted as, from 1; 0 where the word counts nothing.
    rank: int = 1
    #: Which of ``_BUCKETS`` says which period a place stands for; empty where none does.
    period: str = ""


#: Name of a natural period -> its number for each candidate, newest first, as ``calendars.Periods.of`` counts them.
Buckets = Callable[[str], Sequence[int]]


def kept(rule: lifecycles.Keep, stamps: Sequence[int], fulls: Sequence[bool], buckets: Buckets) -> set[int]:
    """The places that ``Keep`` keeps, of candidates given newest first: times in microseconds, which are fulls, and the
    natural periods of the rule's zone that they lie in."""
    result: set[int] = set()
    for word in _words(rule, stamps, fulls, buckets):
        result.update(word.places)
        if len(result) == len(stamps):
            break
    return result


def gone(rule: lifecycles.Keep) -> Decision:
    """What is said of a candidate that no word of the rule keeps."""
    return Decision(False, "Keep", None, f"Keep {summary(rule)} keeps others")


def _keep(rule: lifecycles.Keep, candidates: Iterable[Candidate]) -> dict[str, Decision]:
    ordered = sorted(candidates, key=lambda one: (one.time, one.sequence), reverse=True)
    zone = calendars.zone(rule.time_zone)
    matches: dict[str, list[Match]] = {}
    stamps = [times.to_number(one.time) for one in ordered]
    clock = calendars.periods(rule.time_zone)
    local = clock.local(stamps)
    for word in _words(rule, stamps, [one.full for one in ordered], lambda name: clock.of(name, local)):
        for index, place in enumerate(word.places):
            found = ordered[place]
            bucket = _BUCKETS[word.period](found.time.astimezone(zone)) if word.period else ""
            rank = word.rank + index if word.rank else 0
            matches.setdefault(found.id, []).append(Match(word.rule, rank, word.limit, bucket))
    away = gone(rule)
    return {
        one.id: Decision(True, "Keep", None, "", tuple(matches[one.id])) if one.id in matches else away
        for one in ordered
    }


def _words(rule: lifecycles.Keep, stamps: Sequence[int], fulls: Sequence[bool], buckets: Buckets) -> Iterator[_Word]:
    """What each word of a rule keeps, of candidates given newest first."""
    if not stamps:
        return
    chosen = fulls if rule.prefer == "Full" else ()
    for name in _COUNTED:
        count = getattr(rule, name)
        if count is None:
            continue
        period = "" if name == "last" else name
        places = _representatives(buckets(name) if period else range(len(stamps)), chosen)[:count]
        yield _Word(name, str(count), places, period=period)
        if rule.keep_oldest and len(places) < count and places[-1] != len(stamps) - 1:
            yield _Word(f"oldest {name}", str(count), [len(stamps) - 1], len(places) + 1)
    newest = times.to_moment(stamps[0]).astimezone(calendars.zone(rule.time_zone))
    for name in ("", *_WITHIN):
        span = getattr(rule, f"within_{name}" if name else "within")
        if span is None:
            continue
        edge = times.to_number(_edge(newest, span))
        # Newest first, so those strictly newer than the edge are the first ones.
        inside = sum(1 for stamp in stamps if stamp > edge)
        places = _representatives(buckets(name)[:inside] if name else range(inside), chosen)
        yield _Word(f"within{name.capitalize()}", str(span), places, 0, name)


def _representatives(buckets: Sequence[int], fulls: Sequence[bool]) -> list[int]:
    """The first place of each stretch of equal buckets; with ``fulls``, the first full one where it has one."""
    # A bucket that repeats the one before it begins no stretch.
    starts = [place for place, pair in enumerate(itertools.pairwise(buckets), 1) if pair[0] != pair[1]]
    starts[:0] = [0] if buckets else []
    if not fulls:
        return starts
    stretches = itertools.pairwise((*starts, len(buckets)))
    return [next((place for place in range(*one) if fulls[place]), one[0]) for one in stretches]


def _edge(newest: dt.datetime, period: quantities.Duration) -> dt.datetime:
    """Newest minus period: months in local dates, the rest in real time; at the beginning of time if further back."""
    try:
        shifted = quantities.Duration(period.months, 0).before(newest.replace(tzinfo=None))
        placed = shifted.replace(tzinfo=newest.tzinfo, fold=newest.fold).astimezone(times.UTC)
        return placed - dt.timedelta(seconds=period.seconds)
    except OverflowError:
        return dt.datetime.min.replace(tzinfo=times.UTC)


def summary(rule: lifecycles.Retention) -> str:
    """A rule in a few words, such as ``daily 7, weekly 4`` or ``7d``."""
    if isinstance(rule, lifecycles.Fixed):
        return str(rule.period)
    if not isinstance(rule, lifecycles.Keep):
        return ""
    parts = [f"{name} {getattr(rule, name)}" for name in _COUNTED if getattr(rule, name) is not None]
    for name in ("", *_WITHIN):
        period = getattr(rule, f"within_{name}" if name else "within")
        if period is not None:
            parts.append(f"within{name.capitalize()} {period}")
    return ", ".join(parts)


def _show(match: Match) -> str:
    words = f"{match.rule} {match.rank} of {match.limit}" if match.rank else f"{match.rule} {match.limit}"
    return f"{words} ({match.bucket})" if match.bucket else words
