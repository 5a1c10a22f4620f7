"""An attachment of a committed image made anew: new files first, then ``image.json`` names them by one rename.

Called by ``unit.reattach``. The image's disks are not touched, and a crash leaves either the old attachment or the new
one; files that no ``image.json`` names are removed by the next time. Separate from ``writers``, which know only folders
that nobody sees yet.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Collection, Iterable
from pathlib import Path

from reconciler.base import crashes, errors, files
from reconciler.storage import attachments
from reconciler.storage.directory import attachments as directory_attachments
from reconciler.storage.directory import formats


def reattach(
    unit: str,
    folder: Path,
    document: formats.Document,
    name: str,
    pages: Iterable[bytes],
    known: Collection[bytes],
    lock: threading.Lock,
) -> None:
    """Replace the attachment ``name`` of the image in ``folder``; ``known``: digests of the pages that its base holds.

    ``lock`` keeps others of this process from the folder's name. Raises ``UnitError`` where the image changed
    meanwhile, ``OSError``, and what ``pages`` raises; then the image is as it was.
    """
    attachments.require_name(name)
    planned = formats.stored_attachment(name, document.base, again=True)
    stored, size = directory_attachments.write(unit, folder, planned, pages, known)
    before = [one for one in document.attachments if one.name == name]
    changed = dataclasses.replace(
        document,
        stored_bytes=max(document.stored_bytes + size - sum(_size(folder, one) for one in before), 0),
        attachments=attachments.put(document.attachments, stored),
    )
    crashes.passing("directory.reattached")
    try:
        with lock:
            if formats.read(folder) != document:
                raise errors.UnitError(f"image {document.label.id} changed meanwhile", hint="the next attempt sees it")
            formats.write(folder, changed)
    except BaseException:
        _remove(folder, stored)
        raise
    _tidy(folder, name, changed)


def _size(folder: Path, stored: formats.StoredAttachment) -> int:
    found = 0
    for name in (stored.data, stored.pages):
        with contextlib.suppress(FileNotFoundError):
            found += (folder / name).stat().st_size
    return found


def _remove(folder: Path, stored: formats.StoredAttachment) -> None:
    for name in (stored.data, stored.pages):
        (folder / name).unlink(missing_ok=True)


def _tidy(folder: Path, name: str, document: formats.Document) -> None:
    """Remove what earlier attachments of that name, and attempts that a crash ended, left."""
    used = {file for one in document.attachments for file in (one.data, one.pages)}
    for path in folder.glob(f"attachment-{name}.*"):
        if path.name not in used:
            path.unlink(missing_ok=True)
    files.sync_folder(folder)
