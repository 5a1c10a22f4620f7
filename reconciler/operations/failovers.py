"""One image over all its good copies: a read that one copy cannot give is given by the next, at the same offset.

Restores, mounts and browsing read through a ``FailoverImage``, so they need only one good copy of each block, wherever
it lies. Every copy proves what it gives against its own list of digests, and a copy whose label tells of other disks
than the first one's is passed over, so all of them give the same bytes. ``findings`` writes into the catalog what was
found on the way. Separate from ``storage``: a unit knows its own copies only. Servers of disks load this module, so it
loads no catalog.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

from reconciler.base import digests, disks, errors, extents
from reconciler.storage import identities, units

_T = TypeVar("_T")
#: What the next copy may make good. A disk that the image does not have, or a request to stop, it may not.
_PASSING: Final = (errors.UnitError, errors.FormatTooNew, OSError)
_NOWHERE: Final = (
    "no copy that was to be read has it; without --copy all are tried, files get and mount give what is whole, and"
    " restore --salvage writes the rest"
)
_UNOPENED: Final = "no copy that was to be read can be opened; without --copy all are tried, or choose an older --image"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One copy that may be read."""

    #: Copy number within the image.
    number: int
    #: The unit's name.
    unit: str
    #: The unit's folder.
    path: Path
    #: Opens the copy. Raises ``UnitError`` kinds, ``FormatTooNew`` or ``OSError``.
    open: Callable[[], units.StoredImage]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """What one copy could not give, told once for each copy and kind of failure."""

    image: str
    source: Source
    error: Exception

    @property
    def finding(self) -> str | None:
        """What the copy is from now on, ``Damaged`` or ``Lost``; None where its unit cannot be reached as it should."""
        if isinstance(self.error, errors.AttachmentDamaged):
            return None  # its disks are not concerned; whoever proves the copy sees to it
        if isinstance(self.error, errors.ImageMissing):
            found = "Lost"
        elif isinstance(self.error, errors.ImageDamaged):
            found = "Damaged"
        else:
            return None
        try:
            # A file that went with its whole unit says nothing against the copy.
            identities.read(self.source.path, self.source.unit)
        except errors.HoldfastError:
            return None
        return found

    @property
    def said(self) -> str:
        """What is wrong, without what is to be done: that is another copy's business."""
        return self.error.message if isinstance(self.error, errors.HoldfastError) else str(self.error)

    def __str__(self) -> str:
        return f"copy {self.source.number} on {self.source.unit} cannot be read: {self.said}"


