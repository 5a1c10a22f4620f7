"""The search cache beside the loop: it delays nothing, whatever there is to learn and wherever it lies."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import export_samples as samples
import pytest
from export_samples import MIB

from reconciler.base import clocks, meters
from reconciler.catalog import database, imports
from reconciler.catalog.fileindexes import answers, caches
from reconciler.operations import filelessons, sites
from reconciler.storage import opening, units

COUNT = 5


class WatchedUnits(opening.OpenUnits):
    """Units that answer while they are let, and count how often they are asked."""

    def __init__(self) -> None:
        super().__init__(owner=samples.OWNER, cache=None)
        self.asked = 0
        self.free = threading.Event()
        self.free.set()

    def get(self, name: str) -> units.StorageUnit:
        self.asked += 1
        assert self.free.wait(60)
        return super().get(name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    site: sites.Site
    units: WatchedUnits
    cache: caches.FileCache
    folder: Path
    cache_file: Path


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A few images without an index on one unit, and a catalog that knows them."""
    made = samples.Unit.make(tmp_path / "unit", "Directory")
    opened, cache = WatchedUnits(), caches.FileCache(tmp_path / "cache")
    opened.declare({"unit": opening.Declared(name="unit", type="Directory", path=made.folder)})
    names = {field.name for field in dataclasses.fields(imports.ImportedImage)} - {"disks", "sequence"}
    with contextlib.closing(database.open_writing(str(tmp_path / "catalog.sqlite"))) as db:
        for number in range(1, COUNT + 1):
            label = made.store(f"i{number}", {"disk": bytes(MIB)})
            said = {name: getattr(label, name) for name in names}
            image = imports.ImportedImage(**said, sequence=number)
            assert imports.import_image(db, image, "unit", 1, None, now=label.time, actor="tests")
        site = sites.Site(db=db, units=opened, clock=clocks.SystemClock(), actor="tests", files=cache)
        yield Place(
            site=site, units=opened, cache=cache, folder=made.folder, cache_file=tmp_path / "cache" / caches.FILE
        )
    opened.close()


def until(true: object, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_loop_does_not_wait_for_a_unit_that_does_not_answer(place: Place) -> None:
    keeper, told = filelessons.Keeper(place.site), list[str]()
    place.units.free.clear()
    began = time.monotonic()
    for _ in range(3):
        keeper.turn(told.append)
    assert time.monotonic() - began < 2
    until(lambda: place.units.asked)
    place.units.free.set()
    until(lambda: len(place.cache.images()) == COUNT)
    keeper.close()
    # An hour passes before the next look.
    keeper.turn(told.append)
    keeper.close()
    assert (told, place.units.asked) == ([], COUNT)


def test_what_is_being_learned_ends_with_the_loop(place: Place) -> None:
    keeper = filelessons.Keeper(place.site)
    place.units.free.clear()
    keeper.turn(lambda _: None)
    until(lambda: place.units.asked)
    threading.Timer(0.3, place.units.free.set).start()
    keeper.close()
    assert len(place.cache.images()) <= 1
    assert place.units.asked == 1


def test_a_unit_that_is_not_there_is_asked_once_and_told_of_in_one_line(place: Place) -> None:
    shutil.move(place.folder, place.folder.with_name("away"))
    keeper, told = filelessons.Keeper(place.site), list[str]()
    keeper.turn(told.append)
    until(lambda: told)
    keeper.close()
    (line,) = told
    assert f"i1 and {COUNT - 1} more cannot be searched" in line
    assert place.units.asked == 1


def test_an_image_that_the_catalog_tells_otherwise_of_is_learned_anew(place: Place) -> None:
    def caught_up() -> filelessons.Caught:
        return filelessons.catch_up(place.site.db, place.units, place.cache, meter=meters.Meter())

    place.cache.learn(answers.Image(id="i2", client="somebody", time=1, sequence=77), None)
    assert caught_up() == filelessons.Caught(learned=COUNT, forgotten=0, failed=())
    assert [one.sequence for one in place.cache.images()] == [*range(1, COUNT + 1)]
    assert len({one.client for one in place.cache.images()}) == 1
    assert caught_up() == filelessons.Caught(learned=0, forgotten=0, failed=())


def test_a_job_does_not_wait_long_for_who_writes_in_the_cache(place: Place) -> None:
    place.cache.images()
    told: list[str] = []
    with contextlib.closing(sqlite3.connect(place.cache_file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        filelessons.learn(place.site, "i1", told.append)
        assert time.monotonic() - began < 30
    assert len(told) == 1
    assert "the files of i1 cannot be searched yet" in told[0]
    filelessons.learn(place.site, "i1", told.append)
    assert [one.id for one in place.cache.images()] == ["i1"]
