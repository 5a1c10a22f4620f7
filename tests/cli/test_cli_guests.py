"""What a policy says about the inside of a guest: changes that a bitmap knows, free space and swap that are left out."""

from __future__ import annotations

import subprocess
from pathlib import Path

import estate_samples
from estate_samples import MIB, START, Estate

BLOCK = 4096
#: What lies in free space: bytes that no file of these tests holds.
JUNK = b"\xdb" * BLOCK


def run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def track(estate: Estate) -> None:
    """Let the policy believe the bitmap ``changes`` of each disk, and take incrementals."""
    path = estate.folder / "policy.yaml"
    text = path.read_text().replace("{path: machines,", "{changedBlocks: {bitmap: changes}, path: machines,")
    estate_samples.replace(path, text.replace("type: Full, every: 24h", "type: Incremental, every: 24h, fullEvery: 7d"))


class Guest:
    """One qcow2 disk with a bitmap, and the raw file it is to hold; ``settle`` writes what differs."""

    def __init__(self, folder: Path, raw: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.disk, self.raw = folder / "system.qcow2", raw
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, self.disk)
        run("qemu-img", "bitmap", "--add", self.disk, "changes")
        self.before = raw.read_bytes()

    def settle(self) -> None:
        """Carry changes of the raw file over, as a running guest would write them."""
        now = self.raw.read_bytes()
        step = 64 << 10
        writes = [at for at in range(0, len(now), step) if now[at : at + step] != self.before[at : at + step]]
        piece = self.raw.with_name("piece")
        for at in writes:
            piece.write_bytes(now[at : at + step])
            run("qemu-io", "-f", "qcow2", "-c", f"write -q -s {piece} {at} {len(now[at : at + step])}", self.disk)
        self.before = now


def restored(estate: Estate, to: Path, clock: str) -> bytes:
    estate.at(clock).run("restore", "alpha", "--to", to)
    return (to / "system.img").read_bytes() if (to / "system.img").exists() else next(to.rglob("*.raw")).read_bytes()


def test_an_incremental_reads_what_the_bitmap_names_and_no_more(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path / "estate")
    track(estate)
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(range(256)) * (8 * MIB // 256))
    guest = Guest(estate.folder / "machines" / "alpha", raw)
    estate.apply(clock=START)
    with raw.open("r+b") as file:
        file.seek(3 * MIB)
        file.write(JUNK)
    guest.settle()
    estate.apply(clock="2026-03-03T12:30:00Z")
    full, incremental = estate.get("images")
    assert (full["changes"], incremental["type"], incremental["changes"]) == ("FullRead", "Incremental", "Known")
    (copy,) = [one for one in estate.get("copies") if one["image"] == incremental["id"]]
    assert copy["storedBytes"] < 2 * MIB
    assert restored(estate, tmp_path / "out", "2026-03-03T13:00:00Z") == raw.read_bytes()
