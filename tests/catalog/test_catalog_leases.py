"""One controller at a time; a killed one is succeeded at once; a stale one decides nothing any more."""

from __future__ import annotations

import concurrent.futures
import datetime as dt
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import catalog_samples as samples
import pytest
import sqlalchemy as sa

from reconciler.base import errors
from reconciler.catalog import database, fences, inventories, jobs, leases, servers, tables

Take = Callable[[database.Database], leases.Lease]


@pytest.fixture
def take(state_folder: Path) -> Take:
    """Becomes the controller."""
    return lambda db: leases.acquire(state_folder, db, samples.NOW, "me@host", "/srv/estate")


def silent(db: database.Database, seconds: float) -> None:
    """Let the holder in the row have said nothing for so long."""
    with db.aside() as connection:
        row = tables.LEASES
        renewed = connection.scalar(sa.select(row.c.renewed))
        assert renewed is not None
        connection.execute(row.update().values(renewed=renewed - dt.timedelta(seconds=seconds)))


def test_the_holder_is_named_to_whoever_comes_second(
    db: database.Database, location: str, take: Take, state_folder: Path
) -> None:
    assert leases.holder(state_folder, db) is None
    process = samples.child("hold", location, str(state_folder))
    assert samples.heard(process) == "token 1"
    found = leases.holder(state_folder, db)
    assert found is not None
    assert (found.pid, found.estate, found.actor) == (process.pid, "/srv/estate", "child@host")
    assert found.since == samples.NOW
    without = leases.holder(state_folder)
    assert without is not None
    assert (without.pid, without.estate) == (process.pid, "/srv/estate")
    began = time.monotonic()
    with pytest.raises(errors.LeaseHeld, match=rf"pid {process.pid} on .*, since 2026-11-23T21:00.*/srv/estate"):
        take(db)
    assert time.monotonic() - began < 2
    samples.kill(process)
    assert leases.holder(state_folder, db) is None


def test_a_killed_holder_is_succeeded_at_once(
    db: database.Database, location: str, take: Take, state_folder: Path
) -> None:
    process = samples.child("hold", location, str(state_folder))
    assert samples.heard(process) == "token 1"
    samples.kill(process)
    began = time.monotonic()
    lease = take(db)
    assert time.monotonic() - began < 1
    assert lease.token == 2
    lease.release()
    assert leases.holder(state_folder, db) is None


def test_a_stopped_holder_keeps_its_lease(db: database.Database, location: str, take: Take, state_folder: Path) -> None:
    process = samples.child("hold", location, str(state_folder))
    samples.heard(process)
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(errors.LeaseHeld):
        take(db)
    samples.kill(process)


def test_a_holder_that_wakes_after_it_was_succeeded_decides_nothing(
    db: database.Database, location: str, take: Take, state_folder: Path
) -> None:
    process = samples.child("hold", location, str(state_folder))
    assert samples.heard(process) == "token 1"
    samples.tell(process)
    assert samples.heard(process) == "j-000001"
    samples.end(db, "j-000001", "Succeeded")
    os.kill(process.pid, signal.SIGSTOP)
    (state_folder / "controller.lock").unlink()  # how an impatient administrator takes the lock away
    if db.shared:
        silent(db, leases.LASTS)
    lease = take(db)
    assert lease.token == 2
    os.kill(process.pid, signal.SIGCONT)
    samples.tell(process)
    assert samples.heard(process) == "Superseded"
    assert jobs.live(db) == ()
    samples.enqueue(db, "backup/obl/x", fence=lease.token)
    with pytest.raises(fences.Superseded, match="took over"):
        samples.apply(db, samples.policy(), fence=1)
    assert inventories.applied(db) == {}
    samples.apply(db, samples.policy(), fence=lease.token)
    samples.kill(process)
    lease.release()


