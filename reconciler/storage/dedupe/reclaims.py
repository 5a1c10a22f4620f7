"""Taking back the space of deleted images while backups run: decide, then do.

``plan`` marks and finds containers none of whose records is live; ``execute`` condemns and deletes them, under the
pool's lock and in the order that ``FORMAT.md`` gives. Nothing is deleted unless every image was proven readable down to
its index, the log and the manifests agree, and the container's own footer confirms the verdict.
Containers that are dead in part are counted, and kept; rewriting them belongs here, between the two.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from reconciler.base import crashes, errors, files, meters
from reconciler.storage.dedupe import containers, journals, manifests, marks, registrations, stores

_LOCK = "collecting"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a collection would do, and what it found."""

    mark: marks.Mark
    #: Containers without a live record: id -> footer.
    dead: dict[int, containers.Footer]
    #: Bytes of those.
    dead_bytes: int
    #: Bytes of dead records in containers that hold live ones too.
    dead_in_live: int
    history: journals.History


def survey(store: stores.Store, meter: meters.Meter) -> Plan:
    """Mark everything and judge every container, without changing anything. Raises ``ImageDamaged`` where that fails,
    and ``FormatTooNew``.

    The result is a statement about the moment when it began.
    """
    history = store.journal.replay()
    images = _images(store)
    # After the images were listed: what any of them needs was there before its manifest.
    store.follow(thorough=True)
    if store.newer:
        raise errors.FormatTooNew(
            f"storage unit {store.settings.name}: containers {_some(store.newer)} say they are of a newer format;"
            " nothing was deleted",
            hint="upgrade Holdfast; if no newer release ever wrote here, they are damaged",
        )
    candidates = dict(store.present)
    mark = marks.Mark(store, meter)
    _mark_all(mark, images)
    _require_sound(store, mark)
    known = store.index.known()
    dead: dict[int, containers.Footer] = {}
    dead_in_live = 0
    for container, kind in candidates.items():
        meter.check()
        if container in mark.live:
            size = known[container].size if container in known else 0
            dead_in_live += size - containers.FRAME - mark.live_bytes[container]
        elif (footer := _confirmed(store, mark, container, kind)) is not None:
            dead[container] = footer
    return Plan(
        mark=mark,
        dead=dead,
        dead_bytes=sum(footer.size for footer in dead.values()),
        dead_in_live=dead_in_live,
        history=history,
    )


def reclaim(store: stores.Store, meter: meters.Meter) -> int:
    """Collect; the bytes freed. One collection at a time: a second one raises ``UnitError``.

    Raises ``ImageDamaged`` naming images that cannot be marked, with nothing deleted; ``Cancelled``; ``UnitError``.
    """
    with _alone(store):
        with store.journal.locked():
            _end_silent(store)
            require_agreement(store)
        plan = survey(store, meter)
        meter.check()
        complete = _condemn(store, plan)
        freed = _delete_condemned(store)
        if complete and plan.history.owed:
            with store.journal.locked():
                store.journal.append("collected", through=plan.history.sequence)
        return freed


@contextlib.contextmanager
def _alone(store: stores.Store) -> Iterator[None]:
    handle = os.open(store.settings.root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise errors.UnitError(
                f"storage unit {store.settings.name}: another collection runs", hint="wait for it"
            ) from error
        yield
    finally:
        os.close(handle)


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
                f"storage unit {store.settings.name}: images {_some(wrong)} {message}; nothing was deleted",
                hint="put the manifests back, or delete these images",
            )


def _images(store: stores.Store) -> list[tuple[str, Path, bool]]:
    """Every committed or pinned image, where its manifest lies, and whether it is a pin."""
    folder = store.settings.root / "manifests"
    found = [(image, folder, False) for image in manifests.names(folder)]
    return found + [(image, place, True) for image, place in registrations.pins(store.settings.root / "writers")]


def _mark_all(mark: marks.Mark, images: Iterable[tuple[str, Path, bool]]) -> None:
    for image, folder, pinned in images:
        mark.add(image, folder, pinned=pinned)


def _require_sound(store: stores.Store, mark: marks.Mark) -> None:
    if mark.problems:
        images = _some(problem.image for problem in mark.problems)
        raise errors.ImageDamaged(
            f"storage unit {store.settings.name}: images {images} cannot be followed to their segments,"
            f" so nothing was deleted: {mark.problems[0].message}",
            hint="delete these images, or put back what is missing",
        )


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")


def _confirmed(store: stores.Store, mark: marks.Mark, container: int, kind: int) -> containers.Footer | None:
    """The footer of a container that is really dead, None where its own footer does not bear that out.

    The mark went by the index. It is right about this container if each fingerprint that the footer names is known
    here, or in another container that truly holds it, or nowhere and no image needs it.
    """
    try:
        footer = containers.read_footer(containers.path(store.folder, container, kind), store.header.id)
    except (containers.Damaged, FileNotFoundError):
        return None
    fingerprints = [record.fingerprint for record in footer.records]
    elsewhere: dict[int, set[tuple[bytes, int]]] = {}
    for fingerprint, location in zip(fingerprints, store.index.find(kind, fingerprints), strict=True):
        if location is not None and location.container in store.present:
            if location.container != container:
                elsewhere.setdefault(location.container, set()).add((fingerprint, location.number))
        elif mark.needs_meta(fingerprint) or (
            location is not None and mark.is_live(location.container, location.number)
        ):
            # A copy that an image needs and that the index had lost sight of: it is found from now on.
            store.index.add(footer, store.present)
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


