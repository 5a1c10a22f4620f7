"""Tables of files: folders, finds, histories, and the summary of a restore. Paths come last, where they may be long."""

from __future__ import annotations

from collections.abc import Sequence

from reconciler.api.documents import files
from reconciler.base import quantities
from reconciler.reports import tables

_LETTERS = {"Directory": "d", "Symlink": "l", "File": "-", "Other": "o"}
_TOLD = 20


def listing(document: files.FileList, *, long: bool, deep: bool) -> str:
    """``files ls``."""
    if document.path is None and not document.items:
        rows = [(one.filesystem, one.label, quantities.show_size(one.size_bytes), one.path) for one in document.volumes]
        return tables.table(("type", "label", "size", "volume"), rows, right=frozenset({2}))
    if not document.items:
        return ""
    if long:
        text = _long(document, deep=deep)
    else:
        brief = [(_size(one), _minutes(one.modified), _shown(one, deep=deep)) for one in document.items]
        text = tables.table(("size", "modified", "name"), _with_streams(document, brief), right=frozenset({0}))
    return "\n".join([text, *(f"note: {note}" for note in document.notes)])


def _long(document: files.FileList, *, deep: bool) -> str:
    rows = [
        (
            one.mode or _LETTERS[one.type],
            f"{one.uid}:{one.gid}" if one.uid is not None else "-",
            str(one.links),
            _size(one),
            (one.modified or "-")[:19].replace("T", " "),
            ",".join(one.flags).lower(),
            _shown(one, deep=deep),
        )
        for one in document.items
    ]
    heads = ("mode", "owner", "links", "size", "modified", "flags", "name")
    empty = {1} if all(row[1] == "-" for row in rows) else set()
    empty |= {5} if not any(row[5] for row in rows) and not any(one.streams for one in document.items) else set()
    kept = [number for number in range(len(heads)) if number not in empty]
    return tables.table(
        [heads[number] for number in kept],
        [[row[number] for number in kept] for row in _with_streams(document, rows)],
        right=frozenset(place for place, number in enumerate(kept) if number in (2, 3)),
    )


def _with_streams(document: files.FileList, rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The rows, each followed by those of the file's alternate data streams."""
    found: list[tuple[str, ...]] = []
    for one, row in zip(document.items, rows, strict=True):
        found.append(row)
        for stream in one.streams:
            size = quantities.show_size(stream.size_bytes)
            name = f"{row[-1].split(' -> ')[0].rstrip('/')}:{stream.name}"
            found.append((size, "-", name) if len(row) == 3 else ("-", "-", "-", size, "-", "stream", name))
    return found


def _shown(one: files.FileItem, *, deep: bool) -> str:
    name = one.path if deep else one.name
    if one.type == "Directory":
        return f"{name}/"
    return f"{name} -> {one.target}" if one.target is not None else name


def _size(one: files.FileItem) -> str:
    return quantities.show_size(one.size_bytes) if one.type == "File" else "-"


def _minutes(moment: str | None) -> str:
    return moment[:16].replace("T", " ") if moment else "-"


def findings(document: files.FileFindings) -> str:
    """``files find``."""
    rows = [
        (
            one.client,
            str(one.versions),
            str(len(one.images)),
            quantities.show_size(one.size_bytes) if one.type == "File" else "-",
            _minutes(one.modified),
            (f"{one.path}/" if one.type == "Directory" else one.path) + (f":{one.stream}" if one.stream else ""),
        )
        for one in document.items
    ]
    if not rows:
        return ""
    heads = ("client", "versions", "images", "size", "modified", "path")
    return tables.table(heads, rows, right=frozenset({1, 2, 3}), spare=(2, 1))


def versions(document: files.FileVersions) -> str:
    """``files versions``."""
    rows = [
        (
            quantities.show_size(one.size_bytes) if one.type == "File" else one.type.lower(),
            _minutes(one.modified),
            str(len(one.images)),
            one.first_image,
            one.last_image,
            "yes" if one.good else "no",
        )
        for one in document.versions
    ]
    heads = ("size", "modified", "images", "first image", "last image", "copy")
    return tables.table(heads, rows, right=frozenset({0, 2}), spare=(3, 2))


def restored(document: files.FileRestoreResult) -> str:
    """``files get``."""
    counts = [
        tables.count(number, *words)
        for number, words in (
            (document.files, ("file",)),
            (document.directories, ("folder",)),
            (document.symlinks, ("symbolic link",)),
            (document.links, ("further name of a file", "further names of files")),
            (document.specials, ("special file",)),
            (document.streams, ("alternate data stream",)),
        )
        if number
    ]
    copy = f"copy {document.copy_number} on {document.unit}"
    spent = f"{quantities.show_size(document.bytes)} in {quantities.show_seconds(document.wall_seconds)}"
    lines = [
        f"{document.state}: {document.image} of {document.client}, {copy}, to {document.target}",
        f"{', '.join(counts) or 'nothing'}; {spent}",
    ]
    lines += [f"failed: {one.path}: {one.message} ({one.code})" for one in document.failures[:_TOLD]]
    if document.failed > _TOLD:
        lines.append(f"failed: {document.failed} in all; -o json has the first 1000 of them")
    lines += [f"renamed: {one.path} is {one.name}" for one in document.renamed[:_TOLD]]
    if len(document.renamed) > _TOLD:
        lines.append(f"renamed: {len(document.renamed)} in all; -o json lists them")
    lines += [f"note: {note}" for note in document.notes]
    return "\n".join(lines)
