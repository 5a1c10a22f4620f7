#!/usr/bin/env python3
"""Builds a lab of guests: machine folders with real disks, for the demo, the tests and the benchmark.

Each machine gets ``system.img`` (raw, MBR, NTFS from sector 63), ``data.qcow2`` (GPT, ext4) and ``archive.vmdk`` (ext4
on the whole disk, a quarter of the size). Every guest holds the same operating system files in an order of its own and
files that only it has, half text and half bytes that do not compress. ``change`` makes a day of change in a machine
and writes only the blocks that differ, so qcow2 bitmaps see it. The same seed makes the same files.

Standard library only; needs the Debian packages qemu-utils, e2fsprogs, ntfs-3g and fdisk. NTFS is filled through FUSE
where it may be used, else file by file with ntfscp.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

SECTOR = 512
NTFS_START = 63 * SECTOR
EXT4_START = 2048 * SECTOR
#: Compared and rewritten as a whole by ``change``.
BLOCK = 64 << 10
FILL_PERCENT = 62
_WORDS = (
    b"alarm archive audit backup block bucket catalog chain client copy cycle digest disk drill expire extent freeze "
    b"guard image index journal ledger lifecycle manifest media mirror order parent policy pool proof quota restore "
    b"retention schedule segment series slot snapshot source storage tape target unit vault verify volume window"
).split()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GuestFile:
    """One file of a guest; its bytes follow from its seed."""

    path: str
    #: Bytes.
    size: int
    seed: str

    def content(self) -> bytes:
        """Text for ``.txt`` and ``.log``, else bytes that do not compress."""
        rng = random.Random(self.seed)
        if not self.path.endswith((".txt", ".log")):
            return rng.randbytes(self.size)
        lines = [b" ".join(rng.choices(_WORDS, k=9)) + b" %08x\n" % rng.getrandbits(32) for _ in range(256)]
        length = sum(map(len, lines)) // len(lines)
        return b"".join(rng.choices(lines, k=self.size // length + 2 + self.size // 1000))[: self.size].ljust(
            self.size, b"."
        )


def run(*command: str | Path, given: str | None = None) -> str:
    """Run a tool; its output. Exits with the tool's own words when it fails."""
    environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin", "LC_ALL": "C"}
    program = shutil.which(str(command[0]), path=environment["PATH"])
    if program is None:
        raise SystemExit(f"{command[0]} is missing; install qemu-utils e2fsprogs ntfs-3g fdisk")
    done = subprocess.run(
        [program, *map(str, command[1:])], input=given, capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def file_set(label: str, total: int) -> list[GuestFile]:
    """Files of about ``total`` bytes, from a few hundred bytes to a few MiB, in nested folders."""
    rng = random.Random(label)
    found: list[GuestFile] = []
    left = total
    while left > 0:
        size = min(int(rng.lognormvariate(11.6, 1.5)) + 100, 4 << 20, left)
        suffix = rng.choice((".txt", ".log", ".dll", ".dat"))
        number = len(found)
        path = f"{label.split(':')[0]}/{rng.choice(_WORDS).decode()}/{number // 64:03d}/{number:05d}{suffix}"
        found.append(GuestFile(path=path, size=size, seed=f"{label}:{number}"))
        left -= size
    return found


def guest_files(machine: str, disk: str, seed: int, total: int) -> list[GuestFile]:
    """Two thirds shared with every guest of the seed, one third of its own, in its own order."""
    shared = file_set(f"os:{disk}:{seed}", total * 2 // 3)
    files = shared + file_set(f"own:{machine}:{disk}:{seed}", total - total * 2 // 3)
    random.Random(f"{machine}:{disk}:{seed}").shuffle(files)
    return files


def _write_tree(root: Path, files: Sequence[GuestFile]) -> None:
    for file in files:
        target = root / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.content())


@contextlib.contextmanager
def _ntfs_mounted(volume: Path) -> Iterator[Path | None]:
    """The volume as a folder, or None where FUSE may not be used."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK) or shutil.which("ntfs-3g") is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="guest-ntfs-") as folder:
        done = subprocess.run(["ntfs-3g", "-o", "big_writes", volume, folder], capture_output=True, check=False)
        if done.returncode:
            yield None
            return
        try:
            yield Path(folder)
        finally:
            run("umount" if os.geteuid() == 0 else "fusermount", *([] if os.geteuid() == 0 else ["-u"]), folder)
            _await_release(volume)


def _await_release(volume: Path) -> None:
    """Unmounting returns before the FUSE process has closed the volume."""
    deadline = time.monotonic() + 30
    while any(_holds(process, volume) for process in Path("/proc").glob("[0-9]*")):
        if time.monotonic() > deadline:
            raise SystemExit(f"ntfs-3g does not let go of {volume}")
        time.sleep(0.02)


def _holds(process: Path, volume: Path) -> bool:
    with contextlib.suppress(OSError):
        if (process / "comm").read_text().startswith(("ntfs-3g", "mount.ntfs")):
            return any(link.samefile(volume) for link in (process / "fd").iterdir())
    return False


def _put_into_ntfs(volume: Path, files: Sequence[GuestFile]) -> None:
    with _ntfs_mounted(volume) as folder, tempfile.NamedTemporaryFile() as carrier:
        if folder is not None:
            _write_tree(folder, files)
            return
        for file in files:
            Path(carrier.name).write_bytes(file.content())
            run("ntfscp", "-f", volume, carrier.name, file.path.replace("/", "-"))


def _copy_range(source: Path, source_offset: int, target: Path, target_offset: int, length: int) -> None:
    """Copy what is not zero."""
    zeros = bytes(1 << 20)
    with source.open("rb") as reader, target.open("r+b") as writer:
        for position in range(0, length, 1 << 20):
            reader.seek(source_offset + position)
            data = reader.read(min(1 << 20, length - position))
            if data != zeros[: len(data)]:
                writer.seek(target_offset + position)
                writer.write(data)


def build_ntfs(disk: Path, size: int, files: Sequence[GuestFile]) -> None:
    """A raw disk with an MBR and one NTFS partition from sector 63, as Windows Server 2003 made them."""
    with disk.open("wb") as file:
        file.truncate(size)
    length = (size - NTFS_START) // SECTOR * SECTOR
    with tempfile.NamedTemporaryFile(dir=disk.parent, prefix=".guest-") as volume:
        volume.truncate(length)
        path = Path(volume.name)
        run("mkntfs", "-q", "-F", "-f", "-s", "512", "-p", "63", "-H", "255", "-S", "63", "-L", "System", path)
        _put_into_ntfs(path, files)
        _copy_range(path, 0, disk, NTFS_START, length)
    run("sfdisk", "-q", disk, given=f"label: dos\nstart=63, size={length // SECTOR}, type=7, bootable\n")


def build_ext4(disk: Path, size: int, files: Sequence[GuestFile], start: int) -> None:
    """A raw disk with ext4 from byte ``start``: behind a GPT, or on the whole disk for 0."""
    with disk.open("wb") as file:
        file.truncate(size)
    tail = 33 * SECTOR if start else 0
    blocks = (size - start - tail) // 4096
    with tempfile.TemporaryDirectory(dir=disk.parent, prefix=".guest-") as tree:
        _write_tree(Path(tree), files)
        options = f"offset={start},lazy_itable_init=0,lazy_journal_init=0,nodiscard"
        run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-E", options, "-d", tree, disk, str(blocks))
    if start:
        run("sfdisk", "-q", disk, given=f"label: gpt\nstart={start // SECTOR}, size={blocks * 8}, type=linux\n")


def _build_machine(folder: Path, seed: int, size: int) -> None:
    """All disks of one machine; a machine folder appears only when it is whole."""
    unfinished = folder.with_name(f".guest-{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    name, small = folder.name, max(size // 4 // SECTOR * SECTOR, 16 << 20)
    build_ntfs(unfinished / "system.img", size, guest_files(name, "system", seed, size * FILL_PERCENT // 100))
    for disk, format_, length, start in (("data", "qcow2", size, EXT4_START), ("archive", "vmdk", small, 0)):
        raw = unfinished / f".{disk}.raw"
        build_ext4(raw, length, guest_files(name, disk, seed, length * FILL_PERCENT // 100), start)
        run("qemu-img", "convert", "-f", "raw", "-O", format_, raw, unfinished / f"{disk}.{format_}")
        raw.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def build(
    folder: Path, *, seed: int, machines: Sequence[str] = ("oblVM1", "oblVM2"), size: int = 128 << 20
) -> list[Path]:
    """Machine folders below ``folder``, replacing those that exist; ``size`` bytes per disk, at least 32 MiB."""
    if size < 32 << 20:
        raise ValueError("a guest needs disks of at least 32 MiB")
    folder.mkdir(parents=True, exist_ok=True)
    size = size // SECTOR * SECTOR
    paths = [folder / name for name in machines]
    with concurrent.futures.ProcessPoolExecutor(min(len(paths), os.cpu_count() or 1)) as workers:
        for job in [workers.submit(_build_machine, path, seed, size) for path in paths]:
            job.result()
    return paths


def change(folder: Path, seed: int, *, share: int = 2) -> dict[str, int]:
    """A day of change in one machine: new files in each volume, ``share`` percent of a disk; bytes changed per disk."""
    done: dict[str, int] = {}
    for disk in sorted(path for path in folder.iterdir() if path.suffix in (".img", ".qcow2", ".vmdk")):
        size = int(_info(disk, "virtual size"))
        files = file_set(f"day{seed}:{folder.name}:{disk.name}", max(size * share // 100, 64 << 10))
        if disk.suffix == ".img":
            done[disk.name] = _edit(disk, functools.partial(_add_to_ntfs, files=files))
        else:
            start = EXT4_START if disk.stem == "data" else 0
            done[disk.name] = _edit(disk, functools.partial(_add_to_ext4, files=files, start=start))
    return done


def _format(disk: Path) -> str:
    return {".qcow2": "qcow2", ".vmdk": "vmdk"}.get(disk.suffix, "raw")


def _info(disk: Path, field: str) -> str:
    text = run("qemu-img", "info", "-f", _format(disk), disk)
    match = re.search(rf"^{field}:.*\((\d+) bytes\)$", text, re.MULTILINE)
    if match is None:
        raise SystemExit(f"{disk}: qemu-img does not say its {field}")
    return match[1]


def _add_to_ntfs(raw: Path, files: Sequence[GuestFile]) -> None:
    with tempfile.NamedTemporaryFile(dir=raw.parent, prefix=".guest-") as volume:
        length = raw.stat().st_size - NTFS_START
        volume.truncate(length)
        path = Path(volume.name)
        _copy_range(raw, NTFS_START, path, 0, length)
        _put_into_ntfs(path, files)
        with path.open("rb") as reader, raw.open("r+b") as writer:
            writer.seek(NTFS_START)
            shutil.copyfileobj(reader, writer, 1 << 20)


def _add_to_ext4(raw: Path, files: Sequence[GuestFile], start: int) -> None:
    with tempfile.TemporaryDirectory(dir=raw.parent, prefix=".guest-") as carrier:
        script: list[str] = []
        for number, file in enumerate(files):
            source = Path(carrier) / str(number)
            source.write_bytes(file.content())
            script.append(f"write {source} {file.path.replace('/', '-')}")
        commands = Path(carrier) / "script"
        commands.write_text("\n".join(script) + "\n")
        run("debugfs", "-w", "-f", commands, f"{raw}?offset={start}")


def _edit(disk: Path, editor: Callable[[Path], None]) -> int:
    """Run ``editor`` on a raw copy, then write the blocks that differ back in place; bytes written."""
    with tempfile.TemporaryDirectory(dir=disk.parent, prefix=".guest-") as folder:
        before, after = Path(folder) / "before", Path(folder) / "after"
        for copy in (before, after):
            run("qemu-img", "convert", "-f", _format(disk), "-O", "raw", disk, copy)
        editor(after)
        differing = list(differences(before, after))
        if disk.suffix == ".img":
            with disk.open("r+b") as writer:
                for offset, data in differing:
                    writer.seek(offset)
                    writer.write(data)
        else:
            script: list[str] = []
            for number, (offset, data) in enumerate(differing):
                (Path(folder) / str(number)).write_bytes(data)
                script.append(f"write -q -s {folder}/{number} {offset} {len(data)}")
            run("qemu-io", "-f", _format(disk), disk, given="\n".join([*script, "flush", "quit"]) + "\n")
    return sum(len(data) for _, data in differing)


def differences(before: Path, after: Path) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of every block of ``BLOCK`` bytes that ``after`` has otherwise than ``before``."""
    with before.open("rb") as old, after.open("rb") as new:
        offset = 0
        while data := new.read(BLOCK):
            if data != old.read(BLOCK):
                yield offset, data
            offset += len(data)


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)(KiB|MiB|GiB|KB|MB|GB)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text} is no size such as 128MiB")
    units = {None: 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
    return int(match[1]) * units[match[2]]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build a lab of guests, or make a day of change in one.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--machines", default="oblVM1,oblVM2", help="names, separated by commas")
    parser.add_argument("--size", type=_size, default=128 << 20, help="bytes per disk, such as 128MiB")
    parser.add_argument("--count", type=int, help="that many machines oblVM1, oblVM2, ... instead of --machines")
    parser.add_argument("--bytes", type=_size, help="virtual bytes of all guests together, instead of --size")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--change", action="store_true", help="change the named machines instead of building them")
    chosen = parser.parse_args(arguments)
    names = chosen.machines.split(",")
    if chosen.count:
        names = [f"oblVM{number}" for number in range(1, chosen.count + 1)]
    size = chosen.bytes * 4 // (9 * len(names)) if chosen.bytes else chosen.size
    if chosen.change:
        for name in names:
            for disk, changed in change(chosen.folder / name, chosen.seed).items():
                print(f"{name}/{disk}: {changed} bytes changed")
        return 0
    for path in build(chosen.folder, seed=chosen.seed, machines=names, size=size):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
