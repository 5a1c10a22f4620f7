"""A job is a row with one life; what failed since the last success is known by address; the dead are found out."""

from __future__ import annotations

import os
import signal

import catalog_samples as samples
import pytest
import sqlalchemy as sa

from reconciler.base import errors, meters
from reconciler.catalog import attempts, database, jobs, machines, tables, workers
from reconciler.planning import observed, worktypes


def test_a_job_lives_from_queued_to_its_end(db: database.Database) -> None:
    samples.see(db, "oblVM1")
    id = samples.enqueue(
        db, "backup/obl/oblvm1", client_id=samples.CLIENT, policy="obl", unit="fast", media_server="ms1", parent="img-0"
    )
    assert id == "j-000001"
    queued = jobs.get(db, id)
    assert (queued.state, queued.client, queued.client_id, queued.started_at) == (
        "Queued",
        "oblvm1",
        samples.CLIENT,
        None,
    )
    assert jobs.live(db) == (
        observed.Job(
            id=id, address="backup/obl/oblvm1", type="Backup", state="Queued", policy="obl", client=samples.CLIENT,
            unit="fast", media_server="ms1", since=samples.NOW,
        ),
    )  # fmt: skip
    assert jobs.start(db, id, samples.later(seconds=1))
    assert not jobs.start(db, id, samples.later(seconds=2))
    assert jobs.live(db)[0].since == samples.later(seconds=1)
    jobs.annotate(db, id, image="img-1", copy=1)
    jobs.annotate(db, id)
    reading = meters.Reading(total=100, scanned=50, non_zero=40, sent=30, stored=20, lookups=10, hits=9, streams=2)
    assert jobs.progress(db, [(id, reading)], samples.later(seconds=3)) == (frozenset(), frozenset())
    running = jobs.get(db, id)
    assert (running.state, running.image, running.copy, running.unit) == ("Running", "img-1", 1, "fast")
    assert running.reading == reading
    assert db.shared or running.heartbeat == samples.later(seconds=3)
    done = {"state": "Succeeded", "error": None, "reading": reading, "wall_seconds": 4.25}
    assert jobs.finish(db, id, now=samples.later(seconds=5), **done)  # type: ignore[arg-type]
    finished = jobs.get(db, id)
    assert (finished.state, finished.wall_seconds, finished.error_code) == ("Succeeded", 4.25, None)
    assert finished.finished_at == samples.later(seconds=5)
    assert jobs.live(db) == ()


def test_the_first_end_of_a_job_stands(db: database.Database) -> None:
    id = samples.enqueue(db, "a")
    samples.end(db, id, "Failed", message="first")
    reading = meters.Reading()
    assert not jobs.finish(db, id, state="Succeeded", error=None, reading=reading, wall_seconds=1, now=samples.NOW)
    assert jobs.progress(db, [(id, meters.Reading(sent=9))], samples.NOW) == (frozenset(), {id})
    assert (jobs.get(db, id).state, jobs.get(db, id).error_message) == ("Failed", "first")
    assert jobs.get(db, id).reading.sent == 0
    with pytest.raises(ValueError, match="Running"):
        jobs.finish(db, id, state="Running", error=None, reading=reading, wall_seconds=1, now=samples.NOW)


def test_an_address_is_free_again_once_its_job_ended(db: database.Database) -> None:
    first = samples.enqueue(db, "a")
    with pytest.raises(jobs.AddressTaken, match=first):
        samples.enqueue(db, "a")
    samples.end(db, first, "Lost")
    assert samples.enqueue(db, "a", attempt=2) == "j-000002"


