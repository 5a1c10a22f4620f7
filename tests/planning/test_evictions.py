"""``CapacityManaged``: a unit over its high water mark loses its oldest copies, down to the low one, and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import planning_samples as samples
import pytest
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.planning import actions, desired, explanations, observed, planner

ago, image, copy, operation = samples.ago, samples.image, samples.copy, samples.operation
MANAGED = {"type": "CapacityManaged"}
FULLS = {"name": "daily", "type": "Full", "every": "24h"}


def estate(retention: Any = MANAGED, *more: dict[str, Any], type: str = "unit", **spec: Any) -> desired.Desired:
    """``fast`` between 95% and 80%, one landing operation there and whatever follows."""
    make = {"unit": samples.unit, "pool": samples.pool}[type]
    return samples.estate(
        make("fast", highWaterMark="95%", lowWaterMark="80%", **spec), samples.pool("deep"),
        samples.lifecycle("gold", operation("land", "fast", None, retention), *more),
        samples.policy("gold", FULLS),
    )  # fmt: skip


def unit(filled: int, **fields: Any) -> observed.Unit:
    """``fast``, of 1000 bytes."""
    return observed.Unit(
        **{"name": "fast", "state": "Online", "total_bytes": 1000, "free_bytes": 1000 - filled, **fields}
    )


def plan(wanted: desired.Desired, fast: observed.Unit, *all_series: observed.Series, **fields: Any) -> actions.Plan:
    """The plan with this much on ``fast``; the revision in force made all images."""
    return planner.plan(wanted, state(wanted, fast, *all_series, **fields), samples.NOW)


def state(
    wanted: desired.Desired, fast: observed.Unit, *all_series: observed.Series, **fields: Any
) -> observed.Observed:
    """What that plan is made from."""
    spec = samples.owed_key(wanted.lifecycles["gold"].spec)
    made = [
        dataclasses.replace(one, images=tuple(i._replace(owed=spec) if i.owed == "none" else i for i in one.images))
        for one in all_series
    ]
    seen = samples.seen(wanted, *made, **fields)
    return dataclasses.replace(seen, units={**seen.units, "fast": fast})


def gone(found: actions.Plan) -> list[str]:
    """What goes, as it is listed."""
    return [
        one.address.removeprefix("expire/") for one in found.actions
        if one.type is actions.Type.EXPIRE and (one.state is actions.State.DUE or one.reason.code == "AfterDependents")
    ]  # fmt: skip


def days(count: int, stored: int = 100, **fields: Any) -> list[observed.Image]:
    """Fulls of the last days, oldest first: ``img-1`` is ``count`` days old."""
    return [image(n, ago(days=count + 1 - n, hours=-1), copy(stored=stored, **fields)) for n in range(1, count + 1)]


@pytest.mark.parametrize(
    ("filled", "reclaimable", "expected"),
    [
        (950, 0, []),
        (951, 0, ["img-1/1", "img-2/1"]),
        (970, 0, ["img-1/1", "img-2/1"]),
        (1000, 0, ["img-1/1", "img-2/1"]),
        # What a collection would give back counts as free.
        (1000, 50, []),
        (1000, 49, ["img-1/1", "img-2/1"]),
    ],
)
def test_the_oldest_go_until_the_low_mark_is_reached_and_not_one_more(
    filled: int, reclaimable: int, expected: list[str]
) -> None:
    found = plan(estate(), unit(filled, reclaimable_bytes=reclaimable), samples.series(*days(9)))
    assert gone(found) == expected
    assert found.destruction.items == () and not [one for one in found.drift if one.code == "CannotMakeSpace"]


def test_the_reason_names_mark_and_fill() -> None:
    found = plan(estate(), unit(970), samples.series(*days(9)))
    expiry = samples.by_address(found)["expire/img-1/1"]
    assert (expiry.reason.code, expiry.reason.message) == (
        "CapacityManaged", "expires: CapacityManaged, fast is 97% full, over its 95% mark, down to 80%",
    )  # fmt: skip
    assert found.emptying == {"fast": 800}


def test_explain_says_of_each_copy_what_the_plan_does() -> None:
    wanted, series = estate(), samples.series(*days(9))
    seen = state(wanted, unit(970), series)
    found = planner.plan(wanted, seen, samples.NOW)
    (kept,) = seen.series
    for name, told in (("img-1", "Due"), ("img-2", "Due"), ("img-3", "Kept")):
        (said,) = explanations.image(wanted, seen, kept, name, samples.NOW, found)
        assert said.state == told and said.code == "CapacityManaged"
        assert ("over its 95% mark" in said.message and said.at == samples.NOW) is (told == "Due")


def test_what_is_past_its_desired_time_goes_first_whichever_series_it_is_of() -> None:
    patient = samples.lifecycle("silver", operation("land", "fast", None, {**MANAGED, "desired": "60d"}))
    wanted = samples.estate(*estate({**MANAGED, "desired": "3d"}).objects(), patient)
    other = [image(n, ago(days=40 - n), copy(stored=100), id=f"old-{n}", lifecycle="silver") for n in range(10, 15)]
    found = plan(wanted, unit(1000), samples.series(*days(4)), samples.series(*other, client="diskimages:/srv/b"))
    # img-1 is past its three days; the others are older, but before their sixty (and the newest three protected).
    assert gone(found) == ["img-1/1", "old-10/1"]
    words = samples.by_address(found)["expire/old-10/1"].reason.message
    assert words == (
        "expires: CapacityManaged, before its desired 60d, fast is 100% full, over its 95% mark, down to 80%"
    )


def test_on_the_way_down_it_goes_on_below_the_high_mark() -> None:
    half = plan(estate(), unit(900), samples.series(*days(9)), emptying={"fast": 800})
    assert gone(half) == ["img-1/1"]
    assert samples.by_address(half)["expire/img-1/1"].reason.message == (
        "expires: CapacityManaged, fast is 90% full, on its way down to 80%"
    )
    done = plan(estate(), unit(800), samples.series(*days(9)), emptying={"fast": 800})
    assert gone(done) == [] and done.emptying == {}


OWING = operation("dedupe", "deep", "land", samples.FOREVER)


@pytest.mark.parametrize(
    ("wanted", "images", "fields", "expected", "said"),
    [
        # Never before its children are paid; the next oldest goes instead.
        (
            estate(MANAGED, OWING),
            [days(3)[0], *(i._replace(copies=(*i.copies, copy(2, "dedupe", "deep"))) for i in days(3)[1:])],
            {}, ["img-2/1", "img-3/1"], None,
        ),
        (estate(), days(1), {}, [], "1 of newest images"),
        (estate(immutability={"period": "30d"}), days(3), {}, [], "3 locked"),
        (estate(), days(3, busy=True), {}, [], "3 in use"),
        # What came back with its unit waits for an approval.
        (estate(), days(3, imported=True), {}, [], "3 promised or held"),
        # Other rules are left alone.
        (estate(samples.FOREVER), days(9), {}, [], None),
        (estate({"type": "Fixed", "period": "30d"}), days(9), {}, [], None),
    ],
)  # fmt: skip
def test_what_must_stay_stays_and_it_is_said_what_keeps_the_unit_full(
    wanted: desired.Desired, images: list[observed.Image], fields: Any, expected: list[str], said: str | None
) -> None:
    found = plan(wanted, unit(1000), samples.series(*images), **fields)
    assert gone(found) == expected
    drift = [one.message for one in found.drift if one.code == "CannotMakeSpace"]
    assert len(drift) == (said is not None)
    assert said is None or f"copies stay that are {said};" in drift[0], drift


def test_a_promise_made_before_stands() -> None:
    wanted = estate()
    promise = observed.Promise(
        lifecycle="gold", operation="land", up_to=2,
        retention=estate({"type": "Fixed", "period": "30d"}).lifecycles["gold"].spec.operations[0].retention,
    )  # fmt: skip
    found = plan(wanted, unit(1000), samples.series(*days(9)), promises=(promise,))
    assert gone(found) == ["img-3/1", "img-4/1"]


def test_what_leaves_anyway_is_counted_first() -> None:
    leaving = image(1, ago(days=9), copy(stored=150, state="Expiring"))
    found = plan(estate(), unit(1000), samples.series(leaving, *days(9)[1:]))
    assert gone(found) == ["img-1/1", "img-2/1"]


def chain() -> list[observed.Image]:
    """A full and two increments, twice, 50 bytes each."""
    result = []
    for start in (1, 4):
        for n in range(start, start + 3):
            base = f"img-{n - 1}" if n > start else None
            result.append(
                image(
                    n, ago(days=7 - n, hours=-1), copy(stored=50, base=base), parent=base,
                    type="Incremental" if base else "Full",
                )
            )  # fmt: skip
    return result


def test_a_chain_goes_as_a_whole_from_its_end() -> None:
    found = plan(estate(), unit(960), samples.series(*chain()))
    assert set(gone(found)) == {"img-1/1", "img-2/1", "img-3/1"}
    made = samples.by_address(found)
    assert made["expire/img-3/1"].state is actions.State.DUE
    assert made["expire/img-2/1"].after == ("expire/img-3/1",)
    assert made["expire/img-1/1"].after == ("expire/img-2/1",)
    # The chain of the newest image stays.
    drift = [one.message for one in found.drift if one.code == "CannotMakeSpace"]
    assert drift == [
        "96% full, and 10 B more than CapacityManaged can give would have to go; copies stay that are 3 of newest"
        " images; add space, or shorten another retention"
    ]


def test_a_base_of_what_another_rule_keeps_stays() -> None:
    lifecycle = samples.lifecycle("silver", operation("land", "fast", None, samples.FOREVER))
    wanted = samples.estate(*estate().objects(), lifecycle)
    full, small, *rest = days(5)
    small = small._replace(
        parent="img-1", type="Incremental", lifecycle="silver", copies=(copy(stored=100, base="img-1"),)
    )
    found = plan(wanted, unit(1000), samples.series(full, small, *rest))
    assert gone(found) == ["img-3/1", "img-4/1"]


def test_a_job_that_waits_for_room_makes_it() -> None:
    """80% full is no reason; a backup that does not fit is, and no more goes than it needs."""
    images = [image(n, ago(days=8 - n, hours=6), copy(stored=250)) for n in range(1, 8)]
    found = plan(estate(), unit(800), samples.series(*images))
    backup = next(one for one in found.actions if one.type is actions.Type.BACKUP and one.reason.code == "NoRoom")
    assert backup.state is actions.State.BLOCKED
    assert gone(found) == []  # at the low mark there is nothing to be made
    tight = plan(estate(), unit(900), samples.series(*images))
    assert gone(tight) == ["img-1/1"]
    assert samples.by_address(tight)["expire/img-1/1"].reason.message == (
        "expires: CapacityManaged, fast has 100 B free, and 250 B are expected"
    )
    room = plan(estate(), unit(740), samples.series(*images))
    assert gone(room) == []


def test_a_unit_that_cannot_delete_or_be_surveyed_loses_nothing() -> None:
    series = samples.series(*days(9))
    assert gone(plan(estate(), unit(1000, state="ReadOnly"), series)) == []
    unsure = plan(estate(type="pool"), unit(1000, standalone=True, surveyed=False), series)
    assert gone(unsure) == []
    assert [one.message for one in unsure.drift if one.code == "CannotMakeSpace"] == [
        "it is too full, but what a collection would give back cannot be told; holdfast pool check says why"
    ]
    jumped = plan(estate(), unit(1000), series, clock_jump="the clock jumped")
    assert gone(jumped) == []


@given(
    filled=st.integers(0, 1000), sizes=st.lists(st.integers(1, 200), min_size=2, max_size=12),
    late=st.integers(0, 12), more=st.integers(0, 200),
)  # fmt: skip
def test_order_need_and_growth(filled: int, sizes: list[int], late: int, more: int) -> None:
    """Oldest first, no more than is needed, and a fuller unit loses at least as much."""
    wanted = estate({"type": "CapacityManaged", "desired": f"{late}d"} if late else MANAGED)
    count = len(sizes)
    images = [image(n + 1, ago(days=count - n, hours=-1), copy(stored=size)) for n, size in enumerate(sizes)]
    lost = gone(plan(wanted, unit(filled), samples.series(*images)))
    numbers = [int(one.split("-")[1].split("/")[0]) for one in lost]
    assert numbers == list(range(1, len(numbers) + 1)) and count not in numbers
    freed = [sizes[n - 1] for n in numbers]
    if filled <= 950:
        # Only a backup that has no room could want any.
        assert not freed or sizes[-1] > 1000 - filled
    else:
        assert sum(freed[:-1]) < filled - 800
        assert sum(freed) >= filled - 800 or len(numbers) == count - 1
    fuller = gone(plan(wanted, unit(min(1000, filled + more)), samples.series(*images)))
    if filled > 950:
        assert fuller[: len(lost)] == lost


@settings(max_examples=20)
@given(
    type=st.sampled_from(("unit", "pool")), size=st.integers(110, 200), low=st.sampled_from(("40%", "60%", "80%")),
    jobs=st.sampled_from((1, 4)), incremental=st.booleans(), copied=st.booleans(),
)  # fmt: skip
def test_a_small_unit_goes_on_taking_backups_for_ever(
    type: str, size: int, low: str, jobs: int, incremental: bool, copied: bool
) -> None:
    make = {"unit": samples.unit, "pool": samples.pool}[type]
    schedule = {"name": "daily", "type": "Incremental", "every": "24h", "fullEvery": "3d"} if incremental else FULLS
    wanted = samples.estate(
        make("fast", highWaterMark="90%", lowWaterMark=low, maxConcurrentJobs=jobs), samples.pool("deep"),
        samples.lifecycle("gold", operation("land", "fast", None, MANAGED), *([OWING] if copied else [])),
        samples.policy("gold", schedule),
    )  # fmt: skip
    machines = (samples.machine("diskimages:/srv/oblVM1"), samples.machine("diskimages:/srv/oblVM2"))
    world = worlds.World(now=samples.NOW, wanted=wanted, machines={"gold": machines}, sizes={"fast": size})
    for day in range(25):
        world.settle()
        seen = world.observe().units["fast"]
        assert seen.free_bytes >= 0 and world.violations() == []
        newest = [max(image.time for image in images) for images in world.images.values()]
        assert all(world.now == time for time in newest), f"day {day}: a machine was not backed up"
        world.pass_by(hours=24)
