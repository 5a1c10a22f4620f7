"""Who hears of an alarm, when: once when it begins, again while it stands, once when it is over."""

from __future__ import annotations

import datetime as dt

import planning_samples as samples
from hypothesis import given
from hypothesis import strategies as st

from reconciler.base import quantities
from reconciler.planning import alarms, tellings

DAY = quantities.Duration.parse("24h")
NOW = samples.NOW


def alarm(key: str = "Overdue/gold/a") -> alarms.Alarm:
    return alarms.Alarm(key=key, severity="Critical", title=key, message="Next: look")


class World:
    """Records over time, with channels that take messages or not."""

    def __init__(self, *channels: str) -> None:
        self.records: dict[str, tellings.Record] = {}
        self.channels = channels
        self.dead: set[str] = set()

    def tell(self, now: dt.datetime, *standing: alarms.Alarm) -> list[tuple[str, str, bool]]:
        """One pass: what each living channel heard, as (channel, key, whether it is over)."""
        self.records = tellings.settle(self.records, standing, DAY, now)
        heard = []
        for channel in self.channels:
            due = tellings.due(self.records, channel, DAY, now)
            well = channel not in self.dead
            if well:
                heard += [(channel, one.alarm.key, one.over_at is not None) for one in due]
            keys = [one.alarm.key for one in due]
            self.records = tellings.took(self.records, keys, channel, now, well=well)
        return heard


def later(**passed: float) -> dt.datetime:
    return NOW + dt.timedelta(**passed)


def test_told_once_again_after_the_repeat_and_once_when_it_is_over() -> None:
    world, one = World("a"), alarm()
    begun = [("a", one.key, False)]
    assert world.tell(NOW, one) == begun
    assert world.tell(later(hours=1), one) == []
    assert world.tell(later(hours=23.9), one) == []
    assert world.tell(later(hours=24), one) == begun
    assert world.records[one.key].since == NOW
    assert world.tell(later(hours=30)) == [("a", one.key, True)]
    assert world.tell(later(hours=31)) == []
    assert world.records == {}
    assert world.tell(later(hours=32), one) == begun


def test_a_dead_channel_is_tried_later_each_time_and_the_others_hear_nothing_twice() -> None:
    world, one = World("good", "dead"), alarm()
    world.dead.add("dead")
    assert world.tell(NOW, one) == [("good", one.key, False)]
    tried = []
    for minute in range(1, 120):
        assert world.tell(later(minutes=minute), one) == []
        if world.records[one.key].ears["dead"].tried_at == later(minutes=minute):
            tried.append(minute)
    assert tried == [1, 6, 31, 91]
    world.dead.clear()
    assert world.tell(later(minutes=152), one) == [("dead", one.key, False)]


def test_who_never_heard_of_it_need_not_hear_that_it_is_over() -> None:
    world, one = World("good", "dead"), alarm()
    world.dead.add("dead")
    world.tell(NOW, one)
    world.dead.clear()
    assert world.tell(later(hours=2)) == [("good", one.key, True)]
    assert world.records == {}


def test_an_end_that_nobody_takes_is_given_up_after_a_repeat() -> None:
    world, one = World("a"), alarm()
    world.tell(NOW, one)
    world.dead.add("a")
    assert world.tell(later(hours=1)) == []
    assert one.key in world.records
    assert world.tell(later(hours=26)) == []
    assert world.records == {}


def test_what_comes_back_before_its_end_was_told_goes_on_in_silence() -> None:
    world, one = World("a"), alarm()
    world.tell(NOW, one)
    world.dead.add("a")
    world.tell(later(hours=1))
    world.dead.clear()
    assert world.tell(later(hours=2), one) == []
    assert world.records[one.key].since == NOW


def test_without_channels_the_beginning_is_remembered_and_a_new_channel_hears_what_stands() -> None:
    world, one = World(), alarm()
    assert world.tell(NOW, one) == []
    world.channels = ("new",)
    assert world.tell(later(days=2), one) == [("new", one.key, False)]
    assert world.records[one.key].since == NOW


def test_a_clock_that_was_set_back_does_not_silence_anybody() -> None:
    world, one = World("a"), alarm()
    world.tell(later(days=400), one)
    assert world.tell(NOW, one) == [("a", one.key, False)]


@given(
    steps=st.lists(
        st.tuples(st.integers(1, 3000), st.booleans(), st.sets(st.sampled_from(("k1", "k2")))), min_size=1, max_size=40
    )
)
def test_every_beginning_is_heard_and_nothing_is_heard_twice_within_a_repeat(
    steps: list[tuple[int, bool, set[str]]],
) -> None:
    world, at = World("a"), NOW
    told: dict[str, dt.datetime] = {}
    for minutes, well, keys in steps:
        at += dt.timedelta(minutes=minutes)
        world.dead = set() if well else {"a"}
        for _, key, over in world.tell(at, *(alarm(key) for key in sorted(keys))):
            if over:
                assert key in told and key not in keys
                del told[key]
            else:
                assert key not in told or at - told[key] >= dt.timedelta(hours=24)
                told[key] = at
    # Once the channel lives and has rested, it knows of all that stands.
    world.dead = set()
    at += dt.timedelta(hours=2)
    world.tell(at, alarm("k1"))
    ears = world.records["k1"].ears
    assert ears["a"].told_at is not None and at - ears["a"].told_at < dt.timedelta(hours=24)