def test_a_command_restores_over_no_machine_that_is_backed_up_nor_the_other_way_round(db: database.Database) -> None:
    samples.see(db, "alpha")
    (machine,) = machines.clients(db)
    over = f"restore/alpha@2026-11-23T10:00:00Z{worktypes.IN_PLACE}"
    backup = samples.enqueue(db, "a", client_id=machine)
    with pytest.raises(jobs.MachineBusy, match=backup):
        samples.enqueue(db, over, type="Restore", client_id=machine)
    samples.enqueue(db, over.removesuffix(worktypes.IN_PLACE), type="Restore", client_id=machine)
    samples.end(db, backup, "Succeeded")
    restore = samples.enqueue(db, over, type="Restore", client_id=machine)
    with pytest.raises(jobs.MachineBusy, match=restore):
        samples.enqueue(db, "b", client_id=machine)
    samples.enqueue(db, "c", type="Duplicate", client_id=machine)
    samples.end(db, restore, "Succeeded")
    samples.enqueue(db, "b", client_id=machine)


def test_a_cancel_reaches_the_worker_at_its_next_heartbeat(db: database.Database) -> None:
    first, second = samples.enqueue(db, "a"), samples.enqueue(db, "b")
    row = jobs.request_cancel(db, first, samples.NOW, "somebody")
    assert (row.state, row.cancel_requested) == ("Queued", True)
    beat = [(first, meters.Reading()), (second, meters.Reading())]
    assert jobs.progress(db, beat, samples.NOW).cancelled == {first}
    assert jobs.progress(db, beat[1:], samples.NOW).cancelled == frozenset(), (
        "another process's job is not this one's to stop"
    )
    samples.end(db, first, "Cancelled")
    assert jobs.progress(db, beat, samples.NOW).cancelled == frozenset()
    assert jobs.request_cancel(db, first, samples.NOW, "somebody").state == "Cancelled"


@pytest.mark.parametrize("id", ["j-000009", "j-x", "9", "", "r-000001", "j-" + "9" * 40, "j-١"])
def test_an_unknown_job_is_named(db: database.Database, id: str) -> None:
    for call in (jobs.get, jobs.logs):
        with pytest.raises(errors.NotFound, match="get jobs"):
            call(db, id)
    with pytest.raises(errors.NotFound):
        jobs.request_cancel(db, id, samples.NOW, "x")


def test_a_job_keeps_its_few_log_lines_in_order(db: database.Database) -> None:
    first, second = samples.enqueue(db, "a"), samples.enqueue(db, "b")
    for id, line in ((first, "one"), (second, "other"), (first, "two")):
        jobs.log(db, id, line, samples.NOW)
    assert jobs.logs(db, first) == (jobs.LogLine(at=samples.NOW, line="one"), jobs.LogLine(at=samples.NOW, line="two"))
    with pytest.raises(errors.NotFound):
        jobs.log(db, "j-000099", "lost", samples.NOW)


def test_jobs_are_listed_by_what_is_given(db: database.Database) -> None:
    samples.see(db, "oblVM1")
    for number in range(3):
        samples.end(db, samples.enqueue(db, f"a{number}", client_id=samples.CLIENT, policy="obl"), "Succeeded")
    samples.enqueue(db, "b", type="Verify")

    def listed(**wanted: object) -> list[str]:
        return [row.address for row in jobs.list_jobs(db, **wanted)]  # type: ignore[arg-type]

    assert listed() == ["a0", "a1", "a2", "b"]
    assert listed(limit=2) == ["a2", "b"]
    assert listed(state="Queued") == listed(type="Verify") == ["b"]
    assert listed(state=("Queued", "Succeeded"), policy="obl", limit=1) == ["a2"]
    assert listed(address="a1", client_id=samples.CLIENT) == ["a1"]


def test_attempts_count_what_failed_since_the_last_success(db: database.Database) -> None:
    def run(address: str, *states: str) -> None:
        for number, state in enumerate(states):
            now = samples.later(minutes=number)
            samples.end(db, samples.enqueue(db, address), state, now=now, message=f"{state} {number}")

    run("fine", "Failed", "Succeeded")
    run("again", "Failed", "Succeeded", "Lost", "Failed")
    run("never", "Failed", "Partial", "Cancelled", "Lost")
    samples.enqueue(db, "never")
    samples.enqueue(db, "new")
    found = attempts.failed(db)
    assert set(found) == {"again", "never"}
    assert found["again"] == observed.Attempts(
        failed=2, lost=1, last_finished=samples.later(minutes=3), last_state="Failed", message="Failed 3",
        code="SourceError",
    )  # fmt: skip
    assert found["never"] == observed.Attempts(
        failed=4, lost=1, last_finished=samples.later(minutes=3), last_state="Lost", message="Lost 3",
        code="SourceError",
    )  # fmt: skip


