"""A catalog on a PostgreSQL server: where it is, what is said when it cannot be had, and what it shares with SQLite."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import catalog_samples as samples
import postgres_server
import pytest
import sqlalchemy as sa

from reconciler.base import errors
from reconciler.catalog import audits, database, dumps, images, jobs, servers, tables

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("postgresql://me@db.example/cat", {}, ("db.example:5432", "me", "cat", None, "prefer")),
        ("postgres://me:s%40crt@db:6432/cat?sslmode=verify-full", {}, ("db:6432", "me", "cat", "s@crt", "verify-full")),
        ("postgresql://me@/cat?host=/run/pg", {}, ("/run/pg/.s.PGSQL.5432", "me", "cat", None, "prefer")),
        ("postgresql://me@/cat?host=/run/pg&port=6432", {}, ("/run/pg/.s.PGSQL.6432", "me", "cat", None, "prefer")),
        (
            "postgresql://",
            {"PGHOST": "h", "PGPORT": "1", "PGUSER": "u", "PGPASSWORD": "p", "PGDATABASE": "d", "PGSSLMODE": "require"},
            ("h:1", "u", "d", "p", "require"),
        ),
        ("postgresql+pg8000://me@db", {}, ("db:5432", "me", "me", None, "prefer")),
        ("postgresql://me:own@db/cat", {"PGPASSWORD": "other"}, ("db:5432", "me", "cat", "own", "prefer")),
    ],
)
def test_a_url_is_read_as_postgresqls_own_tools_read_it(url: str, environment: dict[str, str], expected: Any) -> None:
    found = servers.address(url, {"PGPASSFILE": "/nowhere", **environment})
    assert (found.place, found.user, found.database, found.password, found.tls) == expected
    assert "s@crt" not in repr(found)


@pytest.mark.parametrize(
    "url", ["postgresql://db/cat?sslmode=perhaps", "postgresql://db/cat?colour=red", "postgresql://db:http/cat"]
)
def test_a_url_that_cannot_be_obeyed_is_refused(url: str) -> None:
    with pytest.raises(errors.UsageError, match="URL"):
        servers.address(url, {})


@pytest.mark.parametrize(
    ("line", "mode", "expected"),
    [
        ("db:5432:cat:me:s3:cret", 0o600, None),
        ("db:5432:cat:me:s3\\:cret", 0o600, "s3:cret"),
        ("*:*:*:me:secret", 0o600, "secret"),
        ("*:*:*:me:secret", 0o640, None),
        ("other:*:*:*:wrong\n#db:*:*:*:wrong\ndb:*:*:*:right", 0o600, "right"),
    ],
)
def test_the_password_file_is_asked_last_and_only_if_it_is_private(
    tmp_path: Path, line: str, mode: int, expected: str | None
) -> None:
    file = tmp_path / "pgpass"
    file.write_text(line + "\n")
    file.chmod(mode)
    assert servers.address("postgresql://me@db/cat", {"PGPASSFILE": str(file)}).password == expected


def test_a_password_is_never_shown() -> None:
    assert servers.shown("postgresql://me:s3cret@db/cat") == "postgresql://me@db/cat"
    assert servers.shown("/srv/state/catalog.sqlite") == "/srv/state/catalog.sqlite"
    with pytest.raises(errors.CatalogError) as caught:
        database.open_writing("postgresql://me:s3cret@127.0.0.1:1/cat")
    assert "s3cret" not in f"{caught.value}{caught.value.__cause__!r}"


def test_a_server_that_is_down_is_named_with_the_next_step() -> None:
    for url, place in (
        ("postgresql://me@127.0.0.1:1/cat", "127.0.0.1:1"),
        ("postgresql://me@/cat?host=/nowhere", "/nowhere/.s.PGSQL.5432"),
        ("postgresql://me@nowhere.invalid/cat", "nowhere.invalid:5432"),
    ):
        for opened in (database.open_writing, database.open_reading):
            with pytest.raises(errors.CatalogError, match=f"{place} does not answer.*start PostgreSQL there"):
                opened(url)


def test_a_missing_driver_is_named() -> None:
    program = (
        "import sys; sys.modules['pg8000'] = None\n"
        "from reconciler.base import errors\n"
        "from reconciler.catalog import database\n"
        "try:\n    database.open_writing('postgresql://me@127.0.0.1:1/cat')\n"
        "except errors.CatalogError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "needs the Python package pg8000" in done.stdout
    assert "pip install 'holdfast[postgresql]'" in done.stdout


def test_a_database_that_is_not_there_and_a_stranger_are_told_apart(postgres: postgres_server.Server) -> None:
    with pytest.raises(errors.CatalogError, match=r"does not exist.*createdb -h"):
        database.open_writing(postgres.url("nowhere"))
    with pytest.raises(errors.CatalogError, match=r"does not let stranger in.*PGPASSWORD"):
        database.open_writing(postgres.url("postgres").replace("//holdfast@", "//stranger@"))


def test_an_empty_database_is_no_catalog_yet_and_somebody_elses_is_left_alone(
    postgres: postgres_server.Server,
) -> None:
    url = postgres.create("theirs")
    assert database.open_reading(url) is None
    postgres.execute("CREATE TABLE accounts (id int)", name="theirs")
    for opened in (database.open_writing, database.open_reading):
        with pytest.raises(errors.CatalogError, match="not a Holdfast catalog"):
            opened(url)
    postgres.drop("theirs")


@samples.on_postgresql
def test_texts_are_ordered_by_their_bytes(db: database.Database) -> None:
    samples.see(db, "b", "B", "a-1", "A", "a1", "ä")
    with db.reading() as connection:
        names = list(connection.scalars(sa.select(tables.CLIENTS.c.name).order_by(tables.CLIENTS.c.id)))
        other = connection.exec_driver_sql(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public' "
            "AND data_type IN ('text', 'character varying') AND collation_name IS DISTINCT FROM 'C'"
        ).all()
    assert names == sorted(names)
    assert other == []


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGQUIT], ids=["restarted", "crashed"])
def test_an_open_catalog_goes_on_after_its_server_came_back(way: int) -> None:
    server = postgres_server.Server.temporary()
    try:
        db = database.open_writing(server.create("catalog"))
        samples.see(db, "oblVM1")
        samples.image(db, "img-1")
        server.halt(way)
        with pytest.raises(errors.CatalogError, match="does not answer"):
            images.list_images(db)
        server.start()
        assert [row.id for row in images.list_images(db)] == ["img-1"]
        samples.image(db, "img-2")
        db.close()
    finally:
        server.stop()


@samples.on_postgresql
@pytest.mark.parametrize("towards", ["server", "file"])
def test_a_dump_carries_a_catalog_from_one_kind_to_the_other(
    db: database.Database, tmp_path: Path, towards: str
) -> None:
    file = database.open_writing(str(tmp_path / "catalog.sqlite"))
    source, target = (file, db) if towards == "server" else (db, file)
    samples.see(source, "oblVM1")
    samples.image(source, "img-1")
    samples.duplicate(source, "img-1")
    samples.end(source, samples.enqueue(source, "backup/1"), "Failed")
    dumps.load_dump(target, dumps.dump(source))
    assert images.list_images(target) == images.list_images(source)
    assert images.list_copies(target) == images.list_copies(source)
    assert jobs.list_jobs(target) == jobs.list_jobs(source)
    assert audits.entries(target) == audits.entries(source)
    assert samples.enqueue(target, "backup/2") == "j-000002"
    samples.image(target, "img-2")
    file.close()


@samples.on_postgresql
def test_a_catalog_is_written_by_one_at_a_time_or_says_that_it_was_busy(
    db: database.Database, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = database.open_writing(location)
    with other.reading() as connection:
        connection.exec_driver_sql("SELECT 1")
    with db.writing() as connection:
        connection.exec_driver_sql("SELECT 1")

        def wait_shortly() -> None:
            with other.aside() as impatient:
                impatient.exec_driver_sql("SET LOCAL lock_timeout = '50ms'")
                impatient.exec_driver_sql("SELECT pg_advisory_xact_lock(1215261796)")

        with pytest.raises(errors.CatalogError, match=r"busy for 30 s.*holdfast status"):
            wait_shortly()
    other.close()


def test_a_large_dump_is_loaded_many_rows_at_a_time(
    places: Callable[[], str], location: str, db: database.Database
) -> None:
    samples.see(db, *(f"vm{number}" for number in range(300)))
    other = database.open_writing(places())
    statements = []
    sa.event.listen(other._engine, "before_cursor_execute", lambda *told: statements.append(told[2]))
    dumps.load_dump(other, dumps.dump(db))
    assert len([one for one in statements if "INTO clients" in one]) <= 2
    other.close()
