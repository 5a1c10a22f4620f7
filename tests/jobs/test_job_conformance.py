"""What every job engine promises, on a real catalog."""

from __future__ import annotations

import threading
import time

import pytest
from job_samples import LONG, Gate, Work, all_finished, counting, raising, succeed, task, until

from reconciler.base import errors, meters
from reconciler.catalog import attempts, database, jobs, workers
from reconciler.jobs import engines
from reconciler.jobs.engines import State


def test_a_job_is_a_row_before_and_while_it_runs(engine: engines.Engine, db: database.Database) -> None:
    gate = Gate()
    order = task("backup/p/c@1", gate, attempt=3, policy="p", image="i-1", copy=2, unit="u", source_unit="s")
    job_id = engine.start(order)
    assert gate.entered.wait(LONG)
    row = jobs.get(db, job_id)
    assert (row.state, row.address, row.type, row.attempt) == ("Running", "backup/p/c@1", "Backup", 3)
    assert (row.policy, row.image, row.copy, row.unit, row.source_unit) == ("p", "i-1", 2, "u", "s")
    assert row.started_at is not None and row.finished_at is None
    assert workers.alive(row.worker)
    assert engine.live() == {"backup/p/c@1"}
    gate.opened.set()
    assert all_finished(engine, 1)["backup/p/c@1"].state is State.SUCCEEDED


def test_a_row_takes_its_last_state_and_counters_when_the_work_returns(
    engine: engines.Engine, db: database.Database
) -> None:
    def work(context: engines.JobContext) -> engines.Outcome:
        context.meter.add(scanned=100, non_zero=70, sent=30, stored=20, lookups=10, hits=7)
        time.sleep(0.1)
        return engines.Outcome()

    job_id = engine.start(task("a", work))
    finished = all_finished(engine, 1)["a"]
    row = jobs.get(db, job_id)
    assert (row.state, row.error_code, row.error_message) == ("Succeeded", None, None)
    assert row.reading == meters.Reading(scanned=100, non_zero=70, sent=30, stored=20, lookups=10, hits=7)
    assert row.wall_seconds is not None and 0.1 <= row.wall_seconds < LONG
    assert row.finished_at is not None and row.started_at is not None and row.finished_at >= row.started_at
    assert (finished.job_id, finished.type, finished.failure) == (job_id, "Backup", None)
    assert engine.live() == frozenset()


def test_a_partial_outcome_says_what_is_missing(engine: engines.Engine, db: database.Database) -> None:
    failure = engines.Failure(code="DiskMissing", message="disk data.qcow2 vanished")
    job_id = engine.start(task("a", lambda _: engines.Outcome(state=State.PARTIAL, failure=failure)))
    assert all_finished(engine, 1)["a"].failure == failure
    row = jobs.get(db, job_id)
    assert (row.state, row.error_code, row.error_message) == ("Partial", "DiskMissing", "disk data.qcow2 vanished")


def test_an_explained_error_fails_the_job_with_its_code_message_and_hint(
    engine: engines.Engine, db: database.Database
) -> None:
    job_id = engine.start(task("a", raising(errors.UnitFull("unit u: no space left", hint="free some"))))
    assert all_finished(engine, 1)["a"].state is State.FAILED
    row = jobs.get(db, job_id)
    assert (row.state, row.error_code) == ("Failed", "UnitFull")
    assert row.error_message == "unit u: no space left (free some)"


@pytest.mark.parametrize("error", [ZeroDivisionError("by nought"), SystemExit(3)])
def test_an_unforeseen_error_fails_the_job_and_its_log_holds_the_traceback(
    engine: engines.Engine, db: database.Database, error: BaseException
) -> None:
    job_id = engine.start(task("a", raising(error)))
    assert all_finished(engine, 1)["a"].state is State.FAILED
    row = jobs.get(db, job_id)
    assert (row.state, row.error_code) == ("Failed", "Unexpected")
    assert row.error_message == f"{type(error).__name__}: {error}"
    text = "\n".join(line.line for line in jobs.logs(db, job_id))
    assert "Traceback" in text and "job_samples.py" in text and type(error).__name__ in text


