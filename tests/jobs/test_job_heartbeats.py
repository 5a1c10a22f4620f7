"""The embedded engine and its catalog: what a busy, a lost and a contradicting catalog do to running jobs."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from job_samples import LONG, Gate, all_finished, counting, succeed, task, until

from reconciler.base import clocks, errors, times
from reconciler.catalog import database, jobs
from reconciler.jobs import embedded, engines
from reconciler.jobs.engines import State


@pytest.fixture
def hasty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[database.Database]:
    """A catalog that reports being busy after 50 ms instead of 30 s."""
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.05)
    opened = database.open_writing(str(tmp_path / "hasty.sqlite"))
    yield opened
    opened.close()


@contextlib.contextmanager
def locked(db: database.Database) -> Iterator[None]:
    """Another program holds the catalog's write lock."""
    other = sqlite3.connect(db.location, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def engine_on(db: database.Database, *, patience: float = LONG) -> embedded.Engine:
    return embedded.Engine(db, clock=clocks.SystemClock(), interval=0.05, patience=patience)


def heartbeat_threads() -> int:
    return sum(thread.name == "holdfast-heartbeat" for thread in threading.enumerate())


def test_a_catalog_that_is_busy_for_a_while_makes_beats_late_and_nothing_else(
    hasty: database.Database, caplog: pytest.LogCaptureFixture
) -> None:
    with engine_on(hasty) as engine:
        job_id = engine.start(task("a", counting))
        until(lambda: jobs.get(hasty, job_id).reading.scanned > 0)
        with locked(hasty):
            until(lambda: caplog.messages)
            seen = jobs.get(hasty, job_id).reading.scanned
        until(lambda: jobs.get(hasty, job_id).reading.scanned > seen)
        assert jobs.get(hasty, job_id).state == "Running"
        jobs.request_cancel(hasty, job_id, dt.datetime.now(times.UTC), "somebody")
        assert all_finished(engine, 1)["a"].state is State.CANCELLED


def test_the_end_of_a_job_is_recorded_once_a_busy_catalog_takes_it(hasty: database.Database) -> None:
    with engine_on(hasty) as engine:
        gate = Gate()
        job_id = engine.start(task("a", gate))
        assert gate.entered.wait(LONG)
        with locked(hasty):
            gate.opened.set()
            assert not engine.wait(0.5), "a job is not over before its row says so"
        assert all_finished(engine, 1)["a"].state is State.SUCCEEDED
        assert jobs.get(hasty, job_id).state == "Succeeded"


def test_a_catalog_that_stays_busy_is_lost_and_stops_every_job(
    hasty: database.Database, caplog: pytest.LogCaptureFixture
) -> None:
    with engine_on(hasty, patience=0.6) as engine:
        engine.start(task("a", counting))
        engine.start(task("b", counting))
        until(lambda: len(engine.live()) == 2)
        with locked(hasty):
            told = all_finished(engine, 2)
        assert {finished.state for finished in told.values()} == {State.LOST}
        with pytest.raises(errors.CatalogError, match="busy"):
            engine.wait(LONG)
        with pytest.raises(errors.CatalogError, match="busy"):
            engine.start(task("c", succeed))
    assert any(record.levelno == logging.ERROR for record in caplog.records)


def test_a_catalog_whose_file_was_removed_stops_every_job_at_once(
    db: database.Database, caplog: pytest.LogCaptureFixture
) -> None:
    with engine_on(db) as engine:
        job_id = engine.start(task("a", counting))
        until(lambda: jobs.get(db, job_id).reading.scanned > 0)
        began = time.monotonic()
        Path(db.location).unlink()
        finished = all_finished(engine, 1)["a"]
        assert time.monotonic() - began < 5
        assert finished.state is State.LOST
        assert finished.failure is not None and "removed or replaced" in finished.failure.message
        with pytest.raises(errors.CatalogError, match="removed or replaced"):
            engine.start(task("b", succeed))
    assert any("removed or replaced" in message for message in caplog.messages)
    assert not Path(db.location).exists(), "nobody made an empty catalog in its place"


def test_a_row_that_somebody_else_ended_is_not_ended_twice(
    db: database.Database, caplog: pytest.LogCaptureFixture
) -> None:
    with engine_on(db) as engine:
        gate = Gate()
        job_id = engine.start(task("a", gate))
        assert gate.entered.wait(LONG)
        lost = jobs.lose_dead(db, alive=lambda _: False, now=dt.datetime.now(times.UTC))
        assert [row.id for row in lost] == [job_id]
        gate.opened.set()
        finished = all_finished(engine, 1)["a"]
        assert finished.state is State.LOST
        assert finished.failure is not None and finished.failure.code == "Taken"
        assert jobs.get(db, job_id).state == "Lost"
    assert any("ended Succeeded" in message for message in caplog.messages)


def test_work_whose_row_somebody_else_ended_is_told_to_stop(db: database.Database) -> None:
    """A process that slept and wakes up: another one does its work now."""
    with engine_on(db) as engine:
        engine.start(task("a", counting))
        until(lambda: jobs.live(db))
        jobs.lose_dead(db, alive=lambda _: False, now=dt.datetime.now(times.UTC))
        finished = all_finished(engine, 1)["a"]
    assert finished.failure is not None and finished.failure.code == "Taken"


def test_the_heartbeat_thread_lives_only_while_there_are_jobs(db: database.Database) -> None:
    with engine_on(db) as engine:
        assert heartbeat_threads() == 0
        for _ in range(2):
            gate = Gate()
            engine.start(task("a", gate))
            assert gate.entered.wait(LONG)
            assert heartbeat_threads() == 1
            gate.opened.set()
            all_finished(engine, 1)
            until(lambda: heartbeat_threads() == 0)


def test_stamps_come_from_the_given_clock_and_durations_do_not(db: database.Database) -> None:
    start = dt.datetime(2031, 5, 6, 7, 8, tzinfo=times.UTC)
    with embedded.Engine(db, clock=clocks.ShiftedClock(start)) as engine:
        job_id = engine.start(task("a", succeed))
        all_finished(engine, 1)
    row = jobs.get(db, job_id)
    for stamp in (row.queued_at, row.started_at, row.finished_at):
        assert stamp is not None and start <= stamp < start + dt.timedelta(minutes=5)
    assert row.wall_seconds is not None and 0 <= row.wall_seconds < LONG


def test_leaving_the_engines_block_stops_its_jobs(db: database.Database) -> None:
    with engine_on(db) as engine:
        job_id = engine.start(task("a", counting))
    assert jobs.get(db, job_id).state == "Lost"
    assert engine.live() == frozenset()


def test_foreground_work_is_a_job_of_its_own(db: database.Database) -> None:
    order = engines.Order(address="restore/c@1", type="Restore", image="i-1", copy=1)
    with embedded.foreground(db, order, clock=clocks.SystemClock(), interval=0.05) as context:
        context.meter.add(scanned=7)
        until(lambda: jobs.get(db, context.id).reading.scanned == 7)
        assert jobs.get(db, context.id).state == "Running"
        context.annotate(unit="u")
    row = jobs.get(db, context.id)
    assert (row.state, row.unit, row.image, row.reading.scanned) == ("Succeeded", "u", "i-1", 7)
    until(lambda: heartbeat_threads() == 0)


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (errors.UnitOffline("unit u is not mounted"), "Failed", "UnitOffline"),
        (KeyboardInterrupt(), "Cancelled", "Interrupted"),
        (ValueError("odd"), "Failed", "Unexpected"),
    ],
)
def test_what_foreground_work_raises_is_recorded_and_raised_on(
    db: database.Database, error: BaseException, state: str, code: str
) -> None:
    order = engines.Order(address="restore/c@1", type="Restore")
    with pytest.raises(type(error)), embedded.foreground(db, order, clock=clocks.SystemClock()):
        raise error
    (row,) = jobs.list_jobs(db)
    assert (row.state, row.error_code) == (state, code)
    until(lambda: heartbeat_threads() == 0)


