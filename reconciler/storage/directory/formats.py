"""What lies in an image's folder on a Directory unit: ``image.json``, file names, the list of changed ranges.

Read and written here alone, so that the format is one file to look at. ``image.json`` is a sealed document
(``storage.labels``); the lists are binary: 32 bytes per block digest, and two little-endian 64-bit numbers (offset,
length) per changed range. Both lists are proven: the digests by the disk's digest, the ranges by ``changedDigest``.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
import struct
from pathlib import Path
from typing import Any, Final

from reconciler.base import digests, errors, extents, files
from reconciler.storage import attachments, labels, units

FILE_NAME: Final = "image.json"
TRASH_PREFIX: Final = ".trash-"
#: Backups hold what the machines hold: nobody but the owner reads them.
FILE_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700

_RANGE: Final = struct.Struct("<QQ")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_STORED = re.compile(r"\d+-[A-Za-z0-9._-]+\Z")
_ATTACHED = re.compile(r"attachment-[a-z0-9.-]+\Z")
_LEFTOVER = re.compile(r"\.(?:tmp|trash)-(?P<id>.+)-[0-9a-f]{8}\Z")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StoredDisk:
    """Where one disk of an image lies, by names within the image's folder."""

    #: The disk's name within its machine.
    name: str
    #: Sparse raw file: the whole disk, or the changed blocks in place.
    data: str
    #: List of block digests of the whole disk, 32 bytes each.
    digests: str
    #: List of ranges that ``data`` holds of an incremental; None for a disk stored whole.
    changed: str | None
    #: ``blake3:<hex>`` of that list.
    changed_digest: str | None
    #: Image id that holds the other blocks; None for a disk stored whole.
    parent: str | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StoredAttachment:
    """Where one attachment of an image lies, by names within the image's folder."""

    #: The attachment's name.
    name: str
    #: Frames of the pages that the image holds itself.
    data: str
    #: List of all its pages.
    pages: str
    #: ``blake3:<hex>`` of that list.
    digest: str
    #: The image's base, where that holds pages of it; else None.
    parent: str | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """What ``image.json`` says."""

    label: units.ImageLabel
    base: str | None
    #: Bytes of blocks, pages and lists in the folder, holes left out.
    stored_bytes: int
    disks: tuple[StoredDisk, ...]
    attachments: tuple[StoredAttachment, ...] = ()

    def held(self) -> units.Held:
        """The image as ``list`` shows it."""
        return units.Held(label=self.label, stored_bytes=self.stored_bytes, base=self.base)


def stored_disk(index: int, name: str, parent: str | None) -> StoredDisk:
    """File names for the disk at ``index`` of its image. The number keeps any two disks apart, whatever their names."""
    stem = f"{index:02d}-{_UNSAFE.sub('_', name)[:100]}"
    return StoredDisk(
        name=name,
        data=f"{stem}.raw" if parent is None else f"{stem}.blocks",
        digests=f"{stem}.digests",
        changed=None if parent is None else f"{stem}.changed",
        changed_digest=None,
        parent=parent,
    )


def stored_attachment(name: str, parent: str | None, *, again: bool = False) -> StoredAttachment:
    """File names for an attachment, which no disk's file can have; ``again``: beside those of an earlier one."""
    stem = f"attachment-{name}{f'.{secrets.token_hex(4)}' if again else ''}"
    return StoredAttachment(name=name, data=f"{stem}.zst", pages=f"{stem}.pages", digest="", parent=parent)


def temporary_folder(target: Path) -> Path:
    """A fresh name for the unfinished image whose place is ``target``."""
    return files.temporary_name(target)


def trash_folder(target: Path) -> Path:
    """A fresh name under which a deleted image waits for the removal of its files."""
    return target.with_name(f"{TRASH_PREFIX}{target.name}-{secrets.token_hex(4)}")


def leftover_of(name: str) -> str | None:
    """The image id that an unfinished or deleted folder's name carries; None for any other name."""
    found = _LEFTOVER.match(name)
    return found["id"] if found else None


def encode_ranges(ranges: extents.Extents) -> bytes:
    """The list of ranges as it lies on disk."""
    return b"".join(_RANGE.pack(offset, length) for offset, length in ranges)