def test_a_cancelled_error_that_nobody_asked_for_is_a_failure(engine: engines.Engine, db: database.Database) -> None:
    job_id = engine.start(task("a", raising(errors.Cancelled("out of the blue"))))
    assert all_finished(engine, 1)["a"].state is State.FAILED
    assert jobs.get(db, job_id).error_code == "Cancelled"


def test_an_address_is_live_once_and_free_again_after_its_end(engine: engines.Engine, db: database.Database) -> None:
    gate = Gate()
    engine.start(task("a", gate))
    with pytest.raises(errors.CatalogError, match="a: job j-000001"):
        engine.start(task("a", succeed))
    gate.opened.set()
    assert all_finished(engine, 1)["a"].state is State.SUCCEEDED
    engine.start(task("a", succeed, attempt=2))
    assert all_finished(engine, 1)["a"].state is State.SUCCEEDED
    assert [row.attempt for row in jobs.list_jobs(db, address="a")] == [1, 2]


def test_a_failed_job_is_not_tried_again_by_the_engine(engine: engines.Engine, db: database.Database) -> None:
    engine.start(task("a", raising(errors.SourceError("gone for a moment"))))
    assert all_finished(engine, 1)["a"].state is State.FAILED
    assert not engine.wait(0.3)
    assert len(jobs.list_jobs(db)) == 1
    assert attempts.failed(db)["a"].failed == 1


def test_cancel_by_flag_in_the_row_stops_the_work(engine: engines.Engine, db: database.Database) -> None:
    job_id = engine.start(task("a", counting))
    until(lambda: jobs.get(db, job_id).reading.scanned > 0)
    jobs.request_cancel(db, job_id, jobs.get(db, job_id).queued_at, "somebody")
    assert all_finished(engine, 1)["a"].state is State.CANCELLED
    row = jobs.get(db, job_id)
    assert (row.state, row.error_code, row.cancel_requested) == ("Cancelled", "Cancelled", True)


def test_the_row_stays_running_until_the_cancelled_work_has_returned(
    engine: engines.Engine, db: database.Database
) -> None:
    gate = Gate()
    job_id = engine.start(task("a", gate))
    assert gate.entered.wait(LONG)
    engine.cancel(job_id, engines.Failure(code="WindowClosed", message="the window ended at 06:00"))
    assert not engine.wait(0.3)
    assert jobs.get(db, job_id).state == "Running"
    with pytest.raises(errors.CatalogError):
        engine.start(task("a", succeed))
    gate.opened.set()
    assert all_finished(engine, 1)["a"].state is State.CANCELLED
    row = jobs.get(db, job_id)
    assert (row.state, row.error_code, row.error_message) == (
        "Cancelled",
        "WindowClosed",
        "the window ended at 06:00",
    )


def test_work_that_completes_although_cancelled_has_succeeded(engine: engines.Engine, db: database.Database) -> None:
    entered, opened = threading.Event(), threading.Event()

    def heedless(context: engines.JobContext) -> engines.Outcome:
        entered.set()
        assert opened.wait(LONG)
        return engines.Outcome()

    job_id = engine.start(task("a", heedless))
    assert entered.wait(LONG)
    engine.cancel(job_id)
    opened.set()
    assert all_finished(engine, 1)["a"].state is State.SUCCEEDED
    assert jobs.get(db, job_id).state == "Succeeded"


def test_trouble_caused_by_cancelling_counts_as_cancelled_and_damage_does_not(
    engine: engines.Engine, db: database.Database
) -> None:
    entered = threading.Barrier(3, timeout=LONG)

    def dying(error: errors.HoldfastError) -> Work:
        def run(context: engines.JobContext) -> engines.Outcome:
            entered.wait()
            until(lambda: context.meter.cancelled)
            raise error

        return run

    pipe = engine.start(task("pipe", dying(errors.SourceError("the pipe was closed"))))
    damage = engine.start(task("damage", dying(errors.ImageDamaged("block 3 is false"))))
    entered.wait()
    engine.cancel(pipe)
    engine.cancel(damage)
    told = all_finished(engine, 2)
    assert told["pipe"].state is State.CANCELLED
    assert [line.line for line in jobs.logs(db, pipe)] == ["while stopping: the pipe was closed"]
    assert told["damage"].state is State.FAILED
    assert jobs.get(db, damage).error_code == "ImageDamaged"