class FailoverImage:
    """A ``units.StoredImage`` over several copies, in order of preference. Thread-safe.

    A copy that failed goes to the end of the order: it may still hold what all others have lost.
    """

    def __init__(self, image: str, sources: Sequence[Source], failed: Callable[[Failure], None]) -> None:
        """Opens the first copy that can be. ``failed`` is told of every copy that cannot be read, from any thread.

        Raises what the first copy raised where none can be opened.
        """
        self.id = image
        self._failed = failed
        self._lock = threading.RLock()
        self._order = list(sources)
        self._open: dict[int, units.StoredImage] = {}
        self._told: set[tuple[int, type[Exception]]] = set()
        #: What was told so far.
        self.failures: list[Failure] = []
        self._label: units.ImageLabel | None = None
        self._closed = False
        try:
            self._label = self.attempt(lambda _source, stored: stored.label)
        except BaseException:
            self.close()
            raise

    @property
    def label(self) -> units.ImageLabel:
        """What the image says of itself, on the first copy that could be opened."""
        if self._label is None:
            raise ValueError(f"image {self.id} is not open")
        return self._label

    @property
    def base(self) -> str | None:
        """The image that the copy read now needs on its unit, if any."""
        return self.attempt(lambda _source, stored: stored.base)

    @property
    def source(self) -> Source:
        """The copy that the next read goes to."""
        with self._lock:
            return self._order[0]

    def disk(self, name: str, *, block_digests: bytes | None = None) -> FailoverDisk:  # noqa: ARG002  each has its own
        """One disk, whole. Raises ``NotFound``, or what reading its digests raises on every copy."""
        for record in self.label.disks:
            if record.name == name:
                return FailoverDisk(self, record)
        known = ", ".join(record.name for record in self.label.disks)
        raise errors.NotFound(f"image {self.id} has no disk {name}", hint=f"it has {known}")

    def changed(self, name: str, parent: str) -> extents.Extents | None:
        """The ranges of a disk stored relative to ``parent``, or None where that is not known."""
        return self.attempt(lambda _source, stored: stored.changed(name, parent))

    def block_digests(self, name: str) -> bytes:
        """The disk's list of 32-byte block digests, proven."""
        return self.attempt(lambda _source, stored: stored.block_digests(name))

    def attachments(self) -> tuple[str, ...]:
        """The names of its attachments."""
        return self.attempt(lambda _source, stored: stored.attachments())

    def attachment(self, name: str) -> FailoverAttachment:
        """One attachment. Raises ``NotFound``, or ``ImageDamaged`` where no copy knows its pages."""
        return FailoverAttachment(self, name, self.attempt(lambda _source, stored: stored.attachment(name).pages))

    def attempt(self, ask: Callable[[Source, units.StoredImage], _T]) -> _T:
        """What the first copy that can give it gives. Raises what the preferred copy raised where none can."""
        with self._lock:
            order = tuple(self._order)
        first: Exception | None = None
        away = ""
        for source in order:
            try:
                return ask(source, self._opened(source))
            except _PASSING as error:
                said = worded(source, error)
                first = first or said
                if isinstance(said, errors.UnitOffline):
                    away = f"copy {source.number} on {source.unit} may have it: bring that unit back"
                self._pass(source, said)
        if first is None:
            raise errors.ImageMissing(f"image {self.id}: no copy is left to read")
        if isinstance(first, errors.ImageDamaged):
            # Another copy, which the unit would have one use, was tried, or was not to be.
            first.hint = away or (_NOWHERE if self._label is not None else _UNOPENED)
        raise first

    def _opened(self, source: Source) -> units.StoredImage:
        with self._lock:
            if self._closed:
                raise ValueError(f"image {self.id} is closed")
            stored = self._open.get(source.number)
            if stored is None:
                stored = source.open()
                try:
                    self._require_same(source, stored.label)
                except BaseException:
                    stored.close()
                    raise
                self._open[source.number] = stored
            return stored

    def _require_same(self, source: Source, label: units.ImageLabel) -> None:
        """Copies of one image tell of the same disks; one that does not is no copy of it."""
        if self._label is not None and _disks(label) != _disks(self._label):
            raise errors.ImageDamaged(
                f"image {self.id}: copy {source.number} on {source.unit} tells of other disks than the others do"
            )

    def _pass(self, source: Source, error: Exception) -> None:
        with self._lock:
            about_disks = not isinstance(error, errors.AttachmentDamaged)
            if about_disks and len(self._order) > 1 and self._order[0] is source:
                self._order = [*self._order[1:], source]
            kind = (source.number, type(error))
            told = kind in self._told
            self._told.add(kind)
            failure = Failure(image=self.id, source=source, error=error)
            if not told:
                self.failures.append(failure)
        if not told:
            self._failed(failure)

    def close(self) -> None:
        """Close every copy, and with them their disks. Idempotent."""
        with self._lock:
            self._closed = True
            opened, self._open = list(self._open.values()), {}
        with contextlib.ExitStack() as stack:
            for stored in opened:
                stack.callback(stored.close)


