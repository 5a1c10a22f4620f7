"""The StorageUnit port over folders of plain files.

``opening`` makes a ``DirectoryUnit`` from an identity that was read; everything else goes through the port. The unit
keeps no state but what lies on disk, a few caches that are checked before use, and the ids of its live writers. Each
call first makes sure that the folder is still the unit it was opened as: an empty mount point is Offline, not empty.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from reconciler.base import crashes, errors, files, meters
from reconciler.storage import attachments, blocks, identities, labels, units
from reconciler.storage.directory import formats, places, readers, reattachments, writers


class DirectoryUnit:
    """One Directory unit, opened; see ``units.StorageUnit``. ``owner`` is the catalog that uses it: where that is not
    the catalog the identity names, the unit is read-only."""

    #: Incrementals need their base.
    standalone = False

    def __init__(
        self, *, name: str, root: Path, identity: identities.Identity, owner: str | None, memory: int | None = None
    ) -> None:
        """``memory``: bytes of blocks that each open image keeps for who reads at random."""
        self.name = name
        self._memory = memory
        self._root = root
        self._identity = identity
        self._writable = identity.owner == owner
        self._lock = threading.Lock()
        self._writing: set[str] = set()
        self._places = places.Places(name=name, root=root, unit_id=identity.id)
        #: Stored bytes by folder, with the inode and mtime of the ``image.json`` they were read from.
        self._sizes: dict[Path, tuple[tuple[int, int], int]] = {}

    def require_online(self) -> None:
        """Raise ``UnitOffline`` unless the folder still is this unit; see the port."""
        self._places.require_online()

    def begin(
        self, label: units.ImageLabel, disk_names: Collection[str], *, replaces: bool = False
    ) -> writers.DirectoryWriter:
        """Start an image; see the port."""
        self._require_writable("written")
        labels.require_safe(label, self.name)
        if len(set(disk_names)) != len(disk_names):
            raise errors.UnitError(f"image {label.id}: two disks have one name: {', '.join(sorted(disk_names))}")
        with self._lock:
            if label.id in self._writing:
                raise errors.UnitError(f"storage unit {self.name}: image {label.id} is being written")
            if not replaces and self._places.find(label.id) is not None:
                raise errors.UnitError(f"storage unit {self.name}: image {label.id} is committed already")
            target = self._root / label.client_slug / label.id
            folder = formats.temporary_folder(target)
            self._places.remove_leftovers(lambda image_id: image_id == label.id)
            with files.unit_errors(self.name):
                self._places.make(folder)
            self._writing.add(label.id)
        place = writers.Place(
            unit=self.name,
            folder=folder,
            target=target,
            parent_list=self._parent_list,
            parent_pages=self._parent_pages,
            holds=lambda image_id: self._places.find(image_id) is not None,
            prove=self._prove if replaces else None,
            ended=lambda: self._ended(label),
        )
        return writers.DirectoryWriter(place=place, label=label, disk_names=disk_names)

    def open(self, image_id: str) -> readers.DirectoryImage:
        """Open a committed image. Raises ``ImageMissing``, ``ImageDamaged`` or ``FormatTooNew``."""
        folder, document = self._find(image_id)
        return readers.DirectoryImage(
            unit=self.name, folder=folder, document=document, find=self._find, memory=self._memory
        )

    def reattach(self, image_id: str, name: str, pages: Iterable[bytes]) -> None:
        """Put an attachment in another one's place; see the port."""
        self._require_writable("written")
        folder, document = self._find(image_id)
        known = () if document.base is None else self._parent_pages(document.base, name)
        with files.unit_errors(self.name):
            reattachments.reattach(self.name, folder, document, name, pages, known, self._lock)

    def delete(self, image_id: str) -> None:
        """Take an image away by one rename, then remove its files. One that is gone already is no error."""
        self._require_writable("deleted from")
        place = self._places.find(image_id)
        if place is None:
            return
        trash = formats.trash_folder(place)
        with files.unit_errors(self.name):
            with self._lock:  # a sweep between the two could take the client's folder away
                try:
                    place.rename(trash)
                except FileNotFoundError:
                    return
                files.sync_folder(place.parent)
            crashes.passing("directory.delete-renamed")
            places.remove_folder(trash)
        with self._lock:
            self._sizes.pop(place, None)
            self._places.drop_empty(place.parent)

    def list(self) -> Iterator[units.Held]:
        """Every committed image whose label can be read."""
        for folder in self._places.images():
            document = self._try_read(folder)
            if document is not None:
                yield document.held()

    def unreadable(self) -> tuple[str, ...]:
        """``<client slug>/<image id>`` of folders whose ``image.json`` is missing, damaged or of a newer format."""
        return tuple(
            f"{folder.parent.name}/{folder.name}"
            for folder in self._places.images()
            if self._try_read(folder) is None and folder.exists()
        )

    def verify(self, image_id: str, *, meter: meters.Meter) -> tuple[units.Damage, ...]:
        """Re-read and prove every block and page, through the chain. Raises ``Cancelled``, ``ImageMissing`` or
        ``UnitError``."""
        return self._prove(*self._find(image_id), meter)

    def _prove(self, folder: Path, document: formats.Document, meter: meters.Meter) -> tuple[units.Damage, ...]:
        """The same of an image that may not have its name yet."""
        with readers.DirectoryImage(unit=self.name, folder=folder, document=document, find=self._find) as image:
            found = [image.verify(record.name, meter) for record in image.label.disks]
            found.append(attachments.prove(image, meter))
        return tuple(damage for damages in found for damage in damages)

    def capacity(self) -> units.Capacity:
        """Space of the file system, and what the images in it say they occupy."""
        used = 0
        for folder in self._places.images():
            used += self._stored_bytes(folder)
        with files.unit_errors(self.name):
            found = os.statvfs(self._root)
        return units.Capacity(
            total=found.f_blocks * found.f_frsize, free=found.f_bavail * found.f_frsize, used=used, reclaimable=0
        )

    def freed_by(self, image_ids: Collection[str]) -> tuple[int, bool]:
        """What the files of these images occupy: deleting them gives back all of it. Always counted."""
        self.require_online()
        with files.unit_errors(self.name):
            return sum(places.allocated(place) for place in self._places.of(set(image_ids))), True

    def sweep(self, alive: Collection[str]) -> int:
        """Remove unfinished images but those in ``alive`` and this unit's own writers', and what deletion left."""
        self._require_writable("swept")
        with self._lock:
            kept = self._writing.union(alive)
            return self._places.remove_leftovers(lambda image_id: image_id not in kept)

    def reclaim(self, *, meter: meters.Meter) -> int:
        """Space comes back with ``delete``; here goes only what an interrupted one left."""
        self._require_writable("reclaimed")
        meter.check()
        with self._lock:
            return self._places.remove_leftovers(lambda _: True, prefix=formats.TRASH_PREFIX)

    def close(self) -> None:
        """Nothing is held between calls; opened images close themselves."""

    def _require_writable(self, what: str) -> None:
        self.require_online()
        if not self._writable:
            raise errors.UnitReadOnly(
                f"storage unit {self.name} cannot be {what}: it belongs to catalog {self._identity.owner}",
                hint=f"holdfast unit adopt {self.name}, if that catalog is gone",
            )

    def _find(self, image_id: str) -> tuple[Path, formats.Document]:
        self.require_online()
        place = self._places.find(image_id)
        if place is None:
            raise errors.ImageMissing(
                f"storage unit {self.name} does not hold image {image_id}", hint="use another copy of the image"
            )
        try:
            return place, formats.read(place)
        except OSError as error:
            if blocks.is_damage(error):
                raise errors.ImageDamaged(f"image {image_id}: its label cannot be read: {error.strerror}") from error
            with files.unit_errors(self.name):
                raise

    def _try_read(self, folder: Path) -> formats.Document | None:
        try:
            return formats.read(folder)
        except (errors.ImageDamaged, errors.FormatTooNew):
            return None
        except OSError as error:
            if blocks.is_damage(error):
                return None
            with files.unit_errors(self.name):
                raise

    def _stored_bytes(self, folder: Path) -> int:
        try:
            found = (folder / formats.FILE_NAME).stat()
        except OSError:
            return 0  # not an image, or just deleted: ``unreadable`` and ``list`` say which
        stamp = (found.st_ino, found.st_mtime_ns)
        known = self._sizes.get(folder)
        if known is None or known[0] != stamp:
            document = self._try_read(folder)
            known = self._sizes[folder] = (stamp, 0 if document is None else document.stored_bytes)
        return known[1]

    def _parent_list(self, image_id: str, disk: str) -> tuple[bytes, int]:
        with self.open(image_id) as image:
            sizes = {record.name: record.size for record in image.label.disks}
            if disk not in sizes:
                raise errors.UnitError(
                    f"storage unit {self.name}: parent {image_id} has no disk {disk}",
                    hint="a disk that its parent lacks is written without parent",
                )
            return image.block_digests(disk), sizes[disk]

    def _parent_pages(self, image_id: str, name: str) -> frozenset[bytes]:
        try:
            with self.open(image_id) as image:
                return image.attachment(name).found()
        except (errors.NotFound, errors.ImageMissing, errors.ImageDamaged):
            return frozenset()  # whatever it held is stored anew

    def _ended(self, label: units.ImageLabel) -> None:
        with self._lock:
            self._writing.discard(label.id)
            self._places.drop_empty(self._root / label.client_slug)
