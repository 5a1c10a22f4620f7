"""Every way to a frozen disk beside reading the same file directly: throughput, and the memory that it takes.

``hack/bench transports`` calls it. One disk, a part of which holds data (half of that compressible) and the rest was
never written, under one snapshot of the peer in ``hack/vsphere_lab``. Each way runs in a process of its own, with two
threads that read in pieces of 1 MiB what the way itself calls data and hash it, so that all are proven to have read the
same bytes. The peer, its disk and nbdkit's vddk plugin are stand-ins on this host: the figures say what Holdfast adds,
and nothing about a network, an ESX host or VMware's library.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blake3

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "vsphere"), str(ROOT / "hack")]

import bench_runs  # noqa: E402
import transport_samples as samples  # noqa: E402
import vsphere_labs  # noqa: E402

from reconciler.api import vcenters  # noqa: E402
from reconciler.base import disks, extents, quantities  # noqa: E402
from reconciler.sources.diskimages import raw  # noqa: E402
from reconciler.sources.vsphere.connections import sessions  # noqa: E402
from reconciler.sources.vsphere.transports import choosing  # noqa: E402

MIB = 1 << 20
DIRECT = "direct"
WAYS = (DIRECT, *choosing.KNOWN)
MACHINE = "bench"
#: Readers of one disk.
STREAMS = 2
#: MiB that a way may add to a process, whatever the disk's size.
MOST_MEMORY = 64


def make(path: Path, size: int, seed: int) -> Path:
    """A sparse file: runs of data over the first half of every 64 MiB, every other MiB of them compressible."""
    rng = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size)
        for offset in range(0, size, MIB):
            if offset % (64 * MIB) < 32 * MIB or size < 64 * MIB:
                file.seek(offset)
                word = rng.randbytes(32)
                piece = rng.randbytes(MIB) if offset // MIB % 2 else word * (MIB // 32)
                file.write(piece[: size - offset])
    return path


def read(disk: disks.Disk) -> dict[str, Any]:
    """Read what the disk calls data; the digest is of every piece that is not zero, with its place."""

    def take(piece: extents.Extent) -> tuple[int, int, bytes]:
        data = disk.pread(*piece)
        return piece[0], piece[1], blake3.blake3(data).digest()

    zeros = {length: blake3.blake3(bytes(length)).digest() for length in (MIB, disk.size % MIB)}
    whole = blake3.blake3()
    done = 0
    wanted = extents.align(disk.extents(), MIB, disk.size)
    with concurrent.futures.ThreadPoolExecutor(STREAMS) as pool:
        for offset, length, digest in _ahead(pool, take, extents.pieces(wanted, MIB)):
            done += length
            if digest != zeros.get(length):
                whole.update(offset.to_bytes(8, "little") + digest)
    return {"bytes": done, "digest": whole.hexdigest()}


def _ahead(pool: concurrent.futures.Executor, take: Any, pieces: Iterator[extents.Extent]) -> Iterator[Any]:
    """Results in order, with a few pieces under way: a map would hold all of them."""
    waiting: list[concurrent.futures.Future[Any]] = []
    for piece in pieces:
        waiting.append(pool.submit(take, piece))
        if len(waiting) > 2 * STREAMS:
            yield waiting.pop(0).result()
    for one in waiting:
        yield one.result()


def child(way: str, manifest: str, flat: str) -> None:
    """One way, in this process; prints what it found."""
    vcenter = vcenters.VCenter.model_validate(json.loads(manifest))
    session = sessions.Session(vcenter.name, vcenter.spec)
    with samples.snapshot(session, MACHINE) as taken:
        (frozen,) = taken.frozen.values()
        frozen = dataclasses.replace(frozen, session=session)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.monotonic()
        disk = raw.RawDisk("direct", Path(flat)) if way == DIRECT else choosing.KNOWN[way]().open(frozen)
        opened = time.monotonic()
        with disk:
            found = read(disk)
        ended = time.monotonic()
    session.logout()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    found |= {"way": way, "open": opened - began, "seconds": ended - began, "memory": memory / 1024}
    print(json.dumps(found))


def measure(size: int, seed: int, folder: Path, *, warm: bool) -> list[dict[str, Any]]:
    """A row per way; ``warm``: what the host has in memory stays there."""
    source = make(folder / "source.raw", size, seed)
    machine = {"name": MACHINE, "disks": [{"from": str(source)}]}
    rows = []
    with vsphere_labs.Lab.start(folder / "peer", machines=[machine], taskMillis=1) as lab:
        os.environ.update(lab.environment())
        source.unlink()
        flat = lab.machine(MACHINE)["disks"][0]["flat"]
        for way in WAYS:
            if not warm:
                bench_runs.drop_caches()
            command = [sys.executable, __file__, "--child", way, lab.vcenter_yaml(), flat]
            environment = {**os.environ, "TMPDIR": str(folder)}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
            rows.append(json.loads(done.stdout))
    return rows


def main() -> int:
    """Exit code 1 if a way read other bytes or took too much memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", default="2GiB", help="size of the disk")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where the peer and its disk are made")
    parser.add_argument("--warm", action="store_true", help="leave the host's caches alone")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        child(*chosen.child)
        return 0
    size = quantities.parse_size(chosen.bytes)
    with tempfile.TemporaryDirectory(prefix="bench-transports-", dir=chosen.folder) as folder:
        rows = measure(size, chosen.seed, Path(folder), warm=chosen.warm)
    direct = next(row for row in rows if row["way"] == DIRECT)
    for row in rows:
        row["rate"] = direct["bytes"] / MIB / row["seconds"]
        row["share"] = row["rate"] / (direct["bytes"] / MIB / direct["seconds"])
        row["right"] = row["digest"] == direct["digest"] and row["memory"] < MOST_MEMORY
    if chosen.json:
        print(json.dumps(rows, indent=2))
    else:
        print(f"a disk of {size / MIB:.0f} MiB, {direct['bytes'] / MIB:.0f} MiB of it data, {STREAMS} readers")
        print(f"{'way':<12} {'open':>7} {'all':>7} {'read':>9} {'data/s':>11} {'of direct':>9} {'memory':>9}  bytes")
        for row in rows:
            print(
                f"{row['way']:<12} {row['open']:>6.2f}s {row['seconds']:>6.2f}s {row['bytes'] / MIB:>5.0f} MiB "
                f"{row['rate']:>7.0f} MiB {row['share']:>8.0%} {row['memory']:>5.0f} MiB  "
                f"{'equal' if row['digest'] == direct['digest'] else 'OTHERS'}"
            )
    return 0 if all(row["right"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
