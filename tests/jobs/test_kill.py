"""Jobs seen from another process: progress, cancelling, and what kill -9 leaves behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from job_samples import LONG, all_finished, succeed, task, until

from reconciler.base import clocks
from reconciler.catalog import attempts, database, jobs
from reconciler.jobs import embedded, engines
from reconciler.jobs.engines import State

CHILD = Path(__file__).with_name("job_child.py")
ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def child(db: database.Database, address: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Another process that runs a slow job under ``address``; the process and the job's id once it counts."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(CHILD), db.location, address], env=environment, cwd=ROOT)
    try:
        until(lambda: any(row.reading.scanned for row in jobs.list_jobs(db, address=address, state="Running")))
        (row,) = jobs.list_jobs(db, address=address, state="Running")
        yield process, row.id
    finally:
        process.kill()
        process.wait(LONG)


def test_a_second_process_sees_progress_grow(db: database.Database) -> None:
    with child(db, "a") as (_, job_id):
        began = time.monotonic()
        seen = [jobs.get(db, job_id).reading.scanned]
        while len(seen) < 4:
            assert time.monotonic() - began < LONG
            time.sleep(0.05)
            now = jobs.get(db, job_id).reading.scanned
            assert now >= seen[-1]
            if now > seen[-1]:
                seen.append(now)
        assert time.monotonic() - began < 4, "three beats of half a second each"
        assert [job.id for job in jobs.live(db)] == [job_id]


def test_a_second_process_cancels_and_the_row_ends_only_after_the_work(db: database.Database) -> None:
    returned = Path(f"{db.location}.returned")
    with child(db, "a") as (process, job_id):
        asked = time.monotonic()
        assert jobs.request_cancel(db, job_id, clocks.SystemClock().now(), "somebody").cancel_requested
        while (row := jobs.get(db, job_id)).state == "Running":
            assert time.monotonic() - asked < LONG
            time.sleep(0.01)
        took = time.monotonic() - asked
        assert row.state == "Cancelled"
        assert returned.exists(), "the work had not returned when the row was ended"
        assert took < 2.0
        assert row.finished_at is not None
        assert row.finished_at.timestamp() * 1e9 >= int(returned.read_text()) - 1e6
        assert process.wait(LONG) == 0


def test_a_killed_process_leaves_a_job_that_is_lost_at_once_and_its_address_free(
    db: database.Database, engine: engines.Engine
) -> None:
    with child(db, "a") as (process, job_id):
        assert jobs.lose_dead(db, now=clocks.SystemClock().now()) == (), "its process lives"
        with pytest.raises(jobs.AddressTaken):
            engine.start(task("a", succeed))
        process.send_signal(signal.SIGKILL)
        assert process.wait(LONG) == -signal.SIGKILL
        assert jobs.get(db, job_id).state == "Running"

        (lost,) = jobs.lose_dead(db, now=clocks.SystemClock().now())
        assert (lost.id, lost.state, lost.address) == (job_id, "Lost", "a")
        assert lost.finished_at is not None and lost.reading.scanned > 0
        assert jobs.live(db) == ()
        ended = attempts.failed(db)["a"]
        assert (ended.failed, ended.lost, ended.last_state) == (1, 1, "Lost")

        engine.start(task("a", succeed, attempt=2))
        assert all_finished(engine, 1)["a"].state is State.SUCCEEDED
        assert attempts.failed(db) == {}


def test_a_killed_process_that_nobody_waited_for_is_dead_too(db: database.Database) -> None:
    with child(db, "a") as (process, job_id):
        os.kill(process.pid, signal.SIGKILL)
        # Not reaped: the process stays in the table as a zombie until the block ends.
        until(lambda: jobs.lose_dead(db, now=clocks.SystemClock().now()), seconds=5)
        assert jobs.get(db, job_id).state == "Lost"


def test_many_killed_in_the_middle_of_writing_leave_a_catalog_that_opens(tmp_path: Path) -> None:
    location = str(tmp_path / "catalog.sqlite")
    for number in range(3):
        db = database.open_writing(location)
        with child(db, "a") as (process, _):
            process.kill()
            process.wait(LONG)
            assert len(jobs.lose_dead(db, now=clocks.SystemClock().now())) == 1
        assert len(jobs.list_jobs(db, state="Lost")) == number + 1
        db.close()
    db = database.open_writing(location)
    with embedded.Engine(db, clock=clocks.SystemClock()) as engine:
        engine.start(task("a", succeed))
        assert all_finished(engine, 1)["a"].state is State.SUCCEEDED
    db.close()
