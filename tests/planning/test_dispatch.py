"""What starts now: all limits at once, restores first, then priority, then what has been due longest."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import planning_samples as samples
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.planning import actions, desired, dispatch, observed, restorations, worktypes

BACKUP, DUPLICATE, RESTORE = actions.Type.BACKUP, actions.Type.DUPLICATE, actions.Type.RESTORE


def action(address: str, type: actions.Type = BACKUP, unit: str = "fast", **fields: Any) -> actions.Action:
    """A due action onto one unit, of a machine of its own."""
    values: dict[str, Any] = {
        "address": address, "type": type, "state": actions.State.DUE, "at": samples.NOW, "unit": unit,
        "reason": actions.Reason(code="SlotDue", message="due"), "policy": "gold", "client_id": address,
        "candidates": (unit,) if type in (BACKUP, DUPLICATE) else (), "storage": unit, **fields,
    }  # fmt: skip
    return actions.Action(**values)


def job(address: str, type: actions.Type = BACKUP, unit: str | None = "fast", **fields: Any) -> observed.Job:
    """A running job."""
    values = {"policy": "gold", "client": address, **fields}
    return observed.Job(id=address, address=address, type=type.value, state="Running", unit=unit, **values)


def estate(*objects: Any, **spec: Any) -> desired.Desired:
    """Units ``fast`` (two jobs) and ``deep`` (four), policies ``gold`` and ``silver``."""
    return samples.estate(
        samples.unit("fast", maxConcurrentJobs=2), samples.pool("deep"),
        samples.lifecycle("gold", samples.operation("land", "fast")),
        samples.policy("gold", **spec), samples.policy("silver"), *objects,
    )  # fmt: skip


def started(
    wanted: desired.Desired,
    ready: list[actions.Action],
    *running: observed.Job,
    load: dispatch.Load | None = None,
    **seen: Any,
) -> list[tuple[str, str | None, str]]:
    """Address, unit and media server of what starts, in order."""
    state = samples.seen(wanted, **seen)
    chosen = dispatch.choose(ready, running, wanted, state, samples.NOW, load=load)
    return [(one.action.address, one.unit, one.media_server) for one in chosen]


def addresses(*given: Any, **more: Any) -> list[str]:
    """Only the addresses."""
    return [address for address, _, _ in started(*given, **more)]


def test_a_unit_takes_as_many_jobs_as_it_may() -> None:
    ready = [action("a"), action("b"), action("c"), action("d", unit="deep")]
    assert addresses(estate(), ready) == ["a", "b", "d"]
    assert addresses(estate(), ready, job("x")) == ["a", "d"]
    # As a source, too.
    assert addresses(estate(), ready, job("x", DUPLICATE, "deep", source_unit="fast")) == ["a", "d"]
    copies = [action(f"copy-{n}", DUPLICATE, "deep", source_unit="fast", image=f"img-{n}") for n in range(3)]
    assert addresses(estate(), copies) == ["copy-0", "copy-1"]


def test_a_restore_has_a_slot_of_its_own_on_each_unit() -> None:
    ready = [action("a"), action("z-restore", RESTORE, unit="", source_unit="fast")]
    ready[1] = action("z-restore", RESTORE, "fast")
    assert addresses(estate(), ready, job("x"), job("y")) == ["z-restore"]
    assert addresses(estate(), ready, job("x")) == ["z-restore", "a"]
    second = action("z-second", RESTORE, "fast")
    assert addresses(estate(), [second], job("x"), job("y"), job("r", RESTORE)) == []
    assert addresses(estate(), [second], job("x"), job("r", RESTORE)) == ["z-second"]
    assert addresses(estate(), [action("a"), action("b")], job("r", RESTORE)) == ["a", "b"]


def test_policies_and_machines_have_limits_of_their_own() -> None:
    ready = [action("a", unit="deep"), action("b", unit="deep"), action("c", unit="deep", policy="silver")]
    assert addresses(estate(limits={"maxConcurrentJobs": 1}), ready) == ["a", "c"]
    assert addresses(estate(limits={"maxConcurrentJobs": 1}), ready, job("x", unit="deep")) == ["c"]
    twice = [action("a", client_id="vm"), action("b", client_id="vm", policy="silver")]
    assert addresses(estate(), twice) == ["a"]
    assert addresses(estate(), twice, job("x", client="vm")) == []
    # Expiry and duplication leave the machine alone.
    copying = action("d", DUPLICATE, "deep", client_id="vm", image="img-1")
    assert addresses(estate(), [copying], job("x", client="vm")) == ["d"]


def test_a_machine_that_is_written_over_is_not_backed_up_meanwhile() -> None:
    client = samples.CLIENT
    there, aside = (
        samples.make("Restore", name, {"client": "oblVM1", "target": {"folder": folder}, "overwrite": True})
        for name, folder in (("there", client.partition(":")[2]), ("aside", "/srv/out"))
    )
    wanted = estate(there, aside)
    over, beside = (
        action(restorations.address(one.name, restorations.digest(one)), RESTORE, client_id=client)
        for one in (there, aside)
    )
    backup = action("b", client_id=client)
    assert addresses(wanted, [backup, over]) == [over.address]
    assert addresses(wanted, [backup, beside]) == [beside.address, "b"]
    assert addresses(wanted, [over], job("x", client=client)) == []
    by_command = job(f"restore/oblvm1@2026-11-23T10:00:00Z{worktypes.IN_PLACE}", RESTORE, client=client)
    assert addresses(wanted, [backup, over, beside], by_command) == [beside.address]
    state = samples.seen(wanted)
    held = dispatch.held([backup, over], [by_command], wanted, state, samples.NOW)
    assert {place: one.code for place, one in held.items()} == dict.fromkeys(("b", over.address), "MachineBusy")
    assert dispatch.held([backup, beside], [job("x", client=client)], wanted, state, samples.NOW) == {}


def test_restores_go_first_then_priority_then_what_is_due_longest() -> None:
    ready = [
        action("late", at=samples.ago(hours=1)),
        action("later", at=samples.ago(hours=2)),
        action("urgent", priority=5),
        action("restore", RESTORE, "deep", priority=-5),
    ]
    assert addresses(estate(), ready) == ["restore", "urgent", "later"]
    assert addresses(estate(), list(reversed(ready))) == ["restore", "urgent", "later"]


def test_what_runs_already_or_is_not_due_does_not_start() -> None:
    waiting = action("w", state=actions.State.WAITING)
    assert addresses(estate(), [action("x"), waiting], job("x", unit="deep")) == []


def group(selection: str) -> tuple[desired.Desired, actions.Action]:
    """A group of three and a backup that may go onto any of them."""
    names = ("one", "two", "three")
    wanted = estate(*(samples.unit(name, maxConcurrentJobs=2) for name in names), samples.group("g", selection, *names))
    return wanted, action("a", candidates=names, unit="one", storage="g")


@pytest.mark.parametrize(
    ("selection", "busy", "unit"),
    [
        ("Prioritized", (), "one"),
        ("Prioritized", ("one", "one"), "two"),
        ("Failover", (), "one"),
        # Only what is down is passed over; what is busy is waited for.
        ("Failover", ("one", "one"), None),
        ("LoadBalance", ("one",), "three"),
        ("LoadBalance", ("one", "three"), "two"),
        ("RoundRobin", (), "two"),
    ],
)
def test_a_group_chooses_by_its_selection(selection: str, busy: tuple[str, ...], unit: str | None) -> None:
    wanted, ready = group(selection)
    usual = samples.seen(wanted).units
    roomy = observed.Unit(name="three", state="Online", total_bytes=10**9, free_bytes=9 * 10**8)
    running = [job(f"x{n}", unit=name) for n, name in enumerate(busy)]
    load = dispatch.Load(last_used={"one": samples.NOW, "three": samples.ago(hours=1)})
    found = started(wanted, [ready], *running, load=load, units={**usual, "three": roomy})
    assert [one[1] for one in found] == ([unit] if unit else [])


def test_round_robin_goes_on_within_one_choice() -> None:
    wanted, _ = group("RoundRobin")
    names = ("one", "two", "three")
    ready = [action(f"a{n}", candidates=names, unit="one", storage="g") for n in range(6)]
    assert [one[1] for one in started(wanted, ready)] == [*names, *names]
    # Jobs that run already have used their member, too.
    running = [job("x", unit="one", since=samples.NOW), job("y", unit="two", since=samples.ago(minutes=1))]
    assert [one[1] for one in started(wanted, ready[:3], *running)] == ["three", "two", "one"]
    # One that began while this was being decided is not used later than what is chosen now, again and again.
    running = [job("x", unit="one", since=samples.NOW + dt.timedelta(seconds=2))]
    assert [one[1] for one in started(wanted, ready[:3], *running)] == ["two", "three", "one"]


def test_failover_goes_to_the_next_member_when_the_first_is_down() -> None:
    wanted, ready = group("Failover")
    # The planner leaves out what is down.
    assert started(wanted, [action("a", candidates=("two", "three"), unit="two", storage="g")])[0][1] == "two"
    assert started(wanted, [ready])[0][1] == "one"


def test_two_copies_of_an_image_do_not_go_onto_one_unit() -> None:
    ready = [action(f"copy-{n}", DUPLICATE, "deep", image="img-1") for n in range(2)]
    assert addresses(estate(), ready) == ["copy-0"]
    assert addresses(estate(), ready, job("copy-9", DUPLICATE, "deep", image="img-1")) == []


def test_the_least_loaded_media_server_that_reaches_both_ends_does_the_work() -> None:
    servers = [
        samples.make("MediaServer", "ms1", {"storageUnits": ["fast", "deep"], "maxConcurrentJobs": 2}),
        samples.make("MediaServer", "ms2", {"storageUnits": ["fast"], "maxConcurrentJobs": 2}),
        samples.make("MediaServer", "ms3", {"storageUnits": ["fast", "deep"], "maxConcurrentJobs": 0}),
    ]
    wanted = estate(*servers)
    assert [one[2] for one in started(wanted, [action("a"), action("b")])] == ["ms1", "ms2"]
    copying = action("c", DUPLICATE, "deep", source_unit="fast", image="img-1")
    assert [one[2] for one in started(wanted, [copying], job("x", unit=None, media_server="ms1"))] == ["ms1"]
    full = [job(f"x{n}", unit=None, media_server="ms1") for n in range(2)]
    assert started(wanted, [copying], *full) == []
    warm = dispatch.Load(servers={"ms1": 0.9, "ms2": 0.1})
    assert [one[2] for one in started(wanted, [action("a")], load=warm)] == ["ms2"]


def small(number: int, size: int = 1 << 20, **fields: Any) -> actions.Action:
    """A duplication of a small image from ``fast`` into ``deep``."""
    values = {"image": f"img-{number}", "source_unit": "fast", "bytes": size, "unit": "deep", **fields}
    return action(f"copy-{number:03d}", DUPLICATE, **values)


def batches(wanted: desired.Desired, ready: list[actions.Action], *running: observed.Job) -> list[list[str]]:
    """What starts, slot by slot."""
    found: dict[str, list[str]] = {}
    for one in dispatch.choose(ready, running, wanted, samples.seen(wanted), samples.NOW):
        found.setdefault(one.batch or one.action.address, []).append(one.action.address)
    return list(found.values())


def test_small_images_share_the_slots_that_are_there() -> None:
    ready = [small(n) for n in range(5)]
    assert batches(estate(), ready) == [["copy-000", "copy-002", "copy-004"], ["copy-001", "copy-003"]]
    assert batches(estate(), ready, job("x")) == [[f"copy-{n:03d}" for n in range(5)]]
    assert batches(estate(), ready, job("x"), job("y")) == []
    # With a slot for each, each has one.
    assert batches(estate(), ready[:2]) == [["copy-000"], ["copy-001"]]


def test_a_batch_counts_as_one_job_until_its_last_one_has_ended() -> None:
    alive = [job(f"old-{n}", DUPLICATE, "deep", source_unit="fast", image=f"i-{n}", batch="b") for n in range(40)]
    assert batches(estate(), [small(1)], *alive) == [["copy-001"]]
    other = job("z", DUPLICATE, "deep", source_unit="fast", image="z", batch="c")
    assert batches(estate(), [small(1)], *alive, other) == []


def test_a_batch_has_a_limit_and_large_images_have_slots_of_their_own() -> None:
    wanted = estate(samples.unit("one", maxConcurrentJobs=1))
    many = [small(n, unit="one", source_unit="deep") for n in range(200)]
    assert [len(one) for one in batches(wanted, many)] == [dispatch.BATCH_JOBS]
    large = dispatch.SMALL - 1
    fat = [small(n, large, unit="one", source_unit="deep") for n in range(200)]
    assert [len(one) for one in batches(wanted, fat)] == [dispatch.BATCH_BYTES // large]
    huge = [small(n, dispatch.SMALL, unit="one", source_unit="deep") for n in range(3)]
    assert batches(wanted, huge) == [["copy-000"]]
    unknown = [dataclasses.replace(one, bytes=None) for one in many[:3]]
    assert batches(wanted, unknown) == [["copy-000"]]


def test_only_what_goes_the_same_way_shares_a_slot_and_an_image_lands_once() -> None:
    lead = [small(0), small(1)]
    assert batches(estate(), [*lead, small(2, policy="silver")]) == [["copy-000"], ["copy-001"]]
    assert batches(estate(), [*lead, small(2, candidates=("far",), unit="far")]) == [["copy-000"], ["copy-001"]]
    twice = dataclasses.replace(small(0), address="copy-again")
    assert batches(estate(), [*lead, twice]) == [["copy-000"], ["copy-001"]]


def test_what_waits_for_a_unit_is_not_overtaken_by_a_batch_there() -> None:
    urgent = action("urgent", unit="deep", priority=5, candidates=("fast",))
    lead = [small(n, priority=9) for n in range(2)]
    assert batches(estate(), [*lead, urgent, small(3)]) == [["copy-000"], ["copy-001"]]
    assert batches(estate(), [*lead, small(3), dataclasses.replace(urgent, priority=-1)]) == [
        ["copy-000", "copy-003"], ["copy-001"],
    ]  # fmt: skip


def test_a_batch_takes_no_more_room_than_there_is() -> None:
    wanted = estate(samples.unit("one", maxConcurrentJobs=1))
    room = observed.Unit(name="one", state="Online", total_bytes=10_000, free_bytes=2_500)
    state = samples.seen(wanted, units={**samples.seen(wanted).units, "one": room})
    ready = [small(n, unit="one", source_unit="deep", adds=1000) for n in range(5)]
    found = dispatch.choose(ready, (), wanted, state, samples.NOW)
    assert [one.action.address for one in found] == ["copy-000", "copy-001"]


def test_expiries_of_a_unit_share_slots_too() -> None:
    ready = [action(f"expire-{n}", actions.Type.EXPIRE) for n in range(5)]
    assert [len(one) for one in batches(estate(), ready)] == [3, 2]


@settings(max_examples=100)
@given(
    count=st.integers(0, 12), limit=st.integers(0, 5), running=st.integers(0, 5), policy=st.integers(1, 5),
    order=st.randoms(use_true_random=False),
)  # fmt: skip
def test_no_limit_is_ever_passed_and_no_room_is_left_unused(
    count: int, limit: int, running: int, policy: int, order: Any
) -> None:
    wanted = samples.estate(
        samples.unit("fast", maxConcurrentJobs=limit),
        samples.lifecycle("gold", samples.operation("land", "fast")),
        samples.policy("gold", limits={"maxConcurrentJobs": policy}),
    )
    ready = [action(f"a{n:02d}", at=samples.ago(minutes=n % 3)) for n in range(count)]
    mixed = list(ready)
    order.shuffle(mixed)
    live = [job(f"x{n}") for n in range(running)]
    found = addresses(wanted, mixed, *live)
    assert found == addresses(wanted, ready, *live)
    assert len(found) == max(0, min(count, limit - running, policy - running))
