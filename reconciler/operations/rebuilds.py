"""Rebuild: the catalog again from its storage units, after its state folder was lost.

``find`` looks what the units and files offer: dumps that the loop left on every unit, and backups of the catalog by a
policy with ``source: {catalog: {}}``. ``rebuild`` takes the newest that can be read, and what all labels say beside it.
The units are opened for reading alone, whoever owns them; nothing is written but the catalog.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from reconciler.base import errors, extents, meters, times
from reconciler.catalog import contents, database, dumps, pages, rebuilds, restores
from reconciler.operations import recovery
from reconciler.planning import desired, restorations
from reconciler.sources import catalogs
from reconciler.storage import identities, opening, units

#: Bytes that are read of a stored backup at a time.
_CHUNK: Final = 1 << 20
_LISTED: Final = 3


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """A unit to rebuild from."""

    path: Path
    #: Its name in the manifests, None where they do not declare it.
    name: str | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What is asked for."""

    units: tuple[Given, ...]
    #: Dumps, or restored backups of the catalog.
    files: tuple[Path, ...] = ()
    #: UUID of the catalog, where what is given belongs to several.
    catalog: str | None = None
    #: The backup of the catalog to use, None for the newest of everything.
    image: str | None = None
    reason: str = ""
    #: Restores of the manifests that replace what lies at their targets.
    restores: tuple[restores.Overwriting, ...] = ()
    #: Whether the catalog that is made is only looked at.
    rehearsal: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """Contents of a catalog that were found."""

    #: Dump, Image or File.
    kind: str
    #: Path of the file, or id of the image.
    place: str
    head: contents.Head
    #: When they were written, as far as is known.
    at: dt.datetime
    #: Parsed, from the first one on.
    lines: Callable[[], Iterator[Any]]


@dataclasses.dataclass(kw_only=True, slots=True)
class Found:
    """What the units and files offer. Close it."""

    catalog: str
    units: tuple[tuple[Given, identities.Identity, units.StorageUnit], ...]
    #: Newest first.
    candidates: tuple[Candidate, ...]
    warnings: list[str]
    stack: contextlib.ExitStack

    def close(self) -> None:
        """Close the units."""
        self.stack.close()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rebuilt:
    """What it came to."""

    catalog: str
    used: Candidate | None
    tally: rebuilds.Tally
    warnings: tuple[str, ...]


require_empty = rebuilds.require_empty


def overwriting(wanted: desired.Desired) -> tuple[restores.Overwriting, ...]:
    """The restores of the manifests that must not be made twice: they replace something, or make a machine."""
    return tuple(
        restores.Overwriting(
            name=name,
            digest=restorations.digest(item),
            client=item.spec.client,
            image=item.spec.image,
            target=item.spec.target.place,
            format=item.spec.form,
        )
        for name, item in sorted(wanted.restores.items())
        if item.spec.overwrite or item.spec.target.vmware is not None
    )


def find(wish: Wish, meter: meters.Meter) -> Found:
    """Open what is given and look what it offers.

    Raises ``UsageError`` where it belongs to several catalogs or two folders are one unit, ``NotFound`` for an image
    that is not there, and what opening a unit raises.
    """
    with contextlib.ExitStack() as stack:
        warnings: list[str] = []
        opened = []
        for given in wish.units:
            identity = identities.read(given.path, str(given.path))
            unit = stack.enter_context(contextlib.closing(opening.open_folder(given.path)))
            opened.append((given, identity, unit))
        of_files = [_of_file(path) for path in wish.files]
        catalog = _catalog(wish, [one for _, one, _ in opened], of_files)
        mine = []
        places: dict[str, Path] = {}
        for given, identity, unit in opened:
            if identity.owner != catalog:
                warnings.append(
                    f"{given.path} belongs to catalog {identity.owner} and is left out;"
                    " holdfast unit adopt takes it over"
                )
                continue
            if (other := places.setdefault(identity.id, given.path)) != given.path:
                # What one holds and the other does not would count as lost.
                raise errors.UsageError(
                    f"{other} and {given.path} both are unit {identity.id}: one is a copy of the other",
                    hint="give the one that is to be used from now on",
                )
            mine.append((given, identity, unit))
        found = [one for one in of_files if one.head.catalog == catalog]
        for given, _, unit in mine:
            found += _of_unit(given, unit, catalog, warnings, meter)
        chosen = _chosen(wish, found)
        return Found(catalog=catalog, units=tuple(mine), candidates=chosen, warnings=warnings, stack=stack.pop_all())


