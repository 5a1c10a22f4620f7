"""From a manifest's words to an opened storage unit: first use, looking without touching, and a registry of open units.

The one place that knows which unit types there are.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from reconciler.base import digests, errors, files, quantities
from reconciler.storage import directory, identities, units
from reconciler.storage.dedupe import pools, rounds


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Declared:
    """What a manifest says of a unit, as plain values."""

    name: str
    #: ``Directory`` or ``DedupePool``.
    type: str
    path: Path
    #: Bytes per segment and zstd level, for a pool's first use.
    segment_size: int = 128 * 1024
    level: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """A unit as its folder shows it, without writing a byte."""

    #: Online, Offline or ReadOnly.
    state: str
    message: str
    #: None before first use.
    identity: identities.Identity | None


def declared(name: str, type: str, path: str, segment_size: str | None, level: int | None) -> Declared:
    """Plain values from a manifest's spelling."""
    return Declared(
        name=name,
        type=type,
        path=Path(path),
        segment_size=quantities.parse_size(segment_size) if segment_size else 128 * 1024,
        level=level or 1,
    )


def look(unit: Declared, *, known_id: str | None, owner: str | None) -> Look:
    """What is under the unit's path. ``known_id`` is the UUID the catalog knows it by, None before first use;
    ``owner`` the catalog's id, None before there is a catalog."""
    if not unit.path.is_dir():
        return Look(
            state="Offline",
            message=f"{unit.path} is not a folder; mount it, create it, or correct the path",
            identity=None,
        )
    try:
        identity = identities.read(unit.path, unit.name)
    except errors.UnitOffline as error:
        if known_id is not None or (unit.path / identities.FILE_NAME).exists():
            return Look(state="Offline", message=str(error), identity=None)
        return _first_look(unit)
    except errors.HoldfastError as error:
        return Look(state="Offline", message=str(error), identity=None)
    if known_id is not None and identity.id != known_id:
        message = (
            f"{unit.path} holds unit {identity.id}, the catalog knows {unit.name} as {known_id}; mount the right one"
        )
        return Look(state="Offline", message=message, identity=identity)
    if identity.type != unit.type:
        message = f"{unit.path} holds a {identity.type}, the manifest says {unit.type}"
        return Look(state="Offline", message=message, identity=identity)
    if identity.owner != owner:
        message = f"owned by another catalog ({identity.owner}); take it over with: holdfast unit adopt {unit.name}"
        return Look(state="ReadOnly", message=message, identity=identity)
    if not os.access(unit.path, os.W_OK):
        return Look(
            state="ReadOnly",
            message=f"{unit.path} refuses writes; check mount options and permissions",
            identity=identity,
        )
    return Look(state="Online", message="", identity=identity)


def proven(unit: Declared) -> rounds.Standing | None:
    """When a pool's stored data was read again last; None for any other unit, and before first use."""
    return rounds.standing(unit.path) if unit.type == "DedupePool" else None


def _first_look(unit: Declared) -> Look:
    if not os.access(unit.path, os.W_OK):
        return Look(
            state="Offline", message=f"{unit.path} refuses writes; check mount options and permissions", identity=None
        )
    return Look(state="Online", message="first use", identity=None)


def prepare(unit: Declared, owner: str) -> identities.Identity:
    """First use: give the folder its identity, durably. An identity that is there already is returned as it is."""
    with files.unit_errors(unit.name):
        try:
            return identities.read(unit.path, unit.name)
        except errors.UnitOffline:
            if not unit.path.is_dir():
                raise
        identity = identities.new(unit.type, owner)
        if unit.type == "DedupePool":
            pools.create(unit.path, identity, segment_size=unit.segment_size, level=unit.level)
        identities.write(unit.path, identity)
        return identity


def open_unit(
    unit: Declared, *, owner: str | None, cache: Path | None = None, memory: int | None = None
) -> units.StorageUnit:
    """Open a unit that has its identity. ``memory``: bytes of decoded data to keep, for who reads at random.

    Raises ``UnitOffline``, ``FormatTooNew`` or ``UnitError``.
    """
    identity = identities.read(unit.path, unit.name)
    if identity.type == "DedupePool":
        return pools.DedupePool(
            name=unit.name, root=unit.path, identity=identity, owner=owner, cache=cache, memory=memory
        )
    return directory.DirectoryUnit(name=unit.name, root=unit.path, identity=identity, owner=owner, memory=memory)


