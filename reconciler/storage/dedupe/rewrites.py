"""Rewriting: the live records of containers that are mostly dead move into new ones, then the old ones go.

Called by a collection, after the wholly dead containers went. One new container at a time, so that never more than
two containers' space is needed. Each record is proven by its fingerprint before it is copied; a container with a live
record that cannot be proven stays, and the record goes on the list of damage. The index is told last: until then a
crash leaves a new container that nobody refers to.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence

from reconciler.base import crashes, meters
from reconciler.storage.dedupe import (
    appenders,
    condemnations,
    containers,
    damages,
    findings,
    marks,
    stores,
    verdicts,
)

#: Bytes of records read before they are written.
_STEP = 4 << 20
_TWINS = {containers.META_A: containers.META_B, containers.META_B: containers.META_A}

_log = logging.getLogger(__name__)


def rewrite(
    store: stores.Store, mark: marks.Mark, sparse: Sequence[verdicts.Sparse], meter: meters.Meter
) -> tuple[int, bool]:
    """Move what lives in these containers; the bytes freed, and whether all of them went.

    A container whose live record cannot be proven stays this time: the next collection moves the others.
    Raises ``Cancelled``, ``UnitFull`` or ``OSError``, with every container that went before gone for good.
    """
    freed, complete = 0, True
    for kind in containers.SUFFIXES:
        waiting = [one for one in sparse if one.kind == kind]
        while waiting:
            batch = _batch(waiting, min(verdicts.room(store), store.settings.container_size))
            waiting = waiting[len(batch) :]
            meter.check()
            gained, whole = _rewrite(store, mark, kind, [one.container for one in batch], meter)
            freed, complete = freed + gained, complete and whole
    return freed, complete


def _batch(waiting: Sequence[verdicts.Sparse], size: int) -> list[verdicts.Sparse]:
    """As many of the next containers as fit into a new one; at least one."""
    batch = [waiting[0]]
    total = waiting[0].live
    for one in waiting[1:]:
        total += one.live
        if total > size:
            break
        batch.append(one)
    return batch


def _rewrite(
    store: stores.Store, mark: marks.Mark, kind: int, sources: list[int], meter: meters.Meter
) -> tuple[int, bool]:
    """Copy and exchange one batch; the bytes freed, and whether all of it went."""
    target = appenders.OpenContainer(store.folder, store.header.id, kind)
    copied: dict[int, set[int]] = {}
    try:
        for container in sources:
            # One that another process took away, or that cannot be read, is not among those exchanged.
            with contextlib.suppress(FileNotFoundError, containers.Damaged):
                copied[container] = _copy(store, mark, target, container, meter)
        crashes.passing("pool.rewrite-copied")
        meter.check()
        if not target.builder.fingerprints:
            target.drop()
            return 0, False
        footer = target.seal()
    except BaseException:
        target.drop()
        raise
    crashes.passing("pool.rewrite-sealed")
    gone = _exchange(store, mark, footer, copied)
    return condemnations.delete(store) - footer.size, gone == set(sources)


def _copy(
    store: stores.Store, mark: marks.Mark, target: appenders.OpenContainer, container: int, meter: meters.Meter
) -> set[int]:
    """Copy the live records of one container that prove true; their numbers. False ones are put on the list."""
    path = containers.path(store.folder, container, target.kind)
    footer = containers.read_footer(path, store.header.id)
    have = set(target.builder.fingerprints)
    copied: set[int] = set()
    false: list[int] = []
    batch: list[appenders.NewRecord] = []
    size = 0
    with containers.opened(path) as file:
        for number in mark.numbers(container):
            meter.check()
            record = _proven(store, file.fileno(), target.kind, footer.records[number])
            if record is None:
                false.append(number)
                continue
            copied.add(number)
            if record[0] not in have:
                batch.append(record)
                size += len(record[2])
            if size >= _STEP:
                target.append(batch)
                batch, size = [], 0
    if batch:
        target.append(batch)
    if false:
        _log.warning(
            "storage unit %s: %d segments of %s are damaged; see holdfast pool scrub",
            store.settings.name,
            len(false),
            path.name,
        )
        findings.note(store, listed(footer, false))
    return copied


def listed(footer: containers.Footer, numbers: Iterable[int]) -> list[damages.Record]:
    """Records of a container as they stand on the list of damage."""
    return [
        damages.Record(
            container=footer.container, kind=footer.kind, number=number, fingerprint=footer.records[number].fingerprint
        )
        for number in numbers
    ]


def _proven(store: stores.Store, handle: int, kind: int, record: containers.Record) -> appenders.NewRecord | None:
    """A record as it is to be written again, None if it is false. A page that is false here is taken from its twin."""
    stored = containers.pread(handle, containers.RECORD.size + record.stored, record.offset)
    try:
        containers.decode(stored, record.fingerprint, store.header.key)
    except containers.Damaged:
        data = twin(store, kind, record.fingerprint)
        return None if data is None else (record.fingerprint, *containers.compress(data, store.header.level), len(data))
    return record.fingerprint, record.encoding, memoryview(stored)[containers.RECORD.size :], record.raw


def twin(store: stores.Store, kind: int, fingerprint: bytes) -> bytes | None:
    """A page or span from the container of the other kind, None where that does not hold it either."""
    if kind not in _TWINS:
        return None
    try:
        return store.fetch_kind(_TWINS[kind], fingerprint)
    except containers.Damaged:
        return None


def _exchange(
    store: stores.Store, mark: marks.Mark, footer: containers.Footer, copied: Mapping[int, set[int]]
) -> set[int]:
    """Take the old containers out of use for the new one; which of them.

    One of which somebody needs more by now than was copied, or on which a running writer relies, stays.
    """
    with store.journal.locked():
        store.follow(thorough=True)
        mark.add_all()
        mark.require_sound()
        with store.mutex:
            users = condemnations.users(store)
            doomed = {
                container: footer.kind
                for container, numbers in copied.items()
                if numbers.issuperset(mark.numbers(container))
                and container in store.present
                and verdicts.why_kept(store, users, container, footer.kind, moving=True) is None
            }
            if not doomed:
                return set()
            forgotten = {container: _fingerprints(store, container, footer.kind) for container in doomed}
            condemnations.rename(store, doomed)
            crashes.passing("pool.rewrite-condemned")
            # Before its container is present nobody is led to a segment in it.
            store.index.add(footer, set(store.present) - {footer.container})
            store.present[footer.container] = footer.kind
    crashes.passing("pool.rewrite-indexed")
    for container, fingerprints in forgotten.items():
        store.index.forget(container, footer.kind, fingerprints)
    return set(doomed)


def _fingerprints(store: stores.Store, container: int, kind: int) -> list[bytes]:
    path = containers.path(store.folder, container, kind)
    return [record.fingerprint for record in containers.read_footer(path, store.header.id).records]
