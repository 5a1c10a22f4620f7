"""What parsers hand over: runs, free ranges and files of one volume, as places on the disk, sent in batches.

Every file system's parser gets one ``Output`` and speaks in offsets of its volume; where these lie on the disk (one
piece for a partition, many for a logical volume), how much may be sent and how it is framed is decided here. What is
sent counts only once the volume's ``COMMIT`` follows, so a parser that fails half way leaves nothing behind.
"""

from __future__ import annotations

import dataclasses
from array import array

from reconciler.guests import scans, wires
from reconciler.guests.parsers import stretches

#: Values per frame of runs and of ranges: 512 KiB.
_VALUES = 65_536
#: Files per frame, and runs that end a frame early.
_FILES = 2_000
_FILE_RUNS = 50_000
#: Warnings of one volume; the rest are counted only.
_WARNINGS = 20


class TooMuch(Exception):
    """More runs, ranges or files than the limits allow."""


@dataclasses.dataclass(kw_only=True, slots=True)
class Budget:
    """What all volumes of a disk have handed over so far, against what they may."""

    limits: scans.Limits
    runs: int = 0
    ranges: int = 0
    files: int = 0

    def add_runs(self, count: int) -> None:
        """Count runs. Raises ``TooMuch``."""
        self.runs += count
        if self.runs > self.limits.runs:
            raise TooMuch(f"more than {self.limits.runs} runs of files")

    def add_ranges(self, count: int) -> None:
        """Count ranges. Raises ``TooMuch``."""
        self.ranges += count
        if self.ranges > self.limits.ranges:
            raise TooMuch(f"more than {self.limits.ranges} ranges")

    def add_files(self, count: int) -> None:
        """Count files. Raises ``TooMuch``."""
        self.files += count
        if self.files > self.limits.files:
            raise TooMuch(f"more than {self.limits.files} files")


def bounded(value: int) -> int:
    """A number that the other end believes: a damaged inode may name any moment and any size."""
    return max(-wires.MOST_NUMBER, min(value, wires.MOST_NUMBER))


def under(above: str, name: str) -> str:
    """The path of a name in a directory.

    One that no file can bear gets a NUL for its slashes, so that ``Output.file`` leaves it out: it leads nowhere.
    """
    if not name or "/" in name:
        name = name.replace("/", "\0") or "\0"
    return f"{above}/{name}" if above else name


def moment(value: int) -> int:
    """The same of a time in nanoseconds."""
    return max(-wires.MOST_MOMENT, min(value, wires.MOST_MOMENT))