def rebuild(
    db: database.Database, found: Found, wish: Wish, now: dt.datetime, actor: str, meter: meters.Meter
) -> Rebuilt:
    """Fill an empty catalog. Raises ``TargetExists``, ``LeaseHeld`` where the lost one's controller lives,
    ``Cancelled``, and ``CatalogError`` where the backup that was asked for cannot be read."""
    rebuilds.require_empty(db)
    warnings = list(found.warnings)
    mark = max((one.head.mark for one in found.candidates), default=0)
    for candidate in (*found.candidates, None):
        used = {"dump": candidate.place, "at": times.show(candidate.at)} if candidate is not None else {"dump": None}
        order = rebuilds.Order(
            catalog=found.catalog,
            lines=candidate.lines() if candidate is not None else None,
            units=tuple(_unit(given, identity, unit, meter) for given, identity, unit in found.units),
            mark=mark,
            details={"reason": wish.reason, **used},
            restores=wish.restores,
            rehearsal=wish.rehearsal,
        )
        try:
            tally = rebuilds.rebuild(db, order, now, actor)
        except (contents.Damaged, errors.UnitError, OSError) as error:
            if candidate is None or wish.image is not None:
                raise
            told = error if isinstance(error, errors.HoldfastError) else f"{error.strerror}"
            warnings.append(f"{candidate.place} cannot be used: {told}")
            continue
        warnings += _told(candidate, tally)
        if candidate is None:
            nameless = sum(len(unit.unreadable()) for _, _, unit in found.units)
            warnings += [f"{nameless} images have labels that cannot be read: they are left out"] if nameless else []
        return Rebuilt(catalog=found.catalog, used=candidate, tally=tally, warnings=tuple(warnings))
    raise AssertionError("labels alone make a catalog")


def _catalog(wish: Wish, identified: Sequence[identities.Identity], of_files: Sequence[Candidate]) -> str:
    if wish.catalog is not None:
        return wish.catalog
    owners = {one.owner for one in identified} | {one.head.catalog for one in of_files}
    if len(owners) != 1:
        listed = ", ".join(sorted(owners))
        raise errors.UsageError(
            f"what is given belongs to several catalogs: {listed}", hint="choose one with --catalog-id"
        )
    return owners.pop()


def _chosen(wish: Wish, found: Sequence[Candidate]) -> tuple[Candidate, ...]:
    if wish.image is not None:
        named = [one for one in found if one.kind == "Image" and one.place == wish.image]
        if not named:
            known = sorted({(one.at, one.place) for one in found if one.kind == "Image"}, reverse=True)
            listed = ", ".join(place for _, place in known[:_LISTED])
            raise errors.NotFound(
                f"no unit that is given holds a backup {wish.image} of the catalog",
                hint=f"there are: {listed}" if listed else "there is none; leave out --image to use the newest dump",
            )
        return tuple(named)
    # Of equal ones a file that was named first, then a dump: it is read faster.
    order = ("Image", "Dump", "File")
    return tuple(sorted(found, key=lambda one: (one.at, one.head.mark, order.index(one.kind)), reverse=True))


def _told(used: Candidate | None, tally: rebuilds.Tally) -> Iterator[str]:
    if used is None:
        yield (
            "no dump can be read: holds, waivers, retirements and what was approved are not known; copies on units that"
            " were not given come back when those are adopted"
        )
    if tally.led is not None:
        yield (
            f"its last controller may live: {tally.led.describe()}; see that it has ended, for two would delete on the"
            " same units"
        )
    if tally.damaged:
        yield f"{tally.damaged} copies have labels that cannot be read: they count as damaged"
    for name in tally.restores_kept:
        yield taken_as_made(name)
    for unit, count in tally.unreachable.items():
        yield (
            f"{unit} was not given: its {count} copies are taken from the dump; once it is there they are checked, and"
            f" holdfast unit adopt {unit} takes what is newer"
        )


