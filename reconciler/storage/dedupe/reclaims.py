"""Taking back the space of deleted images while backups run: decide, then do.

``survey`` marks and sorts the containers into dead ones and sparse ones; ``verdicts`` judges which of them may go now;
``reclaim`` condemns and deletes the dead, then rewrites the sparse, under the pool's lock and in the order that
``FORMAT.md`` gives. Nothing is deleted unless every image was proven readable down to its index, the log and the
manifests agree, and the container's own footer confirms the verdict.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection

from reconciler.base import crashes, errors, meters
from reconciler.storage.dedupe import (
    condemnations,
    containers,
    journals,
    manifests,
    marks,
    registrations,
    rewrites,
    stores,
    verdicts,
)

_LOCK = "collecting"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What lives in a pool and what does not."""

    mark: marks.Mark
    #: Containers without a live record: id -> footer.
    dead: dict[int, containers.Footer]
    #: Containers that look dead and whose own footer does not bear that out.
    unconfirmed: tuple[verdicts.Kept, ...]
    #: Containers that hold dead records beside live ones.
    sparse: tuple[verdicts.Sparse, ...]
    history: journals.History

    @property
    def dead_bytes(self) -> int:
        """Bytes of all that no image needs."""
        return sum(footer.size for footer in self.dead.values()) + sum(one.dead for one in self.sparse)


def survey(store: stores.Store, meter: meters.Meter) -> Survey:
    """Mark everything and sort every container, without changing anything. Raises ``ImageDamaged`` where that fails,
    and ``FormatTooNew``.

    The result is a statement about the moment when it began.
    """
    history = store.journal.replay()
    listed = marks.every(store)
    # After the images were listed: what any of them needs was there before its manifest. And at the folder itself, as
    # what was taken away by hand, or put back, is in no log.
    store.distrust()
    store.follow(thorough=True)
    if store.newer:
        raise errors.FormatTooNew(
            f"storage unit {store.settings.name}: containers {marks.some(store.newer)} say they are of a newer format;"
            " nothing was deleted",
            hint="upgrade Holdfast; if no newer release ever wrote here, they are damaged",
        )
    mark = marks.Mark(store, meter)
    # What the mark has not heard of it cannot find live.
    candidates = {number: kind for number, kind in store.present.items() if mark.knows(number)}
    mark.add_all(listed)
    mark.require_sound()
    known = store.index.known()
    harmed = store.damages.containers()
    dead: dict[int, containers.Footer] = {}
    unconfirmed, sparse = [], []
    for container, kind in candidates.items():
        meter.check()
        size = known[container].size if container in known else 0
        if container in mark.live:
            live, harm = mark.live_bytes[container], container in harmed
            if harm or size - containers.FRAME > live:
                sparse.append(verdicts.Sparse(container=container, kind=kind, size=size, live=live, damaged=harm))
        elif (footer := _confirmed(store, mark, container, kind)) is not None:
            dead[container] = footer
        else:
            reason = verdicts.Reason.UNCONFIRMED
            unconfirmed.append(verdicts.Kept(container=container, kind=kind, reason=reason, size=size))
    return Survey(mark=mark, dead=dead, unconfirmed=tuple(unconfirmed), sparse=tuple(sparse), history=history)


def judge(store: stores.Store, found: Survey, threshold: int = verdicts.THRESHOLD) -> verdicts.Verdict:
    """What a collection would do now with what a survey found. Raises ``OSError``."""
    return verdicts.judge(store, found.dead, found.sparse, found.unconfirmed, threshold)


def reclaim(store: stores.Store, meter: meters.Meter, threshold: int = verdicts.THRESHOLD) -> int:
    """Collect; the bytes freed. One collection at a time: a second one raises ``UnitError``.

    Raises ``ImageDamaged`` naming images that cannot be marked, with nothing deleted; ``Cancelled``; ``UnitError``.
    """
    with alone(store):
        with store.journal.locked():
            _end_silent(store)
            require_agreement(store)
        found = survey(store, meter)
        meter.check()
        complete = _condemn(store, found)
        freed = condemnations.delete(store)
        verdict = judge(store, found, threshold)
        moved, whole = rewrites.rewrite(store, found.mark, verdict.sparse, meter)
        late = any(kept.reason in verdicts.PASSING for kept in verdict.kept)
        if complete and whole and not late and found.history.owed:
            with store.journal.locked():
                store.journal.append("collected", through=found.history.sequence)
        return freed + moved


