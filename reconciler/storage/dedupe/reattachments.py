"""An attachment of a committed image made anew in a pool: its pages are stored, then the manifest names their list.

Called by ``pools.reattach``. Like a writer it is registered while it works, so that no collection takes what it relies
on; the step is one more ``commit`` line of the log for the same image, and the rename of its manifest. What is known of
the old attachment's segments is proven first: one that is false in its place would else be taken for stored.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable

from blake3 import blake3

from reconciler.base import crashes, errors, files
from reconciler.storage import attachments
from reconciler.storage.dedupe import (
    appenders,
    containers,
    manifests,
    registrations,
    scrubs,
    stores,
    writers,
)
from reconciler.storage.dedupe import attachments as pool_attachments


def reattach(store: stores.Store, image: str, name: str, pages: Iterable[bytes]) -> None:
    """Replace the attachment ``name`` of an image. Raises ``UnitError`` kinds and what ``pages`` raises; then the
    image is as it was."""
    attachments.require_name(name)
    root = store.settings.root
    manifest = manifests.read(root / "manifests", image, store.header.id, store.settings.name)
    for one in manifest.attachments:
        if one.name == name:
            _withdraw(store, one)
    claims = appenders.Claims(image)
    with store.journal.locked():
        registration = registrations.Registration(root / "writers", image)
    claims.registration = registration
    store.join(claims)
    try:
        recipe = pool_attachments.store_pages(store, claims, name, pages)
        store.flush(claims)
        attached = attachments.put(manifest.attachments, recipe)
        changed = dataclasses.replace(manifest, stored=manifest.stored + claims.stored, attachments=attached)
        _commit(store, claims, registration, manifest, changed)
    finally:
        store.leave(claims)
        with files.unit_errors(store.settings.name):
            registration.release()


def _withdraw(store: stores.Store, recipe: manifests.AttachmentRecipe) -> None:
    """Nobody finds what is false of an attachment from now on."""
    scrubs.withdraw_false(store, containers.META, [recipe.listing])
    with contextlib.suppress(containers.Damaged):
        rows = pool_attachments.decode_list(store.fetch_meta(recipe.listing))
        scrubs.withdraw_false(store, (containers.DATA,), [row.fingerprint for row in rows])


def _commit(
    store: stores.Store,
    claims: appenders.Claims,
    registration: registrations.Registration,
    before: manifests.Manifest,
    after: manifests.Manifest,
) -> None:
    """Change the manifest, where the image is still there as it was."""
    root, image = store.settings.root, before.label.id
    data = manifests.encode(after)
    store.require_room(len(data))
    with store.journal.locked():
        if not registration.stands:
            raise errors.UnitError(f"image {image}: another attempt began", hint="wait for it")
        writers.require_in_place(store, claims)
        if manifests.read(root / "manifests", image, store.header.id, store.settings.name) != before:
            raise errors.UnitError(f"image {image} changed meanwhile", hint="the next attempt sees it")
        store.journal.append("commit", image=image, manifest=blake3(data).hexdigest(), lookups=0, hits=0)
        crashes.passing("pool.reattached")
        files.write_atomically(manifests.path(root / "manifests", image), data)
