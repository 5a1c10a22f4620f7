"""What all users of one pool share in one process: its containers, its index, the segments being written and read.

``share`` hands out one ``Store`` per folder and access, counted; the last ``release`` closes it. ``place`` is the way
in for segments, ``fetch`` the way out; both go by fingerprint alone and know nothing of disks and images.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import os
import threading
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from reconciler.base import clocks, disks, errors, files
from reconciler.storage import memories
from reconciler.storage.dedupe import appenders, containers, damages, headers, indexes, journals, runs

#: Bytes of decoded data segments kept, where nobody asks for more.
KEPT: Final = 32 << 20
#: Entries of the index that lead nowhere, at least, before all of them are looked for.
_WASTE: Final = 1000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How a process uses a pool."""

    root: Path
    #: The unit's name in the manifests, for messages.
    name: str
    writable: bool
    #: Folder of the fingerprint index. None for the default: in the pool, or a temporary one where that is only read.
    cache: Path | None
    #: Bytes at which a container is closed.
    container_size: int = containers.TARGET_SIZE
    #: Bytes of decoded segments to keep; each opened image keeps up to a quarter of that in whole blocks besides.
    memory: int = KEPT


class Store:
    """One pool in one process. Thread-safe. Made by ``share`` alone."""

    def __init__(self, settings: Settings, header: headers.Header) -> None:
        self.settings = settings
        self.header = header
        self.journal = journals.Journal(settings.root, settings.name, clocks.from_environment())
        self.folder = settings.root / "containers"
        self.references = 0
        #: Guards ``present``, ``damaged`` and ``_users``; a lookup and its claim are one step under it.
        self.mutex = threading.RLock()
        #: Containers that lookups may lead to: id -> kind.
        self.present: dict[int, int] = {}
        #: Container files whose footer cannot be proven, and why.
        self.damaged: dict[str, str] = {}
        #: Those of them that say they are of a newer format.
        self.newer: list[str] = []
        #: Records that lookups never lead to, and segments known to be lost.
        self.damages = damages.Damages()
        self._users: set[appenders.Claims] = set()
        self._generation = self._sequence = -1
        self._kept: memories.Memory[bytes] = memories.Memory(settings.memory)
        folder = settings.cache or settings.root / "index"
        if not settings.writable and (settings.cache is None or not indexes.usable(folder)):
            self.index = indexes.fleeting(str(header.id), settings.name)
        else:
            self.index = indexes.share(folder, str(header.id), settings.name)
        self.workers = concurrent.futures.ThreadPoolExecutor(max(os.cpu_count() or 1, 2), "pool-worker")
        self._sealers = concurrent.futures.ThreadPoolExecutor(len(containers.SUFFIXES), "pool-sealer")
        self._appenders = {
            kind: appenders.Appender(
                folder=self.folder,
                pool=header.id,
                kind=kind,
                target=settings.container_size,
                sealed=self._sealed,
                room=self.require_room,
                indexed=self._indexed,
                executor=self._sealers,
            )
            for kind in containers.SUFFIXES
        }

    def close(self) -> None:
        """Close for good; called by ``release``."""
        for appender in self._appenders.values():
            appender.discard(())
        self._sealers.shutdown()
        self.workers.shutdown()
        indexes.release(self.index)

    # What is there

    def follow(self, *, thorough: bool = False) -> None:
        """Take note of the containers that others took away since the last look; with ``thorough``, of those that
        they added too. Raises ``UnitError``."""
        with self.mutex:
            last = self.journal.last()
            if last.generation != self._generation or (thorough and last.sequence != self._sequence):
                self._reconcile()
                self._generation, self._sequence = last.generation, last.sequence

    def distrust(self) -> None:
        """Compare with the folder at the next look, whatever the log says."""
        with self.mutex:
            self._generation = -1

    def look_again(self) -> None:
        """Before a segment is said to be missing: another process may have collected, moved or added it, and may be
        between forgetting the old place and noting the new one. Raises ``UnitError``."""
        self.distrust()
        self.follow()
        with self.mutex:
            self.uncover()

    def _reconcile(self) -> None:
        before = set(self.present)
        known = self.index.known()
        found = dict(self.files())
        # Known before the folder was listed, so these were there once.
        gone = known.keys() - found.keys()
        for number in before - set(found):
            del self.present[number]
        self.damaged.clear()
        self.newer.clear()
        self.heed_damages()
        unknown = {number: kind for number, kind in found.items() if number not in known or known[number].kind != kind}
        self.present.update((number, kind) for number, kind in found.items() if number not in unknown)
        for number, kind in unknown.items():
            self._learn(number, kind)
        lost = sum(known[number].records for number in gone)
        if lost > _WASTE and lost * 4 > sum(row.records for row in known.values()):
            # Entries that lead nowhere are misses, so harmless; but that many of them are a waste.
            self.index.prune(gone)
        else:
            for number in gone:
                self.index.forget(number, known[number].kind, ())
        if self.index.withdraw(self.damages.records) or gone:
            self.uncover()

    def heed_damages(self) -> None:
        """Read the list of damage anew; one that cannot be read is damage itself, and no list."""
        try:
            self.damages = damages.read(self.settings.root)
        except errors.ImageDamaged as error:
            self.damages = damages.Damages()
            self.damaged[damages.NAME] = str(error)

    def uncover(self) -> None:
        """Note again the containers whose segments were known elsewhere: that may be where they are no longer."""
        for number, row in self.index.known().items():
            if row.shadowed and number in self.present:
                self._learn(number, row.kind)

    def _learn(self, number: int, kind: int) -> None:
        path = containers.path(self.folder, number, kind)
        try:
            footer = containers.read_footer(path, self.header.id)
        except FileNotFoundError:
            return
        except errors.FormatTooNew as error:
            # Perhaps a newer release wrote it, perhaps one byte is damaged: the rest of the pool goes on either way.
            self.damaged[path.name] = str(error)
            self.newer.append(path.name)
            return
        except containers.Damaged as error:
            self.damaged[path.name] = str(error)
            return
        self.index.add(footer, self.present, without=self.damages.numbers(number))
        self.present[number] = kind

    def files(self) -> Iterator[tuple[int, int]]:
        """Id and kind of every container in place, condemned ones left out. Raises ``OSError``."""
        for shard in os.scandir(self.folder):
            for entry in os.scandir(shard.path) if shard.is_dir() else ():
                parsed = containers.parse_name(entry.name)
                if parsed is not None:
                    yield parsed

    # Segments in

    def join(self, claims: appenders.Claims) -> None:
        """Begin to write: what ``claims`` rely on is safe from collections until ``leave``."""
        with self.mutex:
            self._users.add(claims)

    def leave(self, claims: appenders.Claims) -> None:
        """End of a writer; open containers that nobody else relies on are dropped. Idempotent."""
        with self.mutex:
            self._users.discard(claims)
            others = list(self._users)
        for appender in self._appenders.values():
            appender.discard(others)

    def users(self) -> list[appenders.Claims]:
        """The writers of this process."""
        with self.mutex:
            return list(self._users)

    def place(self, kind: int, segments: Mapping[bytes, disks.Buffer], claims: appenders.Claims) -> appenders.Added:
        """Store what is missing of ``segments`` (by fingerprint); what that came to.

        Raises ``UnitFull`` or ``UnitError``.
        """
        with files.unit_errors(self.settings.name):
            appender, level = self._appenders[kind], self.header.level
            # Read before looking: what is sealed in between is looked up once more by the appender.
            seals = appender.seals
            known = appender.pending(segments, claims)
            known |= self._indexed(kind, [found for found in segments if found not in known], claims)
            records = [
                (fingerprint, *containers.compress(data, level), len(data))
                for fingerprint, data in segments.items()
                if fingerprint not in known
            ]
            added = appender.append(records, claims, seals) if records else appenders.Added()
        claims.count(stored=added.stored)
        return added

    def place_meta(self, fingerprint: bytes, data: bytes, claims: appenders.Claims) -> int:
        """Store a page or a span in each of its two places; the bytes that this took. Raises as ``place`` does."""
        return sum(self.place(kind, {fingerprint: data}, claims).stored for kind in containers.META)

    def beat(self, claims: appenders.Claims) -> None:
        """Say that a writer lives; cheap enough for every batch. Raises ``UnitError``."""
        if claims.registration is not None:
            with files.unit_errors(self.settings.name):
                claims.registration.beat()

    def _indexed(self, kind: int, fingerprints: Sequence[bytes], claims: appenders.Claims) -> set[bytes]:
        """Which of these lie in containers that are in place; they are claimed."""
        locations = self.index.find(kind, fingerprints)
        with self.mutex:
            present = self.present
            found = {
                fingerprint: location.container
                for fingerprint, location in zip(fingerprints, locations, strict=True)
                if location is not None and location.container in present
            }
            claims.use(set(found.values()))
        return set(found)

    def flush(self, claims: appenders.Claims) -> None:
        """Make everything that ``claims`` rely on durable. Raises ``UnitFull`` or ``UnitError``."""
        for appender in self._appenders.values():
            appender.flush(claims)
        appenders.wait(claims, self.settings.name)

    def _sealed(self, footer: containers.Footer) -> None:
        with self.mutex:
            self.index.add(footer, self.present)
            self.present[footer.container] = footer.kind

    def require_room(self, needed: int) -> None:
        """Raise ``UnitFull`` where ``needed`` bytes more would use up the reserve that collecting needs."""
        space = os.statvfs(self.settings.root)
        if space.f_bavail * space.f_frsize < needed + reserve(self.settings.root):
            raise errors.UnitFull(
                f"storage unit {self.settings.name}: no space left",
                hint="free space, or let copies expire and collect, then the next attempt goes on",
            )

    # Segments out

    def fetch_meta(self, fingerprint: bytes) -> bytes:
        """One page or span, from whichever of its two copies is good. Raises ``containers.Damaged``."""
        return bytes(self._fetch(containers.META, [fingerprint])[fingerprint])

    def fetch_kind(self, kind: int, fingerprint: bytes) -> bytes:
        """One page or span from its container of this very kind. Raises ``containers.Damaged``."""
        return bytes(self._fetch((kind,), [fingerprint])[fingerprint])

    def fetch(
        self,
        fingerprints: Collection[bytes],
        *,
        prove: bool = True,
        places: Mapping[bytes, memoryview] = types.MappingProxyType({}),
    ) -> dict[bytes, disks.Buffer]:
        """Data segments, each proven unless the caller does that; ``places``: where some are wanted, see
        ``containers.decode``. Raises ``containers.Damaged`` for one that is missing or false."""
        result: dict[bytes, disks.Buffer] = {}
        for fingerprint in fingerprints:
            kept = self._kept.get(fingerprint)
            if kept is not None:
                result[fingerprint] = kept
        rest = [fingerprint for fingerprint in dict.fromkeys(fingerprints) if fingerprint not in result]
        if rest:
            result.update(self._fetch((containers.DATA,), rest, prove=prove, places=places))
        return result

    def keep(self, fingerprint: bytes, segment: disks.Buffer) -> None:
        """Keep a data segment in memory for a while: only a part of it was wanted, the rest will be soon."""
        # A view would keep all that was read with it.
        self._kept.put(fingerprint, bytes(segment))

    def segment(self, fingerprint: bytes) -> disks.Buffer:
        """One data segment, proven, and kept in memory for a while. Raises ``containers.Damaged``."""
        kept = self._kept.get(fingerprint)
        if kept is None:
            kept = self._fetch((containers.DATA,), [fingerprint])[fingerprint]
            self._kept.put(fingerprint, kept)
        return kept

    def locate(self, kind: int, fingerprints: Sequence[bytes]) -> list[indexes.Location | None]:
        """Where each segment lies in a container that is in place, None where that is not known.

        What another process sealed since this one looked stands in no line of the log; its file tells.
        """
        locations = self.index.find(kind, fingerprints)
        with self.mutex:
            absent = {one.container for one in locations if one is not None and one.container not in self.present}
            for container in absent:
                if containers.path(self.folder, container, kind).exists():
                    self._learn(container, kind)
            return [one if one is not None and one.container in self.present else None for one in locations]

    def _fetch(
        self,
        kinds: Sequence[int],
        fingerprints: list[bytes],
        *,
        prove: bool = True,
        places: Mapping[bytes, memoryview] = types.MappingProxyType({}),
    ) -> dict[bytes, disks.Buffer]:
        """Segments from the first of ``kinds`` that holds them all. Raises ``containers.Damaged``."""
        problem = containers.Damaged("it is in no container")
        for again in (False, True):
            if again:
                self.look_again()
            for kind in kinds:
                try:
                    return self._read(kind, fingerprints, self.header.key if prove else None, places)
                except FileNotFoundError as error:
                    problem = containers.Damaged(f"container {error.filename} is gone")
                except containers.Damaged as error:
                    problem = error
        raise problem

    def _read(
        self, kind: int, fingerprints: list[bytes], key: bytes | None, places: Mapping[bytes, memoryview]
    ) -> dict[bytes, disks.Buffer]:
        wanted = list[runs.Located]()
        for fingerprint, location in zip(fingerprints, self.locate(kind, fingerprints), strict=True):
            if location is None:
                raise containers.Damaged(f"segment {fingerprint.hex()[:16]} is in no container")
            wanted.append((location.container, location.offset, location.length, fingerprint))
        wanted.sort()
        result: dict[bytes, disks.Buffer] = {}
        for container, located in itertools.groupby(wanted, key=lambda one: one[0]):
            result.update(runs.read(containers.path(self.folder, container, kind), located, key, places))
        return result


def reserve(root: Path) -> int:
    """Bytes that writers leave free, so that a full pool can still be collected."""
    space = os.statvfs(root)
    return min(2 * containers.TARGET_SIZE, space.f_blocks * space.f_frsize // 20)


_shared: dict[tuple[str, bool], Store] = {}
_shared_lock = threading.Lock()


def share(settings: Settings) -> Store:
    """The process's store for a pool; every call is paid back by ``release``. Raises ``UnitError`` kinds."""
    key = (os.path.realpath(settings.root), settings.writable)
    with _shared_lock:
        store = _shared.get(key)
        if store is None:
            with files.unit_errors(settings.name):
                store = Store(settings, headers.read(settings.root, settings.name))
            _shared[key] = store
        store.references += 1
    return store


def release(store: Store) -> None:
    """Give a store back; the last one closes it."""
    key = (os.path.realpath(store.settings.root), store.settings.writable)
    with _shared_lock:
        store.references -= 1
        if store.references == 0:
            del _shared[key]
            store.close()
