"""The history of one path over all images of a client, wherever on the disks its volume lay at the time.

An index calls a volume by its disk and its number there, and that number changes where a partition is added before it,
or where disks change places. A label stays with its volume: ``holdfast files versions`` asks here, and follows it.
``fileplaces`` and ``cachedtrees`` know one image alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from reconciler.catalog.fileindexes import answers, entries
from reconciler.operations import cachedtrees, fileplaces


class Histories:
    """The volumes and paths of one client, over all its images that the cache knows."""

    def __init__(self, files: answers.Cache, client: str) -> None:
        self._files, self._client = files, client
        #: Images and their volumes, oldest first.
        self._images = [
            (one.image.id, cachedtrees.volumes(one.head)) for one in files.learned(client) if one.head is not None
        ]
        latest: dict[tuple[str, int], fileplaces.Volume] = {}
        #: Where each name was seen last.
        self._holders: dict[str, tuple[str, int]] = {}
        for _, volumes in self._images:
            self._holders.update({one.name: (one.disk, one.number) for one in volumes})
            latest.update({(one.disk, one.number): one for one in volumes})
        #: The newest image's names are the ones that count; a volume that only older ones had keeps its own.
        self.volumes = tuple(latest.values())

    def versions(self, place: fileplaces.Place, *, literal: bool = False) -> tuple[answers.Version, ...]:
        """Each state of a path that an image holds, oldest first; may be empty. Raises ``CatalogError``.

        ``literal``: of what lay in this very place of the disk, whatever volume it belonged to.
        """
        if literal:
            return self._files.versions(self._client, place.volume.disk, place.volume.number, place.path)
        slots: dict[tuple[str, int], set[str]] = {}
        for image, volumes in self._images:
            slot = self._slot(volumes, place.volume)
            if slot is not None:
                slots.setdefault((slot.disk, slot.number), set()).add(image)
        held: dict[str, entries.Entry] = {}
        for (disk, number), images in slots.items():
            for one in self._files.versions(self._client, disk, number, place.path):
                held.update(dict.fromkeys(images.intersection(one.images), one.entry))
        return self._grouped(held, place.volume)

    def _slot(self, volumes: Sequence[fileplaces.Volume], wanted: fileplaces.Volume) -> fileplaces.Volume | None:
        """The volume of one image that became ``wanted``: of the same label, else in the same place."""
        if wanted.name != wanted.alias:
            for one in volumes:
                if one.name == wanted.name:
                    return one
        same = next((one for one in volumes if one.alias == wanted.alias), None)
        if same is None or same.name in (same.alias, wanted.name):
            return same
        # A volume whose label went to another place since is told there.
        return same if self._holders[same.name] == (same.disk, same.number) else None

    def _grouped(self, held: dict[str, entries.Entry], volume: fileplaces.Volume) -> tuple[answers.Version, ...]:
        """Images in a row with the same state of a file are one version, on whatever volume it lay."""
        found: list[answers.Version] = []
        following = False
        for image, _ in self._images:
            entry = held.get(image)
            if entry is None:
                following = False
                continue
            entry = entry._replace(disk=volume.disk, volume=volume.number)
            if following and found[-1].entry == entry:
                found[-1] = dataclasses.replace(found[-1], images=(*found[-1].images, image))
            else:
                found.append(answers.Version(client=self._client, entry=entry, images=(image,)))
            following = True
        return tuple(found)
