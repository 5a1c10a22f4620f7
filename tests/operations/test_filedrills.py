"""What a drill of files holds against an image: its index, where both are of one moment."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
from pathlib import Path

import export_samples as samples
import pytest

from reconciler.api import drilling
from reconciler.base import clocks, disks, errors, meters
from reconciler.catalog import database, imports
from reconciler.operations import filedrills, fileindexing, sites, verifications
from reconciler.storage import opening

DISK = "system.img"


class Context:
    """A job that nobody watches."""

    def __init__(self) -> None:
        self.id, self.meter, self.clock = "j-000001", meters.Meter(), clocks.SystemClock()

    def log(self, line: str) -> None:
        """Nothing."""

    def annotate(self, *, image: str | None = None, copy: int | None = None, unit: str | None = None) -> None:
        """Nothing."""


def volume(folder: Path, size: int) -> bytes:
    (folder / "tree").mkdir(exist_ok=True)
    (folder / "tree" / "a").write_bytes(bytes(size))
    made = ("mke2fs", "-q", "-F", "-t", "ext4", "-d", folder / "tree", folder / f"volume-{size}", "8M")
    subprocess.run([str(word) for word in made], check=True, capture_output=True)
    return (folder / f"volume-{size}").read_bytes()


@pytest.mark.parametrize("consistency", ["Live", "Snapshot"])
def test_what_a_guest_wrote_meanwhile_does_not_fail_an_image(tmp_path: Path, consistency: str) -> None:
    made = samples.Unit.make(tmp_path / "unit", "Directory")
    units = opening.OpenUnits(owner=samples.OWNER, cache=None)
    units.declare({"unit": opening.Declared(name="unit", type="Directory", path=made.folder)})
    unit, label = units.get("unit"), dataclasses.replace(samples.label("i1"), consistency=consistency)
    writer = unit.begin(label, [DISK])
    writer.write(disks.MemoryDisk(DISK, volume(tmp_path, 5)), meter=meters.Meter())
    with fileindexing.Indexing(unit, None, meters.Meter(), wanted=True) as index:
        looked = index.look(disks.MemoryDisk(DISK, volume(tmp_path, 77)), None, known=False, quiesced=False)
        assert looked is not None
        assert index.attach(writer, [looked]) == ()
    label = writer.commit(label).label
    names = {field.name for field in dataclasses.fields(imports.ImportedImage)} - {"disks"}
    order = verifications.VerifyOrder(image="i1", copy=1, unit="unit", kind="Files", ways=drilling.Drills())
    with contextlib.closing(units), contextlib.closing(database.open_writing(str(tmp_path / "catalog.sqlite"))) as db:
        image = imports.ImportedImage(**{name: getattr(label, name) for name in names})
        imports.import_image(db, image, "unit", 1, None, now=label.time, actor="tests")
        site = sites.Site(db=db, units=units, clock=clocks.SystemClock(), actor="tests")
        failing = pytest.raises(errors.VerificationFailed, match="index says")
        with failing if consistency == "Snapshot" else contextlib.nullcontext():
            filedrills.drill(site, order, Context())