class FailoverDisk(disks.Closing):
    """One disk of a ``FailoverImage``; see ``disks.Disk``."""

    def __init__(self, image: FailoverImage, record: units.DiskRecord) -> None:
        self.name = record.name
        self.size = record.size
        self.sector = record.sector
        self._image = image
        self._lock = threading.Lock()
        self._open: dict[int, disks.Disk] = {}

    def extents(self) -> extents.Extents:
        """The blocks that are not zero."""
        return self._image.attempt(lambda source, stored: self._opened(source, stored).extents())

    def pread(self, offset: int, length: int) -> disks.Buffer:
        """Exactly ``length`` proven bytes. Raises what the preferred copy raised where no copy has them."""

        def whole(offset: int, length: int) -> disks.Buffer:
            return self._image.attempt(lambda source, stored: self._opened(source, stored).pread(offset, length))

        try:
            return whole(offset, length)
        except _PASSING:
            blocks = list(extents.pieces(((offset, length),), digests.BLOCK))
            if len(blocks) == 1:
                raise
        # Each copy lacks some of it, and not all of them need lack the same.
        return b"".join(whole(*block) for block in blocks)

    def parts(self, offset: int, length: int) -> Iterator[tuple[int, disks.Buffer]]:
        """The proven parts of a range that are not zero, all of one copy. Raises as ``pread``."""

        def of(source: Source, stored: units.StoredImage) -> list[tuple[int, disks.Buffer]]:
            disk = self._opened(source, stored)
            if isinstance(disk, disks.Parted):
                return list(disk.parts(offset, length))
            return [(offset, disk.pread(offset, length))]

        try:
            found = self._image.attempt(of)
        except _PASSING:
            blocks = list(extents.pieces(((offset, length),), digests.BLOCK))
            if len(blocks) == 1:
                raise
        else:
            yield from found
            return
        for block in blocks:
            yield from self.parts(*block)

    def _opened(self, source: Source, stored: units.StoredImage) -> disks.Disk:
        with self._lock:
            disk = self._open.get(source.number)
            if disk is None:
                disk = self._open[source.number] = self._disk(stored)
            return disk

    def _disk(self, stored: units.StoredImage) -> disks.Disk:
        """The disk on one copy, by the digests of another one where its own list of them is damaged."""
        try:
            return stored.disk(self.name)
        except errors.ImageDamaged:
            # Tells of this copy, too; the list of each copy is proven against the digest that all labels tell.
            return stored.disk(self.name, block_digests=self._image.block_digests(self.name))

    def close(self) -> None:
        """Close it on every copy. Idempotent."""
        with self._lock:
            opened, self._open = list(self._open.values()), {}
        disks.close_all(opened)


class FailoverAttachment:
    """One attachment of a ``FailoverImage``; see ``units.Attachment``."""

    def __init__(self, image: FailoverImage, name: str, pages: tuple[units.Page, ...]) -> None:
        self.name = name
        self.pages = pages
        self._image = image
        self._lock = threading.Lock()
        self._open: dict[int, units.Attachment] = {}

    def read(self, number: int) -> bytes:
        """A page's bytes, proven by the copy that gives them. Raises as ``FailoverDisk.pread``."""
        return self._image.attempt(lambda source, stored: self._opened(source, stored).read(number))

    def _opened(self, source: Source, stored: units.StoredImage) -> units.Attachment:
        with self._lock:
            found = self._open.get(source.number)
            if found is None:
                found = stored.attachment(self.name)
                if found.pages != self.pages:
                    raise errors.ImageDamaged(
                        f"image {self._image.id}: {self.name} on {source.unit} is another one than on the copies before"
                    )
                self._open[source.number] = found
            return found


def worded(source: Source, error: Exception) -> Exception:
    """What is really the matter: a unit that went away, whatever was missed of it first; else the error in words."""
    try:
        identities.read(source.path, source.unit)
    except errors.UnitOffline as gone:
        return gone
    except errors.HoldfastError:
        return error
    if isinstance(error, OSError):
        return errors.UnitError(f"storage unit {source.unit}: {error.strerror}: {error.filename or 'an open file'}")
    return error


def _disks(label: units.ImageLabel) -> frozenset[tuple[str, int, str]]:
    return frozenset((record.name, record.size, record.digest) for record in label.disks)
