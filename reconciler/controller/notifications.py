"""Telling somebody: at the end of a pass, each channel hears of the alarms that it does not know of yet.

A pass neither waits for a channel nor fails with it: each is spoken to by a thread of its own, and what came of it is
recorded at the end of the next pass, or before the process ends. What was told is kept in the catalog, so that a
restart tells nothing again; a channel that did not take a message is tried again, later each time.
"""

from __future__ import annotations

import dataclasses
import logging
import socket
import threading
import time
from collections.abc import Sequence
from typing import Final

from reconciler.base import clocks, quantities, times
from reconciler.catalog import alarms as kept
from reconciler.catalog import database
from reconciler.controller import channels
from reconciler.planning import alarms, tellings

_log = logging.getLogger(__name__)

#: How long a process that ends waits for its channels, in seconds: they have an end of their own before that.
PATIENCE: Final = channels.PATIENCE + 5
#: Alarms spelled out in one message; the rest is counted.
_SHOWN: Final = 30


@dataclasses.dataclass(slots=True)
class _Sending:
    """One message on its way through one channel."""

    thread: threading.Thread
    #: Key -> Begun, Standing or Over.
    keys: dict[str, str]
    #: Set once the channel answered: why it did not take the message, None if it did.
    answer: list[str | None]


class Notifier:
    """Tells alarms through channels. One thread calls it; ``close`` it before the process ends."""

    def __init__(
        self,
        *,
        db: database.Database,
        clock: clocks.Clock,
        actor: str,
        channels: Sequence[channels.Channel],
        repeat: quantities.Duration,
        place: str,
    ) -> None:
        """``repeat``: how often a standing alarm is told again; ``place``: the estate or state, for the reader."""
        self._db = db
        self._clock = clock
        self._actor = actor
        self._channels = tuple(channels)
        self._repeat = repeat
        self._place = place
        self._sending: dict[str, _Sending] = {}

    def tell(self, standing: Sequence[alarms.Alarm]) -> None:
        """Remember what stands, and begin to tell each channel what it should hear now."""
        self._collect()
        now = self._clock.now()
        before = kept.records(self._db)
        records = tellings.settle(before, standing, self._repeat, now)
        kept.keep(self._db, before, records)
        for channel in self._channels:
            due = tellings.due(records, channel.name, self._repeat, now)
            if due and channel.name not in self._sending:
                self._begin(channel, due)

    def close(self, patience: float = PATIENCE) -> None:
        """Wait for the channels, at most so many seconds together, and record what came of it."""
        deadline = time.monotonic() + patience
        for sending in self._sending.values():
            sending.thread.join(max(0.0, deadline - time.monotonic()))
        self._collect()
        for name, sending in self._sending.items():
            self._record(name, sending, f"{name} has not answered within {patience:.0f} s")
        self._sending.clear()

    def _begin(self, channel: channels.Channel, due: Sequence[tellings.Record]) -> None:
        letter = compose(due, channel.name, self._place)
        answer: list[str | None] = []
        thread = threading.Thread(
            target=lambda: answer.append(channels.deliver(channel, letter)),
            name=f"notify-{channel.name}",
            daemon=True,
        )
        keys = {one.alarm.key: _word(one, channel.name) for one in due}
        self._sending[channel.name] = _Sending(thread=thread, keys=keys, answer=answer)
        thread.start()

    def _collect(self) -> None:
        for name in [name for name, sending in self._sending.items() if not sending.thread.is_alive()]:
            sending = self._sending.pop(name)
            # A thread that ended without an answer died of a bug; the channel has not heard.
            self._record(name, sending, sending.answer[0] if sending.answer else f"{name}: the sender failed")

    def _record(self, name: str, sending: _Sending, trouble: str | None) -> None:
        now = self._clock.now()
        if trouble is not None:
            _log.warning("alarms were not told: %s; it is tried again", trouble)
        before = kept.records(self._db)
        after = tellings.took(before, sending.keys, name, now, well=trouble is None)
        kept.keep(self._db, before, after)
        kept.audit(self._db, channel=name, told=trouble is None, keys=sending.keys, now=now, actor=self._actor)


def _word(record: tellings.Record, channel: str) -> str:
    if record.over_at is not None:
        return "Over"
    ear = record.ears.get(channel)
    return "Begun" if ear is None or ear.told_at is None else "Standing"


def compose(due: Sequence[tellings.Record], channel: str, place: str) -> channels.Letter:
    """One message about all that a channel is to hear now."""
    words = [_word(one, channel) for one in due]
    over = words.count("Over")
    title = due[0].alarm.title
    if len(due) > 1:
        parts = [f"{len(due) - over} alarm{'s' if len(due) - over != 1 else ''}"] if over < len(due) else []
        title = ", ".join([*parts, *([f"{over} over"] if over else [])])
    elif over:
        title = f"over: {title}"
    lines = [_paragraph(one, word) for one, word in zip(due[:_SHOWN], words, strict=False)]
    if len(due) > _SHOWN:
        lines.append(f"… and {len(due) - _SHOWN} more.")
    lines.append(f"Holdfast on {socket.gethostname()}, {place}; holdfast status shows what stands.")
    worst = {one.alarm.severity for one, word in zip(due, words, strict=True) if word != "Over"}
    tone = "failure" if alarms.CRITICAL in worst else "warning" if worst else "success"
    return channels.Letter(title=f"Holdfast: {title}", body="\n\n".join(lines), tone=tone)


def _paragraph(record: tellings.Record, word: str) -> str:
    alarm = record.alarm
    if record.over_at is not None:
        return f"Over: {alarm.title} (from {times.show_minutes(record.since)})"
    since = f"; it stands since {times.show_minutes(record.since)}" if word == "Standing" else ""
    return f"{alarm.severity}: {alarm.title}{since}\n{alarm.message}"