@dataclasses.dataclass(kw_only=True, slots=True)
class Entry:
    """One name of a file, or one of its alternate streams."""

    #: From the volume's root, parts separated by ``/``, without a leading one; undecodable bytes as surrogates.
    path: str
    #: ``file``, ``directory``, ``symlink`` or ``other``.
    kind: str
    #: Bytes.
    size: int
    inode: int
    #: How many names the file has.
    links: int = 1
    #: Name of the alternate data stream, empty for the file itself.
    stream: str = ""
    #: Whether the content lies in the file's own record and occupies no cluster.
    resident: bool = False
    #: Nanoseconds since the epoch, UTC; 0 where unknown.
    created: int = 0
    modified: int = 0
    changed: int = 0
    accessed: int = 0
    #: Of ``sparse``, ``compressed``, ``encrypted``.
    flags: tuple[str, ...] = ()
    #: File offset, offset on the volume, bytes.
    runs: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a parser found out about the volume as a whole; the fields of ``scans.Volume``."""

    filesystem: str
    label: str
    clean: bool
    reason: str
    #: Bytes.
    cluster: int


class Output:
    """Takes one volume's finds. Runs of one file come one after the other, files in order of their inodes."""

    def __init__(
        self,
        line: stretches.Line,
        stretch: stretches.Stretch,
        budget: Budget,
        *,
        first_file: int = 0,
        want_runs: bool = True,
        want_space: bool = False,
        want_files: bool = False,
        quiesced: bool = False,
    ) -> None:
        self.want_runs = want_runs
        self.want_space = want_space
        self.want_files = want_files
        self.quiesced = quiesced
        self.limits = budget.limits
        self._line = line
        self._stretch = stretch
        self._budget = budget
        pieces = stretch.pieces
        self._base = pieces[0][0] if len(pieces) == 1 else None
        self._size = stretch.size
        #: The parser's number of the file whose runs are being collected, and ours.
        self._key: int | None = None
        self._number = first_file - 1
        self._file: list[tuple[int, int, int]] = []
        self._runs = array("q")
        self._ranges = {kind: array("q") for kind in (wires.FREE, wires.PAGES, wires.SWAP)}
        self._files: list[list[object]] = []
        self._file_runs = 0
        self._warnings = 0

    @property
    def next_file(self) -> int:
        """The first number no file of this volume bears."""
        return self._number + 1

    def run(self, file: int, file_offset: int, offset: int, length: int) -> None:
        """Hand over a run of the file with the parser's number ``file``: any integer that is the same for all its runs.

        ``file_offset``, ``offset`` (on the volume) and ``length`` are bytes; what lies outside the volume is left out.
        Raises ``TooMuch``.
        """
        if file != self._key:
            self._finish_file()
            self._key = file
            self._number += 1
        if offset < 0 or offset >= self._size or length <= 0:
            return
        if offset + length > self._size:
            length = self._size - offset
        if self._base is not None:
            self._file.append((file_offset, self._base + offset, length))
        else:
            for place, count in self._stretch.places(offset, length):
                self._file.append((file_offset, place, count))
                file_offset += count

    def _finish_file(self) -> None:
        runs = self._file
        if not runs:
            return
        self._budget.add_runs(len(runs))
        if len(runs) > 1:
            runs.sort()
        number, values = self._number, self._runs
        for file_offset, place, length in runs:
            values.extend((number, file_offset, place, length))
            if len(values) >= _VALUES:
                self._send_runs()
        runs.clear()

    def _send_runs(self) -> None:
        if self._runs:
            self._line.send(wires.pack(wires.RUNS, self._runs.tobytes()))
            del self._runs[:]

    def free(self, offset: int, length: int) -> None:
        """Hand over a free range of the volume, in order. Raises ``TooMuch``."""
        self._range(wires.FREE, offset, length)

    def page_file(self, offset: int, length: int) -> None:
        """Hand over a range of the volume that holds a page file. Raises ``TooMuch``."""
        self._range(wires.PAGES, offset, length)

    def swap(self, offset: int, length: int) -> None:
        """Hand over a range of the volume that holds swapped pages. Raises ``TooMuch``."""
        self._range(wires.SWAP, offset, length)

    def _range(self, kind: int, offset: int, length: int) -> None:
        values = self._ranges[kind]
        for place, count in self._stretch.places(offset, length):
            self._budget.add_ranges(1)
            values.append(place)
            values.append(count)
        if len(values) >= _VALUES:
            self._send_ranges(kind)

    def _send_ranges(self, kind: int) -> None:
        values = self._ranges[kind]
        if values:
            self._line.send(wires.pack(kind, values.tobytes()))
            del values[:]

    def file(self, entry: Entry) -> None:
        """Hand over one name or stream. A file of very many runs is sent in parts. Raises ``TooMuch``.

        A path that no file system could have made, such as one with ``..`` in it, is left out with a warning.
        """
        self._budget.add_files(1)
        if not wires.proper(entry.path):
            self.warn("NameSkipped", f"file {entry.inode} has an impossible name: {entry.path[:200]!a}")
            return
        runs = self._places(entry.runs)
        while len(runs) > 3 * _FILE_RUNS:
            self._append(entry, runs[: 3 * _FILE_RUNS], more=True)
            runs = runs[3 * _FILE_RUNS :]
        self._append(entry, runs, more=False)

    def _places(self, runs: list[tuple[int, int, int]]) -> list[int]:
        values: list[int] = []
        for file_offset, offset, length in runs:
            for place, count in self._stretch.places(offset, length):
                values.extend((file_offset, place, count))
                file_offset += count
        return values

    def _append(self, entry: Entry, runs: list[int], *, more: bool) -> None:
        # A damaged inode may name any moment and any size.
        times = [moment(at) for at in (entry.created, entry.modified, entry.changed, entry.accessed)]
        name, stream, flags = entry.path, entry.stream[: wires.MOST_PATH], entry.flags
        what = (name, entry.kind, max(bounded(entry.size), 0), entry.inode, entry.links, stream, entry.resident)
        self._files.append([*what, *times, flags, runs, more])
        self._file_runs += len(runs) // 3 + len(name) // 16
        if len(self._files) >= _FILES or self._file_runs >= _FILE_RUNS:
            self._send_files()

    def _send_files(self) -> None:
        if self._files:
            self._line.send(wires.pack_json(wires.FILES, self._files))
            self._files.clear()
            self._file_runs = 0

    def warn(self, code: str, message: str) -> None:
        """Hand over a warning: a CamelCase code and one sentence. It stands even where the volume fails."""
        self._warnings += 1
        if self._warnings <= _WARNINGS:
            self._line.send(wires.pack_json(wires.WARNING, [code, message[:1000]]))

    def flush(self) -> None:
        """Send whatever is still held back. Raises ``TooMuch``."""
        self._finish_file()
        self._send_runs()
        for kind in self._ranges:
            self._send_ranges(kind)
        self._send_files()
