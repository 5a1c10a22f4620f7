"""The source ``catalog``: one machine, which is the catalog itself, with one disk that holds a moment of it.

``sources.opening`` builds it from a policy. The disk is made when the machine is frozen, in a file without a name that
is gone with the process, so that it shows one moment however long it is read. What a backup of the catalog writes into
the catalog, its own image above all, is not in it; a rebuild learns that from the image's label.
"""

from __future__ import annotations

import bisect
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from reconciler.base import disks, errors, extents
from reconciler.catalog import database, pages
from reconciler.sources import machines

#: How the client ids of catalogs begin; the catalog's UUID follows.
PREFIX: Final = "catalog:"
NAME: Final = "catalog"
#: Its restored file is ``catalog.img``.
DISK: Final = "catalog.jsonl"
_SECTOR: Final = 512


def client_id(catalog: str) -> str:
    """The client that a catalog is."""
    return f"{PREFIX}{catalog}"


class Catalog:
    """The catalog as a machine. Implements ``machines.Source``."""

    def __init__(self, owner: str, db: database.Database | None) -> None:
        """``owner``: the catalog's id; ``db``: the catalog, where it is to be read and not only listed."""
        self._id = client_id(owner)
        self._db = db

    def inventory(self) -> machines.Inventory:
        """The one machine, which is always there."""
        return machines.Inventory(machines=(machines.Machine(id=self._id, name=NAME, source=self._id, disks=(DISK,)),))

    def freeze(self, machine_id: str, asked: machines.Asked = machines.ALONE) -> machines.Reading:
        """Write one moment of the catalog down. Raises ``SourceError`` or ``Cancelled``."""
        if machine_id != self._id or self._db is None:
            raise errors.SourceError(f"{machine_id}: this is not the catalog that is open here")
        asked.meter.check()
        # Beside the catalog there is room for it; a temporary folder may be kept in memory.
        folder = None if self._db.shared else Path(self._db.location).parent
        try:
            file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  the reading closes it
            try:
                return _Reading(_Moment(file, pages.write(self._db, file)))
            except BaseException:
                file.close()
                raise
        except OSError as error:
            raise errors.SourceError(
                f"the catalog cannot be written down in {folder or tempfile.gettempdir()}: {error.strerror}",
                hint="free space there",
            ) from error


class _Moment(disks.Closing):
    """The disk."""

    def __init__(self, file: BinaryIO, places: Sequence[pages.Place]) -> None:
        file.flush()
        self.name = DISK
        self.sector = _SECTOR
        self.size = pages.disk_size(places)
        self._file = file
        self._places = places
        self._starts = [place.disk for place in places]

    def extents(self) -> extents.Extents:
        """Where pages lie."""
        return tuple((place.disk, place.length) for place in self._places)

    def pread(self, offset: int, length: int) -> disks.Buffer:
        """Exactly ``length`` bytes; zeros where no page lies. Raises ``SourceError``."""
        if offset < 0 or offset + length > self.size:
            raise ValueError(f"read of {length} bytes at {offset} beyond {self.size}")
        found = bytearray(length)
        for place in self._places[max(bisect.bisect_right(self._starts, offset) - 1, 0) :]:
            if place.disk >= offset + length:
                break
            start, end = max(offset, place.disk), min(offset + length, place.disk + place.length)
            if start < end:
                data = os.pread(self._file.fileno(), end - start, place.file + start - place.disk)
                if len(data) != end - start:
                    raise errors.SourceError("what was written down of the catalog cannot be read back")
                found[start - offset : end - offset] = data
        return bytes(found)

    def close(self) -> None:
        """Let the file go. Idempotent."""
        self._file.close()


class _Reading:
    """One moment of the catalog. Implements ``machines.Reading``."""

    def __init__(self, moment: _Moment) -> None:
        self._moment = moment

    @property
    def disks(self) -> Sequence[disks.Disk]:
        """The one disk."""
        return (self._moment,)

    @property
    def missing(self) -> Sequence[machines.Found]:
        """None ever is."""
        return ()

    def changes(self, disk: str, parent: Mapping[str, str]) -> machines.DiskChanges:  # noqa: ARG002  the port's
        """Not known: it is read, and compared with the image before."""
        reason = machines.Found(code="CatalogCompared", message=f"{disk} is compared with its last image")
        return machines.DiskChanges(changed=None, reason=reason)

    def finish(self) -> machines.Verdict:
        """Nothing can have moved."""
        return machines.Verdict(failed=(), consistency="Snapshot", warnings=())

    def state(self) -> Mapping[str, str]:
        """The next incremental needs nothing."""
        return {}

    def configuration(self) -> None:
        """A catalog is no machine that could be made again."""

    def close(self) -> None:
        """Let the moment go. Idempotent."""
        self._moment.close()
