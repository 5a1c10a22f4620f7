"""Scrub: a pool is read again and proven, and the catalog learns which copies are damaged, or whole again.

Called by ``holdfast pool scrub``, by the loop as ``scrub.every`` says, and after collections that met damage. No lease
is needed: nothing is deleted that an image needs, and a copy's state is the plain truth about its unit. A damaged copy
counts as missing everywhere, so the next plan makes it anew from another copy, or reads the machine as a whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from reconciler.base import errors, meters
from reconciler.catalog import images
from reconciler.jobs import engines
from reconciler.operations import indexrepairs, sites
from reconciler.planning import sightings
from reconciler.storage import units
from reconciler.storage.dedupe import pools, scrubs

#: What a scrub of the loop does at most before others get its slot: seconds, and bytes per second of one device.
SLICE: Final = scrubs.Limits(seconds=900, rate=100 << 20)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """What the catalog learned; copies as ``image/number``."""

    damaged: tuple[str, ...]
    #: Copies that were damaged and proved whole.
    healed: tuple[str, ...]
    #: Copies whose index of files alone was damaged, and was made anew.
    indexed: tuple[str, ...] = ()
    #: Those whose index could not be made anew, and why; as ``image/number: why``. Their disks are whole.
    unindexed: tuple[str, ...] = ()

    def told(self, unit: str) -> Iterator[str]:
        """It in sentences, for the log of a job that worked on ``unit``."""
        for copy in self.damaged:
            yield f"copy {copy} on {unit} is damaged"
        for copy in self.healed:
            yield f"copy {copy} on {unit} is whole again"
        for copy in self.indexed:
            yield f"the index of files of copy {copy} on {unit} was damaged and made anew; its disks are whole"
        for copy in self.unindexed:
            yield f"the index of files is damaged of copy {copy}; its disks are whole"


def scrub(site: sites.Site, name: str, meter: meters.Meter, limits: scrubs.Limits) -> tuple[scrubs.Report, Judged]:
    """Scrub a pool and tell the catalog. Raises ``UsageError`` for another unit, ``UnitError`` kinds, ``Cancelled``."""
    unit = _pool(site, name)
    report = unit.scrub(meter=meter, limits=limits)
    return report, judge(site, name, report.wounded, meter.aside())


def scrub_slice(site: sites.Site, unit: str, context: engines.JobContext) -> engines.Outcome:
    """Go on with the round of a pool for a while; the job's log says what was found. Raises as ``scrub`` does."""
    report, judged = scrub(site, unit, context.meter, SLICE)
    context.log(f"{report.containers} containers of {unit} read again, {report.remaining} bytes are left of the round")
    for what, message in report.findings:
        context.log(f"{what}: {message}")
    for line in judged.told(unit):
        context.log(line)
    return engines.Outcome()


def judge(site: sites.Site, name: str, wounded: Mapping[str, Sequence[units.Damage]], meter: meters.Meter) -> Judged:
    """Record which copies on a unit are damaged: those ``wounded`` in more than their index of files, which is made
    anew at once. A damaged copy that is not among them is read back, and Complete again if every block of it proves
    true."""
    unit = site.units.get(name)
    held = {one.label.id for one in unit.list()}
    site.units.require(name)
    damaged, healed, indexed, unindexed = list[str](), list[str](), list[str](), list[str]()
    for row in images.list_copies(site.db, unit=name):
        key = f"{row.image}/{row.number}"
        found = wounded.get(row.image, ())
        if serious := indexrepairs.of_disks(found):
            if row.state == "Complete" and _mark(site, row, "Damaged", indexrepairs.where(serious)):
                damaged.append(key)
        elif row.state == "Damaged" and row.image in held:
            meter.check()
            whole = not indexrepairs.of_disks(unit.verify(row.image, meter=meter))
            if whole and _mark(site, row, "Complete", f"every block on {name} proves true again"):
                healed.append(key)
        if found and not serious and row.state in sightings.READABLE:
            why = indexrepairs.mend(site, name, row.image, meter)
            if why is None:
                indexed.append(key)
            else:
                unindexed.append(f"{key}: {why}")
    return Judged(damaged=tuple(damaged), healed=tuple(healed), indexed=tuple(indexed), unindexed=tuple(unindexed))


def judge_damage(site: sites.Site, name: str, meter: meters.Meter) -> Judged | None:
    """``judge`` where the pool knows of damage, else None."""
    unit = site.units.get(name)
    if not isinstance(unit, pools.DedupePool) or not unit.knows_damage:
        return None
    return judge(site, name, unit.wounded(meter=meter), meter)


def _mark(site: sites.Site, row: images.CopyRow, state: str, message: str) -> bool:
    return images.mark_state(
        site.db, row.image, row.number, state, now=site.clock.now(), actor=site.actor, message=message
    )


def _pool(site: sites.Site, name: str) -> pools.DedupePool:
    unit = site.units.get(name)
    if not isinstance(unit, pools.DedupePool):
        raise errors.UsageError(f"{name} is not a DedupePool", hint="other units are proven by verifying their images")
    return unit
