"""The lab of the deduplication benchmark: eight guests whose system disks hold the same files, and days of change.

``hack/bench dedupe`` calls it. Four guests are clones of one template, the other four were installed one by one: the
same files in another order, two of them in a partition that begins at sector 63, one on another file system. Four have
a work disk of their own. All content follows from the seed; sizes of files are spread as on real machines, and what
they hold compresses about two to one. Making file systems and mounting them needs root.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import math
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import guests
import zstandard

MIB = 1 << 20
SECTOR = 512
#: One write in place.
PAGE = 8 << 10
#: Raise when equal options no longer build an equal lab.
VERSION = 2
DATABASE = "data/ledger.db"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """How large a lab is."""

    #: Files on every system disk, and their bytes.
    files: int
    tree_bytes: int
    #: Bytes of a system disk, of a work disk, and of the files on a work disk.
    system_bytes: int
    work_bytes: int
    work_tree_bytes: int
    #: Bytes of the file that is written in place, one on each disk.
    database_bytes: int


FULL = Scale(
    files=20_500,
    tree_bytes=540 * MIB,
    system_bytes=808 * MIB,
    work_bytes=448 * MIB,
    work_tree_bytes=330 * MIB,
    database_bytes=32 * MIB,
)
QUICK = Scale(
    files=2_500,
    tree_bytes=33 * MIB,
    system_bytes=54 * MIB,
    work_bytes=31 * MIB,
    work_tree_bytes=18 * MIB,
    database_bytes=2 * MIB,
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Guest:
    """One machine of the lab."""

    name: str
    #: First sector of the system partition.
    start: int = 2048
    format: str = "ntfs"
    clone: bool = False
    #: File system of the work disk, if there is one.
    work: str = ""


GUESTS = (
    Guest(name="clone1", clone=True, work="ntfs"),
    Guest(name="clone2", clone=True, work="ext4"),
    Guest(name="clone3", clone=True),
    Guest(name="clone4", clone=True),
    Guest(name="fresh1", start=63, work="ntfs"),
    Guest(name="fresh2", start=63),
    Guest(name="fresh3"),
    Guest(name="fresh4", format="ext4", work="ext4"),
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Changed:
    """What was written to the files of guests."""

    #: Bytes of new and appended data, and what each piece comes to under zstd level 1 alone.
    file_bytes: int = 0
    file_packed: int = 0
    #: The same of writes in place.
    place_bytes: int = 0
    place_packed: int = 0

    def __add__(self, other: Changed) -> Changed:
        return Changed(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in _FIELDS})


_FIELDS = dataclasses.fields(Changed)


@functools.cache
def _phrases() -> tuple[bytes, ...]:
    rng = random.Random("phrases")
    letters = "eeeeaaaiiooutnnrrsslldcmphgbfywkv"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 10))).encode() for _ in range(3000)]
    common = [rank**-0.7 for rank in range(1, len(words) + 1)]
    ends = (b" ", b" ", b", ", b"\n    ", b" = ", b".\n")
    found = [b" ".join(rng.choices(words, common, k=rng.randint(1, 4))) + rng.choice(ends) for _ in range(12_000)]
    # Some phrases come again and again, as in logs and sources.
    return tuple(rng.choices(found, [rank**-0.5 for rank in range(1, len(found) + 1)], k=40_000))


def text(rng: random.Random, size: int) -> bytes:
    """Words, which zstd packs to about a third."""
    phrases, found, length = _phrases(), [], 0
    while length < size:
        piece = b"".join(rng.choices(phrases, k=min(size - length, MIB) // 14 + 2))
        found.append(piece)
        length += len(piece)
    return b"".join(found)[:size]


def content(seed: str, size: int) -> bytes:
    """The bytes of a file: text, a mixture as in programs and databases, or what is packed already."""
    rng = random.Random(seed)
    kind = rng.random()
    if kind < 0.45:
        return text(rng, size)
    if kind > 0.9:
        return rng.randbytes(size)
    words, found, length = memoryview(text(rng, size // 2 + PAGE)), [], 0
    at = 0
    while length < size:
        run = rng.randint(64, 1500)
        found.append(bytes(words[at : at + run]) + rng.randbytes(run))
        at, length = at + run if at + 2 * run < len(words) else 0, length + 2 * run
    return b"".join(found)[:size]


def sizes(label: str, count: int, total: int) -> list[int]:
    """Bytes of ``count`` files, a log-normal spread with a long tail, together ``total``."""
    rng, sigma = random.Random(f"sizes:{label}"), 1.9
    mean = total / count
    drawn = [rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma) for _ in range(count)]
    scale = total / sum(drawn)
    return [max(1, int(size * scale)) for size in drawn]


def build_tree(root: Path, label: str, count: int, total: int, database: int) -> None:
    """A tree of files, named and filled after ``label``; ``database`` bytes of them lie in one file."""
    rng = random.Random(f"names:{label}")
    names = ("bin", "lib", "share/doc", "share/locale", "users/common", "var/spool", "logs")
    for number, size in enumerate(sizes(label, count, total - database)):
        folder = root / rng.choice(names) / f"{rng.randrange(count // 60 + 1):03d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05d}.{rng.choice(('txt', 'dll', 'log', 'dat'))}").write_bytes(
            content(f"{label}:{number}", size)
        )
    (root / DATABASE).parent.mkdir(parents=True, exist_ok=True)
    with (root / DATABASE).open("wb") as file:
        for number in range(database // PAGE):
            file.write(content(f"{label}:page:{number}", PAGE))


@contextlib.contextmanager
def _looped(disk: Path, start: int, length: int) -> Iterator[str]:
    """Part of a disk as a block device."""
    device = guests.run("losetup", "--show", "-f", "-o", str(start), "--sizelimit", str(length), disk).strip()
    try:
        yield device
    finally:
        guests.run("losetup", "-d", device)


@contextlib.contextmanager
def mounted(disk: Path) -> Iterator[Path]:
    """The one partition of a disk as a folder; on the disk when this ends."""
    table = json.loads(guests.run("sfdisk", "--json", disk))["partitiontable"]["partitions"][0]
    form = "ntfs" if table["type"] == "7" else "ext4"
    with (
        _looped(disk, table["start"] * SECTOR, table["size"] * SECTOR) as device,
        tempfile.TemporaryDirectory(prefix="lab-") as folder,
    ):
        command = (
            ["ntfs-3g", "-o", "big_writes,noatime"] if form == "ntfs" else ["mount", "-t", "ext4", "-o", "noatime"]
        )
        guests.run(*command, device, folder)
        try:
            yield Path(folder)
        finally:
            guests.run("umount", folder)
            _released(device)


def _released(device: str) -> None:
    """Unmounting returns before the FUSE process has closed the device."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.close(os.open(device, os.O_RDWR | os.O_EXCL))
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise SystemExit(f"{device} stays busy after unmounting")


