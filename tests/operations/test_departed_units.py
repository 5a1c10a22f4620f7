"""A unit whose file system goes away, or another of which is mounted in its place, says nothing against its copies."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import export_samples as samples
import pytest

from reconciler.api import drilling
from reconciler.base import clocks, errors, meters
from reconciler.catalog import database, images, imports
from reconciler.operations import failovers, sites, verifications
from reconciler.storage import opening, units

DISK = "system.img"


class Context:
    """A job during which something happens once, when it first looks whether it should stop."""

    def __init__(self, happens: Callable[[], None]) -> None:
        class Meter(meters.Meter):
            def check(self) -> None:
                if waiting:
                    waiting.pop()()

        waiting = [happens]
        self.id, self.meter, self.clock = "j-000001", Meter(), clocks.SystemClock()

    def log(self, line: str) -> None:
        """Nothing."""

    def annotate(self, *, image: str | None = None, copy: int | None = None, unit: str | None = None) -> None:
        """Nothing."""


@pytest.fixture
def unit(tmp_path: Path, request: pytest.FixtureRequest) -> samples.Unit:
    made = samples.Unit.make(tmp_path / "unit", request.param)
    # Two disks: one is open when the unit goes, the other is not yet.
    made.store("i0", {DISK: samples.content(4 * samples.MIB, 1), "data.img": samples.content(4 * samples.MIB, 3)})
    contents = {DISK: samples.content(4 * samples.MIB, 1), "data.img": samples.content(4 * samples.MIB, 2)}
    made.store("i1", contents, parent="i0")
    return made


@pytest.fixture
def site(tmp_path: Path, unit: samples.Unit) -> Iterator[sites.Site]:
    opened = opening.OpenUnits(owner=samples.OWNER, cache=None)
    opened.declare({"unit": opening.Declared(name="unit", type=unit.type, path=unit.folder)})
    with contextlib.closing(opened), contextlib.closing(database.open_writing(str(tmp_path / "catalog.sqlite"))) as db:
        label = samples.label("i1")
        names = {field.name for field in dataclasses.fields(imports.ImportedImage)} - {"disks"}
        image = imports.ImportedImage(**{name: getattr(label, name) for name in names})
        imports.import_image(db, image, "unit", 1, None, now=label.time, actor="tests")
        yield sites.Site(db=db, units=opened, clock=clocks.SystemClock(), actor="tests")


@pytest.mark.parametrize("unit", samples.TYPES, indirect=True)
@pytest.mark.parametrize("instead", ["nothing", "another"])
def test_a_proof_that_lost_its_unit_proves_nothing(site: sites.Site, unit: samples.Unit, instead: str) -> None:
    def goes() -> None:
        unit.folder.rename(unit.folder.with_name("away"))
        if instead == "another":
            samples.Unit.make(unit.folder, unit.type)

    order = verifications.VerifyOrder(image="i1", copy=1, unit="unit", kind="Content", ways=drilling.Drills())
    with pytest.raises(errors.UnitError) as caught:
        verifications.contents(site, order, Context(goes))
    assert not isinstance(caught.value, errors.ImageDamaged | errors.ImageMissing)
    (copy,) = images.list_copies(site.db, image_id="i1")
    assert copy.state == "Complete"


def source(unit: samples.Unit) -> failovers.Source:
    def opened() -> units.StoredImage:
        with contextlib.closing(opening.open_folder(unit.folder)) as found:
            return found.open("i1")

    return failovers.Source(number=1, unit="unit", path=unit.folder, open=opened)


@pytest.mark.parametrize("unit", samples.TYPES, indirect=True)
def test_a_reader_hears_that_the_unit_is_gone_and_goes_on_when_it_is_back(unit: samples.Unit) -> None:
    told: list[failovers.Failure] = []
    with contextlib.closing(failovers.FailoverImage("i1", [source(unit)], told.append)) as image:
        away = unit.folder.rename(unit.folder.with_name("away"))
        with contextlib.closing(image.disk("data.img")) as disk:
            with pytest.raises(errors.UnitOffline, match="does not exist"):
                disk.pread(0, 4096)
            assert told[0].finding is None
            away.rename(unit.folder)
            assert bytes(disk.pread(0, 4096)) == samples.content(4 * samples.MIB, 2)[:4096]


@pytest.mark.parametrize("unit", ["DedupePool"], indirect=True)
def test_a_folder_that_is_gone_from_a_unit_is_no_missing_file_of_the_reader(unit: samples.Unit) -> None:
    with contextlib.closing(failovers.FailoverImage("i1", [source(unit)], lambda _failure: None)) as image:
        (unit.folder / "containers").rename(unit.folder / "elsewhere")
        with contextlib.closing(image.disk(DISK)) as disk, pytest.raises(errors.UnitError, match="containers"):
            disk.pread(0, 4096)