def alone(store: stores.Store) -> contextlib.AbstractContextManager[None]:
    """Keep other collections and scrubs out meanwhile. Raises ``UnitError`` where one runs."""
    return store.journal.alone(_LOCK, "another collection or scrub")


def _end_silent(store: stores.Store) -> None:
    for entry in registrations.entries(store.settings.root / "writers"):
        if not entry.alive or entry.silent > registrations.SILENCE:
            registrations.remove(entry.folder)


def require_agreement(store: stores.Store) -> None:
    """The log's images and the manifests must be the same set, which is certain only while the pool's lock is held.

    Raises ``ImageDamaged`` naming those that are not in both, and ``UnitError``.
    """
    history = store.journal.replay()
    found = frozenset(manifests.names(store.settings.root / "manifests"))
    for wrong, message in (
        (history.images - found, "are in its log but have no manifest"),
        (found - history.images, "have a manifest but are not in its log"),
    ):
        if wrong:
            raise errors.ImageDamaged(
                f"storage unit {store.settings.name}: images {marks.some(wrong)} {message}; nothing was deleted",
                hint="put the manifests back, or delete these images",
            )


def _confirmed(store: stores.Store, mark: marks.Mark, container: int, kind: int) -> containers.Footer | None:
    """The footer of a container that is really dead, None where its own footer does not bear that out.

    The mark went by the index. It is right about this container if each fingerprint that the footer names is known
    here and no image needs it, or in another container that truly holds it, or nowhere and no image needs it.
    """
    try:
        footer = containers.read_footer(containers.path(store.folder, container, kind), store.header.id)
    except (containers.Damaged, FileNotFoundError):
        return None
    fingerprints = [record.fingerprint for record in footer.records]
    numbers = store.damages.numbers(container)
    false = {fingerprints[number] for number in numbers if number < len(fingerprints)}
    elsewhere: dict[int, set[tuple[bytes, int]]] = {}
    for fingerprint, location in zip(fingerprints, store.index.find(kind, fingerprints), strict=True):
        if location is not None and location.container in store.present:
            if location.container != container:
                elsewhere.setdefault(location.container, set()).add((fingerprint, location.number))
            elif mark.needs_meta(fingerprint) and fingerprint not in false:
                # The index was emptied and filled again while the mark went by it.
                return None
        elif (
            (mark.needs_meta(fingerprint) and fingerprint not in false)
            or (location is not None and mark.is_live(location.container, location.number))
            # Lost it was, by the list, and here it is.
            or (location is None and fingerprint in store.damages.lost and fingerprint not in false)
        ):
            # A copy that an image needs and that the index had lost sight of: it is found from now on.
            store.index.add(footer, store.present, without=numbers)
            return None
    sound = all(_truly_there(store, mark, other, kind, wanted) for other, wanted in elsewhere.items())
    return footer if sound else None


def _truly_there(
    store: stores.Store, mark: marks.Mark, other: int, kind: int, wanted: Collection[tuple[bytes, int]]
) -> bool:
    """Whether a container holds what the index says it does, as far as any image needs it."""
    if mark.knows(other) and not any(mark.is_live(other, number) for _, number in wanted):
        return True
    try:
        records = containers.read_footer(containers.path(store.folder, other, kind), store.header.id).records
    except (containers.Damaged, FileNotFoundError):
        return False
    return all(number < len(records) and records[number].fingerprint == fingerprint for fingerprint, number in wanted)


def _condemn(store: stores.Store, found: Survey) -> bool:
    """Take the dead containers out of use, unless somebody came to need them; whether all of them went.

    One that an image needs since the mark is not dead any more; one that a running writer uses may be again.
    """
    if not found.dead:
        return True
    with store.journal.locked():
        store.follow(thorough=True)
        found.mark.add_all()
        found.mark.require_sound()
        # No lookup of this process may come between the verdict and the rename.
        with store.mutex:
            users = condemnations.users(store)
            dead = {number: footer for number, footer in found.dead.items() if number not in found.mark.live}
            doomed = {
                number: footer
                for number, footer in dead.items()
                if verdicts.why_kept(store, users, number, footer.kind, moving=False) is None
            }
            if not doomed:
                return not dead
            condemnations.rename(store, {number: footer.kind for number, footer in doomed.items()})
        crashes.passing("pool.condemned")
    for container, footer in doomed.items():
        store.index.forget(container, footer.kind, [record.fingerprint for record in footer.records])
    return len(doomed) == len(dead)
