"""Recovery: settle what a dead process left, and take over what a unit holds.

A first copy that its unit committed and the catalog did not hear of is adopted: the image was acknowledged by its unit,
so it is never thrown away. Every other unfinished write is swept and planned again.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from reconciler.catalog import images, jobs, listings, restores, workers
from reconciler.operations import backups, sites
from reconciler.planning import sightings
from reconciler.storage import units

_log = logging.getLogger(__name__)


def settle(site: sites.Site, unit_names: frozenset[str]) -> int:
    """Mark dead workers' jobs Lost and settle their writes on the units that are online; how many were settled.

    Only the holder of the controller's lease calls it.
    """
    settled = len(jobs.lose_dead(site.db, alive=workers.alive, now=site.clock.now()))
    live = {job.id for job in jobs.live(site.db)}
    swept: set[str] = set()
    for writing in images.writing_copies(site.db):
        if writing.job in live or writing.unit not in unit_names:
            continue
        unit = site.units.get(writing.unit)
        if writing.is_first:
            _adopt_or_discard(site, unit, writing)
        else:
            # A duplicate that was not proven is cheaper to make again than to trust. Where a damaged copy was there
            # before, this may still be it: only the next attempt, which proves its source first, removes it.
            if writing.fallback != "Damaged":
                unit.delete(writing.image_id)
            images.discard_writing(site.db, writing.image_id, writing.number)
        swept.add(writing.unit)
        settled += 1
    for name in swept:
        sweep(site, name)
    return settled


def sweep(site: sites.Site, name: str) -> int:
    """Remove what unfinished writers left on a unit; the bytes freed."""
    alive = {writing.image_id for writing in images.writing_copies(site.db)}
    return site.units.get(name).sweep(alive)


def _adopt_or_discard(site: sites.Site, unit: units.StorageUnit, writing: images.WritingCopy) -> None:
    # ``list`` rather than ``open``: it also tells what the image stored and needs.
    found = next((held for held in unit.list() if held.label.id == writing.image_id), None)
    if found is None:
        images.discard_writing(site.db, writing.image_id, writing.number)
        return
    commit = units.Commit(label=found.label, stored_bytes=found.stored_bytes, base=found.base)
    backups.record(site, commit)
    _log.info("image committed before a crash was recorded: %s on %s", writing.image_id, unit.name)


def missing_copies(site: sites.Site, name: str) -> int:
    """Compare a unit that is online with the catalog: copies it lacks become Lost, copies it holds again Complete.

    How many changed. A copy is never Lost because a label could not be read: it is Damaged then.
    """
    unit = site.units.get(name)
    held = {one.label.id for one in unit.list()}
    unread = unreadable(unit)
    # Of one that was unmounted meanwhile nothing would be left.
    site.units.require(name)
    changed = 0
    now = site.clock.now()
    rows = images.list_copies(site.db, unit=name)
    # Images that another copy accounts for: what was lost of them is not what lies there now.
    present = {row.image for row in rows if row.state in sightings.PRESENT}
    for row in rows:
        here = row.image in held
        if row.state == "Complete" and not here:
            state = "Damaged" if row.image in unread else "Lost"
            message = (
                f"{name} is online and does not hold it" if state == "Lost" else f"its label on {name} cannot be read"
            )
            images.mark_state(site.db, row.image, row.number, state, now=now, actor=site.actor, message=message)
            changed += 1
        elif row.state == "Lost" and here and row.image not in present:
            images.mark_state(
                site.db, row.image, row.number, "Complete", now=now, actor=site.actor, message=f"found on {name} again"
            )
            changed += 1
    return changed


def unreadable(unit: units.StorageUnit) -> frozenset[str]:
    """Ids of the images on a unit whose labels cannot be read."""
    # Units may name the folder that they lie in as well.
    return frozenset(name.rpartition("/")[2] for name in unit.unreadable())


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What taking over a unit came to."""

    #: Images that were taken into the catalog, and those that it knew.
    taken: int
    known: int
    #: Names of restores that are taken as made.
    made: tuple[str, ...]


def import_unit(site: sites.Site, name: str, overwriting: Sequence[restores.Overwriting] = ()) -> Imported:
    """Take what a unit holds into the catalog. Imported copies wait for an approval before they expire.

    ``overwriting``: restores of the manifests that must not be made twice. Those of machines whose first images come
    with this unit may have been made by the catalog that had them.
    """
    unit = site.units.get(name)
    held = sorted(unit.list(), key=lambda one: one.label.sequence)
    made = _taken_as_made(site, name, held, overwriting) if overwriting else []
    taken = 0
    for one in held:
        taken += images.import_image(
            site.db, described(one.label), name, one.stored_bytes, one.base, now=site.clock.now(), actor=site.actor
        )
    return Imported(taken=taken, known=len(held) - taken, made=tuple(made))


def _taken_as_made(
    site: sites.Site, name: str, held: Sequence[units.Held], overwriting: Sequence[restores.Overwriting]
) -> list[str]:
    """Restores of machines whose first images come with a unit; their names."""
    have = {image.client_id for image in listings.list_images(site.db)}
    news = [one.label for one in held if one.label.client_id not in have]
    words = {word for one in news for word in (one.client_id, one.client_slug, one.client_name)}
    with site.db.writing() as connection:
        return restores.take_as_made(
            connection,
            [one for one in overwriting if one.client in words],
            f"taken as made: its images came with {name}, and nobody knows whether it was",
            site.clock.now(),
            site.actor,
        )


def described(label: units.ImageLabel) -> images.ImportedImage:
    """What a label says of its image, as the catalog takes it."""
    return images.ImportedImage(
        id=label.id,
        client_id=label.client_id,
        client_name=label.client_name,
        client_slug=label.client_slug,
        source=label.source,
        policy=label.policy,
        schedule=label.schedule,
        lifecycle=label.lifecycle,
        owed=dict(label.owed),
        operation=label.operation,
        copy=label.copy,
        type=label.type,
        state=label.state,
        time=label.time,
        sequence=label.sequence,
        slot=label.slot,
        revision=label.revision,
        parent=label.parent,
        changes=label.changes,
        consistency=label.consistency,
        warnings=tuple(dict(warning) for warning in label.warnings),
        disks=backups.disk_facts(label),
        source_state=dict(label.source_state),
    )
