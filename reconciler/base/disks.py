"""The one port for bytes. A disk is anything with a size, a list of allocated extents and ``pread``.

A raw file, a qcow2 served over NBD, a snapshot of a virtual machine, a disk inside a stored image: all are Disks, so
backup, duplicate, restore and verify are the same short walk between two ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from reconciler.base import extents

#: Bytes per read that keep both the device and the copy in memory cheap (measured: 1 to 4 MiB).
READ_SIZE = 1 << 20

Buffer = bytes | bytearray | memoryview


@runtime_checkable
class Disk(Protocol):
    """A readable disk. Reading is thread-safe; the bytes do not change while it is open, or ``pread`` raises."""

    @property
    def name(self) -> str:
        """The disk's name within its machine, such as ``system.qcow2``."""

    @property
    def size(self) -> int:
        """Bytes from first to last, virtual."""

    @property
    def sector(self) -> int:
        """Logical sector size in bytes."""

    def extents(self) -> extents.Extents:
        """Ordered, disjoint ranges that may hold data; all else reads as zero."""

    def pread(self, offset: int, length: int) -> Buffer:
        """Exactly ``length`` bytes at ``offset``. Raises ``SourceError`` or ``UnitError``; never returns less."""

    def close(self) -> None:
        """Release what reading holds. Idempotent."""


@runtime_checkable
class Parted(Protocol):
    """A disk that can give a long range as it has it, in parts, without putting them together first."""

    def parts(self, offset: int, length: int) -> Iterator[tuple[int, Buffer]]:
        """The parts of a range, ascending, each with its offset; what is between them is zero. Raises as ``pread``."""


@runtime_checkable
class Lending(Protocol):
    """A disk that can show bytes without giving them away, for those who only digest them."""

    def look(self, offset: int, length: int) -> Buffer:
        """As ``pread``; the bytes are there until the same thread looks or reads again."""


class Closing:
    """Mix-in: any Disk as a context manager."""

    def close(self) -> None:
        """Release what reading holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MemoryDisk(Closing):
    """A disk held in memory: small disks in tests, and pieces assembled on the fly."""

    def __init__(
        self, name: str, data: bytes, *, data_extents: Iterable[extents.Extent] | None = None, sector: int = 512
    ) -> None:
        self.name = name
        self.size = len(data)
        self.sector = sector
        self._data = memoryview(data)
        self._extents = extents.clip([(0, self.size)] if data_extents is None else data_extents, self.size)

    def extents(self) -> extents.Extents:
        """The ranges given at creation, the whole disk by default."""
        return self._extents

    def pread(self, offset: int, length: int) -> Buffer:
        """A view of the bytes."""
        if offset < 0 or offset + length > self.size:
            raise ValueError(f"read of {length} bytes at {offset} beyond {self.size}")
        return self._data[offset : offset + length]


def close_all(disks: Iterable[Disk]) -> None:
    """Close every disk, also when one of them fails to; the first failure is raised."""
    with contextlib.ExitStack() as stack:
        for disk in disks:
            stack.callback(disk.close)
