"""The search cache answers as a plain list of images would, in whatever order they came and went; and it survives."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fileindex_samples as samples
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.base import errors
from reconciler.catalog.fileindexes import (
    answers,
    blocks,
    caches,
    columns,
    entries,
    indexes,
    intervals,
    pages,
    patterns,
)

Rows = list[entries.Entry]
DISKS = (pages.Disk(name="d0", volumes=(pages.Volume(filesystem="ext", label="", offset=0, length=1),)),)


def image(number: int, client: str = "c0") -> answers.Image:
    return answers.Image(id=f"{client}-i{number}", client=client, time=number * 10**9, sequence=number)


def index(rows: Rows, parent: indexes.Index | None = None) -> indexes.Index:
    return indexes.Index("i", samples.Memory(indexes.build(rows, DISKS, parent)))


@dataclasses.dataclass
class Model:
    """What the cache should know: each image's entries."""

    images: dict[answers.Image, Rows] = dataclasses.field(default_factory=dict)

    def histories(self, client: str) -> dict[entries.Key, list[tuple[entries.Entry, tuple[str, ...]]]]:
        """For each name of a client, the runs of images in which it is the same."""
        found: dict[entries.Key, list[tuple[entries.Entry, tuple[str, ...]]]] = {}
        mine = sorted((one for one in self.images if one.client == client), key=lambda one: one.sequence)
        states = [(one.id, {entries.key(row): row for row in self.images[one]}) for one in mine]
        for key in {key for _, state in states for key in state}:
            runs = itertools.groupby(((state.get(key), id) for id, state in states), key=lambda pair: pair[0])
            found[key] = [(row, tuple(id for _, id in some)) for row, some in runs if row is not None]
        return found


@st.composite
def few(draw: st.DrawFn) -> Rows:
    """Few names in few states, so that they come back."""
    names = st.sampled_from(("a", "b", "dir/a", "dir/b.log", "dir/sub/Ünï", "dir/caf\udce9"))
    found = draw(st.dictionaries(st.tuples(names, st.sampled_from(("", "", "s"))), st.integers(0, 2), max_size=6))
    return indexes.ordered(samples.entry(path, stream=stream, size=size) for (path, stream), size in found.items())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_it_answers_as_a_list_of_images_would(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    cache, model = caches.FileCache(tmp_path_factory.mktemp("cache")), Model()
    built: dict[answers.Image, indexes.Index] = {}
    for _ in range(data.draw(st.integers(1, 9))):
        one = image(data.draw(st.integers(1, 6)), data.draw(st.sampled_from(("c0", "c0", "c0", "c1"))))
        if one in model.images and data.draw(st.booleans()):
            cache.forget([one.id])
            del model.images[one]
            continue
        base = data.draw(st.sampled_from([None, *built.values()]))
        rows = data.draw(few())
        found = index(rows, base)
        assert cache.learn(one, found) is (one not in model.images)
        if one not in model.images:
            model.images[one], built[one] = rows, found
    check(cache, model)


def check(cache: caches.FileCache, model: Model) -> None:
    assert {one.image for one in cache.learned()} == set(model.images)
    for one, rows in model.images.items():
        for folder in {"", *(row.folder for row in rows)}:
            assert list(cache.folder(one.id, "d0", 0, folder)) == [row for row in rows if row.folder == folder]
    for client in ("c0", "c1"):
        histories = model.histories(client)
        found = cache.search(answers.Query(text="*", streams=True, clients=[client]))
        by_name: dict[entries.Key, list[tuple[entries.Entry, tuple[str, ...]]]] = {}
        for version in found:
            by_name.setdefault(entries.key(version.entry), []).append((version.entry, version.images))
        assert by_name == histories
        for (disk, volume, folder, name, stream), runs in list(histories.items())[:2]:
            path = f"{folder}/{name}" if folder else name
            history = cache.versions(client, disk, volume, path, stream)
            assert [(one.entry, one.images) for one in history] == runs


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[caches.FileCache, dict[str, Rows]]:
    """Two clients with three images each of a few thousand files."""
    cache, states = caches.FileCache(tmp_path_factory.mktemp("known")), {}
    for number, client in enumerate(("c0", "c1")):
        rows, parent = samples.tree(number, 2_500), None
        rows = indexes.ordered(
            [*rows, *(samples.entry(f"Étude/{name}") for name in ("ÄB.log", "x\ny.log", "caf\udce9", "Straße.log"))]
        )
        for day in range(3):
            parent = index(rows, parent)
            cache.learn(image(day, client), parent)
            states[image(day, client).id] = rows
            rows = samples.changed(rows, day, 0.05)
    return cache, states


def paths(found: Iterator[answers.Version]) -> set[tuple[str, str]]:
    return {(version.entry.path, id) for version in found for id in version.images}


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "*.log",
        "index-*",
        "*-f?.py",
        "readme*a*.txt",
        "*",
        "ÄB.log",
        "äb.LOG",
        "?.log",
        "x?y.log",
        "nothing*",
        "*.l*g",
        "caf?",
        "STRASSE.*",
    ],
)
def test_a_glob_finds_what_fnmatch_finds(
    known: tuple[caches.FileCache, dict[str, Rows]], text: str, fold: bool
) -> None:
    cache, states = known

    def fits(name: str) -> bool:
        return fnmatch.fnmatchcase(name.casefold() if fold else name, text.casefold() if fold else text)

    expected = {(row.path, id) for id, rows in states.items() for row in rows if fits(row.name)}
    assert paths(cache.search(answers.Query(text=text, fold=fold))) == expected


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("Étude/*", lambda path: path.startswith("Étude/")),
        ("/Étude/**", lambda path: path.startswith("Étude/")),
        ("**/*.log", lambda path: path.endswith(".log")),
        (
            "**/?????/**/*.xml",
            lambda path: path.endswith(".xml") and any(len(part) == 5 for part in path.split("/")[:-1]),
        ),
        ("*/*.png", lambda path: path.endswith(".png") and path.count("/") == 1),
        ("*/**/*/*.png", lambda path: path.endswith(".png") and path.count("/") >= 2),
        ("/*", lambda path: "/" not in path),
        ("no/such/folder/*", lambda path: path == ""),
    ],
)
def test_a_glob_with_folders_is_about_the_whole_path(
    known: tuple[caches.FileCache, dict[str, Rows]], text: str, fits
) -> None:
    cache, states = known
    expected = {(row.path, id) for id, rows in states.items() for row in rows if fits(row.path)}
    assert paths(cache.search(answers.Query(text=text))) == expected


