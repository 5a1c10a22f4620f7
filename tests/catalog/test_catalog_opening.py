"""A catalog is made whole or not at all, migrated once, and read without leaving a trace."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import catalog_samples as samples
import pytest
import sqlalchemy as sa
from alembic import autogenerate, config, migration, script

from reconciler.base import errors
from reconciler.catalog import database, images, migrations, servers, tables, upgrades

ROOT = Path(__file__).parents[2]


def trace(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Everything a read could have changed: names, contents, times, inodes; of the folder too."""
    found = {}
    for path in (folder, *sorted(folder.iterdir())):
        stat = path.stat()
        data = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[path.name] = (data, stat.st_mtime_ns, stat.st_ino)
    return found


def test_a_catalog_is_made_with_its_folder_and_keeps_its_id(tmp_path: Path) -> None:
    location = str(tmp_path / "deep" / "state" / "catalog.sqlite")
    first = database.open_writing(location)
    id = first.id
    first.close()
    again = database.open_writing(location)
    assert again.id == id
    assert len(id) == 36
    again.close()


def test_a_new_catalog_has_large_pages_and_an_older_one_keeps_its_own(tmp_path: Path) -> None:
    new, old = tmp_path / "new.sqlite", tmp_path / "old.sqlite"
    for path, size in ((new, 8192), (old, 4096)):
        if path == old:
            with contextlib.closing(sqlite3.connect(old)) as made:
                made.execute("PRAGMA page_size=4096")
                made.execute("PRAGMA journal_mode=WAL")
                made.execute("CREATE TABLE early (one)")
                made.execute("DROP TABLE early")
        database.open_writing(str(path)).close()
        with contextlib.closing(sqlite3.connect(path)) as read:
            assert read.execute("PRAGMA page_size").fetchone() == (size,)
            assert read.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_the_migrations_make_exactly_the_tables(db: database.Database) -> None:
    with db.reading() as connection:
        context = migration.MigrationContext.configure(connection, opts={"compare_type": True})
        found = autogenerate.compare_metadata(context, tables.METADATA)
    # SQLite alone walks by an index that holds everything it asks for.
    sqlite = connection.dialect.name == "sqlite"
    assert [(step[0], step[1].name) for step in found] == ([] if sqlite else [("add_index", "ix_images_walk")])


def test_every_constraint_and_index_has_a_name(location: str) -> None:
    for table in tables.METADATA.tables.values():
        for item in (*table.constraints, *table.indexes):
            assert item.name, f"{table.name}: {item}"
    db = database.open_writing(location)
    spelled = (
        "SELECT indexdef FROM pg_indexes WHERE indexname = 'uq_jobs_live_address'"
        if db.shared
        else "SELECT sql FROM sqlite_master WHERE name = 'uq_jobs_live_address'"
    )
    with db.reading() as connection:
        partial = str(connection.exec_driver_sql(spelled).scalar())
    db.close()
    assert "UNIQUE" in partial
    assert re.search(r"WHERE .*state.*'Queued'.*'Running'", partial)


def test_the_list_of_revisions_is_the_files() -> None:
    settings = config.Config()
    settings.set_main_option("script_location", str(Path(upgrades.__file__).with_name("migrations")))
    settings.set_main_option("path_separator", "os")
    folder = script.ScriptDirectory.from_config(settings)
    assert tuple(step.revision for step in reversed(list(folder.walk_revisions()))) == migrations.REVISIONS
    assert folder.get_heads() == [migrations.HEAD]


def test_every_step_can_be_taken_back(places: Callable[[], str], tmp_path: Path) -> None:
    from alembic import command

    location = places()
    engine = servers.engine(location) if servers.is_url(location) else sa.create_engine(f"sqlite:///{tmp_path / 'x'}")
    with engine.connect().execution_options(holdfast_writing=True) as connection, connection.begin():
        upgrades.upgrade(connection)
        settings = config.Config(attributes={"connection": connection})
        settings.set_main_option("script_location", str(Path(upgrades.__file__).with_name("migrations")))
        settings.set_main_option("path_separator", "os")
        command.downgrade(settings, "base")
        assert sa.inspect(connection).get_table_names() == ["alembic_version"]
    engine.dispose()