def test_cancelling_a_job_that_is_not_here_does_nothing(engine: engines.Engine) -> None:
    engine.cancel("j-999999")


def test_progress_is_seen_while_the_work_goes_on(engine: engines.Engine, db: database.Database) -> None:
    started = [engine.start(task("a", counting)), engine.start(task("b", counting))]

    def scanned() -> list[int]:
        return [jobs.get(db, job_id).reading.scanned for job_id in started]

    until(lambda: min(scanned()) > 0)
    rows = [jobs.get(db, job_id) for job_id in started]
    until(lambda: all(now > row.reading.scanned for now, row in zip(scanned(), rows, strict=True)))
    for row in rows:
        assert jobs.get(db, row.id).heartbeat > row.heartbeat


def test_work_annotates_its_row_and_writes_its_log(engine: engines.Engine, db: database.Database) -> None:
    def work(context: engines.JobContext) -> engines.Outcome:
        context.annotate(image="i-7", unit="pool")
        context.annotate(copy=1)
        context.log(f"{context.id} began")
        context.log("read 3 disks")
        return engines.Outcome()

    job_id = engine.start(task("a", work))
    all_finished(engine, 1)
    row = jobs.get(db, job_id)
    assert (row.image, row.copy, row.unit) == ("i-7", 1, "pool")
    assert [line.line for line in jobs.logs(db, job_id)] == [f"{job_id} began", "read 3 disks"]


def test_wait_returns_at_once_when_a_job_ends_and_finished_tells_each_once(engine: engines.Engine) -> None:
    gate = Gate()
    engine.start(task("a", gate))
    assert gate.entered.wait(LONG)
    threading.Timer(0.2, gate.opened.set).start()
    began = time.monotonic()
    assert engine.wait(LONG)
    assert time.monotonic() - began < LONG / 2
    assert engine.wait(0.0), "nothing was fetched yet"
    assert [finished.address for finished in engine.finished()] == ["a"]
    assert engine.finished() == ()
    assert not engine.wait(0.0)


def test_jobs_run_side_by_side(engine: engines.Engine) -> None:
    barrier = threading.Barrier(8, timeout=LONG)

    def work(context: engines.JobContext) -> engines.Outcome:
        barrier.wait()
        return engines.Outcome()

    starters = [threading.Thread(target=engine.start, args=(task(f"job/{n}", work),)) for n in range(8)]
    for starter in starters:
        starter.start()
    told = all_finished(engine, 8)
    assert {finished.state for finished in told.values()} == {State.SUCCEEDED}
    for starter in starters:
        starter.join()


def test_a_draining_engine_begins_nothing_more_and_lets_live_jobs_go_on(
    engine: engines.Engine, db: database.Database
) -> None:
    gate = Gate()
    engine.start(task("a", gate))
    engine.drain()
    with pytest.raises(errors.CatalogError, match="begins nothing more"):
        engine.start(task("b", succeed))
    assert len(jobs.list_jobs(db)) == 1
    gate.opened.set()
    assert all_finished(engine, 1)["a"].state is State.SUCCEEDED


def test_a_stopped_job_is_lost_rather_than_cancelled(engine: engines.Engine, db: database.Database) -> None:
    job_id = engine.start(task("a", counting))
    assert engine.stop(LONG) == ()
    row = jobs.get(db, job_id)
    assert (row.state, row.error_code) == ("Lost", "Stopped")
    assert [finished.state for finished in engine.finished()] == [State.LOST]
    ended = attempts.failed(db)["a"]
    assert (ended.failed, ended.lost) == (1, 1)