def test_folders_are_found_in_either_case(known: tuple[caches.FileCache, dict[str, Rows]]) -> None:
    cache, states = known
    expected = {(row.path, id) for id, rows in states.items() for row in rows if row.path.startswith("Étude/")}
    expected = {(path, id) for path, id in expected if path.endswith(".log")}
    assert len(expected) == 3 * len(states)
    for text in ("éTUDE/*.LOG", "**/ÉTUD?/**/*.log"):
        assert paths(cache.search(answers.Query(text=text, fold=True))) == expected
        assert paths(cache.search(answers.Query(text=text))) == set()


@settings(max_examples=150, deadline=None)
@given(samples.rows(), st.data())
def test_a_damaged_block_is_told_whatever_is_asked_of_it(rows: Rows, data: st.DataObject) -> None:
    folders: dict[blocks.Place, blocks.Versions] = {}
    for row in rows:
        folders.setdefault((row.disk, row.volume, row.folder), []).append(intervals.Version(row, 0, 1))
    _, *packed = blocks.pack(folders)
    assert blocks.Block(packed[0]).folders(packed[1]) == folders
    unpacked = [bytearray(columns.unpack(part)) for part in packed]
    part = unpacked[data.draw(st.integers(0, 1))]
    for at in data.draw(st.lists(st.integers(0, max(0, len(part) - 1)), max_size=4)):
        part[at : at + 1] = data.draw(st.binary(max_size=2))
    names, numbers = (columns.pack(bytes(part), 1) for part in unpacked)
    for text in ("*", "a/**/*", "**/*log"):
        pattern = patterns.Pattern(text, contains=False, fold=True, streams=True)
        with contextlib.suppress(columns.Malformed):
            block = blocks.Block(names)
            if wanted := pattern.find(block.names):
                list(block.found(numbers, wanted))
    with contextlib.suppress(columns.Malformed):
        blocks.Block(names).folders(numbers)