def taken_as_made(name: str) -> str:
    """What is said of a restore that is not made because it may have been."""
    return (
        f"Restore/{name} overwrites or makes a machine, and may have been made: it is taken as made; change it to"
        " have it made again"
    )


# -- what is offered ------------------------------------------------------------------------------------------


def _of_unit(
    given: Given, unit: units.StorageUnit, catalog: str, warnings: list[str], meter: meters.Meter
) -> Iterator[Candidate]:
    for path in dumps.list_dumps(given.path):
        try:
            head = dumps.read_head(path)
        except (contents.Damaged, OSError) as error:
            warnings.append(f"{path} cannot be read: {error}")
            continue
        if head.catalog == catalog:
            yield _dump(path, head, "Dump")
    client = catalogs.client_id(catalog)
    for held in unit.list():
        meter.check()
        if held.label.client_id == client and held.label.state == "Complete":
            yield _image(unit, held.label, catalog, meter)


def _of_file(path: Path) -> Candidate:
    """A dump, or the restored disk of a backup. Raises ``UsageError`` for anything else."""
    with path.open("rb") as file:
        begin = file.read(len(pages.MAGIC))
    if begin.startswith(dumps.MAGIC):
        return _dump(path, dumps.read_head(path), "File")
    if begin != pages.MAGIC:
        raise errors.UsageError(
            f"{path} is neither a dump nor a backup of a catalog",
            hint="a unit is a folder with a unit.json; a backup has to be restored as raw",
        )
    head = contents.head(next(_file_lines(path)))
    return Candidate(
        kind="File", place=str(path), head=head, at=head.at or _modified(path), lines=lambda: _file_lines(path)
    )


def _dump(path: Path, head: contents.Head, kind: str) -> Candidate:
    return Candidate(
        kind=kind, place=str(path), head=head, at=head.at or _modified(path),
        lines=lambda: dumps.lines(path.read_bytes()),
    )  # fmt: skip


def _image(unit: units.StorageUnit, label: units.ImageLabel, catalog: str, meter: meters.Meter) -> Candidate:
    """A backup of the catalog. It is opened only if it is used: a pool would have to find its segments first."""
    head = contents.Head(catalog=catalog, mark=0, at=label.time)

    def lines() -> Iterator[Any]:
        with contextlib.closing(unit.open(label.id)) as stored:
            yield from contents.parsed(pages.lines(_chunks(stored, meter)))

    return Candidate(kind="Image", place=label.id, head=head, at=label.time, lines=lines)


def _chunks(stored: units.StoredImage, meter: meters.Meter) -> Iterator[bytes]:
    disk = stored.disk(catalogs.DISK)
    try:
        for offset, length in extents.pieces(disk.extents(), _CHUNK):
            meter.check()
            yield bytes(disk.pread(offset, length))
    finally:
        disk.close()


def _file_lines(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        yield from contents.parsed(pages.lines(iter(lambda: file.read(_CHUNK), b"")))


def _modified(path: Path) -> dt.datetime:
    return dt.datetime.fromtimestamp(path.stat().st_mtime, times.UTC)


# -- what units hold ------------------------------------------------------------------------------------------


def _unit(given: Given, identity: identities.Identity, unit: units.StorageUnit, meter: meters.Meter) -> rebuilds.Unit:
    def images() -> Iterator[rebuilds.Held]:
        for held in unit.list():
            meter.check()
            meter.add(scanned=held.stored_bytes)
            yield rebuilds.Held(image=recovery.described(held.label), stored_bytes=held.stored_bytes, base=held.base)

    return rebuilds.Unit(
        id=identity.id, name=given.name, type=identity.type, path=str(given.path), images=images(),
        unreadable=lambda: recovery.unreadable(unit),
    )  # fmt: skip
