"""What is committed survives kill -9, what is not leaves no trace; writers of any process take turns."""

from __future__ import annotations

import concurrent.futures
import threading

import catalog_samples as samples
import pytest
import sqlalchemy as sa

from reconciler.base import errors
from reconciler.catalog import audits, counters, database, jobs, tables


def test_a_transaction_killed_half_way_never_happened(location: str) -> None:
    process = samples.child("half_written", location)
    assert samples.heard(process) == "written"
    samples.kill(process)
    db = database.open_writing(location)
    assert audits.entries(db) == ()
    with db.reading() as connection:
        if not db.shared:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        assert connection.scalar(sa.select(tables.FACTS.c.value).where(tables.FACTS.c.key == "half")) is None
    db.close()


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_every_commit_that_returned_survives_kill_9(location: str, steps: int) -> None:
    process = samples.child("committing", location)
    said = 0
    while said < steps:
        said = int(samples.heard(process))
    samples.kill(process)
    db = database.open_writing(location)
    with db.reading() as connection:
        left, right = counters.current(connection, "left"), counters.current(connection, "right")
    assert left == right >= said
    assert [entry.object for entry in audits.entries(db)] == [str(number) for number in range(1, left + 1)]
    db.close()


def test_a_block_that_raises_is_undone(db: database.Database) -> None:
    def fail() -> None:
        with db.writing() as connection:
            audits.record(connection, now=samples.NOW, actor="a", event="E", object="o")
            raise errors.NeverViolated("no")

    with pytest.raises(errors.NeverViolated):
        fail()
    assert audits.entries(db) == ()


def test_what_is_read_in_a_writing_transaction_cannot_be_stale(db: database.Database) -> None:
    """Two hundred read-then-write steps of eight threads: a single lost update would show."""

    def step(_number: int) -> None:
        with db.writing() as connection:
            counters.next_number(connection, "steps")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(step, range(200)))
    with db.reading() as connection:
        assert counters.current(connection, "steps") == 200


def test_two_processes_that_want_the_same_addresses_get_each_once(location: str, db: database.Database) -> None:
    children = [samples.child("contend", location, "30") for _ in range(3)]
    assert [samples.heard(one) for one in children] == ["ready"] * 3
    for one in children:
        samples.tell(one)
    won = [set(samples.heard(one).split()) for one in children]
    assert [samples.finish(one) for one in children] == [0, 0, 0]
    assert set().union(*won) == {str(number) for number in range(30)}
    assert sum(len(one) for one in won) == 30
    assert len(jobs.live(db)) == 30


def test_the_database_itself_refuses_a_second_live_job_at_an_address(db: database.Database) -> None:
    samples.enqueue(db, "backup/obl/x")

    def copy_row() -> None:
        with db.writing() as connection:
            row = connection.execute(sa.select(tables.JOBS)).one()._asdict()
            del row["number"]
            connection.execute(tables.JOBS.insert().values(**row))

    with pytest.raises(errors.CatalogError, match=r"(?i)unique"):
        copy_row()


def test_a_nested_writing_transaction_is_a_mistake_not_a_deadlock(db: database.Database) -> None:
    with db.writing(), pytest.raises(RuntimeError, match="inside another"), db.writing():
        pass
    with db.writing():
        pass


def test_many_threads_read_while_one_writes(db: database.Database) -> None:
    stop = threading.Event()

    def read() -> int:
        last = 0
        while not stop.is_set():
            with db.reading() as connection:
                current = counters.current(connection, "steps")
            assert current >= last
            last = current
        return last

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        readers = [pool.submit(read) for _ in range(6)]
        for _ in range(50):
            with db.writing() as connection:
                counters.next_number(connection, "steps")
        stop.set()
        assert max(reader.result() for reader in readers) > 0


@pytest.mark.parametrize(
    "statement", ["UPDATE audit SET actor = 'nobody'", "DELETE FROM audit", "DELETE FROM audit WHERE number = 1"]
)
def test_the_audit_trail_refuses_change(db: database.Database, statement: str) -> None:
    with db.writing() as connection:
        audits.record(connection, now=samples.NOW, actor="a", event="E", object="o", details={"x": [1, None]})
    before = audits.entries(db)

    def change() -> None:
        with db.writing() as connection:
            connection.exec_driver_sql(statement)

    with pytest.raises(errors.CatalogError, match="append-only"):
        change()
    assert audits.entries(db) == before
    assert before[0].details == {"x": [1, None]}
    assert before[0].at == samples.NOW


def test_the_newest_audit_lines_can_be_asked_for(db: database.Database) -> None:
    with db.writing() as connection:
        for number in range(5):
            audits.record(connection, now=samples.NOW, actor="a", event="E", object=str(number))
    assert [entry.object for entry in audits.entries(db, limit=2)] == ["3", "4"]