def open_folder(path: Path, cache: Path | None = None, *, memory: int | None = None) -> units.StorageUnit:
    """Open a unit by its folder alone, for reading: no catalog, no manifest. Raises ``UnitOffline``.

    ``cache``: folder of an estate's caches, for those who have one; ``memory``: see ``open_unit``.
    """
    identity = identities.read(path, str(path))
    found = Declared(name=path.name or str(path), type=identity.type, path=path)
    return open_unit(found, owner=None, cache=_own_cache(cache, identity, path), memory=memory)


def open_image(unit: units.StorageUnit, image: str) -> units.StoredImage:
    """Open an image of a unit that is all there is: where it does not hold the image, the error names some that it
    holds. Raises what ``StorageUnit.open`` raises."""
    try:
        return unit.open(image)
    except errors.ImageMissing as error:
        newest = sorted((one.label.time, one.label.id) for one in unit.list())[::-1]
        names = ", ".join(id for _, id in newest[:5])
        hint = f"of {len(newest)} images the newest are {names}" if newest else "it holds no images"
        raise errors.ImageMissing(error.message, hint=hint) from error


def require_outside(to: Path, folders: Iterable[Path]) -> None:
    """Raise ``UsageError`` for a place that nothing may be restored to: inside a storage unit, whose folders these are,
    or among the devices, where a folder made for a device that is not there would fill the memory."""
    place = to.resolve()
    for folder in folders:
        if place.is_relative_to(folder.resolve()):
            raise errors.UsageError(
                f"{to} lies inside the storage unit at {folder}", hint="restore to a folder of its own"
            )
    if not place.exists() and place.is_relative_to("/dev") and not place.is_relative_to("/dev/shm"):
        raise errors.UsageError(f"there is no device {to}", hint="lsblk lists those of this machine")


def _own_cache(cache: Path | None, identity: identities.Identity, path: Path) -> Path | None:
    """The folder of one unit's caches: a copy of a unit has the identity of the original, and other content."""
    place = digests.digest(os.fsencode(os.path.realpath(path))).hex()[:8]
    return cache / f"{identity.id}-{place}" if cache else None


class OpenUnits:
    """The units of one process, opened when first asked for and shared by all threads."""

    def __init__(self, owner: str | None, cache: Path | None) -> None:
        self._owner = owner
        self._cache = cache
        self._lock = threading.Lock()
        self._declared: dict[str, Declared] = {}
        self._open: dict[str, tuple[Declared, str, units.StorageUnit]] = {}

    def declare(self, declared_units: dict[str, Declared]) -> None:
        """The units that names now mean. One whose path changed is opened anew."""
        with self._lock:
            self._declared = dict(declared_units)

    def get(self, name: str) -> units.StorageUnit:
        """The unit, opened. Raises ``NotFound``, ``UnitOffline`` (also when another unit is mounted in its place)."""
        with self._lock:
            try:
                wanted = self._declared[name]
            except KeyError as error:
                raise errors.NotFound(f"storage unit {name} is not declared") from error
            identity = identities.read(wanted.path, name)
            found = self._open.get(name)
            if found and found[0] == wanted and found[1] == identity.id:
                return found[2]
            if found:
                found[2].close()
            unit = open_unit(wanted, owner=self._owner, cache=_own_cache(self._cache, identity, wanted.path))
            self._open[name] = (wanted, identity.id, unit)
            return unit

    def require(self, name: str) -> None:
        """Ask the unit that ``get`` gave last whether it is still there; see ``units.StorageUnit.require_online``."""
        with self._lock:
            unit = self._open[name][2]
        unit.require_online()

    def close(self) -> None:
        """Close every open unit."""
        with self._lock:
            for _, _, unit in self._open.values():
                unit.close()
            self._open.clear()


def measure(unit: Declared, open_units: OpenUnits | None) -> units.Capacity:
    """The space of a unit. Before first use, or without a catalog to open it with, that of its file system alone."""
    if open_units is not None:
        return open_units.get(unit.name).capacity()
    with files.unit_errors(unit.name):
        space = os.statvfs(unit.path)
    total, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
    return units.Capacity(total=total, free=free, used=0, reclaimable=0)
