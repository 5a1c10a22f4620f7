"""When things fall due: the slots of ``cron`` and ``every``, and the windows in which work may start.

Called by ``backups`` for slots, by every decision that a window holds back, and by ``intake`` to refuse what never
happens. The only importer of the cron library, which follows Debian's rules for daylight saving time: fixed times run
once, wildcard minutes or hours follow real time. A slot is a moment in UTC and does not depend on where the search for
it began; every search is bounded by ``REACH``. Windows are wall-clock spans: 20:00 for 10h ends at 06:00 local time in
every night of the year.
"""

from __future__ import annotations

import bisect
import datetime as dt
import functools
import zoneinfo
from collections.abc import Iterable
from typing import Final

import cronsim

from reconciler.api import policies
from reconciler.base import quantities, times

#: How far a search for a slot looks, in either direction.
REACH: Final = dt.timedelta(days=5 * 366)
#: Starting this much early makes a search independent of a change of the clocks just before it.
_MARGIN: Final = dt.timedelta(hours=3)
_SECOND: Final = dt.timedelta(seconds=1)
_DAY: Final = dt.timedelta(days=1)
_REFERENCE: Final = dt.datetime(2024, 1, 1, tzinfo=times.UTC)
_LOOKS_BACK: Final = (*(dt.timedelta(hours=hours) for hours in (1, 24, 8 * 24, 32 * 24, 367 * 24)), REACH)
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
#: Windows repeat every week, so what does not open within this many days never does.
_AHEAD: Final = 15
_WEEK: Final = 7
#: Microseconds, and months.
_HOUR_LONG: Final = 3_600_000_000
_DAY_LONG: Final = 24 * _HOUR_LONG
_QUARTER: Final = _HOUR_LONG // 4
_MONTHS: Final = {"monthly": 1, "quarterly": 3, "yearly": 12}
#: Gaps between slots that are looked at.
_GAPS: Final = 200
#: Of 1 January 1970.
_ORDINAL: Final = 719163


@functools.lru_cache(maxsize=256)
def zone(name: str) -> dt.tzinfo:
    """The time zone of an IANA name. Raises ``zoneinfo.ZoneInfoNotFoundError``."""
    return times.UTC if name == "UTC" else zoneinfo.ZoneInfo(name)


# -- natural periods ---------------------------------------------------------------------------------------------------


