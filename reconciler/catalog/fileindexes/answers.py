"""What is asked of the search cache and what it answers: values alone, and the port that ``caches.FileCache`` is.

Read this to use the cache; ``caches`` says how it works. All paths are as in ``Entry``: without a leading slash.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from typing import Protocol

from reconciler.catalog.fileindexes import entries, indexes, pages


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """An image that the cache has learned, or is to learn."""

    id: str
    client: str
    #: When the source was frozen, nanoseconds since the epoch, UTC.
    time: int
    #: Orders the images of a client.
    sequence: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Learned:
    """What the cache knows of an image."""

    image: Image
    #: None for an image that carries no index.
    head: pages.Head | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """What is searched for. All conditions hold at once."""

    #: A name with ``*`` and ``?``, found in any folder; with a ``/`` in it the whole path from the volume's root, where
    #: ``**`` is any number of folders. With ``contains``: any part of a name, or of a path's end where it holds ``/``.
    text: str
    contains: bool = False
    #: Whether upper and lower case are the same.
    fold: bool = False
    #: Client ids and image ids; None for all.
    clients: Collection[str] | None = None
    images: Collection[str] | None = None
    #: Images frozen from ``since`` on and before ``until``, nanoseconds since the epoch; None for no bound.
    since: int | None = None
    until: int | None = None
    #: Kinds of entries; None for all.
    kinds: Collection[str] | None = None
    #: Whether alternate data streams are found too.
    streams: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """One state of one path, and the images that hold it."""

    client: str
    entry: entries.Entry
    #: Ids, oldest first; never empty.
    images: tuple[str, ...]


class Cache(Protocol):
    """The search cache. Any number of threads and processes may use it at once; each call sees one moment of it.

    Every call raises ``CatalogError`` where the file cannot be used; it can always be deleted.
    """

    def images(self, client: str | None = None) -> tuple[Image, ...]:
        """Which images it knows, of one client or of all; much faster than all that it knows of them."""

    def learned(self, client: str | None = None) -> tuple[Learned, ...]:
        """What it knows, of one client or of all; by client, oldest first."""

    def learn(self, image: Image, index: indexes.Index | None, *, patience: float | None = None) -> bool:
        """Take in an image, None where it carries no index; False if it is known already.

        ``patience``: seconds to wait for others that write, None for long. Raises ``CatalogError`` after them.
        Raises ``ImageDamaged``, ``FormatTooNew`` or ``UnitError`` where the index cannot be read; then nothing changed.
        """

    def forget(self, ids: Collection[str], *, patience: float | None = None) -> None:
        """Forget images; unknown ones are none. ``patience`` as for ``learn``."""

    def known(self) -> dict[str, bool]:
        """Ids of the images that it knows, and whether they have an index; cheaper than ``learned``."""

    def head(self, image: str) -> pages.Head:
        """What the index of an image says of its disks. Raises ``NotFound`` as ``folder`` does."""

    def folder(self, image: str, disk: str, volume: int, path: str) -> tuple[entries.Entry, ...]:
        """What lies in a folder of an image, by name, streams behind their file. ``path`` is empty for the root.

        Raises ``NotFound`` for an image that the cache does not know or that has no index, and for a folder that the
        image does not hold.
        """

    def entry(self, image: str, disk: str, volume: int, path: str, stream: str = "") -> entries.Entry:
        """One entry of an image. Raises ``NotFound``; the root has none."""

    def search(self, query: Query) -> Iterator[Version]:
        """What is found, client by client; the versions of one path follow each other, oldest first.

        Lazy: a caller that has enough closes it. The rest of one path is never left out.
        """

    def versions(self, client: str, disk: str, volume: int, path: str, stream: str = "") -> tuple[Version, ...]:
        """The history of one path: each state that an image of the client holds, oldest first; may be empty."""
