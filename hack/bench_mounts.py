"""Random reads through the NBD export beside the same reads from a compressed qcow2 through qemu-nbd.

``hack/bench mounts`` calls it. One disk, half of it compressible, lies in a Directory, in a DedupePool and in a qcow2
file with zstd and clusters of 128 KiB. All three are served over Unix sockets, and one client, with one connection,
reads 4 KiB at random offsets of the same working set from each in turn, in rounds, with 1 and with 16 requests under
way. The figures are medians of the rounds; the ratio is over qemu-nbd. It also measures the time from the command to
the first byte, and reading a whole disk in order.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "operations"), str(ROOT / "hack")]

import bench_runs  # noqa: E402
import export_samples as samples  # noqa: E402

from reconciler.base import meters, quantities  # noqa: E402
from reconciler.operations import exports  # noqa: E402
from reconciler.sources.diskimages import raw  # noqa: E402
from reconciler.sources.nbd import bindings  # noqa: E402
from reconciler.storage import opening  # noqa: E402

MIB = 1 << 20
HOLDFAST = Path(sys.executable).with_name("holdfast")
DISK = "system.img"
PEER = "qcow2 zstd, qemu-nbd"
DEPTHS = (1, 16)
#: What is to be reached of the peer's reads.
LEAST = 0.3


def make(path: Path, size: int, seed: int) -> None:
    """A disk that zstd halves: words of a small language in runs, with noise between them."""
    rng = random.Random(seed)
    words = [rng.randbytes(rng.randint(3, 12)) for _ in range(5000)]
    with path.open("wb") as file:
        for _ in range(size // MIB):
            text = bytearray()
            while len(text) < MIB:
                text += b"".join(rng.choices(words, k=200)) + rng.randbytes(500)
            file.write(text[:MIB])


def store(folder: Path, kind: str, source: Path) -> Path:
    """A unit that holds the disk as image ``img-1``."""
    unit = samples.Unit.make(folder / kind, kind)
    opened = opening.open_unit(opening.Declared(name=kind, type=kind, path=unit.folder), owner=samples.OWNER)
    writer = opened.begin(samples.label("img-1"), [DISK])
    with raw.RawDisk(DISK, source) as disk:
        writer.write(disk, meter=meters.Meter())
    writer.commit(samples.label("img-1"))
    opened.close()
    return unit.folder


@contextlib.contextmanager
def peer(folder: Path, source: Path) -> Iterator[str]:
    """The same disk by qemu-nbd."""
    packed, socket = folder / "packed.qcow2", folder / "qemu.socket"
    options = "compression_type=zstd,cluster_size=128k"
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", options, source, packed]
    subprocess.run(convert, check=True)
    command = ["qemu-nbd", "-r", "-t", "-f", "qcow2", "-k", socket, "-e", "4", packed]
    with subprocess.Popen(command) as process:
        try:
            while not socket.exists():
                time.sleep(0.05)
            yield f"nbd+unix:///?socket={socket}"
        finally:
            process.terminate()


@dataclasses.dataclass(kw_only=True)
class Client:
    """One connection."""

    name: str
    handle: Any
    #: Reads a second by depth, one a round.
    rates: dict[int, list[float]] = dataclasses.field(default_factory=dict)

    @staticmethod
    def connect(name: str, uri: str) -> Client:
        """Connect to a server."""
        # The compiled half of the binding looks for the other one by its name.
        sys.modules.setdefault("nbd", bindings.libnbd())
        handle = bindings.libnbd().NBD()
        handle.connect_uri(uri)
        return Client(name=name, handle=handle)

    def one_by_one(self, offsets: list[int], seconds: float) -> int:
        """Reads done, with one under way."""
        end = time.perf_counter() + seconds
        for number, offset in enumerate(offsets):
            self.handle.pread(4096, offset)
            if time.perf_counter() > end:
                return number + 1
        return len(offsets)

    def many(self, offsets: list[int], seconds: float, depth: int) -> int:
        """Reads done, with ``depth`` under way."""
        nbd, handle = bindings.libnbd(), self.handle
        end, done, coming = time.perf_counter() + seconds, 0, iter(offsets)
        under_way = [(handle.aio_pread(nbd.Buffer(4096), next(coming))) for _ in range(depth)]
        while under_way:
            handle.poll(-1)
            still = [cookie for cookie in under_way if not handle.aio_command_completed(cookie)]
            done += len(under_way) - len(still)
            if time.perf_counter() < end:
                more = [offset for offset, _ in zip(coming, range(depth - len(still)), strict=False)]
                still += [handle.aio_pread(nbd.Buffer(4096), offset) for offset in more]
            under_way = still
        return done

    def measure(self, offsets: list[int], seconds: float, depth: int) -> None:
        """One round."""
        began = time.perf_counter()
        done = self.one_by_one(offsets, seconds) if depth == 1 else self.many(offsets, seconds, depth)
        self.rates.setdefault(depth, []).append(done / (time.perf_counter() - began))


def serve_all(stack: contextlib.ExitStack, folder: Path, source: Path, kinds: list[str]) -> dict[str, str]:
    """Where each server is, by name, the peer first."""
    found = {PEER: stack.enter_context(peer(folder, source))}
    for kind in kinds:
        unit = store(folder, kind, source)
        order = exports.Order(image="img-1", copies=(exports.Copy(folder=unit),))
        found[kind] = stack.enter_context(exports.serve(order)).uri
    return found


def in_order(uri: str) -> float:
    """Seconds that reading a whole disk takes."""
    began = time.perf_counter()
    subprocess.run(["nbdcopy", uri, "null:"], check=True)
    return time.perf_counter() - began


def first_byte(folder: Path) -> float:
    """Seconds from the command to the first byte of the disk, with nothing but the unit's folder."""
    socket = folder / "first.socket"
    began = time.perf_counter()
    command = [HOLDFAST, "mount", "--unit", folder / "DedupePool", "img-1", "--socket", socket, "-o", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        if process.stdout is None or not (line := process.stdout.readline()):
            raise SystemExit("bench: holdfast mount said nothing")
        handle = bindings.libnbd().NBD()
        handle.connect_uri(json.loads(line + process.stdout.read1())["disks"][0]["uri"])
        handle.pread(4096, 0)
        seconds = time.perf_counter() - began
        handle.shutdown()
        process.send_signal(signal.SIGINT)
    return seconds


def measure(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every figure."""
    size, span = quantities.parse_size(chosen.bytes), quantities.parse_size(chosen.working_set)
    source = folder / DISK
    bench_runs.say(f"making a disk of {size // MIB} MiB")
    make(source, size, chosen.seed)
    with contextlib.ExitStack() as stack:
        bench_runs.say("storing it three times")
        uris = serve_all(stack, folder, source, chosen.units.split(","))
        clients = [Client.connect(name, uri) for name, uri in uris.items()]
        for number in range(chosen.rounds):
            bench_runs.say(f"round {number + 1} of {chosen.rounds}")
            for depth in DEPTHS:
                rng = random.Random(chosen.seed + number)
                offsets = [rng.randrange(min(span, size) // 4096) * 4096 for _ in range(200_000)]
                for client in clients:
                    client.measure(offsets, chosen.seconds, depth)
        sequential = {name: in_order(uri) for name, uri in uris.items()}
    rows = []
    for client in clients:
        row: dict[str, Any] = {"name": client.name, "wholeSeconds": sequential[client.name]}
        for depth in DEPTHS:
            row[f"readsPerSecond{depth}"] = statistics.median(client.rates[depth])
            row[f"ratio{depth}"] = statistics.median(
                ours / theirs for ours, theirs in zip(client.rates[depth], clients[0].rates[depth], strict=True)
            )
        rows.append(row)
    return {"diskBytes": size, "workingSetBytes": span, "rows": rows, "firstByteSeconds": None}


def main() -> int:
    """Exit code 1 if less than what is to be reached was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", default="1280MiB", help="size of the disk")
    parser.add_argument("--working-set", default="1GiB", help="where the reads fall")
    parser.add_argument("--units", default="DedupePool,Directory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where everything is made")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    chosen = parser.parse_args()
    bench_runs.two_cores()
    with tempfile.TemporaryDirectory(prefix="bench-mounts-", dir=chosen.folder) as folder:
        found = measure(chosen, Path(folder))
        if "DedupePool" in chosen.units:
            times = [first_byte(Path(folder)) for _ in range(3)]
            found["firstByteSeconds"] = statistics.median(times)
    if chosen.json:
        print(json.dumps(found, indent=2))
    else:
        _print(found)
    return 0 if all(row[f"ratio{depth}"] >= LEAST for row in found["rows"] for depth in DEPTHS) else 1


def _print(found: dict[str, Any]) -> None:
    span = quantities.show_size(found["workingSetBytes"])
    print(f"random reads of 4 KiB over {span}, a second, and over those of {PEER}")
    print(f"{'':<24}" + "".join(f"{f'depth {depth}':>12}{'ratio':>7}" for depth in DEPTHS) + f"{'whole disk':>14}")
    for row in found["rows"]:
        rates = "".join(f"{row[f'readsPerSecond{depth}']:>12.0f}{row[f'ratio{depth}']:>7.2f}" for depth in DEPTHS)
        print(f"{row['name']:<24}{rates}{found['diskBytes'] / MIB / row['wholeSeconds']:>10.0f} MiB/s")
    if found["firstByteSeconds"] is not None:
        print(f"from the command to the first byte: {found['firstByteSeconds']:.2f} s")


if __name__ == "__main__":
    sys.exit(main())
