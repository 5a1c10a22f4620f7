"""Damage in a pool: a scrub finds it, the catalog says which copies, and the loop brings back what can be brought back."""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from pathlib import Path

import pytest
from fault_estates import MANIFESTS, Estate

from reconciler.base import meters
from reconciler.storage import opening
from reconciler.storage.dedupe import containers, images, pools

ALONE = MANIFESTS.replace(
    """    - {name: land, type: Backup, storage: fast, retention: {type: Fixed, period: 36h}}
    - {name: dedupe, type: Duplication, source: land, storage: pool, retention: {type: Keep, last: 2}}
""",
    "    - {name: dedupe, type: Backup, storage: pool, retention: {type: Keep, last: 5}}\n",
)
#: Longer than the first wait after a failure, shorter than a slot.
RETRY = dt.timedelta(minutes=10)


def spoil(estate: Estate, image: str, disk: str) -> Path:
    """Change one bit in the first segment of a disk of an image; the container."""
    with contextlib.closing(opening.open_folder(estate.paths["pool"])) as unit:
        assert isinstance(unit, pools.DedupePool)
        with contextlib.closing(unit.open(image)) as opened:
            assert isinstance(opened, images.StoredPoolImage)
            fingerprint = opened.recipe(disk).page(0)[0].fingerprint
        store = unit._opened()
        (location,) = store.index.find(containers.DATA, [fingerprint])
        assert location is not None
        path = containers.path(store.folder, location.container, containers.DATA)
    with path.open("r+b") as file:
        file.seek(location.offset + containers.RECORD.size + 50)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    return path


def states(estate: Estate, unit: str) -> dict[str, str]:
    return {one["image"]: one["state"] for one in estate.items("copies") if one["unit"] == unit}


def newest(estate: Estate, client: str) -> str:
    return max(one["id"] for one in estate.items("images") if one["client"] == client)


def test_a_damaged_duplicate_is_found_and_made_anew_from_the_other_copy(fresh: Estate) -> None:
    fresh.command.run("apply", "--yes", ".")
    image, other = newest(fresh, "vm1"), newest(fresh, "vm2")
    spoil(fresh, image, "system.img")
    document = fresh.ask("pool", "scrub", "pool", code=3)
    assert (document["falseSegments"], document["lostSegments"], document["complete"]) == (1, 1, True)
    assert [(one["image"], one["disk"], one["offset"]) for one in document["ranges"]] == [(image, "system.img", 0)]
    assert document["damagedCopies"] == [f"{image}/2"]
    assert states(fresh, "pool") == {image: "Damaged", other: "Complete"}
    assert "CopyDamaged" in {one["event"] for one in fresh.items("audit")}
    due = [one for one in fresh.ask("plan", ".")["actions"] if one["state"] == "Due"]
    assert [(one["type"], one["image"], one["reason"]["code"]) for one in due] == [("Duplicate", image, "Healing")]
    fresh.command.run("apply", "--yes", ".")
    assert set(states(fresh, "pool").values()) == {"Complete"}
    fresh.ask("pool", "collect", "pool")
    assert fresh.ask("pool", "scrub", "pool")["findings"] == []
    fresh.require_converged()


def test_where_both_copies_are_damaged_neither_is_deleted(fresh: Estate) -> None:
    fresh.command.run("apply", "--yes", ".")
    image = newest(fresh, "vm1")
    spoil(fresh, image, "system.img")
    fresh.ask("pool", "scrub", "pool", code=3)
    raw = max((fresh.paths["fast"] / "vm1").rglob("*"), key=lambda path: path.stat().st_blocks)
    with raw.open("r+b") as file:
        file.write(b"damage")
    fresh.command.run("apply", "--yes", ".", code=3)
    assert (states(fresh, "pool")[image], states(fresh, "fast")[image]) == ("Damaged", "Damaged")
    assert {image} <= set(fresh.held()["pool"]) & set(fresh.held()["fast"]), "what is left of a copy was thrown away"


