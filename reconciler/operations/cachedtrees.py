"""The files of an image as its index tells of them: from the search cache, so that no storage unit is touched.

``holdfast files ls`` asks here first, and ``files get`` finds its paths here. What the index does not hold, such as
owners and the targets of links, stays unknown; ``browsedtrees`` reads it from the image. Separate from that one so that
a listing loads neither units nor browsers.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence

from reconciler.base import errors
from reconciler.catalog.fileindexes import answers, entries, pages
from reconciler.operations import fileplaces


class CachedTree:
    """Implements ``fileplaces.Tree``."""

    def __init__(self, files: answers.Cache, image: str, head: pages.Head) -> None:
        self.volumes = volumes(head)
        self._files = files
        self._image = image
        self._head = head

    def unread(self) -> Sequence[str]:
        """As ``fileplaces.Tree`` says."""
        return [f"{disk.name}: {message}" for disk in self._head.disks for _, message in disk.warnings]

    def row(self, place: fileplaces.Place) -> fileplaces.Row:
        """As ``fileplaces.Tree`` says."""
        if not place.path:
            return fileplaces.Row("", "directory", 0, 0, 0, 0, 1, 0, (), ())
        above, _, name = place.path.rpartition("/")
        with contextlib.suppress(errors.NotFound):
            for row in self.folder(fileplaces.Place(place.volume, above)):
                if row.name == name:
                    return row
        raise errors.NotFound(f"image {self._image} has no /{place.path} on {place.volume.name}")

    def folder(self, place: fileplaces.Place) -> tuple[fileplaces.Row, ...]:
        """As ``fileplaces.Tree`` says."""
        found = self._files.folder(self._image, place.volume.disk, place.volume.number, place.path)
        return tuple(row_of(list(some)) for _, some in itertools.groupby(found, key=lambda one: one.path))


def volumes(head: pages.Head) -> tuple[fileplaces.Volume, ...]:
    """The volumes that an index knows, named."""
    return fileplaces.named(
        [
            (disk.name, number, one.filesystem, one.label, one.length)
            for disk in head.disks
            for number, one in enumerate(disk.volumes)
        ]
    )


def row_of(some: list[entries.Entry]) -> fileplaces.Row:
    """One file from its entry and those of its streams."""
    first = next((one for one in some if not one.stream), some[0])
    return fileplaces.Row(
        path=first.path,
        kind=first.kind,
        size=first.size,
        modified=first.modified,
        created=first.created,
        changed=first.changed,
        links=first.links,
        inode=first.inode,
        flags=first.flags,
        streams=tuple((one.stream, one.size) for one in some if one.stream),
        # An index lists nothing of what lies in such a folder.
        problem="it is encrypted" if first.kind == "directory" and "encrypted" in first.flags else "",
    )
