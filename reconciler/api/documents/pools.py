"""What the commands on a deduplicating pool print."""

from __future__ import annotations

from typing import Literal

from reconciler.api.documents import shapes


class PoolStats(shapes.Document):
    """``pool stats``. ``ratio`` = logical / (stored - attachment), ``nonZeroRatio`` = non-zero / the same, over all
    images. ``attachmentBytes``: of what is stored, documents that images carry beside their disks."""

    kind: Literal["PoolStats"] = "PoolStats"
    unit: str
    images: int
    logical_bytes: int
    non_zero_bytes: int
    stored_bytes: int
    attachment_bytes: int
    ratio: float | None
    non_zero_ratio: float | None
    segments: int
    containers: int
    dead_bytes: int
    reclaimable_bytes: int
    cache_hit_ratio: float | None
    generation: int


class CollectPart(shapes.Shape):
    """Containers that a collection takes; ``bytes`` is what comes back, what is written anew taken off."""

    containers: int
    bytes: int


class CollectKept(shapes.Shape):
    """Dead bytes that a collection leaves, and why."""

    code: str
    message: str
    containers: int
    bytes: int


class CollectPreview(shapes.Document):
    """``pool collect --dry-run``. ``waitingBytes``: condemned by a collection that was interrupted."""

    kind: Literal["CollectPreview"] = "CollectPreview"
    unit: str
    threshold_percent: int
    freed_bytes: int
    waiting_bytes: int
    dead: CollectPart
    rewritten: CollectPart
    kept: tuple[CollectKept, ...]


class ScrubRange(shapes.Shape):
    """A range of an image's disk, or of an attachment of that name, that the pool cannot give back now."""

    image: str
    disk: str
    attachment: bool
    offset: int
    length: int
    message: str


class ScrubResult(shapes.Document):
    """``pool scrub``. ``complete``: a round over all containers ended; else the next scrub goes on where this one was.

    ``damagedCopies`` and ``healedCopies`` are what the catalog learned. The disks of ``indexedCopies`` and
    ``unindexedCopies`` are whole; their index of files was damaged, and made anew or, with the reason, not.
    """

    kind: Literal["ScrubResult"] = "ScrubResult"
    unit: str
    complete: bool
    round_started: shapes.Time
    containers: int
    read_bytes: int
    remaining_bytes: int
    false_segments: int
    healed_segments: int
    lost_segments: int
    findings: tuple[str, ...]
    ranges: tuple[ScrubRange, ...]
    damaged_copies: tuple[str, ...]
    healed_copies: tuple[str, ...]
    indexed_copies: tuple[str, ...]
    unindexed_copies: tuple[str, ...]
