"""What can be had of an image of which no copy is whole: a block that no copy can give reads as zeros, and is noted.

``restore --salvage`` writes what this gives; ``duplications`` makes a copy anew from several damaged ones through it,
and counts with it what none of them has. Separate from ``failovers``, which never hands on what was not proven: nobody
comes here who did not ask. Only damage makes a block missing. A copy that cannot be reached now may hold it, so then
the reading fails.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Mapping
from typing import Final

from reconciler.base import digests, disks, errors, extents
from reconciler.operations import failovers
from reconciler.storage import units

#: The code of a job that had to leave something out.
MISSING: Final = errors.BlocksMissing.__name__
#: What says that a copy does not have the bytes; anything else says that it could not be asked.
_GONE: Final = (errors.ImageDamaged, errors.ImageMissing)


class SalvagedImage:
    """A ``units.StoredImage`` that is read to its end whatever is missing. Thread-safe."""

    def __init__(self, stored: failovers.FailoverImage) -> None:
        """Takes over ``stored``, and closes it."""
        self._stored = stored
        self._lock = threading.Lock()
        self._digests: dict[str, bytearray] = {}
        self._missing: dict[str, list[extents.Extent]] = {}

    @property
    def label(self) -> units.ImageLabel:
        """What the image says of itself."""
        return self._stored.label

    @property
    def base(self) -> str | None:
        """The image that the copy read now needs on its unit, if any."""
        return self._stored.base

    @property
    def source(self) -> failovers.Source:
        """The copy that the next read goes to."""
        return self._stored.source

    @property
    def missing(self) -> Mapping[str, extents.Extents]:
        """By disk, the whole blocks that no copy could give, of what was read so far; disks that lack none are left
        out."""
        with self._lock:
            return {name: extents.normalise(found) for name, found in self._missing.items() if found}

    def disk(self, name: str, *, block_digests: bytes | None = None) -> SalvagedDisk:  # noqa: ARG002  each has its own
        """One disk. Raises ``NotFound``, or ``ImageDamaged`` where no copy tells of its digests."""
        self.digests(name)
        return SalvagedDisk(self, self._stored.disk(name))

    def changed(self, name: str, parent: str) -> extents.Extents | None:
        """The ranges of a disk stored relative to ``parent``, or None where no copy tells."""
        with contextlib.suppress(*_GONE):
            return self._stored.changed(name, parent)
        return None

    def block_digests(self, name: str) -> bytes:
        """The disk's list of 32-byte block digests, as ``digests`` has it now."""
        return bytes(self.digests(name))

    def digests(self, name: str) -> bytearray:
        """The digests of what is read: the image's, and from when a block turns out to be missing those of zeros.

        Raises ``ImageDamaged`` where no copy tells of them.
        """
        with self._lock:
            known = self._digests.get(name)
        if known is not None:
            return known
        try:
            found = bytearray(self._stored.block_digests(name))
        except _GONE as error:
            error.hint = "without its digests nothing of that disk can be proven; leave it out by naming the others"
            raise
        with self._lock:
            return self._digests.setdefault(name, found)

    def attachments(self) -> tuple[str, ...]:
        """The names of its attachments."""
        return self._stored.attachments()

    def attachment(self, name: str) -> failovers.FailoverAttachment:
        """One attachment."""
        return self._stored.attachment(name)

    def close(self) -> None:
        """Close every copy. Idempotent."""
        self._stored.close()

    def lose(self, disk: disks.Disk, offset: int, error: errors.HoldfastError) -> extents.Extent:
        """Note that no copy has the block around ``offset``; the block. Raises ``error`` where one was not asked."""
        for failure in self._stored.failures:
            if not isinstance(failure.error, _GONE):
                if isinstance(failure.error, errors.UnitError):
                    failure.error.hint = "it may hold what the other copies lack; bring it back, or name one by --copy"
                raise failure.error from error
        index = offset // digests.BLOCK
        start, length = index * digests.BLOCK, digests.block_length(index, disk.size)
        zero = digests.zero_digest(length)
        with self._lock:
            self._digests[disk.name][index * digests.DIGEST_SIZE : (index + 1) * digests.DIGEST_SIZE] = zero
            self._missing.setdefault(disk.name, []).append((start, length))
        return start, length


class SalvagedDisk(disks.Closing):
    """One disk of a ``SalvagedImage``; see ``disks.Disk``."""

    def __init__(self, image: SalvagedImage, disk: failovers.FailoverDisk) -> None:
        self.name, self.size, self.sector = disk.name, disk.size, disk.sector
        self._image, self._disk = image, disk
        self._lock = threading.Lock()
        #: Begins of blocks that are known to be missing, so that nobody looks for them again.
        self._lost: set[int] = set()

    def extents(self) -> extents.Extents:
        """The blocks that are not zero in the image."""
        return self._disk.extents()

    def pread(self, offset: int, length: int) -> disks.Buffer:
        """Exactly ``length`` bytes, proven, and zeros for what is missing. Raises where a copy cannot be reached."""
        blocks = list(extents.pieces(((offset, length),), digests.BLOCK))
        if not any(self._is_lost(start) for start, _ in blocks):
            with contextlib.suppress(*_GONE):
                return self._disk.pread(offset, length)
        return b"".join(self._block(*block) for block in blocks)

    def _is_lost(self, offset: int) -> bool:
        with self._lock:
            return offset // digests.BLOCK * digests.BLOCK in self._lost

    def _block(self, offset: int, length: int) -> disks.Buffer:
        if self._is_lost(offset):
            return bytes(length)
        try:
            return self._disk.pread(offset, length)
        except _GONE as error:
            start, _ = self._image.lose(self, offset, error)
            with self._lock:
                self._lost.add(start)
            return bytes(length)

    def close(self) -> None:
        """Close it on every copy. Idempotent."""
        self._disk.close()


def opened(stored: failovers.FailoverImage, *, salvage: bool) -> failovers.FailoverImage | SalvagedImage:
    """The image as a restore reads it: with ``salvage`` to its end, whatever is missing."""
    return SalvagedImage(stored) if salvage else stored


def worded(missing: Iterable[tuple[str, extents.Extents]]) -> str:
    """What is missing, by disk, as half a sentence."""
    found = (
        f"{extents.total(ranges)} bytes of disk {name} in {len(ranges)} {'range' if len(ranges) == 1 else 'ranges'}"
        for name, ranges in missing
    )
    return f"no copy has {', '.join(found)}"


def require_whole(salvaged: SalvagedImage) -> None:
    """Raise ``BlocksMissing`` where some of what was read is on no copy."""
    missing = salvaged.missing
    if missing:
        first = next(iter(missing.values()))[0][0]
        raise errors.BlocksMissing(
            f"image {salvaged.label.id}: {worded(sorted(missing.items()))}, the first at {first}",
            hint="all copies stay; holdfast restore --salvage writes the rest, or back the machine up anew",
        )
