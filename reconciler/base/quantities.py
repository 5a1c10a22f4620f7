"""Durations, sizes and percentages as users spell them: ``90s 15m 24h 7d 8w 6mo 5y``, ``64KiB 12GiB 1TB``, ``95%``.

Months and years are calendar units: they are added to a date, never turned into seconds. No floats anywhere.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import re

_DURATION = re.compile(r"(\d+)(mo|[smhdwy])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_MONTHS = {"mo": 1, "y": 12}
_SIZE = re.compile(r"(\d+)\s*([KMGTPE]i?B|B)?\Z")
_POWERS = "KMGTPE"
DURATION_PATTERN = r"^([0-9]+(s|m|h|d|w|mo|y))+$"
SIZE_PATTERN = r"^[0-9]+ ?([KMGTPE]i?B|B)$"
PERCENT_PATTERN = r"^(100|[0-9]{1,2})%$"


@dataclasses.dataclass(frozen=True, slots=True, order=False)
class Duration:
    """A span of calendar months and exact seconds; either may be zero, neither is negative."""

    months: int = 0
    seconds: int = 0

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read ``24h``, ``6mo`` or a sum such as ``1d12h``. Raises ``ValueError`` with the accepted units."""
        months = seconds = position = 0
        for match in _DURATION.finditer(text):
            if match.start() != position:
                break
            count, unit = int(match[1]), match[2]
            months += count * _MONTHS.get(unit, 0)
            seconds += count * _SECONDS.get(unit, 0)
            position = match.end()
        if not text or position != len(text):
            raise ValueError(f"{text!r} is not a duration; write a number and a unit: 90s 15m 24h 7d 8w 6mo 5y")
        if months > 12_000 or seconds > 1000 * 366 * 86400:
            raise ValueError(f"{text!r} is longer than a thousand years")
        return cls(months, seconds)

    def after(self, moment: dt.datetime) -> dt.datetime:
        """``moment`` plus this span. A day that the month lacks overflows forward: 31 January + 1mo = 3 March.

        Raises ``OverflowError`` past the year 9999.
        """
        return _shift(moment, self.months) + dt.timedelta(seconds=self.seconds)

    def before(self, moment: dt.datetime) -> dt.datetime:
        """``moment`` minus this span; overflows forward as Go's ``AddDate`` does: 30 April - 2mo = 2 March."""
        return _shift(moment, -self.months) - dt.timedelta(seconds=self.seconds)

    @property
    def approximate(self) -> dt.timedelta:
        """A length for comparisons only: a month counts 30 days, a year 365."""
        years, months = divmod(self.months, 12)
        return dt.timedelta(days=365 * years + 30 * months, seconds=self.seconds)

    def __bool__(self) -> bool:
        return bool(self.months or self.seconds)

    def __str__(self) -> str:
        parts = []
        years, months = divmod(self.months, 12)
        if years:
            parts.append(f"{years}y")
        if months:
            parts.append(f"{months}mo")
        if self.seconds:
            for unit in ("w", "d", "h", "m", "s"):
                # Weeks only where nothing is lost: 7d stays 7d for everyone who wrote it so.
                if unit != "w" and self.seconds % _SECONDS[unit] == 0:
                    parts.append(f"{self.seconds // _SECONDS[unit]}{unit}")
                    break
        return "".join(parts) or "0s"


def _shift(moment: dt.datetime, months: int) -> dt.datetime:
    if not months:
        return moment
    year, month0 = divmod(moment.year * 12 + moment.month - 1 + months, 12)
    if not 1 <= year <= 9999:
        raise OverflowError("the date lies outside the years 1 to 9999")
    first = moment.replace(year=year, month=month0 + 1, day=1)
    return first + dt.timedelta(days=moment.day - 1)


def parse_size(text: str) -> int:
    """Bytes in ``64KiB`` (binary) or ``1TB`` (decimal). Raises ``ValueError``."""
    match = _SIZE.match(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a size; write a number and a unit: 512B 64KiB 12GiB 1TB")
    number, unit = int(match[1]), match[2] or "B"
    if unit == "B":
        return number
    base = 1024 if "i" in unit else 1000
    return number * int(base ** (_POWERS.index(unit[0]) + 1))


@functools.lru_cache(maxsize=4096)
def show_size(count: int) -> str:
    """A size for people: three digits and a binary unit, such as ``1.25 GiB``."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 1024 or unit == "PiB":
            break
        value /= 1024
    if unit == "B":
        return f"{count} B"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f} {unit}"


def parse_percent(text: str) -> int:
    """The whole percentage in ``95%``, from 0 to 100. Raises ``ValueError``."""
    match = re.fullmatch(r"(\d{1,3})%", text.strip())
    if not match or int(match[1]) > 100:
        raise ValueError(f"{text!r} is not a percentage; write a whole number from 0% to 100%")
    return int(match[1])


def show_seconds(seconds: float) -> str:
    """A span for people: ``3.2 s``, ``4m10s``, ``2h05m``, ``3d04h``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