def test_the_wheel_carries_the_migrations(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="needs the Python package hatchling")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    folder = ROOT / "reconciler/catalog/migrations"
    for path in (*folder.rglob("*.py"), *folder.rglob("*.mako")):
        assert str(path.relative_to(ROOT)) in names


@pytest.mark.parametrize("kill_at", ["catalog.migrated"])
def test_a_crash_right_after_the_migration_leaves_a_whole_catalog(tmp_path: Path, kill_at: str) -> None:
    location = str(tmp_path / "catalog.sqlite")
    process = samples.child("create", location, HOLDFAST_TEST="1", HOLDFAST_CRASH=kill_at)
    samples.tell(process)
    assert samples.finish(process) == -signal.SIGKILL
    found = database.read(location, lambda db: db.id)
    assert found is not None
    again = database.open_writing(location)
    assert again.id == found
    again.close()


def test_a_migration_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = str(tmp_path / "catalog.sqlite")

    def broken(connection: sa.Connection) -> None:
        upgrade(connection)
        raise sqlite3.OperationalError("disk I/O error")

    upgrade = upgrades.upgrade
    monkeypatch.setattr(upgrades, "upgrade", broken)
    with pytest.raises(errors.CatalogError, match="free space"):
        database.open_writing(location)
    monkeypatch.undo()
    assert database.open_reading(location) is None
    database.open_writing(location).close()


def test_processes_that_make_it_at_once_agree(tmp_path: Path) -> None:
    location = str(tmp_path / "catalog.sqlite")
    children = [samples.child("create", location) for _ in range(3)]
    assert [samples.heard(one) for one in children] == ["ready"] * 3
    for one in children:
        samples.tell(one)
    ids = {samples.heard(one) for one in children}
    assert [samples.finish(one) for one in children] == [0, 0, 0]
    assert len(ids) == 1


def test_a_newer_schema_is_refused(location: str) -> None:
    db = database.open_writing(location)
    with db.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    db.close()
    for opened in (database.open_writing, database.open_reading):
        with pytest.raises(errors.FormatTooNew, match="upgrade Holdfast"):
            opened(location)


def test_an_older_schema_is_migrated_by_writers_alone(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "REVISIONS", (*migrations.REVISIONS, "9998"))
    monkeypatch.setattr(migrations, "HEAD", "9998")
    with pytest.raises(errors.CatalogError, match="holdfast apply migrates it"):
        database.open_reading(location)


