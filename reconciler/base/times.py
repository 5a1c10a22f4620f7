"""Points in time as aware UTC datetimes, and their one spelling: RFC 3339 with ``Z``."""

from __future__ import annotations

import datetime as dt
import re

UTC = dt.UTC
EPOCH = dt.datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d+)?)?([Zz]|[+-]\d\d:\d\d)\Z")


def to_number(moment: dt.datetime) -> int:
    """Microseconds since 1970 of an aware time."""
    return (moment - EPOCH) // _MICROSECOND


def to_moment(number: int) -> dt.datetime:
    """The aware UTC time of a number of microseconds since 1970."""
    return EPOCH + dt.timedelta(0, 0, number)


def parse(text: str) -> dt.datetime:
    """Read an RFC 3339 time (seconds optional) as UTC. Raises ``ValueError`` for all else, naive times too."""
    text = text.strip()
    if not _RFC3339.match(text):
        raise ValueError(f"{text!r} is not an RFC 3339 time with a zone, such as 2026-11-23T21:00:00Z")
    return dt.datetime.fromisoformat(text.upper().replace(" ", "T")).astimezone(UTC)


def aware(moment: dt.datetime) -> dt.datetime:
    """The same moment in UTC. Raises ``ValueError`` for a naive one."""
    if moment.tzinfo is None:
        raise ValueError("a time without a zone cannot be placed")
    return moment.astimezone(UTC)


def show(moment: dt.datetime) -> str:
    """RFC 3339 UTC, with a fraction only where there is one (microseconds at most)."""
    moment = aware(moment)
    fraction = f".{moment.microsecond:06d}".rstrip("0") if moment.microsecond else ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"


def show_milliseconds(moment: dt.datetime) -> str:
    """RFC 3339 UTC with exactly three digits of fraction."""
    moment = aware(moment)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def show_minutes(moment: dt.datetime) -> str:
    """The short spelling that addresses use: to the minute, or to the second where seconds are not zero."""
    moment = aware(moment)
    return (
        f"{moment:%Y-%m-%dT%H:%M}Z" if not moment.second and not moment.microsecond else f"{moment:%Y-%m-%dT%H:%M:%S}Z"
    )


def span(length: dt.timedelta) -> str:
    """A length of time in days, hours and minutes, those that are none left out; seconds are not told."""
    minutes = int(length.total_seconds() // 60)
    parts = [(minutes // 1440, "d"), (minutes // 60 % 24, "h"), (minutes % 60, "m")]
    return "".join(f"{number}{unit}" for number, unit in parts if number) or "less than a minute"
