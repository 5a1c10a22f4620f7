"""What other processes do to a catalog while a test watches: run as a program by ``catalog_samples.child``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import catalog_samples as samples

from reconciler.base import errors
from reconciler.catalog import audits, database, images, jobs, leases, tables


def say(*words: object) -> None:
    sys.stdout.write(" ".join(str(word) for word in words) + "\n")
    sys.stdout.flush()


def wait() -> None:
    sys.stdin.readline()


def half_written(location: str) -> None:
    """Die in the middle of a transaction that has written much."""
    db = database.open_writing(location)
    with db.writing() as connection:
        for number in range(2000):
            audits.record(connection, now=samples.NOW, actor="child", event="Half", object=str(number))
        connection.execute(tables.FACTS.insert().values(key="half", value="x" * 100_000))
        say("written")
        wait()


def committing(location: str) -> None:
    """Commit one transaction after another, saying each number once it is durable."""
    db = database.open_writing(location)
    number = 0
    while True:
        number += 1
        with db.writing() as connection:
            connection.execute(tables.COUNTERS.delete().where(tables.COUNTERS.c.name.in_(["left", "right"])))
            rows = [{"name": name, "value": number} for name in ("left", "right")]
            connection.execute(tables.COUNTERS.insert(), rows)
            audits.record(connection, now=samples.NOW, actor="child", event="Step", object=str(number))
        say(number)


def contend(location: str, count: str) -> None:
    """Try to enqueue the same addresses as everybody else."""
    db = database.open_writing(location)
    say("ready")
    wait()
    won = []
    for number in range(int(count)):
        try:
            samples.enqueue(db, f"backup/obl/{number}")
            won.append(str(number))
        except jobs.AddressTaken:
            continue
    say(" ".join(won))


def hold(location: str, state: str) -> None:
    """Take the lease, then try to decide something whenever told to."""
    db = database.open_writing(location)
    lease = leases.acquire(Path(state), db, samples.NOW, "child@host", "/srv/estate")
    say("token", lease.token)
    while sys.stdin.readline():
        try:
            say(samples.enqueue(db, "backup/obl/x", fence=lease.token))
        except errors.CatalogError as error:
            say(type(error).__name__)


def running_job(location: str) -> None:
    """Start a job and wait to be killed."""
    db = database.open_writing(location)
    id = samples.enqueue(db, "backup/obl/oblvm1")
    jobs.start(db, id, samples.NOW)
    say(id)
    wait()


def read_as_nobody(location: str) -> None:
    """Read what there is as a user who may write nothing."""
    os.setgid(65534)
    os.setuid(65534)
    try:
        say(database.read(location, lambda db: (db.id, [row.id for row in images.list_images(db)])))
    except errors.CatalogError as error:
        say(type(error).__name__, error.hint)


def create(location: str) -> None:
    """Open for writing at the same moment as others."""
    say("ready")
    wait()
    db = database.open_writing(location)
    say(db.id)
    db.close()


def dump(location: str, root: str) -> None:
    """Write a dump onto a unit; a crash point may end it."""
    from reconciler.catalog import dumps

    db = database.open_writing(location)
    dumps.write_dump(Path(root), dumps.dump(db))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
