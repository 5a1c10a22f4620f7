"""Snapshots that dead jobs left behind are found, their readers ended, and they alone removed; by the command, on a
vCenter."""

from __future__ import annotations

import datetime as dt
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import virtual_estates
from virtual_estates import VirtualEstate, vsphere_labs

from reconciler.catalog import audits, database, snapshots
from reconciler.planning import observed
from reconciler.sources.vsphere.inventory import marks

DEAD = "j-000999"
STRANGER = "elsewhere.example:4711:abc.1:-"


@pytest.fixture
def estate(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[VirtualEstate]:
    """One machine, or as many as the test asks for, with an image each."""
    machines = virtual_estates.machines(getattr(request, "param", 1), size=virtual_estates.MIB)
    with vsphere_labs.Lab.start(tmp_path / "lab", machines=machines) as lab:
        made = VirtualEstate(tmp_path, lab).build(storage="pool")
        made.apply()
        yield made


def catalog(estate: VirtualEstate) -> database.Database:
    """The estate's catalog, open."""
    return database.open_writing(str(estate.folder / ".holdfast" / "catalog.sqlite"))


class Planted:
    """Snapshots as dead jobs leave them."""

    def __init__(self, estate: VirtualEstate, db: database.Database) -> None:
        self._estate, self._db = estate, db
        self.ids: dict[str, str] = {}

    def snapshot(self, vm: str, *, owner: str | None = None, age: dt.timedelta = dt.timedelta(hours=1)) -> str:
        """One on the vCenter with our mark, or ``owner``'s; its reference."""
        self.ids[vm] = str(uuid.uuid4())
        mark = marks.Mark(owner=owner or self._db.id, id=self.ids[vm], job=DEAD, made=self._estate.now() - age)
        made = self._estate.lab.act(vm, "foreignSnapshot", name=marks.name(DEAD), description=marks.describe(mark))
        return str(made["snapshot"])

    def note(self, vm: str, reference: str | None, *readers: int | str) -> None:
        """The catalog knows of it, and of what reads it: processes of this host, or workers of others."""
        machine = self._estate.lab.machine(vm)
        one = observed.Snapshot(
            id=self.ids.setdefault(vm, str(uuid.uuid4())),
            vcenter="lab",
            client=f"vsphere:{machine['instanceUuid']}",
            machine=vm,
            job=DEAD,
            place=machine["moref"],
            reference=None,
        )
        snapshots.intend(self._db, one, self._estate.now() - dt.timedelta(hours=1))
        if reference is not None:
            snapshots.made(self._db, one.id, reference)
        for reader in readers:
            if isinstance(reader, int):
                snapshots.read_by(self._db, one.id, reader)
            else:
                with self._db.writing() as connection:
                    connection.exec_driver_sql(
                        "UPDATE snapshots SET readers = ? WHERE id = ?", (f'["{reader}"]', one.id)
                    )


def removals(estate: VirtualEstate) -> dict[str, dict[str, Any]]:
    """The removals of a plan by machine."""
    plan = estate.command.json("plan", ".")
    return {one["client"]: one for one in plan["actions"] if one["type"] == "RemoveSnapshot"}


@pytest.mark.parametrize("estate", [6], indirect=True)
def test_what_dead_jobs_left_goes_and_nothing_else_does(estate: VirtualEstate) -> None:
    reader = subprocess.Popen(["sleep", "600"])
    db = catalog(estate)
    try:
        planted = Planted(estate, db)
        planted.snapshot("vm1")
        planted.note("vm2", planted.snapshot("vm2"), reader.pid)
        planted.note("vm3", planted.snapshot("vm3"), STRANGER)
        planted.snapshot("vm4", owner=str(uuid.uuid4()))
        planted.note("vm5", None)
        planted.snapshot("vm6", age=dt.timedelta(minutes=1))
        found = removals(estate)
        assert {name: one["state"] for name, one in found.items()} == {
            "vm1": "Due", "vm2": "Due", "vm3": "Due", "vm5": "Due", "vm6": "Waiting",
        }  # fmt: skip
        assert found["vm2"]["address"] == f"remove-snapshot/vm2/{planted.ids['vm2']}"
        assert all(word in found["vm2"]["reason"]["message"] for word in ("vm2", DEAD, "1h", "lab"))

        said = estate.apply(code=3)
        assert reader.wait(10) == -9
        assert sorted(name for name, _ in estate.snapshots()) == ["vm3", "vm4", "vm6"]
        assert "vm3: snapshot" in said and "elsewhere.example" in said and "maxSnapshotAge" in said
        told = [one for one in audits.entries(db) if one.event == "SnapshotRemoved"]
        assert {one.details["machine"] for one in told} == {"vm1", "vm2"}
        assert all((one.details["job"], one.details["vcenter"]) == (DEAD, "lab") for one in told)
        assert [one.machine for one in snapshots.noted(db)] == ["vm3"]
        assert {name: one["state"] for name, one in removals(estate).items()} == {"vm3": "Waiting", "vm6": "Waiting"}

        described = estate.command.json("describe", "vcenter", "lab")
        assert described["object"]["spec"]["credentialRef"]["env"] == "HOLDFAST_LAB"
        assert [(one["machine"], one["state"]) for one in described["related"]["snapshots"]] == [("vm3", "LeftOver")]
        assert [one["id"] for one in described["related"]["policies"]] == ["vms"]
        explained = estate.command.json("explain", "vcenter", "lab")["sentences"]
        assert any(one["about"] == found["vm3"]["address"] and one["state"] == "Waiting" for one in explained)

        # A reader that nobody can ask counts as ended once its snapshot is older than it may be.
        estate.set_clock(estate.now() + dt.timedelta(hours=12))
        estate.apply()
        assert [name for name, _ in estate.snapshots()] == ["vm4"]
        assert removals(estate) == {} and snapshots.noted(db) == ()
    finally:
        reader.kill()
        reader.wait(10)
        db.close()


def test_a_vcenter_that_is_away_is_waited_for(estate: VirtualEstate) -> None:
    db = catalog(estate)
    planted = Planted(estate, db)
    planted.note("vm1", planted.snapshot("vm1"))
    db.close()
    estate.lab.crash()
    (one,) = removals(estate).values()
    assert (one["state"], one["reason"]["code"]) == ("Blocked", "SourceUnreachable")
    assert "vm1" in one["reason"]["message"]
    estate.lab.restart()
    assert removals(estate)["vm1"]["state"] == "Due"
    estate.apply()
    assert estate.snapshots() == [] and removals(estate) == {}


def test_a_removal_that_dies_half_way_is_made_again(estate: VirtualEstate) -> None:
    db = catalog(estate)
    planted = Planted(estate, db)
    planted.note("vm1", planted.snapshot("vm1"))
    dying = estate.command.crashing("snapshot.removed")
    assert dying.run("apply", "--yes", ".", code=None).returncode == -9
    # It is gone, and the catalog has not heard of it.
    assert estate.snapshots() == [] and len(snapshots.noted(db)) == 1
    estate.apply()
    assert snapshots.noted(db) == () and removals(estate) == {}
    db.close()


@pytest.mark.parametrize("point", ["snapshot.noted", "backup.reading"])
def test_a_backup_that_dies_with_its_snapshot_leaves_none(estate: VirtualEstate, point: str) -> None:
    estate.pass_day()
    dying = estate.command.crashing(point)
    assert dying.run("apply", "--yes", ".", code=None).returncode == -9
    db = catalog(estate)
    assert snapshots.noted(db)
    estate.apply()
    assert estate.snapshots() == [] and snapshots.noted(db) == ()
    db.close()
    assert len(estate.items("images")) == 2