def read_ranges(folder: Path, disk: StoredDisk) -> extents.Extents:
    """The proven ranges that an incremental's file holds. Raises ``ImageDamaged`` or ``OSError``."""
    if disk.changed is None:
        raise ValueError(f"disk {disk.name} is stored whole")
    data = _read(folder, disk.changed)
    if list_digest(data) != disk.changed_digest:
        raise _damaged(folder, f"{disk.changed} contradicts its digest")
    return tuple((offset, length) for offset, length in _RANGE.iter_unpack(data))


def read_list(folder: Path, stored: StoredAttachment) -> bytes:
    """The proven list of an attachment's pages. Raises ``ImageDamaged`` or ``OSError``."""
    data = _read(folder, stored.pages)
    if list_digest(data) != stored.digest:
        raise _damaged(folder, f"{stored.pages} contradicts its digest")
    return data


def list_digest(data: bytes) -> str:
    """The digest of a list of ranges or pages, as ``image.json`` spells it."""
    return "blake3:" + digests.digest(data).hex()


def read_digests(folder: Path, disk: StoredDisk) -> bytes:
    """The list of block digests as it lies there, not proven yet. Raises ``ImageDamaged`` or ``OSError``."""
    return _read(folder, disk.digests)


def read(folder: Path) -> Document:
    """What ``image.json`` in ``folder`` says.

    Raises ``FormatTooNew``, ``ImageDamaged`` where it is not there, not as written, or of another image or client,
    and ``OSError``.
    """
    where = f"image {folder.parent.name}/{folder.name}"
    document = labels.unseal(_read(folder, FILE_NAME), where)
    label = labels.from_json(document.get("label"), where)
    if (label.client_slug, label.id) != (folder.parent.name, folder.name):
        raise _damaged(folder, f"its label is that of {label.client_slug}/{label.id}")
    try:
        stored = tuple(_disk_from_json(disk) for disk in document["disks"])
        # Images of earlier versions have none.
        attached = tuple(_attachment_from_json(one) for one in document.get("attachments", ()))
        base = document["base"]
        result = Document(
            label=label,
            base=None if base is None else str(base),
            stored_bytes=int(document["storedBytes"]),
            disks=stored,
            attachments=attached,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, f"{FILE_NAME}: {error}") from error
    if [disk.name for disk in result.disks] != [record.name for record in label.disks]:
        raise _damaged(folder, f"{FILE_NAME}: its disks are not those of its label")
    return result


def write(folder: Path, document: Document) -> None:
    """Write ``image.json`` durably, and with it every name in ``folder``. Raises ``OSError``."""
    body = {
        "label": labels.to_json(document.label),
        "base": document.base,
        "storedBytes": document.stored_bytes,
        "disks": [_disk_to_json(disk) for disk in document.disks],
        "attachments": [dataclasses.asdict(one) for one in document.attachments],
    }
    files.write_atomically(folder / FILE_NAME, labels.seal(body), mode=FILE_MODE)


def _disk_to_json(disk: StoredDisk) -> dict[str, Any]:
    return {
        "name": disk.name,
        "data": disk.data,
        "digests": disk.digests,
        "changed": disk.changed,
        "changedDigest": disk.changed_digest,
        "parent": disk.parent,
    }


def _disk_from_json(document: Any) -> StoredDisk:
    names = {key: document[key] for key in ("data", "digests", "changed")}
    for name in names.values():
        if name is not None and not _STORED.match(name):
            raise ValueError(f"{name!r} is no name of a stored file")
    parent = document["parent"]
    if parent is not None and not labels.is_safe(parent):
        raise ValueError(f"{parent!r} is no image id")
    if (parent is None) != (names["changed"] is None):
        raise ValueError("a disk with a parent has a list of changes, and no other has")
    return StoredDisk(name=str(document["name"]), changed_digest=document["changedDigest"], parent=parent, **names)


def _attachment_from_json(document: Any) -> StoredAttachment:
    found = StoredAttachment(
        name=str(document["name"]),
        data=str(document["data"]),
        pages=str(document["pages"]),
        digest=str(document["digest"]),
        parent=document["parent"],
    )
    if not attachments.is_name(found.name) or not (_ATTACHED.match(found.data) and _ATTACHED.match(found.pages)):
        raise ValueError(f"{found.name!r} is no attachment")
    if found.parent is not None and not labels.is_safe(found.parent):
        raise ValueError(f"{found.parent!r} is no image id")
    return found


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise _damaged(folder, f"{name} is missing") from error


def _damaged(folder: Path, cause: str) -> errors.ImageDamaged:
    return errors.ImageDamaged(
        f"image {folder.parent.name}/{folder.name} is damaged: {cause}", hint="use another copy of the image"
    )
