"""The files of an image as its disks hold them, read through browsers: slower than the index, and the whole truth.

``files ls`` falls back to it for images without an index, ``files get`` reads through its browsers. A browser is opened
for a disk when it is first asked for; closing the tree closes them all, and the image is the caller's to close.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Self

from reconciler.base import errors, meters
from reconciler.guests import browsing, nodes
from reconciler.operations import fileplaces
from reconciler.storage import units


class Browsers:
    """The browsers of one image, by disk. A context manager; not thread-safe while one is opened."""

    def __init__(self, stored: units.StoredImage, meter: meters.Meter | None = None) -> None:
        self._stored = stored
        self._meter = meter
        self._stack = contextlib.ExitStack()
        self._open: dict[str, browsing.Browser] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def disks(self) -> tuple[str, ...]:
        """The image's disks."""
        return tuple(record.name for record in self._stored.label.disks)

    def opened(self) -> Sequence[tuple[str, browsing.Browser]]:
        """The browsers that are open, with the names of their disks."""
        return tuple(self._open.items())

    def of(self, disk: str) -> browsing.Browser:
        """The browser of one disk. Raises ``NotFound``, ``GuestUnreadable`` or ``UnitError``."""
        if disk not in self._open:
            opened = self._stack.enter_context(contextlib.closing(self._stored.disk(disk)))
            self._open[disk] = self._stack.enter_context(browsing.browse(opened, meter=self._meter))
        return self._open[disk]


class BrowsedTree:
    """Implements ``fileplaces.Tree``."""

    def __init__(self, browsers: Browsers) -> None:
        self._browsers = browsers
        #: What kept a disk from being looked into.
        self.notes: list[str] = []

    @functools.cached_property
    def volumes(self) -> tuple[fileplaces.Volume, ...]:
        """Its file systems. A disk that cannot be browsed has none, and ``notes`` say why."""
        found: list[tuple[str, int, str | None, str, int]] = []
        for disk in self._browsers.disks:
            try:
                known = self._browsers.of(disk).volumes
            except errors.GuestUnreadable as error:
                self.notes.append(error.message)
                continue
            found += [(disk, number, one.filesystem, one.label, one.length) for number, one in enumerate(known)]
        return fileplaces.named(found)

    def unread(self) -> Sequence[str]:
        """As ``fileplaces.Tree`` says."""
        opened = self._browsers.opened()
        return [*self.notes, *(f"{disk}: {message}" for disk, one in opened for _, message in one.warnings)]

    def row(self, place: fileplaces.Place) -> fileplaces.Row:
        """As ``fileplaces.Tree`` says."""
        browser = self._browsers.of(place.volume.disk)
        return row_of(place.path, browser.find(place.volume.number, place.path))

    def folder(self, place: fileplaces.Place) -> tuple[fileplaces.Row, ...]:
        """As ``fileplaces.Tree`` says."""
        browser = self._browsers.of(place.volume.disk)
        node = browser.find(place.volume.number, place.path)
        if node.kind != "directory":
            raise errors.NotFound(f"/{place.path} on {place.volume.name} is no folder")
        above = f"{place.path}/" if place.path else ""
        shown = fileplaces.show(self.volumes, place)
        found = browser.children(node, lambda count: self._note_nameless(shown, count))
        return tuple(row_of(f"{above}{name}", one) for name, one in sorted(found, key=_name))

    def _note_nameless(self, shown: str, count: int) -> None:
        note = f"{shown} holds {count} more, by names that no file can bear"
        if note not in self.notes:
            self.notes.append(note)


def _name(child: tuple[str, nodes.Node]) -> str:
    return child[0]


def row_of(path: str, node: nodes.Node) -> fileplaces.Row:
    """One file from its node."""
    return fileplaces.Row(
        path=path,
        kind=node.kind,
        size=node.size,
        modified=node.modified,
        created=node.created,
        changed=node.changed,
        links=node.links,
        inode=node.inode,
        flags=node.flags,
        streams=node.streams,
        mode=node.mode,
        uid=node.uid,
        gid=node.gid,
        target=node.target,
        problem=node.problem,
    )
