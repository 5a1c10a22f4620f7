"""XFS volumes caught while they are in use: random work, a copy at any moment, and what the kernel makes of its log.

``work`` changes a mounted volume at random, ``crashed`` gives copies of its image, ``differences`` compares what the
parser reads in one with what a mount shows of another. Run as a program it does so for many seeds and shapes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import guest_builders as builders
import guest_trees as trees

from reconciler.guests import browsing, listings

#: Options of ``mkfs.xfs``; ``-m crc=0`` is the fourth version, which newer kernels do not mount.
SHAPES = {
    "default": [],
    "small log": ["-l", "size=4m", "-m", "reflink=0,rmapbt=0"],
    "1k blocks": ["-b", "size=1024", "-n", "size=8192"],
    "512 byte blocks": ["-b", "size=1024", "-i", "size=512", "-n", "size=4096"],
    "old times": ["-m", "bigtime=0,reflink=0", "-i", "sparse=0,nrext64=0"],
    "many extents": ["-i", "nrext64=1,size=1024", "-m", "rmapbt=1"],
    "large inodes": ["-i", "size=2048", "-n", "size=65536"],
    "no finobt": ["-m", "finobt=0,reflink=0"],
    "stripes": ["-d", "su=64k,sw=2", "-l", "su=64k"],
    "sectors": ["-s", "size=4096", "-l", "su=4096"],
}
OPTIONS = ("", "logbsize=256k", "wsync", "logbsize=64k,inode32", "logbufs=2")


class Worker:
    """Changes files below a folder at random."""

    def __init__(self, root: Path, chosen: random.Random) -> None:
        self._root = root
        self._chosen = chosen
        self._folders = [root]
        self._files: list[Path] = []
        self._mark = chosen.randrange(1 << 20)
        self._count = 0

    def _name(self) -> str:
        self._count += 1
        return f"{'n' * self._chosen.choice((1, 5, 20, 80, 200))}-{self._mark:x}-{self._count}"

    def step(self) -> None:
        """One change; what cannot be done is left out."""
        chosen = self._chosen
        act = chosen.choice(
            [self._create] * 6
            + [self._append] * 3
            + [self._unlink, self._rename, self._attributes, self._truncate] * 2
            + [self._link, self._symbolic, self._folder, self._many, self._remove, self._holes, self._mode, self._share]
            + [self._special]
        )
        try:
            act()
        except (FileNotFoundError, FileExistsError, NotADirectoryError, IndexError, ValueError):
            return
        except OSError as error:
            # Full, too many links, a name that is taken, and the like.
            if error.errno not in (28, 34, 31, 95, 22, 39, 1, 7):
                raise

    def until_it_fails(self) -> None:
        """Work until the volume is shut down."""
        with contextlib.suppress(OSError):
            while True:
                self.step()

    def _create(self) -> None:
        path = self._chosen.choice(self._folders) / self._name()
        path.write_bytes(self._chosen.randbytes(self._chosen.choice((0, 10, 3000, 9000, 70_000))))
        self._files.append(path)

    def _append(self) -> None:
        with self._chosen.choice(self._files).open("ab") as file:
            file.write(self._chosen.randbytes(self._chosen.randrange(30_000)))
            if self._chosen.randrange(4) == 0:
                os.fsync(file.fileno())

    def _unlink(self) -> None:
        self._files.pop(self._chosen.randrange(len(self._files))).unlink()

    def _rename(self) -> None:
        number = self._chosen.randrange(len(self._files))
        to = self._chosen.choice((*self._files[:3], self._chosen.choice(self._folders) / self._name()))
        self._files[number].rename(to)
        self._files[number] = to

    def _attributes(self) -> None:
        path = self._chosen.choice(self._files + self._folders)
        for _ in range(self._chosen.choice((1, 1, 3, 40))):
            size = self._chosen.choice((0, 5, 100, 2000, 20_000))
            name = f"user.{self._chosen.randrange(60)}-{'a' * self._chosen.choice((1, 30))}"
            if self._chosen.randrange(3) == 0 and os.listxattr(path):
                os.removexattr(path, self._chosen.choice(os.listxattr(path)))
            else:
                os.setxattr(path, name, self._chosen.randbytes(size))

    def _truncate(self) -> None:
        os.truncate(self._chosen.choice(self._files), self._chosen.choice((0, 1, 5000, 100_000, 9_000_000)))

    def _link(self) -> None:
        path = self._chosen.choice(self._folders) / self._name()
        os.link(self._chosen.choice(self._files), path)
        self._files.append(path)

    def _symbolic(self) -> None:
        path = self._chosen.choice(self._folders) / self._name()
        path.symlink_to("t" * self._chosen.choice((5, 200, 800)))

    def _folder(self) -> None:
        path = self._chosen.choice(self._folders) / self._name()
        path.mkdir()
        self._folders.append(path)

    def _many(self) -> None:
        """A directory that grows through several forms, and shrinks again at times."""
        folder = self._chosen.choice(self._folders)
        made = [folder / self._name() for _ in range(self._chosen.choice((5, 40, 300)))]
        for path in made:
            path.touch()
        if self._chosen.randrange(3):
            self._files += made[::4]
        else:
            for path in made[:-2]:
                path.unlink()

    def _remove(self) -> None:
        folder = self._chosen.choice(self._folders[1:])
        shutil.rmtree(folder)
        self._folders = [one for one in self._folders if not one.is_relative_to(folder)]
        self._files = [one for one in self._files if not one.is_relative_to(folder)]

    def _holes(self) -> None:
        """A file in so many pieces that its map becomes a tree."""
        path = self._chosen.choice(self._folders) / self._name()
        with path.open("wb") as file:
            for number in range(self._chosen.choice((5, 30, 250))):
                file.seek(number * 20_000)
                file.write(self._chosen.randbytes(700))
        self._files.append(path)

    def _mode(self) -> None:
        path = self._chosen.choice(self._files + self._folders[1:])
        path.chmod(self._chosen.randrange(0o1000))
        os.chown(path, self._chosen.randrange(70_000), self._chosen.randrange(70_000))
        os.utime(path, ns=(self._chosen.randrange(1 << 62), self._chosen.randrange(1 << 60)))

    def _share(self) -> None:
        one, other = self._chosen.choice(self._files), self._chosen.choice(self._folders) / self._name()
        subprocess.run(["cp", "--reflink=auto", one, other], check=False, capture_output=True)
        self._files.append(other)

    def _special(self) -> None:
        path = self._chosen.choice(self._folders) / self._name()
        os.mknod(path, self._chosen.choice((0o10644, 0o20600, 0o60600)), os.makedev(self._chosen.randrange(300), 7))


def make(image: Path, *options: str) -> None:
    """Make a volume, small ones too."""
    # The tool's own tests set these to get a log as small as those of older tools.
    small = {**os.environ, "TEST_DIR": "x", "TEST_DEV": "x", "QA_CHECK_FS": "x"}
    builders.run("mkfs.xfs", "-q", "-f", *options, image, env=small)


def crashed(
    image: Path, shape: list[str], options: str, seed: int, *, steps: int, size: int = 320, busy: bool = False
) -> Iterator[tuple[Path, str]]:
    """Copies of a volume at random moments of its use, each with how it was caught; they are overwritten by the next.

    ``busy``: several work at once when it is shut down at the end, so that no two runs are the same.
    """
    chosen = random.Random(seed)
    make(builders.blank(image, size * builders.MIB), *shape)
    copy = image.with_name("crashed.raw")
    where = image.with_suffix(".mnt")
    where.mkdir(exist_ok=True)
    builders.run("mount", "-t", "xfs", "-o", ",".join(filter(None, ("loop", options))), image, where)
    try:
        worker = Worker(where, chosen)
        for _ in range(chosen.choice((1, 2, 3))):
            for _ in range(chosen.randrange(steps // 2, steps)):
                worker.step()
            how = chosen.choice(("sync", "as it is", "fsync"))
            if how == "sync":
                builders.run("sync", "-f", where)
            elif how == "fsync":
                builders.run("sync", where)
            yield _copied(image, copy), how
        how = chosen.choice(("shutdown", "shutdown -f"))
        others = [Worker(where, random.Random(seed + number)) for number in (1, 2)]
        threads = [threading.Thread(target=one.until_it_fails) for one in others if busy]
        for thread in threads:
            thread.start()
        for _ in range(steps // 4):
            worker.step()
        builders.run("xfs_io", "-x", "-c", how, where)
        for thread in threads:
            thread.join()
    finally:
        builders.run("umount", where)
    yield _copied(image, copy), how


def _copied(image: Path, copy: Path) -> Path:
    """A copy in which nothing changed meanwhile, as in a snapshot."""
    while True:
        before = image.stat().st_mtime_ns
        builders.run("cp", "--sparse=always", image, copy)
        if image.stat().st_mtime_ns == before:
            return copy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ends:
    """Where a log lies and how far it was written."""

    #: Byte offset on the volume.
    place: int
    #: The basic block behind the newest one, as its round tells.
    head: int
    #: The newest round, a count.
    round: int


def ends(image: Path) -> Ends:
    """The log of a volume in which nothing is torn yet."""
    told = builders.run("xfs_db", "-r", "-c", "sb 0", "-c", "p logstart logblocks blocksize agblocks agblklog", image)
    start, blocks, size, group, bits = (int(line.split("=")[1]) for line in told.splitlines())
    place = ((start >> bits) * group + (start & (1 << bits) - 1)) * size
    with image.open("rb") as file:
        file.seek(place)
        log = file.read(blocks * size)
    words = [struct.unpack_from(">II", log, at) for at in range(0, len(log), 512)]
    rounds = [second if first == 0xFEEDBABE else first for first, second in words]
    newest = max(rounds)
    return Ends(place=place, head=max(at for at, one in enumerate(rounds) if one == newest) + 1, round=newest)


def without_sums(volume: bytes) -> bytes:
    """A volume whose log has no checksums, as those of old kernels: damage to it is not found out by them."""
    found = bytearray(volume)
    for at in range(0, len(found), 512):
        if found[at : at + 4] == b"\xfe\xed\xba\xbe":
            found[at + 32 : at + 36] = bytes(4)
    return bytes(found)


def torn(copy: Path, chosen: random.Random) -> None:
    """Damage some of the newest blocks of the log, as writing stopped half way would."""
    log = ends(copy)
    with copy.open("r+b") as file:
        for _ in range(chosen.choice((1, 2, 8))):
            at = log.head - 1 - chosen.randrange(chosen.choice((4, 60, 200)))
            if at >= 0:
                file.seek(log.place + 512 * at)
                old = (log.round - 1).to_bytes(4, "big") + file.read(512)[4:]
                file.seek(log.place + 512 * at)
                file.write(chosen.choice((bytes(512), old, chosen.randbytes(512))))


class Refused(Exception):
    """The kernel does not mount a volume."""


def differences(image: Path) -> list[str]:
    """What the parser reads of a volume, by numbers and by names, against what the kernel shows once it replayed it.

    Raises ``Refused``.
    """
    with builders.opened(image) as disk, browsing.browse(disk) as browser, listings.list_files(disk) as listing:
        reason = browser.volumes[0].reason
        told = [] if reason in ("", "its log needs recovery") else [reason]
        found = trees.browsed(browser, 0, whole=not told)
        listed = {file.path: (file.kind, file.size, file.modified, file.links) for file in listing}
        told += [message for _, message in listing.warnings]
    other = image.with_name("replayed.raw")
    builders.run("cp", "--sparse=always", image, other)
    try:
        with builders.mounted(other, kind="xfs", options="noatime,nouuid") as root:
            known = trees.folder(root)
    except AssertionError as error:
        raise Refused(told) from error
    told += trees.compare(known, found)
    names = {"directory": 0x4000, "file": 0x8000, "symlink": 0xA000}
    for path, one in known.items():
        kind, size, modified, links = listed.pop(path, ("missing", 0, 0, 0))
        if names.get(kind, one.format) != one.format or kind == "missing":
            told.append(f"{path!a} is listed as {kind}")
        elif (size, modified) != (one.size, one.modified) or (one.links and links != one.links):
            told.append(f"{path!a} is listed with {size}, {modified}, {links}")
    return told + [f"{path!a} should not be listed" for path in listed]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="hack/compare-logs")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="number of the first round")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--torn", action="store_true", help="damage the newest blocks of the log")
    options = parser.parse_args()
    failed = compared = refused = 0
    for seed in range(options.seed, options.seed + options.rounds):
        name = list(SHAPES)[seed % len(SHAPES)]
        mount = OPTIONS[seed // len(SHAPES) % len(OPTIONS)]
        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder) / "volume.raw"
            chosen = random.Random(seed)
            for number, (copy, how) in enumerate(
                crashed(image, SHAPES[name], mount, seed, steps=options.steps, busy=True)
            ):
                start = time.monotonic()
                if options.torn:
                    torn(copy, chosen)
                try:
                    told = differences(copy)
                except Refused as error:
                    how += f", which the kernel refuses, {'as we do' if error.args[0] else 'and we read'}"
                    refused += 1
                    told = []
                except AssertionError as error:
                    told = [f"{error!s:.60} {str(error)[-90:]}"]
                compared += 1
                failed += bool(told)
                sys.stdout.write(
                    f"{seed}.{number} {name} {mount} {how}: {len(told)} differences {told[:5]} "
                    f"{time.monotonic() - start:.1f} s\n"
                )
                sys.stdout.flush()
                if told:
                    shutil.copyfile(copy, Path(tempfile.gettempdir()) / f"differs-{seed}-{number}.raw")
    sys.stdout.write(f"{compared} compared, {failed} differ, {refused} refused\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