def test_attempts_that_were_stopped_in_order_are_told_apart(db: database.Database) -> None:
    for number, code in enumerate(("Stopped", "Lost", "Stopped")):
        now = samples.later(minutes=number)
        id = samples.enqueue(db, "again")
        jobs.finish(db, id, state="Lost", error=(code, "ended"), reading=meters.Reading(), wall_seconds=1.0, now=now)
    assert (attempts.failed(db)["again"].lost, attempts.failed(db)["again"].stopped) == (3, 2)


def test_failures_of_long_ago_are_forgotten(db: database.Database) -> None:
    assert attempts.failed(db) == {}
    samples.end(db, samples.enqueue(db, "old"), "Failed", now=samples.later(days=-401))
    assert set(attempts.failed(db)) == {"old"}
    samples.end(db, samples.enqueue(db, "new"), "Failed")
    assert set(attempts.failed(db)) == {"new"}


def test_the_job_of_a_killed_process_is_lost_at_once_and_its_address_free(db: database.Database, location: str) -> None:
    process = samples.child("running_job", location)
    id = samples.heard(process)
    mine = samples.enqueue(db, "mine")
    assert jobs.lose_dead(db, now=samples.NOW) == ()
    samples.kill(process)
    (lost,) = jobs.lose_dead(db, now=samples.later(minutes=1))
    assert (lost.id, lost.state, lost.finished_at) == (id, "Lost", samples.later(minutes=1))
    assert lost.error_code == "Lost"
    assert jobs.lose_dead(db, now=samples.NOW) == ()
    assert [job.id for job in jobs.live(db)] == [mine]
    samples.enqueue(db, lost.address, attempt=2)


def test_a_stopped_process_is_not_dead(db: database.Database, location: str) -> None:
    process = samples.child("running_job", location)
    samples.heard(process)
    os.kill(process.pid, signal.SIGSTOP)
    assert jobs.lose_dead(db, now=samples.later(days=1)) == ()
    samples.kill(process)
    assert len(jobs.lose_dead(db, now=samples.NOW)) == 1


def test_a_worker_on_another_host_is_judged_by_its_silence(db: database.Database) -> None:
    job = samples.enqueue(db, "far", worker="elsewhere:1:boot.2:token")
    if not db.shared:
        assert jobs.lose_dead(db, now=samples.NOW + jobs.SILENCE) == ()
        assert len(jobs.lose_dead(db, now=samples.NOW + 2 * jobs.SILENCE)) == 1
        return
    # Neither host's clock matters where they share a server: both may be wrong.
    assert jobs.start(db, job, samples.later(days=-400))
    assert jobs.progress(db, [(job, meters.Reading())], samples.later(days=-400)) == (frozenset(), frozenset())
    assert jobs.lose_dead(db, now=samples.later(days=400)) == ()
    with db.writing() as connection:
        known = connection.scalar(sa.select(tables.JOBS.c.heartbeat))
        assert known is not None
        connection.execute(tables.JOBS.update().values(heartbeat=known - 2 * jobs.SILENCE))
    assert len(jobs.lose_dead(db, now=samples.later(days=-400))) == 1


def test_a_worker_is_more_than_a_process_id() -> None:
    me = workers.this()
    assert workers.alive(me)
    assert workers.local(me)
    assert workers.pid(me) == os.getpid()
    assert me != workers.this(), "each has a token of its own"
    host, pid, _start, token = me.rsplit(":", 3)
    assert not workers.alive(f"{host}:{pid}:otherboot.1:{token}"), "the id came around again"
    assert not workers.alive(f"elsewhere:{pid}:x:{token}")
    assert not workers.local(f"elsewhere:{pid}:x:{token}")
    for text in ("", "x", "a:b:c:d", f"{host}:99999999:x:y"):
        assert not workers.alive(text)
        assert workers.pid(text) in (0, 99999999)