def _condemn(store: stores.Store, plan: Plan) -> bool:
    """Take the dead containers out of use, unless somebody came to need them; whether all of them went.

    One that an image needs since the mark is not dead any more; one that a running writer uses may be again.
    """
    if not plan.dead:
        return True
    with store.journal.locked():
        store.follow(thorough=True)
        _mark_all(plan.mark, _images(store))
        _require_sound(store, plan.mark)
        # No lookup of this process may come between the verdict and the rename.
        with store.mutex:
            dead = {number: footer for number, footer in plan.dead.items() if number not in plan.mark.live}
            doomed = obtainable(store, dead)
            if not doomed:
                return not dead
            try:
                _rename_condemned(store, doomed)
            except OSError:
                store.distrust()
                raise
        crashes.passing("pool.condemned")
    for container, footer in doomed.items():
        store.index.forget(container, footer.kind, [record.fingerprint for record in footer.records])
    return len(doomed) == len(dead)


def _rename_condemned(store: stores.Store, doomed: Mapping[int, containers.Footer]) -> None:
    for container in doomed:
        store.present.pop(container, None)
    names = [containers.file_name(container, footer.kind) for container, footer in doomed.items()]
    store.journal.append("condemn", containers=names)
    paths = [store.folder / name[:2] / name for name in names]
    for path in paths:
        path.rename(path.with_name(path.name + containers.CONDEMNED))
    _sync(path.parent for path in paths)


def obtainable(store: stores.Store, dead: Mapping[int, containers.Footer]) -> dict[int, containers.Footer]:
    """Those of dead containers that no running writer of this process or of another one may rely on."""
    with store.mutex:
        used = {container for claims in store.users() for container in claims.all()}
    foreign = _foreign_since(store)
    return {
        container: footer
        for container, footer in dead.items()
        if container not in used and _mtime(store, container, footer.kind) < foreign
    }


def _foreign_since(store: stores.Store) -> float:
    """When the first writer of another process began, as nanoseconds of the file system's clock.

    Containers younger than that may be its own, on their way to its commit.
    """
    own = _own(store)
    return min(
        (
            entry.began
            for entry in registrations.entries(store.settings.root / "writers")
            if entry.folder.name not in own
        ),
        default=float("inf"),
    )


def _own(store: stores.Store) -> set[str]:
    return {claims.registration.id for claims in store.users() if claims.registration is not None}


def _mtime(store: stores.Store, container: int, kind: int) -> float:
    try:
        return containers.path(store.folder, container, kind).stat().st_mtime_ns
    except FileNotFoundError:
        return float("inf")


def condemned(store: stores.Store) -> Iterator[os.DirEntry[str]]:
    """Files of condemned containers. Raises ``OSError``."""
    for shard in os.scandir(store.folder):
        for entry in os.scandir(shard.path) if shard.is_dir() else ():
            if entry.name.endswith(containers.CONDEMNED):
                yield entry


def condemned_bytes(store: stores.Store) -> int:
    """Bytes of condemned containers that are still there. Raises ``OSError``."""
    return sum(entry.stat().st_size for entry in condemned(store))


def _delete_condemned(store: stores.Store) -> int:
    """Delete every condemned container, those of an interrupted collection too; the bytes freed."""
    with store.journal.locked():
        doomed = [(Path(entry.path), entry.stat().st_size) for entry in condemned(store)]
        if not doomed:
            return 0
        store.journal.append("remove", containers=[path.name.removesuffix(containers.CONDEMNED) for path, _ in doomed])
        for path, _ in doomed:
            path.unlink()
            crashes.passing("pool.container-deleted")
        _sync(path.parent for path, _ in doomed)
    store.follow()
    return sum(size for _, size in doomed)


def _sync(folders: Iterable[Path]) -> None:
    for folder in set(folders):
        files.sync_folder(folder)


def sweep(store: stores.Store, alive: Collection[str]) -> int:
    """Remove what no commit finished, of images not in ``alive``; the bytes freed."""
    root = store.settings.root
    with store.journal.locked():
        freed = 0
        own = _own(store)
        for entry in registrations.entries(root / "writers"):
            # A writer that another process holds is no leftover, whoever forgot to name it.
            if entry.image not in alive and (not entry.alive or entry.folder.name in own):
                freed += registrations.remove(entry.folder)
        for folder in root.glob(f"writers/{files.TEMPORARY_PREFIX}*"):
            freed += registrations.remove(folder)
        for pattern in ("", "manifests/"):
            for leftover in root.glob(f"{pattern}{files.TEMPORARY_PREFIX}*"):
                freed += leftover.stat().st_size
                leftover.unlink()
    for claims in store.users():
        if claims.registration is not None and not claims.registration.stands:
            store.leave(claims)
    with store.journal.locked():
        for leftover in root.glob(f"containers/*/{files.TEMPORARY_PREFIX}*"):
            freed += _remove_unlocked(leftover)
    return freed


def _remove_unlocked(path: Path) -> int:
    """Remove a file unless a process holds its flock; the bytes freed."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        size = os.fstat(file.fileno()).st_size
        path.unlink()
        return size
    return 0