class Periods:
    """The natural periods of one zone, as numbers that are equal within a period: ``hourly``, ``daily`` and so on.

    Stamps are microseconds since 1970, UTC. A week begins on Monday, as ISO 8601 says.
    """

    def __init__(self, zone_name: str) -> None:
        self._zone = zone(zone_name)
        self._offsets: dict[int, int] = {}
        self._months: dict[int, int] = {}

    def local(self, stamps: Iterable[int]) -> list[int]:
        """Wall-clock times, in microseconds since 1970 as if they were UTC."""
        if self._zone is times.UTC:
            return list(stamps)
        offsets = self._offsets
        result = []
        for stamp in stamps:
            offset = offsets.get(stamp // _QUARTER)
            result.append(stamp + (self._offset(stamp) if offset is None else offset))
        return result

    def of(self, name: str, local: Iterable[int]) -> list[int]:
        """The period of each local time. Raises ``KeyError`` for a name that is none."""
        if name == "hourly":
            return [stamp // _HOUR_LONG for stamp in local]
        if name == "daily":
            return [stamp // _DAY_LONG for stamp in local]
        if name == "weekly":
            # 1 January 1970 was a Thursday.
            return [(stamp // _DAY_LONG + 3) // 7 for stamp in local]
        length = _MONTHS[name]
        months = self._months
        result = []
        for stamp in local:
            day = stamp // _DAY_LONG
            month = months.get(day)
            result.append((self._month(day) if month is None else month) // length)
        return result

    def _month(self, day: int) -> int:
        date = dt.date.fromordinal(day + _ORDINAL)
        self._months[day] = date.year * 12 + date.month - 1
        return self._months[day]

    def _offset(self, stamp: int) -> int:
        """What local time is ahead of UTC; remembered where no clock is changed within the quarter of an hour."""
        quarter = stamp // _QUARTER
        here, begin, end = (self._ahead(at) for at in (stamp, quarter * _QUARTER, (quarter + 1) * _QUARTER - 1))
        if begin == end:
            self._offsets[quarter] = here
        return here

    def _ahead(self, stamp: int) -> int:
        offset = times.to_moment(stamp).astimezone(self._zone).utcoffset() or dt.timedelta()
        return offset // dt.timedelta(microseconds=1)


@functools.lru_cache(maxsize=64)
def periods(zone_name: str) -> Periods:
    """The natural periods of a zone, which remembers what it has worked out."""
    return Periods(zone_name)


# -- cron ------------------------------------------------------------------------------------------------------------


def check_cron(expr: str) -> str | None:
    """What is wrong with a cron expression: a sentence, or None. One without a slot in five years is wrong."""
    if len(expr.split()) != 5:
        return f"{expr!r} has {len(expr.split())} fields; cron has five: minute hour day month weekday"
    try:
        cronsim.CronSim(expr, _REFERENCE)
    except (cronsim.CronSimError, ValueError, AssertionError) as error:
        return f"{expr!r} is not a cron expression: {error}"
    if following(expr, "UTC", _REFERENCE) is None:
        return f"{expr!r} has no slot within five years"
    return None


@functools.lru_cache(maxsize=8192)
def following(expr: str, zone_name: str, after: dt.datetime) -> dt.datetime | None:
    """The first slot strictly after ``after``, UTC; None if none comes within ``REACH`` or the expression is wrong."""
    try:
        search = cronsim.CronSim(expr, (after - _MARGIN).astimezone(zone(zone_name)))
    except (cronsim.CronSimError, OverflowError):
        return None
    limit = after + REACH
    for moment in search:
        slot = moment.astimezone(times.UTC)
        if slot > limit:
            return None
        if slot > after:
            return slot
    return None


@functools.lru_cache(maxsize=2048)
def latest(expr: str, zone_name: str, at: dt.datetime) -> dt.datetime | None:
    """The last slot at or before ``at``, UTC; None if there was none within ``REACH``."""
    for back in _LOOKS_BACK:
        found = following(expr, zone_name, at - back - _SECOND)
        if found is not None and found <= at:
            return _last_between(expr, zone_name, found, at)
    return None


def _last_between(expr: str, zone_name: str, found: dt.datetime, at: dt.datetime) -> dt.datetime:
    """Bisect: ``found`` is a slot at or before ``at``; the last such slot."""
    low, high = found, at
    while high - low > _SECOND:
        middle = low + (high - low) / 2
        slot = following(expr, zone_name, middle.replace(microsecond=0))
        if slot is not None and slot <= at:
            low = slot
        else:
            high = middle
        # Most searches are over after one look: nothing lies between the slot and now.
        slot = following(expr, zone_name, low)
        if slot is None or slot > at:
            return low
    slot = following(expr, zone_name, low)
    return slot if slot is not None and slot <= at else low


@functools.lru_cache(maxsize=1024)
def interval(cron: str | None, every: quantities.Duration | None, zone_name: str) -> dt.timedelta | None:
    """How far apart slots lie at most: ``every``, or the longest of the first 200 gaps of ``cron``; None if never."""
    if every is not None:
        return every.approximate if every else None
    if cron is None:
        return None
    longest: dt.timedelta | None = None
    slot = following(cron, zone_name, _REFERENCE)
    for _ in range(_GAPS):
        later = following(cron, zone_name, slot) if slot is not None else None
        if slot is None or later is None:
            break
        longest = max(longest or dt.timedelta(), later - slot)
        slot = later
    return longest if longest is not None or slot is None else REACH


def together(crons: Iterable[str], everies: Iterable[quantities.Duration]) -> dt.timedelta | None:
    """How far apart slots lie at most where several schedules share the work; None where none ever comes.

    In UTC: a day that a change of the clocks makes an hour longer is still a day.
    """
    found = [one.approximate for one in everies if one]
    listed = [one for one in crons if check_cron(one) is None]
    ahead = {one: following(one, "UTC", _REFERENCE) for one in listed}
    last: dt.datetime | None = None
    longest: dt.timedelta | None = None
    for _ in range(_GAPS):
        coming = [slot for slot in ahead.values() if slot is not None]
        if not coming:
            break
        slot = min(coming)
        if last is not None:
            longest = max(longest or slot - last, slot - last)
        last = slot
        ahead |= {one: following(one, "UTC", slot) for one, at in ahead.items() if at == slot}
    return min([*found, *([longest] if longest else [])], default=None)


# -- every -----------------------------------------------------------------------------------------------------------


def grid_latest(base: dt.datetime, every: quantities.Duration, at: dt.datetime) -> dt.datetime | None:
    """The last of ``base``, ``base + every``, ``base + 2 every`` … at or before ``at``; None before ``base``."""
    if at < base:
        return None
    count = _steps(base, every, at)
    return _step(base, every, count) if count else base


def grid_following(base: dt.datetime, every: quantities.Duration, after: dt.datetime) -> dt.datetime | None:
    """The first of ``base``, ``base + every`` … strictly after ``after``; None for an empty period or past 9999."""
    if after < base:
        return base
    if not every:
        return None
    try:
        return _step(base, every, _steps(base, every, after) + 1)
    except OverflowError:
        return None


def _step(base: dt.datetime, every: quantities.Duration, count: int) -> dt.datetime:
    # Multiplied, not repeated: 31 January plus a month twice would end up on another day of the month.
    return quantities.Duration(every.months * count, every.seconds * count).after(base)


def _steps(base: dt.datetime, every: quantities.Duration, at: dt.datetime) -> int:
    """How many whole periods fit between ``base`` and ``at``."""
    if not every:
        return 0
    if not every.months:
        return (at - base) // dt.timedelta(seconds=every.seconds)
    count = max(0, (at - base) // (every.approximate + dt.timedelta(days=2 * every.months)))
    try:
        while _step(base, every, count + 1) <= at:
            count += 1
    except OverflowError:
        return count
    return count


# -- windows ---------------------------------------------------------------------------------------------------------


def check_window(spec: policies.BackupWindowSpec) -> str | None:
    """What is wrong with a window: a sentence, or None. One that never opens is wrong."""
    for span in (*spec.allow, *spec.deny):
        if not span.duration:
            return "a span's duration must be longer than nothing"
        if span.duration.approximate > dt.timedelta(days=_WEEK):
            return f"a span lasts at most a week, not {span.duration}"
    if next_opening(spec, _REFERENCE) is None:
        return "the window never opens: deny covers all that allow allows"
    return None


def next_opening(spec: policies.BackupWindowSpec, at: dt.datetime) -> dt.datetime | None:
    """``at`` itself while the window is open, else the next moment at which it opens; None if it never does."""
    if _span_at(spec, at) is not None:
        return at
    spans = _spans(spec, _local_day(spec, at))
    index = bisect.bisect_right(spans, at, key=lambda span: span[0])
    return spans[index][0] if index < len(spans) else None


def closing(spec: policies.BackupWindowSpec, at: dt.datetime) -> dt.datetime | None:
    """When the window that is open at ``at`` closes; None while it is closed, or where it does not close for a week."""
    span = _span_at(spec, at)
    return span[1] if span is not None and span[1] - at <= dt.timedelta(days=_WEEK + 1) else None


def _span_at(spec: policies.BackupWindowSpec, at: dt.datetime) -> tuple[dt.datetime, dt.datetime] | None:
    spans = _spans(spec, _local_day(spec, at))
    index = bisect.bisect_right(spans, at, key=lambda span: span[0]) - 1
    return spans[index] if index >= 0 and at < spans[index][1] else None


def _local_day(spec: policies.BackupWindowSpec, at: dt.datetime) -> dt.date:
    return at.astimezone(zone(spec.time_zone)).date()


@functools.lru_cache(maxsize=1024)
def _spans(spec: policies.BackupWindowSpec, day: dt.date) -> tuple[tuple[dt.datetime, dt.datetime], ...]:
    """The open spans around ``day``, UTC, merged, ordered, denied parts cut out."""
    # What denies is placed as far as the last span that allows can last, or its end would seem to open.
    cuts = _merged(_placed(spec.deny, spec.time_zone, day, _AHEAD + _WEEK + 1))
    result = []
    for begin, end in _merged(_placed(spec.allow, spec.time_zone, day, _AHEAD)):
        for cut_begin, cut_end in cuts:
            if cut_end <= begin or cut_begin >= end:
                continue
            if cut_begin > begin:
                result.append((begin, cut_begin))
            begin = cut_end
        if begin < end:
            result.append((begin, end))
    return tuple(result)


def _placed(
    spans: tuple[policies.WindowSpan, ...], zone_name: str, day: dt.date, ahead: int
) -> list[tuple[dt.datetime, dt.datetime]]:
    place = zone(zone_name)
    result = []
    # A span of a week that began up to eight days ago may still be open.
    for offset in range(-_WEEK - 1, ahead + 1):
        date = day + offset * _DAY
        for span in spans:
            if _DAYS[date.weekday()] in span.days:
                begin = dt.datetime.combine(date, dt.time.fromisoformat(span.start))
                end = span.duration.after(begin)
                result.append(tuple(m.replace(tzinfo=place).astimezone(times.UTC) for m in (begin, end)))
    return [(begin, end) for begin, end in sorted(result) if begin < end]


def _merged(spans: list[tuple[dt.datetime, dt.datetime]]) -> list[tuple[dt.datetime, dt.datetime]]:
    result: list[tuple[dt.datetime, dt.datetime]] = []
    for begin, end in spans:
        if result and begin <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((begin, end))
    return result