@pytest.mark.parametrize("text", ["log", "a-1", ".", "Étude/Ä", "/index", "f/", "\n", "\udce9"])
def test_a_part_of_a_name_is_found(known: tuple[caches.FileCache, dict[str, Rows]], text: str) -> None:
    cache, states = known
    head, slash, tail = text.rpartition("/")

    def fits(row: entries.Entry) -> bool:
        return row.name.startswith(tail) and f"/{row.folder}".endswith(head) if slash else text in row.name

    expected = {(row.path, id) for id, rows in states.items() for row in rows if fits(row)}
    assert expected
    assert paths(cache.search(answers.Query(text=text, contains=True))) == expected


def test_a_search_keeps_to_clients_images_times_and_kinds(known: tuple[caches.FileCache, dict[str, Rows]]) -> None:
    cache, states = known

    def ids(**more) -> set[str]:
        return {id for version in cache.search(answers.Query(text="*.log", **more)) for id in version.images}

    assert ids() == set(states)
    assert ids(clients=["c1"]) == {"c1-i0", "c1-i1", "c1-i2"}
    assert ids(images=["c0-i1", "c1-i2"]) == {"c0-i1", "c1-i2"}
    assert ids(since=10**9, until=2 * 10**9) == {"c0-i1", "c1-i1"}
    assert ids(clients=["c9"]) == ids(since=3 * 10**9) == ids(kinds=["symlink"]) == set()
    assert all(one.entry.kind == "directory" for one in cache.search(answers.Query(text="lib*", kinds=["directory"])))


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    cache = caches.FileCache(tmp_path)
    rows = indexes.ordered([samples.entry("a"), samples.entry("d", kind="directory"), samples.entry("a", stream="s")])
    cache.learn(image(1), index(rows))
    cache.learn(image(2), None)
    assert cache.folder("c0-i1", "d0", 0, "d") == ()
    assert cache.entry("c0-i1", "d0", 0, "a", "s").stream == "s"
    assert [(one.image.id, one.head is None) for one in cache.learned("c0")] == [("c0-i1", False), ("c0-i2", True)]
    assert cache.versions("c0", "d0", 0, "no") == cache.versions("c9", "d0", 0, "a") == ()
    for image_id, disk, volume, path, words in (
        ("c0-i1", "d0", 0, "a", "no folder"), ("c0-i1", "d0", 1, "", "no folder"), ("c0-i1", "d9", 0, "", "no folder"),
        ("c0-i2", "d0", 0, "", "has no index"), ("c0-i3", "d0", 0, "", "does not know"),
    ):  # fmt: skip
        with pytest.raises(errors.NotFound, match=words):
            cache.folder(image_id, disk, volume, path)
    with pytest.raises(errors.NotFound, match="has no /a:t"):
        cache.entry("c0-i1", "d0", 0, "a", "t")


def test_an_incremental_touches_what_changed_and_a_damaged_index_nothing(tmp_path: Path) -> None:
    cache, rows = caches.FileCache(tmp_path), samples.tree(1, 5_000)
    first = index(rows)
    cache.learn(image(1), first)
    later = samples.changed(rows, 1, 0.01)
    stored = samples.Memory(indexes.build(later, DISKS, first))
    upper = indexes.Index("i", stored)
    stored.read_pages = 0
    broken = samples.Memory([*stored.data[:-1], b"\x01no"])
    with pytest.raises(errors.ImageDamaged):
        cache.learn(image(2), indexes.Index("i", broken))
    assert [one.image for one in cache.learned()] == [image(1)]
    assert cache.learn(image(2), upper)
    assert stored.read_pages == 1
    assert not cache.learn(image(2), upper)
    assert {row for row in later if row.folder == ""} == set(cache.folder("c0-i2", "d0", 0, "")) | {
        row for row in later if row.folder == "" and row.disk != "d0"
    }
    assert paths(cache.search(answers.Query(text="*", images=["c0-i2"]))) == {(row.path, "c0-i2") for row in later}