def test_a_cancel_that_somebody_asked_for_outranks_the_stop(engine: engines.Engine, db: database.Database) -> None:
    gate = Gate()
    job_id = engine.start(task("a", gate))
    assert gate.entered.wait(LONG)
    engine.cancel(job_id)
    assert engine.stop(0.0) == ("a",)
    gate.opened.set()
    assert engine.stop(LONG) == ()
    assert jobs.get(db, job_id).state == "Cancelled"


def test_stop_names_the_jobs_that_do_not_stop_in_time(engine: engines.Engine, db: database.Database) -> None:
    gate = Gate()
    job_id = engine.start(task("a", gate))
    assert gate.entered.wait(LONG)
    began = time.monotonic()
    assert engine.stop(0.2) == ("a",)
    assert time.monotonic() - began < 5
    assert jobs.get(db, job_id).state == "Running"
    gate.opened.set()
    assert engine.stop(LONG) == ()
    assert jobs.get(db, job_id).state == "Lost"


def test_an_outcome_can_only_be_good_or_partial() -> None:
    with pytest.raises(ValueError, match="never Failed"):
        engines.Outcome(state=State.FAILED)


def test_a_batch_runs_one_after_another_each_under_a_row_of_its_own(
    engine: engines.Engine, db: database.Database
) -> None:
    gate, order = Gate(), []

    def note(context: engines.JobContext) -> engines.Outcome:
        order.append(context.id)
        return engines.Outcome()

    tasks = [
        task("a", gate, batch="b"),
        task("b", raising(errors.UnitFull("no")), batch="b"),
        task("c", note, batch="b"),
    ]
    ids = engine.start_batch(tasks)
    assert gate.entered.wait(LONG)
    assert [jobs.get(db, id).state for id in ids] == ["Running", "Queued", "Queued"]
    assert engine.live() == {"a", "b", "c"} and {one.batch for one in jobs.live(db)} == {"b"}
    gate.opened.set()
    finished = all_finished(engine, 3)
    assert [finished[address].state for address in "abc"] == [State.SUCCEEDED, State.FAILED, State.SUCCEEDED]
    assert [jobs.get(db, id).state for id in ids] == ["Succeeded", "Failed", "Succeeded"]
    assert order == [ids[2]]


def test_one_job_of_a_batch_is_cancelled_alone(engine: engines.Engine, db: database.Database) -> None:
    gate = Gate()
    ids = engine.start_batch([task("a", gate), task("b", counting), task("c", succeed), task("d", succeed)])
    assert gate.entered.wait(LONG)
    engine.cancel(ids[2])
    # From another process: the heartbeat sees it while the job still waits for its turn.
    jobs.request_cancel(db, ids[3], jobs.get(db, ids[0]).queued_at, "somebody")
    gate.opened.set()
    until(lambda: jobs.get(db, ids[1]).state == "Running")
    time.sleep(0.3)
    jobs.request_cancel(db, ids[1], jobs.get(db, ids[0]).queued_at, "somebody")
    finished = all_finished(engine, 4)
    assert [finished[address].state for address in "abcd"] == [
        State.SUCCEEDED, State.CANCELLED, State.CANCELLED, State.CANCELLED,
    ]  # fmt: skip


def test_a_batch_leaves_out_what_is_live_already(engine: engines.Engine) -> None:
    gate = Gate()
    engine.start(task("a", gate))
    ids = engine.start_batch([task("a", succeed), task("b", succeed)])
    assert len(ids) == 1
    gate.opened.set()
    assert {one.state for one in all_finished(engine, 2).values()} == {State.SUCCEEDED}


def test_a_stopped_engine_ends_what_waits_in_a_batch(engine: engines.Engine, db: database.Database) -> None:
    ids = engine.start_batch([task("a", counting), task("b", succeed)])
    until(lambda: jobs.get(db, ids[0]).state == "Running")
    assert engine.stop(LONG) == ()
    assert [(jobs.get(db, id).state, jobs.get(db, id).error_code) for id in ids] == [("Lost", "Stopped")] * 2
