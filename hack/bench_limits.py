"""What these devices and cores can do at best, to read the benchmark's other figures by.

``hack/bench dedupe`` prints them beside the tools: a copy by ``cp``, reading and hashing every byte once, hashing and
packing what lies in memory, and writing with fsync. Rates are bytes a second, and count bytes that are not zero.
"""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import bench_runs
import labs
import zstandard
from blake3 import blake3

PIECE = 4 << 20
#: The name of the limit that a second full is measured against.
PREAD = "pread + BLAKE3 of the lab, two threads"


def data_extents(descriptor: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what a sparse file holds."""
    end, at = os.fstat(descriptor).st_size, 0
    while at < end:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:
            return
        stop = os.lseek(descriptor, at, os.SEEK_HOLE)
        yield at, stop - at
        at = stop


def _hash_file(path: Path) -> int:
    """Read a disk's data in large pieces and hash each; bytes read."""
    done, descriptor = 0, os.open(path, os.O_RDONLY)
    try:
        for offset, length in data_extents(descriptor):
            for at in range(offset, offset + length, PIECE):
                data = os.pread(descriptor, min(PIECE, offset + length - at), at)
                blake3(data).digest()
                done += len(data)
    finally:
        os.close(descriptor)
    return done


def _pread_and_hash(machines: Path, size: int) -> int:
    """Every byte of the lab read and hashed once, on both cores; ``size``, what of them is not zero."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        if sum(pool.map(_hash_file, labs.disks(machines))) < size:
            raise SystemExit("bench: the lab changed while it was read")
    return size


def _copy(machines: Path, target: Path, size: int) -> int:
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-r", "--sparse=auto", "--reflink=never", machines, target], check=True)
    subprocess.run(["sync", "-f", target], check=True)
    return size


def _write(path: Path, data: bytes, times: int) -> int:
    with path.open("wb") as file:
        for _ in range(times):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return len(data) * times


def _sample(machines: Path, size: int) -> bytes:
    """The first ``size`` bytes of data of the lab's first disk."""
    found = bytearray()
    descriptor = os.open(labs.disks(machines)[0], os.O_RDONLY)
    try:
        for offset, length in data_extents(descriptor):
            found += os.pread(descriptor, min(length, size - len(found)), offset)
            if len(found) >= size:
                break
    finally:
        os.close(descriptor)
    return bytes(found)


def _hash_memory(data: bytes) -> int:
    return len(blake3(data).digest()) and len(data)


def _pack_memory(data: bytes) -> int:
    packer = zstandard.ZstdCompressor(level=1)
    for at in range(0, len(data), 128 << 10):
        packer.compress(data[at : at + (128 << 10)])
    return len(data)


def measure(machines: Path, work: Path, data_size: int, repeat: int) -> dict[str, float]:
    """Name of a limit -> bytes a second."""
    bench_runs.say("physical limits")
    sample = _sample(machines, 64 << 20)
    copied, written = work / "copied", work / "written"
    found = {
        "cp of the lab, synced": bench_runs.rate(lambda: _copy(machines, copied, data_size), repeat),
        PREAD: bench_runs.rate(lambda: _pread_and_hash(machines, data_size), repeat),
        "BLAKE3 in memory, one thread": bench_runs.rate(lambda: _hash_memory(sample), repeat),
        "zstd level 1 in memory, one thread": bench_runs.rate(lambda: _pack_memory(sample), repeat),
        "write + fsync": bench_runs.rate(lambda: _write(written, sample, 8), repeat),
    }
    shutil.rmtree(copied)
    written.unlink()
    return found