def test_foreground_work_can_be_cancelled_by_others(db: database.Database) -> None:
    order = engines.Order(address="restore/c@1", type="Restore")
    clock = clocks.SystemClock()
    with pytest.raises(errors.Cancelled), embedded.foreground(db, order, clock=clock, interval=0.05) as context:
        jobs.request_cancel(db, context.id, clock.now(), "somebody")
        counting(context)
    assert jobs.get(db, context.id).state == "Cancelled"


def test_foreground_work_whose_command_is_interrupted_ends_as_cancelled(db: database.Database) -> None:
    order = engines.Order(address="restore/c@1", type="Restore")
    with pytest.raises(errors.Cancelled), embedded.foreground(db, order, clock=clocks.SystemClock()) as context:
        context.meter.cancel()  # as a signal handler does
        counting(context)
    row = jobs.get(db, context.id)
    assert (row.state, row.error_code) == ("Cancelled", "Interrupted")


def test_foreground_work_outlives_its_catalog(db: database.Database, caplog: pytest.LogCaptureFixture) -> None:
    order = engines.Order(address="restore/c@1", type="Restore")
    with embedded.foreground(db, order, clock=clocks.SystemClock(), interval=0.05) as context:
        Path(db.location).unlink()
        until(lambda: any("goes on without its row" in message for message in caplog.messages))
        context.meter.check()
    assert any("its row does not say" in message for message in caplog.messages)


def test_foreground_work_needs_no_row_that_can_be_written(
    db: database.Database, caplog: pytest.LogCaptureFixture
) -> None:
    with sqlite3.connect(db.location) as catalog:
        full = "select raise(fail, 'database or disk is full')"
        catalog.execute(f"create trigger full before update on jobs begin {full}; end")
    order = engines.Order(address="restore/c@1", type="Restore")
    with embedded.foreground(db, order, clock=clocks.SystemClock(), interval=0.05, patience=0.2) as context:
        context.meter.check()
    assert any("goes on without its row" in message for message in caplog.messages)
