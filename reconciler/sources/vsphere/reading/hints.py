"""Areas that were never written, as a hint: what lies outside them is taken for zeros only if a sample of it is.

The vCenter's word on everything ever written spares a full read what a thin disk never had. It is no promise: on some
datastores it names the whole disk, and it has been wrong. Where the sample finds a byte, the whole disk is read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from reconciler.base import disks, extents, quantities
from reconciler.sources import machines
from reconciler.sources.vsphere.reading import changes

#: How many places are looked at, and how many bytes of each.
PLACES: Final = 64
LENGTH: Final = 64 << 10
#: What spares fewer bytes is not worth a doubt.
WORTH: Final = 64 << 20

_Ranges = extents.Extents
Hint = _Ranges | machines.Found


class HintedDisk(disks.Closing):
    """A Disk that asks where it was ever written, once somebody wants to read all of it. Thread-safe."""

    def __init__(self, disk: disks.Disk, ask: Callable[[], Hint], key: str, log: Callable[[str], None]) -> None:
        """``ask``: areas ever written, or why they are not known; ``key`` draws the sample: the snapshot's id."""
        self.name = disk.name
        self.size = disk.size
        self.sector = disk.sector
        self._disk = disk
        self._ask = ask
        self._key = f"{key} {disk.name}"
        self._log = log
        self._lock = threading.Lock()
        self._found: _Ranges | None = None
        #: Whether only areas are read that are known to have changed: then nobody needs the hint.
        self.partly = False
        #: What came of it, None as long as nobody asked.
        self.outcome: machines.Found | None = None

    def extents(self) -> extents.Extents:
        """What the transport knows; what the hint says where that is nothing. Raises ``SourceError``."""
        known = self._disk.extents()
        if self.partly or known != ((0, self.size),):
            return known
        with self._lock:
            if self._found is None:
                self._found, self.outcome = self._hinted(known)
                self._log(f"{self.name}: {self.outcome.code}: {self.outcome.message}")
            return self._found

    def _hinted(self, whole: _Ranges) -> tuple[_Ranges, machines.Found]:
        areas = self._ask()
        if isinstance(areas, machines.Found):
            return whole, areas
        written = quantities.show_size(extents.total(areas))
        if self.size - extents.total(areas) < WORTH:
            message = f"{written} were ever written; all of the disk is read, which is not much more"
            return whole, machines.Found(code="HintLeft", message=message)
        places = changes.samples(self._key, self.size, areas, places=PLACES, length=LENGTH)
        for offset, length in places:
            if bytes(self._disk.pread(offset, length)) != bytes(length):
                message = f"it names {written}, and byte {offset} or one of the {length} after it is not zero either"
                return whole, machines.Found(code="HintWrong", message=f"all of the disk is read: {message}")
        message = f"{written} were ever written; {len(places)} places outside read as zeros"
        return areas, machines.Found(code="HintTaken", message=message)

    def pread(self, offset: int, length: int) -> disks.Buffer:
        """The bytes."""
        return self._disk.pread(offset, length)

    def close(self) -> None:
        """Close the disk beneath."""
        self._disk.close()
