"""The index of files: its size on units of both types and in the search cache, and how long learning and asking takes.

``hack/bench files`` calls it. Two estates, from seeds and built beside each other: one guest whose files change a
little from image to image, and several guests that have nothing in common, with a few images each. Every image lies in
a Directory and in a DedupePool with its index, and is learned by the estate's cache. Then real volumes of many files,
NTFS and ext4, are listed, and the index is added to an image of them. ``--json`` prints the figures; exit code 1 where
a bound is missed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import datetime as dt
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "catalog"), str(ROOT / "tests" / "operations")]

import export_samples  # noqa: E402
import fileindex_samples as samples  # noqa: E402

from reconciler.base import disks, meters  # noqa: E402
from reconciler.catalog.fileindexes import answers, caches, entries, indexes, pages  # noqa: E402
from reconciler.operations import fileindexing  # noqa: E402
from reconciler.sources.diskimages import raw  # noqa: E402
from reconciler.storage import opening, units  # noqa: E402

KINDS = ("Directory", "DedupePool")
#: What is to be reached: bytes per file and image on a unit and in the cache together, seconds.
BYTES, SEARCH, FOLDER, INDEXING = 20.0, 1.0, 0.1, 10.0
_DISK = "disk0"
_SIZE = 2 << 20


def occupied(folder: Path) -> int:
    """Bytes that all files below a folder take up."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """An estate that was built, and what is asked of it."""

    folder: Path
    images: list[str]
    #: Entries of all images together.
    files: int
    #: Bytes of all indexes, by kind of unit.
    index_bytes: dict[str, int]
    #: Seconds that each image took.
    learning: list[float]
    building: list[float]
    #: A name and a folder in the newest image.
    rare: str
    listed: str

    def figures(self) -> dict[str, Any]:
        """What it came to."""
        cache_folder = self.folder / "cache"
        cache = occupied(cache_folder) / self.files
        asked = {
            "rare": answers.Query(text=self.rare),
            "common": answers.Query(text="index-*.log"),
            "glob": answers.Query(text="*-1f*.png"),
            "part": answers.Query(text="-1abc", contains=True),
            "folded": answers.Query(text="README*.XML", fold=True),
            "path": answers.Query(text="**/data*/index*/*.dll"),
            "none": answers.Query(text="nothing-has-this-name.exe"),
        }
        opened = caches.FileCache(cache_folder)
        searches = {name: timed(lambda query=query: len(list(opened.search(query)))) for name, query in asked.items()}
        return {
            "images": len(self.images),
            "files": self.files,
            "bytes": {
                **{kind: round(count / self.files, 2) for kind, count in self.index_bytes.items()},
                "cache": round(cache, 2),
                "together": round(max(self.index_bytes.values()) / self.files + cache, 2),
            },
            "searches": searches,
            "folder": timed(lambda: len(opened.folder(self.images[-1], _DISK, 0, self.listed))),
            "learnFirst": round(self.learning[0], 2),
            "learnIncremental": round(sorted(self.learning[1:])[len(self.learning) // 2 - 1], 2),
            "buildIncremental": round(sorted(self.building[1:])[len(self.building) // 2 - 1], 2),
        }


class Estate:
    """Two units, a cache, and images of guests with changing trees."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folders = {kind: export_samples.Unit.make(folder / kind, kind).folder for kind in KINDS}
        self.units = {
            kind: opening.open_unit(
                opening.Declared(name=kind, type=kind, path=self.folders[kind]), owner=export_samples.OWNER
            )
            for kind in KINDS
        }
        self.cache = caches.FileCache(folder / "cache")
        self.index_bytes = dict.fromkeys(KINDS, 0)
        self.learning: list[float] = []
        self.building: list[float] = []
        self.files = 0
        self.images: list[str] = []

    def guest(self, client: str, rows: list[entries.Entry], count: int, seed: int, part: float) -> list[entries.Entry]:
        """``count`` images of one guest; its tree at the end."""
        parent: str | None = None
        for day in range(count):
            if day:
                rows = samples.changed(rows, seed + day, part)
            parent = self._image(client, day, rows, parent)
        return rows

    def _image(self, client: str, day: int, rows: list[entries.Entry], parent: str | None) -> str:
        id = f"{client}-{day:03}"
        about = [pages.Disk(name=_DISK, volumes=(pages.Volume(filesystem="ntfs", label="", offset=0, length=_SIZE),))]
        began = time.monotonic()
        with _index_of(self.units[KINDS[0]], parent) as index:
            made = list(indexes.build(rows, about, index))
        for kind in KINDS:
            before = occupied(self.folders[kind])
            write(self.units[kind], id, disks.MemoryDisk(_DISK, bytes(_SIZE)), parent, iter(made))
            if kind == KINDS[0]:
                self.building.append(time.monotonic() - began)
            # The disk holds nothing: all that came is the index, and what every image is described by.
            self.index_bytes[kind] += occupied(self.folders[kind]) - before
        began = time.monotonic()
        with _index_of(self.units[KINDS[0]], id) as index:
            self.cache.learn(answers.Image(id=id, client=client, time=day * 10**9, sequence=day), index)
        self.learning.append(time.monotonic() - began)
        print(f"{id}: learned in {self.learning[-1]:.2f} s", file=sys.stderr, flush=True)
        self.files += len(rows)
        self.images.append(id)
        return id

    def close(self) -> None:
        """Close the units."""
        for unit in self.units.values():
            unit.close()

    def built(self, rows: list[entries.Entry]) -> Built:
        """It as it is now; ``rows`` are in the newest image."""
        return Built(
            folder=self.folder, images=self.images, files=self.files, index_bytes=self.index_bytes,
            learning=self.learning, building=self.building,
            rare=rows[len(rows) // 3].name, listed=rows[len(rows) // 2].folder,
        )  # fmt: skip


def one_guest(folder: Path, chosen: argparse.Namespace) -> Built:
    """Many images of one guest."""
    with contextlib.closing(Estate(folder)) as estate:
        tree = samples.tree(chosen.seed, chosen.files)
        return estate.built(estate.guest("c0", tree, chosen.images, chosen.seed, chosen.part))


def many_guests(folder: Path, chosen: argparse.Namespace) -> Built:
    """A few images of each of many guests."""
    with contextlib.closing(Estate(folder)) as estate:
        for number in range(chosen.guests):
            tree = samples.tree(chosen.seed + 1 + number, chosen.files)
            rows = estate.guest(f"c{number}", tree, chosen.guest_images, chosen.seed, chosen.part)
        return estate.built(rows)


#: By its name in the figures.
ESTATES = {"one": one_guest, "many": many_guests}


def timed(work: Callable[[], int]) -> dict[str, Any]:
    """What it found, and the best of three times in seconds."""
    best, found = 9e9, 0
    for _ in range(3):
        began = time.monotonic()
        found = work()
        best = min(best, time.monotonic() - began)
    return {"found": found, "seconds": round(best, 4)}


@contextlib.contextmanager
def _index_of(unit: units.StorageUnit, image: str | None) -> Iterator[indexes.Index | None]:
    if image is None:
        yield None
        return
    with contextlib.closing(unit.open(image)) as stored:
        yield fileindexing.index_of(stored)


def write(unit: units.StorageUnit, id: str, disk: disks.Disk, parent: str | None, index: Iterator[bytes] | None) -> str:
    """An image with one disk; its id."""
    label = export_samples.label(id)
    writer = unit.begin(label, [disk.name])
    writer.write(disk, meter=meters.Meter(), parent=parent)
    writer.attach(entries.ATTACHMENT, index, parent=parent)
    writer.commit(label)


def run(*command: str | Path) -> None:
    """A tool that must succeed."""
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


def real(folder: Path, kind: str, count: int, seed: int) -> dict[str, Any]:
    """A volume of ``count`` files, an image of it, and what adding the index took."""
    image, rng = folder / f"{kind}.img", random.Random(seed)
    tree = folder / f"tree-{kind}"
    tree.mkdir()
    with image.open("wb") as file:
        file.truncate(max(64 << 20, count * 12_000))
    if kind == "ntfs":
        run("mkntfs", "-F", "-Q", image)
        run("ntfs-3g", image, tree)
    made = 0
    while made < count:
        above = tree / f"{rng.choice(('usr', 'var', 'home'))}" / f"d{made // 2000}" / f"sub{made // 50}"
        above.mkdir(parents=True, exist_ok=True)
        for _ in range(min(50, count - made)):
            (above / f"file-{rng.randrange(16**6):x}-{made}.txt").write_bytes(b"x" * rng.randrange(600))
            made += 1
    if kind == "ntfs":
        run("umount", tree)
    else:
        run("mke2fs", "-q", "-F", "-t", "ext4", "-N", str(count + 50_000), "-d", tree, image)
        run("rm", "-rf", tree)
    place = export_samples.Unit.make(folder / f"unit-{kind}", "Directory").folder
    declared = opening.Declared(name="unit", type="Directory", path=place)
    label = export_samples.label("image")
    with (
        contextlib.closing(opening.open_unit(declared, owner=export_samples.OWNER)) as unit,
        raw.RawDisk(image.name, image) as disk,
    ):
        writer = unit.begin(label, [disk.name])
        began = time.monotonic()
        written = writer.write(disk, meter=meters.Meter())
        busy = -processor()
        stored = time.monotonic()
        with fileindexing.Indexing(unit, None, meters.Meter(), wanted=True) as indexing:
            looked = indexing.look(disk, written.changed, known=False, quiesced=False)
            assert looked is not None
            assert not looked.warnings, looked.warnings
            listed = time.monotonic()
            assert indexing.attach(writer, [looked]) == ()
        attached = time.monotonic()
        writer.commit(label)
        committed = time.monotonic()
        with contextlib.closing(unit.open("image")) as opened:
            caches.FileCache(folder / f"cache-{kind}").learn(
                answers.Image(id="image", client="c", time=0, sequence=1), fileindexing.index_of(opened)
            )
    learned = time.monotonic()
    busy += processor()
    image.unlink()
    return {
        "names": len(looked.rows),
        "write": round(stored - began, 2),
        "list": round(listed - stored, 2),
        "attach": round(attached - listed, 2),
        "learn": round(learned - committed, 2),
        "added": round(attached - stored + learned - committed, 2),
        "processor": round(busy, 2),
    }


def processor() -> float:
    """Seconds of processor time that this process and its children took: what a busy machine does not change."""
    return sum(
        found.ru_utime + found.ru_stime
        for found in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def misses(figures: dict[str, Any]) -> list[str]:
    """Which bounds are missed."""
    found = []
    for name in ESTATES:
        part = figures[name]
        if part["bytes"]["together"] > BYTES:
            found.append(f"{name}: {part['bytes']['together']} bytes per file and image, at most {BYTES}")
        found += [
            f"{name}: the search {kind} took {one['seconds']} s, at most {SEARCH}"
            for kind, one in part["searches"].items()
            if one["seconds"] > SEARCH
        ]
        if part["folder"]["seconds"] > FOLDER:
            found.append(f"{name}: a folder took {part['folder']['seconds']} s, at most {FOLDER}")
    for kind, one in figures["real"].items():
        if one["added"] > INDEXING:
            found.append(f"indexing {kind} added {one['added']} s, at most {INDEXING}")
    return found


def measured(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every figure."""
    figures: dict[str, Any] = {"real": {}}
    with concurrent.futures.ProcessPoolExecutor(len(ESTATES)) as builders:
        building = {}
        for name, build in ESTATES.items():
            (folder / name).mkdir()
            building[name] = builders.submit(build, folder / name, chosen)
        built = {name: future.result() for name, future in building.items()}
    for name, estate in built.items():
        figures[name] = estate.figures()
    for kind in ("ntfs", "ext4") if chosen.real else ():
        figures["real"][kind] = real(folder, kind, chosen.real, chosen.seed)
    return figures


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=200_000, help="entries of an image")
    parser.add_argument("--images", type=int, default=50, help="images of the one guest")
    parser.add_argument("--guests", type=int, default=10, help="guests that have nothing in common")
    parser.add_argument("--guest-images", type=int, default=5, help="images of each of them")
    parser.add_argument("--part", type=float, default=0.01, help="of the entries, what changes between images")
    parser.add_argument("--real", type=int, default=100_000, help="files of the real volumes; 0 for none")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="work here; a temporary folder by default")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    began = dt.datetime.now(dt.UTC)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        figures = measured(chosen, Path(folder))
    figures["missed"] = misses(figures)
    figures["seconds"] = round((dt.datetime.now(dt.UTC) - began).total_seconds())
    print(json.dumps(figures, indent=None if chosen.json else 2, ensure_ascii=False))
    return 1 if figures["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
