"""Room: what is free and will be, less what running jobs add; who may take the last of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import planning_samples as samples
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.planning import actions, capacities, desired, dispatch, observed, placements, planner

ago, image, copy, operation = samples.ago, samples.image, samples.copy, samples.operation
FULLS = {"name": "daily", "type": "Full", "every": "24h"}


def estate(**spec: Any) -> desired.Desired:
    """Two Directory units in a group, a pool, one policy of fulls."""
    return samples.estate(
        samples.unit("fast", highWaterMark="90%", **spec), samples.unit("spare"), samples.pool("deep"),
        samples.group("both", "Prioritized", "fast", "spare"),
        samples.lifecycle("gold", operation("land", "both"), operation("dedupe", "deep", "land", samples.FOREVER)),
        samples.policy("gold", FULLS),
    )  # fmt: skip


def unit(name: str, free: int, **fields: Any) -> observed.Unit:
    """A unit of 1000 bytes."""
    return observed.Unit(**{"name": name, "state": "Online", "total_bytes": 1000, "free_bytes": free, **fields})


def job(unit: str = "fast", adds: int | None = 100, stored: int = 0, type: str = "Backup") -> observed.Job:
    """A running job that adds to a unit."""
    return observed.Job(
        id=f"j-{unit}-{adds}", address=f"x/{unit}/{adds}/{stored}", type=type, state="Running", unit=unit,
        expected_bytes=adds, stored_bytes=stored,
    )  # fmt: skip


def seen(wanted: desired.Desired, *units: observed.Unit, **fields: Any) -> observed.Observed:
    """All units roomy but those given."""
    state = samples.seen(wanted, **fields)
    return dataclasses.replace(state, units={**state.units, **{one.name: one for one in units}})


@pytest.mark.parametrize(
    ("free", "reclaimable", "jobs", "message"),
    [
        (100, 0, (), None),
        (99, 0, (), "unit fast is 90% full, over its 90% mark"),
        (50, 50, (), None),
        (300, 0, (job(adds=200),), None),
        (300, 0, (job(adds=201),), "unit fast is 90% full with what running jobs will add, over its 90% mark"),
        (300, 0, (job(adds=201, stored=1),), None),
        (300, 0, (job(adds=100, stored=500), job(adds=200)), None),
        (150, 0, (job(adds=None), job("spare", 500), job(adds=500, type="Expire")), None),
    ],
)
def test_a_unit_is_full_by_what_is_free_and_will_be_less_what_is_committed(
    free: int, reclaimable: int, jobs: tuple[observed.Job, ...], message: str | None
) -> None:
    wanted = estate()
    units = placements.Units(wanted, seen(wanted, unit("fast", free, reclaimable_bytes=reclaimable), jobs=jobs))
    refusal = units.refuses_new("fast")
    assert (refusal.message if refusal else None) == message
    assert refusal is None or refusal.code == "UnitFull"


def test_a_job_of_a_renamed_unit_counts_on_it() -> None:
    wanted = samples.estate(samples.unit("quick", previousNames=["fast"]))
    units = placements.Units(wanted, seen(wanted, unit("quick", 500), jobs=(job("fast", 100),)))
    assert units.space("quick") == capacities.Space(1000, 500, 100)


def backup(*images: observed.Image, units: tuple[observed.Unit, ...], **fields: Any) -> actions.Action:
    """What becomes of the backup that is due."""
    wanted = estate()
    plan = planner.plan(wanted, seen(wanted, *units, **{"series": (samples.series(*images),), **fields}), samples.NOW)
    return next(
        one for one in plan.actions if one.type is actions.Type.BACKUP and one.state is not actions.State.PLANNED
    )


def test_a_backup_that_does_not_fit_goes_to_another_member_or_says_the_numbers() -> None:
    last = image(1, ago(hours=30), copy(stored=300))
    fits = backup(last, units=(unit("fast", 300), unit("spare", 900)))
    assert (fits.state.value, fits.candidates, fits.adds) == ("Due", ("fast", "spare"), 300)
    moved = backup(last, units=(unit("fast", 299), unit("spare", 900)))
    assert (moved.state.value, moved.candidates) == ("Due", ("spare",))
    nowhere = backup(last, units=(unit("fast", 299), unit("spare", 250)))
    assert (nowhere.state.value, nowhere.reason.code) == ("Blocked", "NoRoom")
    assert nowhere.reason.message == "300 B are expected, and unit fast has 299 B free"
    promised = backup(last, units=(unit("fast", 350), unit("spare", 250)), jobs=(job(adds=100),))
    assert promised.reason.message == (
        "300 B are expected, and unit fast has 350 B free, 100 B of it promised to running jobs"
    )


def test_a_first_backup_and_one_of_a_new_type_are_not_held_back_by_a_guess() -> None:
    units = (unit("fast", 101), unit("spare", 101))
    assert (backup(units=units).state.value, backup(units=units).adds) == ("Due", None)
    small = image(1, ago(hours=30), copy(stored=5000), type="Incremental")
    assert (backup(small, units=units).state.value, backup(small, units=units).adds) == ("Due", None)


def of_backup(unit: str, *images: observed.Image) -> int | None:
    """What the next full adds; ``deep`` is a pool."""
    history = planner.histories.History(samples.series(*images), samples.NOW)
    return capacities.of_backup(history, "Full", unit, lambda name: name == "deep")


def test_in_a_pool_the_first_image_says_nothing_of_the_second() -> None:
    first = image(1, ago(days=2), copy(1, "land", "deep", stored=900))
    second = image(2, ago(days=1), copy(1, "land", "deep", stored=7))
    plain = image(3, ago(hours=1), copy(1, "land", "fast", stored=800))
    assert of_backup("deep", first) is None
    assert of_backup("deep", first, second) == 7
    # A series that comes over from plain files adds about what it took there.
    assert of_backup("deep", plain) == 800
    assert of_backup("fast", first, second, plain) == 800
    assert of_backup("fast", first, second) is None


def test_a_copy_adds_what_its_source_took_or_what_plain_files_took() -> None:
    def adds(source: int, unit: str, *copies: observed.Copy) -> int | None:
        made = image(1, ago(hours=1), *copies)
        return capacities.of_copy(made, made.copies[source], unit, lambda name: name == "deep")

    plain, pooled = copy(1, stored=500), copy(2, "dedupe", "deep", stored=3)
    assert adds(0, "deep", plain) == 500
    assert adds(0, "far", plain, pooled) == 500
    assert adds(1, "far", plain, pooled) == 500
    # A pool's own number leaves out what other images had brought before.
    assert adds(1, "far", copy(1, "land", "deep", stored=3), pooled) is None


def ready(count: int, adds: int, **fields: Any) -> list[actions.Action]:
    """Backups of machines of their own that add as much each, onto both units in turn."""
    return [
        actions.Action(
            address=f"a{n}", type=actions.Type.BACKUP, state=actions.State.DUE, at=samples.NOW, client_id=f"c{n}",
            reason=actions.Reason(code="SlotDue", message="due"), unit="fast", candidates=("fast", "spare"),
            storage="both", adds=adds, **fields,
        )
        for n in range(count)
    ]  # fmt: skip


def test_two_large_jobs_do_not_both_take_the_last_space() -> None:
    wanted = estate()
    state = seen(wanted, unit("fast", 500), unit("spare", 300))
    starts = dispatch.choose(ready(3, 300), (), wanted, state, samples.NOW)
    assert [(one.action.address, one.unit) for one in starts] == [("a0", "fast"), ("a1", "spare")]


@given(
    free=st.integers(100, 1000), committed=st.integers(0, 400),
    sizes=st.lists(st.integers(0, 400), max_size=8),
)  # fmt: skip
def test_what_starts_together_always_fits_together(free: int, committed: int, sizes: list[int]) -> None:
    wanted = estate(maxConcurrentJobs=100)
    state = seen(wanted, unit("fast", free), unit("spare", 0), jobs=(job(adds=committed),))
    waiting = [
        dataclasses.replace(ready(1, size)[0], address=f"a{n}", client_id=f"c{n}", candidates=("fast",), storage="fast")
        for n, size in enumerate(sizes)
    ]
    starts = dispatch.choose(waiting, state.jobs, wanted, state, samples.NOW)
    taken = [one.action.adds or 0 for one in starts]
    assert sum(taken) <= max(0, free - committed)
    left = free - committed - sum(taken)
    passed_over = {one.address for one in waiting} - {one.action.address for one in starts}
    assert all((one.adds or 0) > left for one in waiting if one.address in passed_over)
