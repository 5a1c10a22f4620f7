"""Damage told apart: what is false of a copy's disks, and what is false of its index of files alone.

A copy whose disks prove true is good, whatever its index says: it is read, duplicated and kept like any other. Its
index is made anew on the spot, from another copy of the image or from its own disks, by whoever found it: scrubs,
content proofs and duplications. Where that fails the copy stays good and its files are browsed instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from reconciler.base import errors, meters
from reconciler.catalog import audits, images
from reconciler.catalog.fileindexes import entries
from reconciler.operations import fileindexing, filelessons, sites
from reconciler.planning import sightings
from reconciler.storage import units

#: What can be told of an index that is false, and not be told of a disk.
_TROUBLE: Final = (errors.UnitError, errors.FormatTooNew, errors.NotFound, errors.GuestUnreadable, OSError)


def of_disks(found: Iterable[units.Damage]) -> tuple[units.Damage, ...]:
    """What of the damage is more than the index of files, which can be made anew."""
    return tuple(one for one in found if not (one.attachment and one.disk == entries.ATTACHMENT))


def where(found: Sequence[units.Damage]) -> str:
    """The first of it, and how much there is."""
    first = found[0]
    size = sum(one.length for one in found)
    if not first.disk:
        return first.message
    return f"{first.part} at {first.offset}: {first.message} ({size} bytes in {len(found)} ranges)"


def mend(site: sites.Site, unit_name: str, image: str, meter: meters.Meter) -> str | None:
    """Make the index of a copy anew, and teach the search cache; None where that was done, else why not, a sentence.

    Raises ``Cancelled`` and ``CatalogError``.
    """
    try:
        unit = site.units.get(unit_name)
        how = _from_copies(site, unit, image, meter) or _from_disks(unit, image, meter)
        with contextlib.closing(unit.open(image)) as stored:
            for _ in pages_of(stored.attachment(entries.ATTACHMENT), meter):
                pass
    except _TROUBLE as error:
        return error.message if isinstance(error, errors.HoldfastError) else str(error)
    with site.db.writing() as connection:
        audits.record(
            connection, now=site.clock.now(), actor=site.actor, event="IndexMade", object=f"image/{image}",
            details={"unit": unit_name, "from": how},
        )  # fmt: skip
    filelessons.relearn(site, image)
    return None


def _from_copies(site: sites.Site, unit: units.StorageUnit, image: str, meter: meters.Meter) -> str | None:
    """Take the index of another copy; the name of its unit, None where no other copy has it whole."""
    for row in images.list_copies(site.db, image_id=image):
        if row.unit == unit.name or row.state not in sightings.READABLE:
            continue
        with contextlib.suppress(*_TROUBLE), contextlib.closing(site.units.get(row.unit).open(image)) as stored:
            attached = stored.attachment(entries.ATTACHMENT)
            unit.reattach(image, entries.ATTACHMENT, pages_of(attached, meter))
            return row.unit
    return None


def pages_of(attached: units.Attachment, meter: meters.Meter) -> Iterator[bytes]:
    """The pages of an attachment. Raises ``AttachmentDamaged``, ``UnitError`` and ``Cancelled``."""
    for number in range(len(attached.pages)):
        meter.check()
        yield attached.read(number)


def _from_disks(unit: units.StorageUnit, image: str, meter: meters.Meter) -> str:
    """List the files of the copy's own disks again. Raises what ``build`` raises."""
    with contextlib.closing(unit.open(image)) as stored:
        build(unit, stored, lambda name, pages: unit.reattach(image, name, pages), meter)
    return "its disks"


class _Onto:
    """Where an index goes."""

    def __init__(self, attach: Callable[[str, Iterable[bytes]], None]) -> None:
        self._attach = attach
        self.done = False

    def attach(self, name: str, pages: Iterable[bytes], *, parent: str | None = None) -> None:  # noqa: ARG002
        """As an image's writer has it."""
        self._attach(name, pages)
        self.done = True


def build(
    unit: units.StorageUnit,
    stored: units.StoredImage,
    attach: Callable[[str, Iterable[bytes]], None],
    meter: meters.Meter,
) -> None:
    """Make the index of an image on ``unit`` from its disks, and hand it to ``attach``.

    Where the index of its parent can be read it is the very same as its backup's, so what others share of it is found.
    Raises ``GuestUnreadable`` where it cannot be made or kept, ``Cancelled``.
    """
    parent = stored.label.parent
    if parent is not None:
        with contextlib.suppress(*_TROUBLE):
            _build(unit, stored, parent, attach, meter)
            return
    _build(unit, stored, None, attach, meter)


def _build(
    unit: units.StorageUnit,
    stored: units.StoredImage,
    parent: str | None,
    attach: Callable[[str, Iterable[bytes]], None],
    meter: meters.Meter,
) -> None:
    known = {warning.get("message") for warning in stored.label.warnings}
    onto = _Onto(attach)
    with fileindexing.Indexing(unit, parent, meter, wanted=True) as indexing:
        looked: list[fileindexing.Looked] = []
        for record in stored.label.disks:
            changed = None if parent is None else stored.changed(record.name, parent)
            with contextlib.closing(stored.disk(record.name)) as disk:
                found = indexing.look(disk, changed, known=False, quiesced=False)
            looked += [] if found is None else [found]
        # What could not be read then is not asked for now.
        told = [one for disk in looked for one in disk.warnings if one.message not in known]
        if not any(one.code == fileindexing.NOT_INDEXED for one in told):
            told = [one for one in indexing.attach(onto, looked) if one.message not in known]
    for one in told:
        if one.code == fileindexing.NOT_INDEXED:
            raise errors.GuestUnreadable(one.message)
    if not onto.done:
        raise errors.GuestUnreadable("no file system is found on its disks any more")