@pytest.mark.parametrize("point", ["duplicate.reading", "duplicate.before-commit", "duplicate.after-commit"])
def test_a_healing_that_is_killed_is_begun_anew(fresh: Estate, point: str) -> None:
    fresh.command.run("apply", "--yes", ".")
    image = newest(fresh, "vm1")
    spoil(fresh, image, "system.img")
    fresh.ask("pool", "scrub", "pool", code=3)
    assert fresh.command.crashing(point).run("apply", "--yes", ".", code=None).returncode == -9
    fresh.command.run("apply", "--yes", ".")
    assert set(states(fresh, "pool").values()) == {"Complete"}
    fresh.require_converged()


@pytest.fixture
def alone(tmp_path: Path) -> Estate:
    """An estate whose only copies lie in the pool, two days old."""
    estate = Estate(tmp_path / "root")
    estate.root.mkdir()
    estate.build(ALONE)
    estate.command.run("apply", "--yes", ".")
    # Only vm1 changes throughout; this is about a machine that stays the same.
    estate.set_clock(estate.now() + dt.timedelta(hours=24, minutes=20))
    estate.command.run("apply", "--yes", ".")
    return estate


def test_without_another_copy_the_next_backup_reads_everything_and_heals_what_shared_the_damage(alone: Estate) -> None:
    first, second = sorted(one["id"] for one in alone.items("images") if one["client"] == "vm1")
    spoil(alone, second, "system.img")
    document = alone.ask("pool", "scrub", "pool", code=3)
    assert {one["image"] for one in document["ranges"]} == {first, second}
    assert {image: state for image, state in states(alone, "pool").items() if "vm1" in image} == {
        first: "Damaged",
        second: "Damaged",
    }
    alone.set_clock(alone.now() + dt.timedelta(hours=24, minutes=20))
    alone.command.run("apply", "--yes", ".")
    third = newest(alone, "vm1")
    facts = {one["id"]: one for one in alone.items("images")}
    assert third not in (first, second)
    assert (facts[third]["parent"], facts[third]["changes"]) == (None, "FullRead")
    assert states(alone, "pool")[third] == "Complete"
    assert states(alone, "pool")[first] == "Damaged", "a copy is said to be whole before it was proven"
    # The bytes came back with the third image; only reading them back makes the others whole.
    again = alone.ask("pool", "scrub", "pool", code=3)
    assert sorted(again["healedCopies"]) == [f"{first}/1", f"{second}/1"]
    assert again["ranges"] == []
    assert set(states(alone, "pool").values()) == {"Complete"}
    alone.ask("pool", "collect", "pool")
    assert alone.ask("pool", "scrub", "pool")["findings"] == []
    with contextlib.closing(opening.open_folder(alone.paths["pool"])) as unit:
        assert [unit.verify(image, meter=meters.Meter()) for image in (first, second, third)] == [(), (), ()]


def test_a_container_that_lost_its_end_costs_only_what_cannot_be_proven(alone: Estate, tmp_path: Path) -> None:
    container = max(alone.paths["pool"].rglob("*.data"), key=lambda path: path.stat().st_size)
    with container.open("r+b") as file:
        file.truncate(container.stat().st_size - 100)
    document = alone.ask("pool", "scrub", "pool", code=3)
    assert (document["lostSegments"], document["ranges"], document["damagedCopies"]) == (0, [], [])
    assert container.name in document["findings"][0]
    assert alone.ask("pool", "scrub", "pool")["findings"] == []
    alone.command.run("restore", "vm1", "--to", tmp_path / "restored")


def test_a_scrub_in_parts(alone: Estate) -> None:
    whole = sum(path.stat().st_size for path in alone.paths["pool"].glob("containers/*/*"))
    first = alone.ask("pool", "scrub", "pool", "--limit", "1B", "--rate", "100MiB/s")
    assert not first["complete"]
    assert first["readBytes"] + first["remainingBytes"] == whole
    code, text, _ = alone.say("pool", "scrub", "pool", "--for", "1h")
    assert code == 0
    assert "the round is complete" in text
    for wrong in (["--rate", "fast"], ["--for", "1 mile"], ["--limit", "-3"], ["--rate", "0B"], ["--dry-run"]):
        assert alone.say("pool", "scrub", "pool", *wrong)[0] == 64
    assert alone.say("pool", "collect", "pool", "--rate", "1MiB/s")[0] == 64
    assert alone.say("pool", "scrub", "fast")[0] == 64


