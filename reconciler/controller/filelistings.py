"""Trees of files as documents: what ``files ls`` shows of a folder, whichever tree it comes from.

Commands choose the tree, ``reports.files`` makes text of the document.
"""

from __future__ import annotations

import datetime as dt
import stat
from collections.abc import Iterator, Sequence
from typing import Literal

from reconciler.api.documents import files
from reconciler.base import errors
from reconciler.operations import fileplaces


def listing(
    tree: fileplaces.Tree,
    text: str,
    *,
    client: str,
    image: str,
    time: dt.datetime,
    source: Literal["Index", "Image"],
    deep: bool,
) -> files.FileList:
    """What a path of an image leads to: the volumes, what lies in a folder (with ``deep`` in those in it too), a file.

    Raises ``NotFound``, ``UsageError`` and ``GuestUnreadable``.
    """
    place = fileplaces.resolve(tree, text)
    items: list[files.FileItem] = []
    top = place is None or (not place.path and len(tree.volumes) == 1)
    notes: list[str] = list(tree.unread()) if top else []
    if place is None:
        places = [fileplaces.Place(volume, "") for volume in tree.volumes] if deep else []
    elif (row := tree.row(place)).kind != "directory":
        places, items = [], [item(tree.volumes, place, row)]
    elif row.problem:
        raise errors.GuestUnreadable(_closed(tree, place, row))
    else:
        places = [place]
    for start in places:
        items += [item(tree.volumes, at, row) for at, row in _below(tree, start, notes, deep=deep)]
    return files.FileList(
        client=client,
        image=image,
        image_time=time,
        source=source,
        path=fileplaces.readable(fileplaces.show(tree.volumes, place)) if place is not None else None,
        volumes=tuple(
            files.FileVolume(
                path=f"/{one.name}",
                disk=one.disk,
                number=one.number,
                filesystem=one.filesystem,
                label=one.label,
                size_bytes=one.size,
            )
            for one in tree.volumes
        ),
        items=tuple(items),
        notes=tuple(notes),
    )


def _below(
    tree: fileplaces.Tree, start: fileplaces.Place, notes: list[str], *, deep: bool
) -> Iterator[tuple[fileplaces.Place, fileplaces.Row]]:
    waiting = [start]
    while waiting:
        folder = waiting.pop()
        try:
            rows = tree.folder(folder)
        except errors.GuestUnreadable as error:
            if folder == start:
                raise
            notes.append(error.message)
            continue
        found = [(fileplaces.Place(folder.volume, row.path), row) for row in rows]
        yield from found
        if deep:
            folders = [(at, row) for at, row in reversed(found) if row.kind == "directory"]
            waiting += [at for at, row in folders if not row.problem]
            notes += [_closed(tree, at, row) for at, row in folders if row.problem]


def _closed(tree: fileplaces.Tree, place: fileplaces.Place, row: fileplaces.Row) -> str:
    """Why what lies in a folder cannot be told."""
    return f"{fileplaces.readable(fileplaces.show(tree.volumes, place))} cannot be listed: {row.problem}"


def item(volumes: Sequence[fileplaces.Volume], place: fileplaces.Place, row: fileplaces.Row) -> files.FileItem:
    """One file as a document has it."""
    return files.FileItem(
        name=fileplaces.readable(row.name or place.volume.name),
        path=fileplaces.readable(fileplaces.show(volumes, place)),
        type=files.type_of(row.kind),
        size_bytes=row.size,
        modified=files.moment(row.modified),
        created=files.moment(row.created),
        changed=files.moment(row.changed),
        links=row.links,
        inode=row.inode,
        flags=files.flags_of(row.flags),
        streams=tuple(files.FileStream(name=fileplaces.readable(name), size_bytes=size) for name, size in row.streams),
        mode=stat.filemode(row.mode) if row.mode is not None else None,
        uid=row.uid,
        gid=row.gid,
        target=fileplaces.readable(row.target) if row.target is not None else None,
        problem=row.problem or None,
    )