def test_a_file_that_is_no_cache_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / caches.FILE
    path.write_bytes(b"not a database at all" * 100)
    cache = caches.FileCache(tmp_path)
    assert cache.learned() == ()
    assert cache.learn(image(1), index([samples.entry("a")]))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE blocks SET names = x'00'")
    connection.close()
    with pytest.raises(errors.CatalogError, match="made anew"):
        list(cache.search(answers.Query(text="a")))
    assert cache.learned() == ()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    assert caches.FileCache(tmp_path).learned() == ()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE images SET head = x'00'",
        "UPDATE images SET head = x'c8'",
        "UPDATE images SET head = 5",
        "UPDATE images SET layers = NULL",
        "UPDATE blocks SET names = 5",
        "UPDATE blocks SET numbers = 'text'",
        "UPDATE clients SET name = CAST(x'80' AS TEXT)",
    ],
)
def test_whatever_rots_in_it_never_is_more_than_an_error_of_the_cache(tmp_path: Path, damage: str) -> None:
    cache, rows = caches.FileCache(tmp_path), [samples.entry("a")]
    cache.learn(image(1), index(rows))
    with sqlite3.connect(tmp_path / caches.FILE) as connection:
        connection.execute(damage)
    connection.close()
    refused = 0
    for use in (
        cache.learned,
        lambda: list(cache.search(answers.Query(text="a"))),
        lambda: cache.learn(image(2), index(rows)),
    ):
        try:
            use()
        except errors.CatalogError as error:
            assert "made anew" in (error.hint or "")
            refused += 1
    assert refused == 1
    assert cache.learn(image(3), index(rows))


def test_many_learn_and_read_at_once(tmp_path: Path) -> None:
    """Threads and another process learn while readers ask; nobody is refused, and nothing is lost."""
    rows = samples.tree(1, 1_500)
    troubles: list[BaseException] = []
    done = threading.Event()

    def learn(client: str) -> None:
        cache, parent = caches.FileCache(tmp_path), None
        state = rows
        for day in range(5):
            parent = index(state, parent)
            cache.learn(image(day, client), parent)
            state = samples.changed(state, day, 0.02)

    def ask() -> None:
        cache = caches.FileCache(tmp_path)
        while not done.is_set():
            for version in cache.search(answers.Query(text="*.log")):
                assert version.images
            for one in cache.learned():
                assert cache.folder(one.image.id, "disk0", 0, rows[0].folder)

    def run(work, *arguments) -> None:
        try:
            work(*arguments)
        except BaseException as error:  # noqa: BLE001  told below
            troubles.append(error)

    writers = [threading.Thread(target=run, args=(learn, f"c{number}")) for number in (0, 1)]
    readers = [threading.Thread(target=run, args=(ask,)) for _ in range(2)]
    for thread in (*writers, *readers):
        thread.start()
    child = learner(tmp_path, "c2", 5)
    for thread in writers:
        thread.join()
    assert child.communicate(timeout=60)[0].split() == ["0", "1", "2", "3", "4"]
    done.set()
    for thread in readers:
        thread.join()
    assert not troubles
    assert len(caches.FileCache(tmp_path).learned()) == 15


_CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
import fileindex_samples as samples
from pathlib import Path
from reconciler.catalog.fileindexes import answers, caches, indexes
folder, client, days = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
cache, parent, rows = caches.FileCache(folder), None, samples.tree(1, 1_500)
for day in range(days):
    parent = indexes.Index("i", samples.Memory(indexes.build(rows, (), parent)))
    cache.learn(answers.Image(id=f"{client}-i{day}", client=client, time=day * 10**9, sequence=day), parent)
    print(day, flush=True)
    rows = samples.changed(rows, day, 0.02)
"""


def learner(folder: Path, client: str, days: int) -> subprocess.Popen[str]:
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", _CHILD, here, str(folder), client, str(days)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_learner_that_is_killed_leaves_whole_images_alone(tmp_path: Path) -> None:
    for attempt in range(3):
        child = learner(tmp_path, "c0", 1_000)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.05 * attempt)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        cache, state = caches.FileCache(tmp_path), samples.tree(1, 1_500)
        for day, one in enumerate(cache.learned()):
            assert one.image.sequence == day
            assert paths(cache.search(answers.Query(text="*", images=[one.image.id]))) == {
                (row.path, one.image.id) for row in state
            }
            state = samples.changed(state, day, 0.02)
        cache.forget([one.image.id for one in cache.learned()])
        assert cache.learned() == ()
