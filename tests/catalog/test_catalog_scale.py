"""A large catalog is walked one series at a time: quickly, and in memory that does not grow with it."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import catalog_samples as samples
import pytest

from reconciler.catalog import database, images, imports, tables

ROOT = Path(__file__).parents[2]
IMAGES, CLIENTS = 100_000, 250


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The location of a catalog of 100,000 images with two copies each."""
    location = str(tmp_path_factory.mktemp("large") / "catalog.sqlite")
    db = database.open_writing(location)
    with db.writing() as connection:
        owed = imports.remember_owed(connection, samples.lifecycle().spec.written())
        clients = [
            {
                "id": f"diskimages:/srv/{n}",
                "slug": f"vm-{n}",
                "name": f"vm {n}",
                "source": "x",
                "first_seen": samples.NOW,
            }
            for n in range(CLIENTS)
        ]
        connection.execute(tables.CLIENTS.insert(), clients)
        connection.execute(tables.IMAGES.insert(), [_image(number, owed) for number in range(IMAGES)])
        connection.execute(tables.COPIES.insert(), [_copy(number, copy) for number in range(IMAGES) for copy in (1, 2)])
    db.close()
    return location


def _image(number: int, owed: str) -> dict[str, object]:
    return {
        "id": f"image-{number:08d}", "client_id": f"diskimages:/srv/{number % CLIENTS}", "policy": "obl",
        "schedule": "nightly", "lifecycle": "gold", "owed": owed, "type": "Incremental", "state": "Complete",
        "time": samples.NOW, "sequence": number + 1, "slot": samples.NOW, "revision": "main@sha1:1", "parent": None,
        "changes": "Known", "consistency": "Offline", "size_bytes": 4096, "disk_names": ["a.img"], "disks": [],
        "warnings": [], "source_state": {}, "spent": False,
    }  # fmt: skip


def _copy(number: int, copy: int) -> dict[str, object]:
    return {
        "image_id": f"image-{number:08d}", "number": copy, "operation": ("land", "dedupe")[copy - 1],
        "unit": ("fast", "pool")[copy - 1], "state": "Complete", "created_at": samples.NOW, "stored_bytes": 1000,
        "base": None, "imported": False, "job": None, "changed_at": samples.NOW, "message": "", "fallback": None,
    }  # fmt: skip


def test_a_hundred_thousand_images_are_walked_in_seconds(large: str) -> None:
    db = database.open_reading(large)
    assert db is not None
    began = time.process_time()
    count = copies = series = 0
    for one in images.series(db):
        series += 1
        count += len(one.images)
        copies += sum(len(image.copies) for image in one.images)
    took = time.process_time() - began
    assert (series, count, copies) == (CLIENTS, IMAGES, 2 * IMAGES)
    assert took < 15, f"{took:.1f} s"
    db.close()


def test_a_walk_holds_one_series_in_memory(large: str) -> None:
    db = database.open_reading(large)
    assert db is not None
    walk = iter(images.series(db))
    next(walk)
    tracemalloc.start()
    for _ in range(10):
        next(walk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    walk.close()  # type: ignore[attr-defined]
    assert peak < 24 << 20, f"{peak >> 20} MiB for series of {IMAGES // CLIENTS} images"
    db.close()


def test_the_process_that_walks_stays_small(large: str) -> None:
    program = (
        "import resource\n"
        "from reconciler.catalog import database, images\n"
        f"db = database.open_reading({large!r})\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert sum(len(one.images) for one in images.series(db)) == 100000\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100 * 1024, f"{int(done.stdout) >> 10} MiB more"


def test_one_series_is_read_without_walking_the_rest(large: str) -> None:
    db = database.open_reading(large)
    assert db is not None
    began = time.monotonic()
    assert len(images.one_series(db, "diskimages:/srv/7", "obl").images) == IMAGES // CLIENTS
    assert time.monotonic() - began < 1
    db.close()
