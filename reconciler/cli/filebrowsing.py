"""``holdfast files ls`` of images that the search cache does not know: their disks are read."""

from __future__ import annotations

import contextlib
from pathlib import Path

from reconciler.api.documents import files
from reconciler.base import clocks
from reconciler.cli import sessions, settings
from reconciler.controller import choices, filechoices, filelistings
from reconciler.operations import browsedtrees
from reconciler.storage import opening, units


def of_catalog(chosen: settings.Settings, picked: filechoices.Image, path: str, *, deep: bool) -> files.FileList:
    """A folder of an image, from its best copy. Raises ``NotFound``, ``UsageError``, ``GuestUnreadable``."""
    sessions.start_logging()
    slug = picked.client.slug
    now = clocks.from_environment().now()
    choice = sessions.read(chosen, lambda db: choices.choose(db, slug, image=picked.id, as_of=None, copy=None, now=now))
    # Failures are told while the folder is read, and before it is written down.
    notes = [*picked.notes, *choice.notes]
    with contextlib.closing(choice.open(chosen.caches, lambda failure: notes.append(str(failure)))) as stored:
        return _listed(stored, slug, path, notes, deep=deep)


def of_folder(folder: Path, image: str, path: str, *, deep: bool) -> files.FileList:
    """The same from a unit's folder alone."""
    sessions.start_logging()
    with (
        contextlib.closing(opening.open_folder(folder.absolute())) as unit,
        contextlib.closing(opening.open_image(unit, image)) as stored,
    ):
        return _listed(stored, stored.label.client_slug, path, [], deep=deep)


def _listed(stored: units.StoredImage, client: str, path: str, notes: list[str], *, deep: bool) -> files.FileList:
    with browsedtrees.Browsers(stored) as browsers:
        tree = browsedtrees.BrowsedTree(browsers)
        label = stored.label
        found = filelistings.listing(
            tree, path, client=client, image=label.id, time=label.time, source="Image", deep=deep
        )
        said = tuple(dict.fromkeys((*notes, *tree.notes, *found.notes)))
        return found.model_copy(update={"notes": said})
