"""The cost of an incremental whose changes are known, apart from the changes: a large disk, many files, little written.

``bench_dedupe`` calls it. The disk is a qcow2 with a persistent bitmap; each day writes more into one large file of the
guest, Holdfast backs up what the bitmap names, and a line is fitted through the seconds of these jobs over the bytes
that were dirty: its value at zero is what an incremental costs before the first changed byte.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import bench_rows
import bench_runs
import bench_tools
import guests
import labs

MIB = 1 << 20
BITMAP = "daily"
#: One write, and the granularity of the bitmap.
PIECE = 64 << 10
NAME = "large.qcow2"


def build(folder: Path, size: int, files: int, changing: int) -> Path:
    """A folder of one machine with one qcow2 of ``files`` files, and where its one large file lies; built once."""
    machine, marker = folder / "big", folder / "incremental.json"
    wanted = {"version": labs.VERSION, "size": size, "files": files, "changing": changing}
    if marker.exists() and json.loads(marker.read_text())["options"] == wanted:
        return machine
    bench_runs.say(f"building a disk of {size >> 30} GiB with {files} files")
    shutil.rmtree(machine, ignore_errors=True)
    machine.mkdir(parents=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".tmp-") as file:
        raw = Path(file.name)
        file.truncate(size)
        inodes = str(files + 4096)
        options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
        guests.run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-N", inodes, "-E", options, raw)
        with tempfile.TemporaryDirectory(prefix="lab-") as mounted:
            guests.run("mount", "-o", "loop,noatime", raw, mounted)
            try:
                _fill(Path(mounted), files, changing)
                found = list(_extents(Path(mounted) / "changing.db"))
            finally:
                guests.run("umount", mounted)
        guests.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, machine / NAME)
    guests.run("qemu-img", "bitmap", "--add", "-g", str(PIECE), machine / NAME, BITMAP)
    marker.write_text(json.dumps({"options": wanted, "extents": found}))
    return machine


def _fill(root: Path, files: int, changing: int) -> None:
    rng = random.Random("large")
    words = labs.text(rng, 8 * MIB)
    for number in range(files):
        if number % 500 == 0:
            folder = root / f"{number // 500:04d}"
            folder.mkdir()
        at = rng.randrange(len(words) - (64 << 10))
        (folder / f"{number % 500:03d}.txt").write_bytes(
            words[at : at + min(int(rng.lognormvariate(7.2, 1.2)), 64 << 10)]
        )
    with (root / "changing.db").open("wb") as file:
        for _ in range(changing // (4 * MIB)):
            file.write(rng.randbytes(4 * MIB))


def _extents(path: Path) -> Iterator[tuple[int, int]]:
    """(offset on the disk, bytes) of a file."""
    for line in guests.run("filefrag", "-s", "-v", "-b4096", path).splitlines():
        words = line.replace(":", " ").replace("..", " ").split()
        if len(words) >= 6 and words[0].isdigit():
            yield int(words[3]) * 4096, int(words[5]) * 4096


def _write(disk: Path, extents: Sequence[Sequence[int]], amount: int, seed: str) -> None:
    """Overwrite ``amount`` bytes of the large file in pieces, through qemu, which marks them in the bitmap."""
    rng = random.Random(seed)
    places = [at for offset, length in extents for at in range(offset, offset + length - PIECE + 1, PIECE)]
    script = [f"write -q -P {rng.randrange(1, 255)} {at} {PIECE}" for at in rng.sample(places, amount // PIECE)]
    guests.run("qemu-io", "-f", "qcow2", disk, given="\n".join([*script, "flush", "quit"]) + "\n")


def _dirty(disk: Path) -> int:
    """Bytes that the bitmap names."""
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "nbd"
        serving = ["qemu-nbd", "-r", "-t", "-f", "qcow2", "-B", BITMAP, "-k", socket, disk]
        with subprocess.Popen(list(map(str, serving))) as server:
            try:
                while not socket.exists() and server.poll() is None:
                    bench_runs.pause()
                uri = f"nbd+unix://?socket={socket}"
                found = guests.run("nbdinfo", "--json", f"--map=qemu:dirty-bitmap:{BITMAP}", uri)
            finally:
                server.terminate()
    return sum(one["length"] for one in json.loads(found) if one["type"] == 1)


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(value at zero, slope) of the straight line nearest to the points."""
    fitted = statistics.linear_regression([x for x, _ in points], [y for _, y in points])
    return fitted.intercept, fitted.slope


def measure(folder: Path, machine: Path, amounts: Sequence[int]) -> bench_rows.Found:
    """One incremental for each of ``amounts`` written bytes; the seconds that do not grow with them."""
    extents = json.loads((machine.parent / "incremental.json").read_text())["extents"]
    machines = folder / "machines"
    disk = machines / machine.name / NAME
    disk.parent.mkdir(parents=True)
    shutil.copy(machine / NAME, disk)
    source = f", changedBlocks: {{bitmap: {BITMAP}}}"
    holdfast = bench_tools.Holdfast(folder / "estate", machines, type_="Incremental", source=source)
    holdfast.backup(0)
    points: list[tuple[float, float]] = []
    commands = []
    for day, amount in enumerate(amounts, 1):
        _write(disk, extents, amount, f"day{day}")
        commands.append(holdfast.backup(day).wall)
        newest = max(holdfast.ask("get", "images"), key=lambda one: one["time"])
        if newest["changes"] != "Known":
            return bench_rows.Found(note=f"the image of day {day} says changes: {newest['changes']}")
        job = next(one for one in holdfast.ask("get", "jobs") if one["image"] == newest["id"])
        points.append((_dirty(disk), job["wallSeconds"]))
    start, slope = line(points)
    dirty = ", ".join(f"{size / MIB:.0f} MiB {seconds:.2f} s" for size, seconds in points)
    note = f"jobs: {dirty}; {slope * 1e9:.2f} s per GB; the whole command with nothing else {min(commands):.1f} s"
    return bench_rows.Found(value=start, note=note)
