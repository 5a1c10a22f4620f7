"""Who has heard of which alarm: told once when it begins, again while it stands, and once when it is over.

``controller.notifications`` keeps the records in the catalog and sends what is due. Each channel has an ear of its own,
so that one that cannot be reached is tried again, later each time, without the others hearing everything twice. A
channel that never heard of an alarm need not hear that it is over.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Collection, Iterable, Mapping

from reconciler.base import quantities
from reconciler.planning import alarms, retries


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Ear:
    """What one channel knows of one alarm."""

    #: When it last took it, None before.
    told_at: dt.datetime | None = None
    #: Attempts in a row that it did not take, and when the last of them was.
    failures: int = 0
    tried_at: dt.datetime | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One alarm that stands, or whose end somebody has still to hear of."""

    alarm: alarms.Alarm
    since: dt.datetime
    over_at: dt.datetime | None = None
    #: By channel.
    ears: Mapping[str, Ear] = dataclasses.field(default_factory=dict)

    @property
    def told_at(self) -> dt.datetime | None:
        """When any channel last took it."""
        return max((ear.told_at for ear in self.ears.values() if ear.told_at is not None), default=None)


Records = Mapping[str, Record]


def settle(
    records: Records, standing: Iterable[alarms.Alarm], repeat: quantities.Duration, now: dt.datetime
) -> dict[str, Record]:
    """The records, by key, once ``standing`` is what stands. What is over leaves when every channel that heard of it
    has heard that, or a ``repeat`` later."""
    result: dict[str, Record] = {}
    for alarm in standing:
        known = records.get(alarm.key)
        if known is None:
            result[alarm.key] = Record(alarm=alarm, since=now)
        else:
            result[alarm.key] = dataclasses.replace(known, alarm=alarm, over_at=None)
    for key, record in records.items():
        if key in result:
            continue
        over_at = record.over_at or now
        heard = any(ear.told_at is not None for ear in record.ears.values())
        if heard and now < repeat.after(over_at):
            result[key] = dataclasses.replace(record, over_at=over_at)
    return result


def due(records: Records, channel: str, repeat: quantities.Duration, now: dt.datetime) -> tuple[Record, ...]:
    """What a channel is to hear now, what has begun first."""
    found = [record for record in records.values() if _hears(record, channel, repeat, now)]
    return tuple(sorted(found, key=lambda one: (one.over_at is not None, one.alarm.severity, one.alarm.key)))


def _hears(record: Record, channel: str, repeat: quantities.Duration, now: dt.datetime) -> bool:
    ear = record.ears.get(channel, Ear())
    # A clock that was set back must not silence an alarm for as long: what lies ahead counts like what lies behind.
    if ear.failures and ear.tried_at is not None and abs(now - ear.tried_at) < retries.backoff(ear.failures):
        return False
    if record.over_at is not None:
        return ear.told_at is not None
    return ear.told_at is None or abs(now - ear.told_at) >= repeat.approximate


def took(records: Records, keys: Collection[str], channel: str, now: dt.datetime, *, well: bool) -> dict[str, Record]:
    """The records once a channel was told of ``keys``; ``well``: whether it took them."""
    result = dict(records)
    for key in keys:
        record = records.get(key)
        if record is None:
            continue
        ears = dict(record.ears)
        ear = ears.get(channel, Ear())
        if not well:
            ears[channel] = dataclasses.replace(ear, failures=ear.failures + 1, tried_at=now)
        elif record.over_at is None:
            ears[channel] = Ear(told_at=now, tried_at=now)
        else:
            ears.pop(channel, None)
        result[key] = dataclasses.replace(record, ears=ears)
        if record.over_at is not None and not any(one.told_at is not None for one in ears.values()):
            del result[key]
    return result