def test_the_holder_is_told_and_who_came_later_supersedes_it(
    db: database.Database, take: Take, state_folder: Path
) -> None:
    lease = take(db)
    found = leases.holder(state_folder, db)
    assert found is not None
    assert (found.estate, found.actor, found.pid) == ("/srv/estate", "me@host", os.getpid())
    lease.release()
    lease.release()
    again = take(db)
    assert again.token == lease.token + 1
    with pytest.raises(fences.Superseded):
        lease.require()
    again.require()
    again.release()


def test_of_many_that_come_at_once_one_wins(location: str, state_folder: Path) -> None:
    children = [samples.child("hold", location, str(state_folder)) for _ in range(3)]
    said = [samples.heard(one) for one in children]
    assert sorted(said) == ["", "", "token 1"]
    for one in children:
        samples.kill(one)


def test_looking_for_the_holder_disturbs_nobody(db: database.Database, take: Take, state_folder: Path) -> None:
    take(db).release()

    def look(_number: int) -> None:
        for _ in range(300):
            leases.holder(state_folder)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        watching = [pool.submit(look, number) for number in range(3)]
        for _ in range(20):
            take(db).release()
        for one in watching:
            one.result()


def test_looking_makes_nothing(tmp_path: Path) -> None:
    assert leases.holder(tmp_path / "nowhere") is None
    assert list(tmp_path.iterdir()) == []


def test_a_lease_that_could_not_be_recorded_is_not_held(db: database.Database, location: str, take: Take) -> None:
    reader = database.open_reading(location)
    assert reader is not None
    with pytest.raises(errors.CatalogError):
        take(reader)
    reader.close()
    take(db).release()


@samples.on_postgresql
def test_another_state_folder_does_not_make_a_second_controller(
    db: database.Database, location: str, state_folder: Path, tmp_path: Path
) -> None:
    process = samples.child("hold", location, str(tmp_path / "other host"))
    assert samples.heard(process) == "token 1"
    found = leases.holder(state_folder, db)
    assert found is not None
    assert found.pid == process.pid
    began = time.monotonic()
    with pytest.raises(errors.LeaseHeld, match=rf"pid {process.pid} on .*/srv/estate"):
        leases.acquire(state_folder, db, samples.NOW, "me@host", "/srv/estate")
    assert time.monotonic() - began < 2
    samples.kill(process)
    assert leases.holder(state_folder, db) is None
    leases.acquire(state_folder, db, samples.NOW, "me@host", "/srv/estate").release()


@samples.on_postgresql
@pytest.mark.parametrize(("seconds", "holds"), [(leases.LASTS - 5, True), (leases.LASTS, False)])
def test_a_holder_on_another_host_counts_until_it_was_silent_for_15_s(
    db: database.Database, take: Take, state_folder: Path, tmp_path: Path, seconds: int, holds: bool
) -> None:
    first = take(db)
    with db.aside() as connection:
        connection.execute(tables.LEASES.update().values(worker="elsewhere:1:00000000.1:00000000"))
    silent(db, seconds)
    assert (leases.holder(state_folder, db) is not None) == holds
    if holds:
        with pytest.raises(errors.LeaseHeld, match="pid 1 on elsewhere"):
            leases.acquire(tmp_path / "another", db, samples.NOW, "me@host", "/srv/estate")
    else:
        second = leases.acquire(tmp_path / "another", db, samples.NOW, "me@host", "/srv/estate")
        assert second.token == first.token + 1
        with pytest.raises(fences.Superseded):
            first.require()
        second.release()
    first.release()


@samples.on_postgresql
def test_a_living_holder_renews_its_lease_though_others_write(
    db: database.Database, location: str, take: Take, state_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_RENEWED", 0.05)
    lease = take(db)
    other = database.open_writing(location)
    with other.writing():
        silent(db, leases.LASTS - 1)
        assert samples.eventually(lambda: _age(other) < dt.timedelta(seconds=2))
    other.close()
    assert leases.holder(state_folder, db) is not None
    lease.release()
    assert leases.holder(state_folder, db) is None


def _age(db: database.Database) -> dt.timedelta:
    with db.aside() as connection:
        renewed = connection.scalar(sa.select(tables.LEASES.c.renewed))
        assert renewed is not None
        return servers.clock(connection) - renewed