def make_disk(disk: Path, size: int, form: str, start: int) -> None:
    """An empty disk with a partition from sector ``start``, formatted."""
    with disk.open("wb") as file:
        file.truncate(size)
    length = size // SECTOR - start - 2048
    kind = "dos" if form == "ntfs" else "gpt"
    type_ = "7" if form == "ntfs" else "linux"
    guests.run("sfdisk", "-q", disk, given=f"label: {kind}\nstart={start}, size={length}, type={type_}\n")
    with _looped(disk, start * SECTOR, length * SECTOR) as device:
        if form == "ntfs":
            guests.run("mkntfs", "-q", "-F", "-f", "-s", "512", "-p", str(start), "-H", "255", "-S", "63", device)
        else:
            options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
            guests.run(
                "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-i", "16384", "-E", options, device
            )


def fill(disk: Path, tree: Path, order: str) -> None:
    """Copy a tree onto a disk, its files in the order that ``order`` seeds."""
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    random.Random(order).shuffle(files)
    with mounted(disk) as root:
        made: set[Path] = set()
        for file in files:
            target = root / file.relative_to(tree)
            if target.parent not in made:
                target.parent.mkdir(parents=True, exist_ok=True)
                made.add(target.parent)
            shutil.copyfile(file, target)


def _personal(disk: Path, label: str, total: int) -> None:
    """What a clone gets of its own when it first starts."""
    with mounted(disk) as root:
        for number, size in enumerate(sizes(label, 20, total)):
            target = root / "users" / label.split(":")[0] / f"{number:03d}.txt"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content(f"{label}:{number}", size))


