"""Looking at a pool as a whole: what it saves, what a collection would do, and whether every byte is what it says.

Called by ``pools`` for ``holdfast pool stats``, ``collect --dry-run`` and ``check``. Nothing here changes anything.
"""

from __future__ import annotations

import dataclasses

from reconciler.base import errors, meters
from reconciler.storage.dedupe import condemnations, containers, reclaims, stores, verdicts, wounds


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PoolStatistics:
    """What a pool holds and what it saves; sizes in bytes."""

    images: int
    #: Of the disks of all images, holes included.
    logical_bytes: int
    #: Of those, what is not zero.
    non_zero_bytes: int
    #: Of all containers.
    stored_bytes: int
    #: Of ``stored_bytes``, pages of attachments and their lists that an image needs and no disk does.
    attachment_bytes: int
    #: ``logical_bytes`` / (``stored_bytes`` - ``attachment_bytes``), None for an empty pool: what lies beside the disks
    #: is not among the bytes that are saved, so it is not among those that saving them cost.
    ratio: float | None
    #: ``non_zero_bytes`` over the same, None for an empty pool.
    non_zero_ratio: float | None
    #: Data segments, a count.
    segments: int
    #: Files, a count.
    containers: int
    #: In containers, records that no image needs.
    dead_bytes: int
    #: Of ``dead_bytes``, what a collection would give back now.
    reclaimable_bytes: int
    #: Share of fingerprint lookups that found their segment, over all commits so far; None before the first.
    cache_hit_ratio: float | None
    generation: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """What a collection would do."""

    verdict: verdicts.Verdict
    #: Bytes of containers that an interrupted collection left condemned.
    waiting_bytes: int
    #: Bytes that deleted images alone hold, which running writers build on.
    pinned_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is wrong in a pool."""

    #: Image id or container file name.
    object: str
    message: str

    def __str__(self) -> str:
        return f"{self.object}: {self.message}"


def statistics(store: stores.Store, found: reclaims.Survey, reclaimable: int) -> PoolStatistics:
    """What a survey comes to. Raises ``OSError``."""
    history, mark, known = found.history, found.mark, store.index.known()
    waiting = condemnations.waiting_bytes(store)
    stored = waiting + sum(row.size for row in known.values())
    of_disks = stored - mark.attachment_bytes
    return PoolStatistics(
        images=len(history.images),
        logical_bytes=mark.logical,
        non_zero_bytes=mark.non_zero,
        stored_bytes=stored,
        attachment_bytes=mark.attachment_bytes,
        ratio=mark.logical / of_disks if of_disks > 0 else None,
        non_zero_ratio=mark.non_zero / of_disks if of_disks > 0 else None,
        segments=sum(row.records for row in known.values() if row.kind == containers.DATA),
        containers=len(known),
        dead_bytes=waiting + found.dead_bytes,
        reclaimable_bytes=reclaimable,
        cache_hit_ratio=history.hits / history.lookups if history.lookups else None,
        generation=history.generation,
    )


def check(store: stores.Store, meter: meters.Meter) -> tuple[Finding, ...]:
    """Follow every image to its segments and prove every byte of every container. Raises ``Cancelled``."""
    found = [
        Finding(object=image, message=f"{one.part}: {one.length} bytes at {one.offset}: {one.message}")
        for image, ranges in wounds.of_all(store, meter)[1].items()
        for one in ranges
    ]
    found += [Finding(object=name, message=message) for name, message in store.damaged.items()]
    for number, kind in list(store.present.items()):
        meter.check()
        path = containers.path(store.folder, number, kind)
        try:
            meter.add(scanned=containers.prove(path, store.header.id).size)
        except (containers.Damaged, errors.FormatTooNew) as error:
            found.append(Finding(object=path.name, message=str(error)))
        except OSError as error:
            found.append(Finding(object=path.name, message=f"{path}: {error.strerror}"))
    return tuple(found)
