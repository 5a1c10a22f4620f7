"""Every block and page of an image read back, and what is false of it taken out of everybody's sight.

``pools`` proves images on demand, ``writers`` one that is to take another one's place. A segment that is false where it
lies would else be taken for stored by whoever writes the same bytes again, until a scrub finds it.
"""

from __future__ import annotations

from collections.abc import Iterable

from reconciler.base import errors, meters
from reconciler.storage import attachments, blocks, units
from reconciler.storage.dedupe import containers, images, recipes, scrubs, stores


def prove(image: images.StoredPoolImage, meter: meters.Meter) -> tuple[units.Damage, ...]:
    """What of an image does not prove true. Raises ``Cancelled`` and ``UnitError`` kinds that are no damage."""
    found: list[units.Damage] = []
    id = image.label.id
    for record in image.label.disks:
        try:
            with image.disk(record.name) as disk:
                found += blocks.prove(disk, image=id, meter=meter)
        except errors.ImageDamaged as error:
            found.append(units.Damage(image=id, disk=record.name, offset=0, length=record.size, message=error.message))
    found += attachments.prove(image, meter)
    return tuple(found)


def withdraw(
    store: stores.Store, image: images.StoredPoolImage, found: Iterable[units.Damage], meter: meters.Meter
) -> None:
    """Nobody finds from now on what is false of an image's disks where it was found damaged.

    Raises ``Cancelled``, ``UnitError`` kinds and ``OSError``.
    """
    for damage in found:
        if damage.attachment or not damage.disk:
            continue  # whoever makes an index anew sees to that
        recipe = image.recipe(damage.disk)
        first, last = damage.offset // recipes.PAGE, (damage.offset + damage.length - 1) // recipes.PAGE
        spans = {recipe.disk.spans[page * recipes.PAGE // recipes.SPAN] for page in range(first, last + 1)}
        scrubs.withdraw_false(store, containers.META, sorted(spans - {recipes.NOTHING}))
        for page in range(first, last + 1):
            meter.check()
            try:
                fingerprint = recipe.page_fingerprint(page)
                if fingerprint == recipes.NOTHING:
                    continue
                scrubs.withdraw_false(store, containers.META, [fingerprint])
                start = max(damage.offset - page * recipes.PAGE, 0) + page * recipes.PAGE
                end = min(damage.offset + damage.length, (page + 1) * recipes.PAGE)
                pieces = recipes.within(recipe.page(page), start, end - start)
            except errors.ImageDamaged:
                continue  # what it named cannot be told
            scrubs.withdraw_false(store, (containers.DATA,), sorted({piece.fingerprint for piece in pieces}))
