"""One controller at a time; a killed one is succeeded at once; a stale one decides nothing any more."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import time
from pathlib import Path

import catalog_samples as samples
import pytest

from reconciler.base import errors
from reconciler.catalog import database, fences, inventories, jobs, leases


def take(db: database.Database) -> leases.Lease:
    """Become the controller."""
    return leases.acquire(Path(db.location).parent, db, samples.NOW, "me@host", "/srv/estate", None)


def test_the_holder_is_named_to_whoever_comes_second(db: database.Database, location: str) -> None:
    state = Path(location).parent
    assert leases.holder(state, db) is None
    process = samples.child("hold", location)
    assert samples.heard(process) == "token 1"
    found = leases.holder(state, db)
    assert found is not None
    assert (found.pid, found.estate, found.actor, found.revision) == (
        process.pid,
        "/srv/estate",
        "child@host",
        "main@sha1:1",
    )
    assert found.since == samples.NOW
    without = leases.holder(state)
    assert without is not None
    assert (without.pid, without.estate) == (process.pid, "/srv/estate")
    began = time.monotonic()
    with pytest.raises(errors.LeaseHeld, match=rf"pid {process.pid} on .*, since 2026-11-23T21:00.*/srv/estate"):
        take(db)
    assert time.monotonic() - began < 2
    samples.kill(process)
    assert leases.holder(state, db) is None


def test_a_killed_holder_is_succeeded_at_once(db: database.Database, location: str) -> None:
    process = samples.child("hold", location)
    assert samples.heard(process) == "token 1"
    samples.kill(process)
    began = time.monotonic()
    lease = take(db)
    assert time.monotonic() - began < 1
    assert lease.token == 2
    lease.release()
    assert leases.holder(Path(location).parent, db) is None


def test_a_stopped_holder_keeps_its_lease(db: database.Database, location: str) -> None:
    process = samples.child("hold", location)
    samples.heard(process)
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(errors.LeaseHeld):
        take(db)
    samples.kill(process)


def test_a_holder_that_wakes_after_it_was_succeeded_decides_nothing(db: database.Database, location: str) -> None:
    process = samples.child("hold", location)
    assert samples.heard(process) == "token 1"
    samples.tell(process)
    assert samples.heard(process) == "j-000001"
    samples.end(db, "j-000001", "Succeeded")
    os.kill(process.pid, signal.SIGSTOP)
    (Path(location).parent / "controller.lock").unlink()  # how an impatient administrator takes the lock away
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


def test_what_the_controller_does_next_is_told(db: database.Database) -> None:
    lease = take(db)
    lease.update("main@sha1:2", samples.later(hours=1))
    found = leases.holder(Path(db.location).parent, db)
    assert found is not None
    assert (found.revision, found.next_event, found.pid) == ("main@sha1:2", samples.later(hours=1), os.getpid())
    lease.release()
    lease.release()
    again = take(db)
    assert again.token == lease.token + 1
    with pytest.raises(fences.Superseded):
        lease.update("main@sha1:3", None)
    again.release()


def test_of_many_that_come_at_once_one_wins(location: str) -> None:
    children = [samples.child("hold", location) for _ in range(3)]
    said = [samples.heard(one) for one in children]
    assert sorted(said) == ["", "", "token 1"]
    for one in children:
        samples.kill(one)


def test_looking_for_the_holder_disturbs_nobody(db: database.Database) -> None:
    state = Path(db.location).parent
    take(db).release()

    def look(_number: int) -> None:
        for _ in range(300):
            leases.holder(state)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        watching = [pool.submit(look, number) for number in range(3)]
        for _ in range(20):
            take(db).release()
        for one in watching:
            one.result()


def test_looking_makes_nothing(tmp_path: Path) -> None:
    assert leases.holder(tmp_path / "nowhere") is None
    assert list(tmp_path.iterdir()) == []


def test_a_lease_that_could_not_be_recorded_is_not_held(db: database.Database, location: str) -> None:
    reader = database.open_reading(location)
    assert reader is not None
    with pytest.raises(errors.CatalogError):
        take(reader)
    reader.close()
    take(db).release()