def _build_guest(folder: Path, guest: Guest, scale: Scale, seed: int, parts: Path) -> None:
    folder.mkdir(parents=True)
    system = folder / "system.img"
    if guest.clone:
        guests.run("cp", "--sparse=always", parts / "template.img", system)
        _personal(system, f"{guest.name}:{seed}", scale.tree_bytes // 200)
    else:
        make_disk(system, scale.system_bytes, guest.format, guest.start)
        fill(system, parts / "tree", f"{seed}:{guest.name}")
    if guest.work:
        tree = parts / f"work-{guest.name}"
        build_tree(tree, f"{guest.name}:{seed}", scale.files // 20, scale.work_tree_bytes, scale.database_bytes)
        work = folder / "work.img"
        make_disk(work, scale.work_bytes, guest.work, 2048)
        fill(work, tree, f"{seed}:{guest.name}:work")
        shutil.rmtree(tree)


def build(folder: Path, scale: Scale, seed: int) -> Path:
    """The folder of the lab's machines below ``folder``, built unless it lies there whole."""
    if os.geteuid():
        raise SystemExit("the lab's file systems are made and mounted by root alone; run this as root")
    wanted = json.dumps({"version": VERSION, "seed": seed, **dataclasses.asdict(scale)}, indent=2) + "\n"
    marker, machines, parts = folder / "lab.json", folder / "machines", folder / "parts"
    if marker.exists() and marker.read_text() == wanted:
        return machines
    for path in (machines, parts):
        shutil.rmtree(path, ignore_errors=True)
    marker.unlink(missing_ok=True)
    parts.mkdir(parents=True)
    build_tree(parts / "tree", f"os:{seed}", scale.files, scale.tree_bytes, scale.database_bytes)
    make_disk(parts / "template.img", scale.system_bytes, "ntfs", 2048)
    fill(parts / "template.img", parts / "tree", f"{seed}:template")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(_build_guest, machines / one.name, one, scale, seed, parts) for one in GUESTS]
        for job in jobs:
            job.result()
    (parts / "template.img").unlink()
    shutil.rmtree(parts)
    marker.write_text(wanted)
    return machines


def disks(machines: Path) -> list[Path]:
    """Every disk of the lab."""
    return sorted(machines.glob("*/*.img"))


def copy(machines: Path, target: Path, names: Sequence[str] = ("",)) -> Path:
    """A copy of the lab, or of the machines named, that may be changed."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.rmtree(target / name if name else target, ignore_errors=True)
        subprocess.run(["cp", "-a", "--sparse=always", "--reflink=auto", machines / name, target / name], check=True)
    return target


def file_data_bytes(disk: Path) -> int:
    """How many of a disk's 4 KiB blocks are not zero, in bytes."""
    filled, zeros = 0, bytes(4096)
    with disk.open("rb") as file:
        while piece := file.read(4 * MIB):
            if piece.count(0) != len(piece):
                filled += sum(4096 for at in range(0, len(piece), 4096) if piece[at : at + 4096] != zeros)
    return filled


def data_bytes(machines: Path) -> tuple[int, int]:
    """Bytes of all disks, and of their 4 KiB blocks that are not zero."""
    found = disks(machines)
    return sum(disk.stat().st_size for disk in found), sum(map(file_data_bytes, found))


def change(
    machines: Path, day: int, seed: int, *, parts: Sequence[str] = ("files", "place"), percent: int = 1
) -> Changed:
    """A day of change on every disk, ``percent`` of it: half new files, a quarter appended, a quarter in place."""
    total = Changed()
    for disk in disks(machines):
        label = f"{seed}:day{day}:{disk.parent.name}:{disk.name}"
        with mounted(disk) as root:
            amount = disk.stat().st_size * percent // 100
            if "files" in parts:
                total += _new_files(root, label, amount // 2) + _append(root, label, amount // 4)
            if "place" in parts:
                total += _write_in_place(root, label, amount // 4)
    return total


def _packed(data: bytes) -> int:
    return len(zstandard.ZstdCompressor(level=1).compress(data))


def _new_files(root: Path, label: str, amount: int) -> Changed:
    total = Changed()
    folder = root / "users" / label.replace(":", "-")
    folder.mkdir(parents=True, exist_ok=True)
    for number, size in enumerate(sizes(label, max(amount // (40 << 10), 4), amount)):
        data = content(f"{label}:new:{number}", size)
        (folder / f"{number:04d}.dat").write_bytes(data)
        total += Changed(file_bytes=size, file_packed=_packed(data))
    return total


def _append(root: Path, label: str, amount: int) -> Changed:
    rng, total = random.Random(f"{label}:append"), Changed()
    logs = sorted((root / "logs").rglob("*.log"))
    while total.file_bytes < amount:
        data = text(rng, min(rng.randint(4 << 10, 128 << 10), amount - total.file_bytes))
        with rng.choice(logs).open("ab") as file:
            file.write(data)
        total += Changed(file_bytes=len(data), file_packed=_packed(data))
    return total


def _write_in_place(root: Path, label: str, amount: int) -> Changed:
    rng, total = random.Random(f"{label}:place"), Changed()
    with (root / DATABASE).open("r+b") as file:
        pages = os.fstat(file.fileno()).st_size // PAGE
        for number in rng.sample(range(pages), min(amount // PAGE, pages)):
            data = content(f"{label}:place:{number}", PAGE)
            file.seek(number * PAGE)
            file.write(data)
            total += Changed(place_bytes=PAGE, place_packed=_packed(data))
    return total