def test_a_scrub_runs_beside_the_loop(alone: Estate) -> None:
    seat = alone.folder / ".holdfast" / "controller.lock"
    before = seat.read_bytes()
    process = alone.command.start("run", ".")
    try:
        while seat.read_bytes() == before:
            assert process.poll() is None
            time.sleep(0.01)
        spoil(alone, newest(alone, "vm1"), "system.img")
        for _ in range(3):
            alone.ask("pool", "scrub", "pool", code=3)
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Damaged" in states(alone, "pool").values()


def test_a_dry_run_of_a_collection_says_what_would_come_back_and_why_not_more(alone: Estate) -> None:
    alone.pass_day(3)
    alone.command.run("apply", "--yes", ".")
    before = sorted(alone.paths["pool"].glob("containers/*/*"))
    with contextlib.closing(
        pools.DedupePool(
            "pool",
            alone.paths["pool"],
            opening.identities.read(alone.paths["pool"], "pool"),
            opening.identities.read(alone.paths["pool"], "pool").owner,
            alone.root / "cache",
        )
    ) as unit:
        for image in [one["id"] for one in alone.items("images") if one["client"] == "vm1"][:2]:
            unit.delete(image)
    document = alone.ask("pool", "collect", "pool", "--dry-run")
    assert document["kind"] == "CollectPreview"
    assert document["freedBytes"] == document["dead"]["bytes"] + document["rewritten"]["bytes"] > 0
    loose = alone.ask("pool", "collect", "pool", "--dry-run", "--threshold", "1%")
    assert loose["kept"] == []
    strict = alone.ask("pool", "collect", "pool", "--dry-run", "--threshold", "99%")
    assert strict["freedBytes"] <= document["freedBytes"]
    # How much of which container is dead is a matter of how fast its segments came; all that is dead is told of.
    for preview in (document, strict):
        assert {one["code"] for one in preview["kept"]} <= {"MostlyLive"}
        assert preview["freedBytes"] + sum(one["bytes"] for one in preview["kept"]) == loose["freedBytes"]
    code, text, _ = alone.say("pool", "collect", "pool", "--dry-run", "--threshold", "99%")
    assert code == 0
    assert "would give back" in text
    assert ("--threshold takes another" in text) is bool(strict["kept"])
    assert sorted(alone.paths["pool"].glob("containers/*/*")) == before
    freed = alone.ask("pool", "collect", "pool")["details"]["freedBytes"]
    assert freed >= document["freedBytes"]
    assert alone.ask("pool", "collect", "pool", "--dry-run")["freedBytes"] == 0


def scrubs(estate: Estate) -> list[str]:
    return [one["state"] for one in estate.items("jobs") if one["type"] == "Verify"]


def test_the_loop_scrubs_every_month_and_brings_back_what_it_finds(fresh: Estate) -> None:
    fresh.command.run("apply", "--yes", ".")
    for days, expected in ((29, []), (2, ["Succeeded"])):
        fresh.set_clock(fresh.now() + dt.timedelta(days=days))
        fresh.command.run("apply", "--yes", ".")
        assert scrubs(fresh) == expected
    image = newest(fresh, "vm1")
    spoil(fresh, image, "system.img")
    fresh.command.run("apply", "--yes", ".")
    assert len(scrubs(fresh)) == 1
    fresh.set_clock(fresh.now() + dt.timedelta(days=31))
    fresh.command.run("apply", "--yes", ".", code=None)
    assert scrubs(fresh) == ["Succeeded"] * 2
    assert "CopyDamaged" in {one["event"] for one in fresh.items("audit")}


def test_a_scrub_of_the_loop_that_is_killed_goes_on(fresh: Estate) -> None:
    fresh.command.run("apply", "--yes", ".")
    fresh.set_clock(fresh.now() + dt.timedelta(days=31))
    killed = fresh.command.crashing("pool.scrub-placed:2").run("apply", "--yes", ".", code=None)
    assert killed.returncode == -9
    fresh.set_clock(fresh.now() + dt.timedelta(hours=1))
    fresh.command.run("apply", "--yes", ".")
    assert scrubs(fresh)[-1] == "Succeeded"
    # After a month without a pass nothing is deleted before a second look at the clock.
    fresh.command.run("apply", "--yes", ".")
    fresh.require_converged()
