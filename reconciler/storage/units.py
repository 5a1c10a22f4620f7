"""The StorageUnit port: where the bytes of images stay.

What a unit holds is known from the unit alone: every image carries its ``ImageLabel``. An image is visible only after
its commit, which is atomic and durable. Every call may be repeated after a crash: ``begin`` with an id that was left
half-written starts over, ``delete`` of an image that is gone does nothing, ``sweep`` removes what no commit finished.
Concurrency: any number of images may be written, read and deleted at once by threads of one process; ``write`` of
different disks of one image too. ``reclaim`` may run beside readers. Every implementation passes
``tests/storage/test_conformance.py``.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol

from reconciler.base import disks, extents, layouts, meters


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DiskRecord:
    """One disk of a stored image."""

    #: The disk's name within its machine.
    name: str
    #: Virtual size in bytes.
    size: int
    #: Logical sector size in bytes.
    sector: int
    #: ``blake3-1m:<hex>`` over the disk's 1 MiB block digests.
    digest: str
    #: Hex of the plain BLAKE3 of the whole disk; None where not all of it was read, or its holes exceed 64 GiB.
    blake3: str | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ImageLabel:
    """What an image says of itself, on every unit it lies on. Enough to rebuild the catalog's rows."""

    #: Unique, safe as a file name.
    id: str
    client_id: str
    client_name: str
    client_slug: str
    #: Where the machine was found, such as ``diskimages:/srv/guests/oblVM1``.
    source: str
    policy: str
    schedule: str
    lifecycle: str
    #: Name of the lifecycle operation that made this copy.
    operation: str
    #: Copy number within the image, from 1.
    copy: int
    #: ``Full``, ``Incremental`` or ``Cumulative``.
    type: str
    #: ``Complete`` or ``Partial``.
    state: str
    #: When the source was frozen.
    time: dt.datetime
    #: Orders images whose times are equal or reversed.
    sequence: int
    #: The slot of the schedule that this image serves.
    slot: dt.datetime
    #: ``main@sha1:...`` or ``dir@blake3:...``.
    revision: str
    #: Image id that this one's changes are relative to, None for a full.
    parent: str | None
    #: ``Known`` or ``FullRead``: how the changes were found.
    changes: str
    #: ``Offline``, ``Snapshot`` or ``Live``.
    consistency: str
    #: ``{"code": ..., "message": ...}`` each.
    warnings: tuple[Mapping[str, str], ...] = ()
    #: The lifecycle spec that fixes the copies this image is owed, as canonical JSON values.
    owed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    #: What the source recorded of this reading for its next incremental, by disk.
    source_state: Mapping[str, str] = dataclasses.field(default_factory=dict)
    #: What is needed beside the disks to make the machine again, as JSON text; None where there is no such thing.
    configuration: str | None = None
    #: Filled by the unit at commit, in the order in which the disks were named at ``begin``.
    disks: tuple[DiskRecord, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WrittenDisk:
    """What writing one disk came to."""

    record: DiskRecord
    #: Blocks whose bytes differ from the parent's, as ranges of the disk; None where there was no parent.
    changed: extents.Extents | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """What a commit made visible."""

    label: ImageLabel
    #: Bytes that this image alone added to the unit.
    stored_bytes: int
    #: Image id on this unit that this copy needs to be readable; None where it stands alone.
    base: str | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """One image that a unit holds."""

    label: ImageLabel
    stored_bytes: int
    base: str | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """Space of a unit, in bytes."""

    total: int
    #: What a write may still take.
    free: int
    #: What this unit's files occupy.
    used: int
    #: Of ``used``, what ``reclaim`` would give back.
    reclaimable: int
    #: Whether that could be told.
    surveyed: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """One finding of ``verify``."""

    image: str
    #: Name of the disk, or of the attachment; empty where the image's label is damaged, and with it all.
    disk: str
    #: First damaged byte range; of an attachment, of its pages put together.
    offset: int
    length: int
    message: str
    #: Whether ``disk`` names an attachment.
    attachment: bool = False

    @property
    def part(self) -> str:
        """What of the image is damaged, in words."""
        if not self.disk:
            return "label"
        return f"{'attachment' if self.attachment else 'disk'} {self.disk}"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """One page of an attachment."""

    #: BLAKE3 of its bytes, 32 bytes.
    digest: bytes
    #: Bytes, from 1 to 1 MiB.
    size: int


class Attachment(Protocol):
    """A document that an image carries beside its disks. Readable from any thread until the image is closed."""

    @property
    def name(self) -> str:
        """Its name within the image."""

    @property
    def pages(self) -> tuple[Page, ...]:
        """Its pages, in the order in which they were given."""

    def read(self, number: int) -> bytes:
        """The bytes of page ``number``, proven against its digest. Raises ``ImageDamaged``, ``UnitError``."""


class ImageWriter(Protocol):
    """An image being written. Exactly one of ``commit`` and ``abort`` ends it; both release everything it holds."""

    def write(
        self,
        disk: disks.Disk,
        *,
        meter: meters.Meter,
        changed: extents.Extents | None = None,
        parent: str | None = None,
        layout: Callable[[], layouts.Layout] | None = None,
    ) -> WrittenDisk:
        """Store one disk, reading each of its bytes at most once and digesting as it goes.

        ``layout`` tells where the guest's files lie; a unit that cuts by them asks once, if it has enough to cut.

        Without ``parent``: the whole disk. With ``parent`` (an image this unit holds, same disk name and size) and
        ``changed`` None: the whole disk is read, and only blocks whose digest differs from the parent's are stored.
        With both: only whole 1 MiB blocks around ``changed`` are read, the rest is the parent's.
        Calls ``meter.check`` before every read. Raises ``Cancelled``, ``SourceError`` or ``UnitError``; the
        writer must then be aborted.
        """

    def attach(self, name: str, pages: Iterable[bytes], *, parent: str | None = None) -> None:
        """Store a document beside the disks, as pages of 1 byte to 1 MiB each, taken one at a time and in order.

        Called at most once per ``name`` (``[a-z0-9][a-z0-9.-]{0,63}``), before ``commit``. What the attachment of the
        same name of ``parent`` holds is not stored again: on a unit with chains where a disk was written against that
        parent before, in a pool whatever image holds it. What ``pages`` raises goes on to the caller, as do
        ``UnitError`` and, for a false name or page, ``ValueError``; then the image has no such attachment, and the
        writer may still commit it, or attach it once more.
        """

    def commit(self, label: ImageLabel, *, meter: meters.Meter | None = None) -> Commit:
        """Make the image visible, durably. ``label`` may differ from the one given at ``begin`` in all but id,
        client and disk names (state, warnings and changes are known only now).

        One that ``replaces`` another is read back before, every byte of it; it takes the other's place in one step.
        ``meter`` stops that. Raises ``UnitError`` where it does not prove true; the other is as it was then.
        """

    def abort(self) -> None:
        """Remove every trace of the unfinished image. Idempotent."""


class StoredImage(Protocol):
    """An image opened for reading."""

    @property
    def label(self) -> ImageLabel:
        """What the image says of itself."""

    @property
    def base(self) -> str | None:
        """The image on this unit that this one needs, if any."""

    def disk(self, name: str, *, block_digests: bytes | None = None) -> disks.Disk:
        """One disk, whole, whatever chain lies under it. Raises ``NotFound``, ``ImageDamaged``. Reads prove each 1 MiB
        block they touch against its stored digest and raise ``ImageDamaged``. ``block_digests``: the disk's list as
        another copy of the image gave it, for one whose own list is damaged."""

    def changed(self, name: str, parent: str) -> extents.Extents | None:
        """The ranges of a disk stored relative to ``parent``, or None where that is not known."""

    def block_digests(self, name: str) -> bytes:
        """The disk's list of 32-byte block digests."""

    def attachments(self) -> tuple[str, ...]:
        """The names of its attachments, in the order in which they were attached. Reads nothing."""

    def attachment(self, name: str) -> Attachment:
        """One attachment. Raises ``NotFound``, or ``ImageDamaged`` where not even its pages are known."""

    def close(self) -> None:
        """Release what reading holds. Idempotent."""


class StorageUnit(Protocol):
    """One storage unit, opened."""

    @property
    def name(self) -> str:
        """The unit's name in the manifests."""

    @property
    def standalone(self) -> bool:
        """Whether every committed image can be read without any other (no chains)."""

    def require_online(self) -> None:
        """Raise ``UnitOffline`` where what was opened is not there any more, or another unit is in its place.

        Calls ask it before they touch anything, so an empty mount point is never taken for an empty unit. To be asked
        once more before anything is concluded from what was not found.
        """

    def begin(self, label: ImageLabel, disk_names: Collection[str], *, replaces: bool = False) -> ImageWriter:
        """Start an image. What a crash left of an earlier start under the same id is removed first.

        ``replaces``: the id may be committed already, and its image can be read until this one takes its place.
        Raises ``UnitReadOnly``, ``UnitFull``, or ``UnitError`` if the id is committed already and must not be.
        """

    def open(self, image_id: str) -> StoredImage:
        """Open a committed image. Raises ``ImageMissing``, ``ImageDamaged`` or ``FormatTooNew``."""

    def reattach(self, image_id: str, name: str, pages: Iterable[bytes]) -> None:
        """Put an attachment of a committed image in the place of the one of that name, durably and in one step; its
        disks are left alone. ``pages`` as for ``attach``, but that what they raise leaves the image as it was.

        Whoever has the old one open may find it damaged from then on. Raises ``UnitReadOnly``, ``UnitFull``,
        ``ImageMissing``, ``ImageDamaged``, or ``UnitError`` where the image went or changed meanwhile.
        """

    def delete(self, image_id: str) -> None:
        """Take a committed image away, durably; one that is gone already is no error. The space may come back only
        at ``reclaim``. Callers have proven that nothing needs the image."""

    def list(self) -> Iterator[Held]:
        """Every committed image, in no stated order. An image whose label cannot be read is left out; ``unreadable``
        names it."""

    def unreadable(self) -> tuple[str, ...]:
        """Names of entries that look like images and whose label cannot be read."""

    def verify(self, image_id: str, *, meter: meters.Meter) -> tuple[Damage, ...]:
        """Re-read every block of the image, and every page of its attachments, and prove its digest."""

    def capacity(self) -> Capacity:
        """Space, measured now."""

    def freed_by(self, image_ids: Collection[str]) -> tuple[int, bool]:
        """Bytes that this unit would no longer need without these images, and whether that was counted or is an
        estimate. Ids that it does not hold count nothing. Changes nothing; raises ``UnitError``."""

    def sweep(self, alive: Collection[str]) -> int:
        """Remove leftovers of writers whose image ids are not in ``alive``; the bytes freed. Only the owner sweeps."""

    def reclaim(self, *, meter: meters.Meter) -> int:
        """Give back the space of deleted images; the bytes freed. May be interrupted at any point and repeated."""

    def close(self) -> None:
        """Release what the unit holds. Idempotent."""