@pytest.mark.parametrize(
    "content", [b"not a database at all, but long enough to look at" * 100, b"SQLite format 3\0" + b"\xff" * 8192]
)
def test_a_damaged_file_is_named_with_the_next_step(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(content)
    for opened in (database.open_writing, database.open_reading):
        with pytest.raises(errors.CatalogError, match=r"catalog\.sqlite.*move it aside"):
            opened(str(path))
    assert path.read_bytes() == content


def test_somebody_elses_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    plain = sqlite3.connect(path)
    plain.execute("CREATE TABLE theirs (x)")
    plain.commit()
    plain.close()
    for opened in (database.open_writing, database.open_reading):
        with pytest.raises(errors.CatalogError, match="not a Holdfast catalog"):
            opened(str(path))


def test_reading_where_there_is_nothing_makes_nothing(tmp_path: Path) -> None:
    assert database.open_reading(str(tmp_path / "state" / "catalog.sqlite")) is None
    (tmp_path / "catalog.sqlite").touch()
    assert database.open_reading(str(tmp_path / "catalog.sqlite")) is None
    assert [path.name for path in tmp_path.iterdir()] == ["catalog.sqlite"]


@samples.on_sqlite
def test_reading_a_resting_catalog_changes_nothing(location: str) -> None:
    writer = database.open_writing(location)
    samples.see(writer, "oblVM1")
    samples.image(writer, "img-1")
    writer.close()
    folder = Path(location).parent
    before = trace(folder)
    reader = database.open_reading(location)
    assert reader is not None
    assert [row.id for row in images.list_images(reader)] == ["img-1"]
    assert len(list(images.series(reader))) == 1
    assert reader.still_valid()
    reader.close()
    assert trace(folder) == before
    assert list(before) == ["state", "catalog.sqlite"]


def test_a_reader_cannot_write(location: str) -> None:
    reader = database.open_reading(location)
    assert reader is not None
    with pytest.raises(
        errors.CatalogError, match=r"cannot be opened: (attempt to write a readonly database|.*read-only transaction)"
    ):
        samples.see(reader, "oblVM1")
    reader.close()


@pytest.fixture
def public(fresh_catalog: Path) -> Iterator[Path]:
    """A catalog in a folder that everybody may look into; pytest keeps its own folders private."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-"))
    folder.chmod(0o755)
    shutil.copyfile(fresh_catalog, folder / "catalog.sqlite")
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("left_behind", [False, True], ids=["resting", "killed writer"])
def test_an_unprivileged_user_reads_a_folder_that_is_read_only(public: Path, left_behind: bool) -> None:
    location = str(public / "catalog.sqlite")
    writer = database.open_writing(location)
    id = writer.id
    samples.see(writer, "oblVM1")
    samples.image(writer, "img-1")
    writer.close()
    if left_behind:
        process = samples.child("committing", location)
        assert samples.heard(process) == "1"
        samples.kill(process)
        assert (public / "catalog.sqlite-wal").exists()
    public.chmod(0o555)
    before = trace(public)
    process = samples.child("read_as_nobody", location)
    assert samples.heard(process) == f"('{id}', ['img-1'])"
    assert samples.finish(process) == 0
    assert trace(public) == before


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_folder_that_may_not_be_entered_is_named(public: Path) -> None:
    public.chmod(0o700)
    process = samples.child("read_as_nobody", str(public / "catalog.sqlite"))
    assert samples.heard(process) == "CatalogError check the path and its permissions"
    assert samples.finish(process) == 0


@samples.on_sqlite
def test_reading_what_a_killed_writer_left_finds_all_it_committed(location: str) -> None:
    process = samples.child("committing", location)
    committed = 0
    while committed < 5:
        committed = int(samples.heard(process))
    samples.kill(process)
    folder = Path(location).parent
    before = trace(folder)
    reader = database.open_reading(location)
    assert reader is not None
    assert _pair(reader)[0] >= committed
    reader.close()
    # The index of the log is no content; SQLite may make it anew from the log.
    assert _without_index(trace(folder)) == _without_index(before)


@samples.on_sqlite
def test_an_index_of_the_log_that_a_kill_left_behind_its_log_is_made_anew(location: str) -> None:
    process = samples.child("committing", location)
    committed = int(samples.heard(process))
    # The index is younger than the log: the kill came after the one and before the other reached the disk.
    folder = Path(location).parent
    os.kill(process.pid, signal.SIGSTOP)
    kept = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-shm")}
    os.kill(process.pid, signal.SIGCONT)
    while int(samples.heard(process)) < committed + 5:
        pass
    samples.kill(process)
    with contextlib.closing(sqlite3.connect(location)) as other:
        other.execute("PRAGMA wal_checkpoint(RESTART)")
        other.execute("UPDATE counters SET value = value + 1")
        other.commit()
        index = (folder / "catalog.sqlite-shm").read_bytes()
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    (folder / "catalog.sqlite-shm").write_bytes(index)
    reader = database.open_reading(location)
    assert reader is not None
    left, right = _pair(reader)
    reader.close()
    assert left == right >= committed


def _without_index(found: dict[str, tuple[str, int, int]]) -> dict[str, tuple[str, int, int]]:
    return {name: what for name, what in found.items() if not name.endswith("-shm")}


def _pair(db: database.Database) -> tuple[int, int]:
    with db.reading() as connection:
        rows = connection.execute(sa.select(tables.COUNTERS.c.name, tables.COUNTERS.c.value)).all()
    found: dict[str, int] = dict(rows)  # type: ignore[arg-type]
    return (found.get("left", 0), found.get("right", 0))


def test_readers_beside_a_writer_see_whole_transactions_and_never_go_back(location: str) -> None:
    process = samples.child("committing", location)
    assert samples.heard(process) == "1"
    reader = database.open_reading(location)
    assert reader is not None
    last = 0
    for _ in range(300):
        left, right = _pair(reader)
        assert left == right >= last
        last = left
    assert last > 1
    assert reader.still_valid()
    reader.close()
    samples.kill(process)


def test_one_reading_transaction_is_one_moment(db: database.Database, location: str) -> None:
    samples.see(db, "oblVM1")
    samples.image(db, "img-1")
    reader = database.open_reading(location)
    assert reader is not None
    count = sa.select(sa.func.count()).select_from(tables.IMAGES)
    with reader.reading() as connection:
        assert connection.scalar(count) == 1
        samples.image(db, "img-2")
        assert connection.scalar(count) == 1
    with reader.reading() as connection:
        assert connection.scalar(count) == 2
    reader.close()


@samples.on_sqlite
def test_an_immutable_reader_learns_that_a_writer_came_up(location: str) -> None:
    reader = database.open_reading(location)
    assert reader is not None
    assert reader.still_valid()
    writer = database.open_writing(location)
    samples.see(writer, "oblVM1")
    assert not reader.still_valid()
    writer.close()
    assert not reader.still_valid()
    reader.close()


@samples.on_sqlite
def test_read_looks_again_when_a_writer_came_up_under_it(location: str) -> None:
    looks = []

    def look(db: database.Database) -> int:
        looks.append(db.still_valid())
        if len(looks) == 1:
            writer = database.open_writing(location)
            samples.see(writer, "oblVM1")
            writer.close()
        with db.reading() as connection:
            return int(connection.scalar(sa.select(sa.func.count()).select_from(tables.CLIENTS)) or 0)

    assert database.read(location, look) == 1
    assert len(looks) == 2


def test_opening_an_up_to_date_catalog_is_quick_and_needs_no_alembic(location: str) -> None:
    program = (
        "import sys, time; began = time.process_time()\n"
        "from reconciler.catalog import database, images, inventories, jobs, requests\n"
        f"db = database.open_writing({location!r}); images.list_images(db); jobs.list_jobs(db); db.close()\n"
        "assert not [name for name in sys.modules if name.startswith('alembic')]\n"
        "print(time.process_time() - began)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 5


def test_what_an_older_schema_holds_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = str(tmp_path / "catalog.sqlite")
    with monkeypatch.context() as older:
        older.setattr(migrations, "REVISIONS", ("0001",))
        older.setattr(migrations, "HEAD", "0001")
        first = database.open_writing(location)
        id = first.id
        first.close()
    with sqlite3.connect(location) as plain:
        plain.execute("INSERT INTO clients VALUES ('c-1', 'vm', 'vm', 'c-1', 0)")
        plain.execute("INSERT INTO lifecycle_versions VALUES ('d', '{\"operations\":[]}')")
        plain.execute(
            "INSERT INTO images VALUES ('img-1', 'c-1', 'obl', 'daily', 'gold', 'd', 'Full', 'Complete', 5, 1, 5, 'r',"
            " NULL, 'Known', 'Offline', 9, '[\"a.img\"]', '[]', '[]', '{}', 0)"
        )
        plain.execute(
            "INSERT INTO copies VALUES ('img-1', 1, 'land', 'fast', 'Complete', 7, 8, NULL, 0, NULL, 7, '', NULL)"
        )
    plain.close()
    with pytest.raises(errors.CatalogError, match="holdfast apply migrates it"):
        database.open_reading(location)
    again = database.open_writing(location)
    assert again.id == id
    (series,) = images.series(again)
    (copy,) = series.images[0].copies
    assert (copy.number, copy.operation, copy.unit, copy.state, copy.stored_bytes) == (1, "land", "fast", "Complete", 8)
    again.close()
