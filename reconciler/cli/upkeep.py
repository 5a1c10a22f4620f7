"""``holdfast pool collect``, its dry run, and ``holdfast pool scrub``; the texts of what they do and find.

Apart from ``pools``, which chooses the verb. Collecting takes the controller's seat, because it deletes. A scrub runs
beside a controller: it deletes nothing that an image needs, and what it tells the catalog is plain truth.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict

from reconciler.api.documents import pools as documents
from reconciler.api.documents import results
from reconciler.base import clocks, errors, meters, quantities
from reconciler.catalog.fileindexes import caches
from reconciler.cli import options, outputs, progress, seats, sessions, settings
from reconciler.controller import observations
from reconciler.operations import scrubs as operation
from reconciler.operations import sites
from reconciler.planning import desired
from reconciler.storage import opening
from reconciler.storage.dedupe import inspections, pools, scrubs, verdicts

#: Damaged ranges shown as text.
_SHOWN = 20
_WHY = {
    verdicts.Reason.IN_USE: "a running writer relies on them",
    verdicts.Reason.BESIDE_WRITER: "a writer of another process may rely on them until it ends",
    verdicts.Reason.MOSTLY_LIVE: "no more than the threshold of them is dead; --threshold takes another",
    verdicts.Reason.NO_ROOM: "there is no room to write their live part anew; free some and collect again",
    verdicts.Reason.UNCONFIRMED: "their own footers do not confirm that they are dead; run pool check",
}
_PINNED = "deleted images hold them that running backups build on"


def collect(chosen: settings.Settings, name: str, threshold: int, output: options.Output) -> int:
    """Give back space, with the controller's seat."""
    clock = clocks.from_environment()
    with sessions.writing(chosen) as db, seats.controlling(chosen, db, clock) as controller:
        controller.reload()
        unit = controller.site.units.get(name)
        if not isinstance(unit, pools.DedupePool):
            raise errors.UsageError(f"{name} is not a DedupePool")
        meter = meters.Meter()
        with sessions.cancelling(meter), progress.metered(meter, f"collect {name}"):
            freed = unit.reclaim(meter=meter, threshold=threshold)
    message = f"{name}: gave back {quantities.show_size(freed)}"
    outputs.emit(
        results.Message(done=True, message=message, details={"freedBytes": freed}), output, lambda one: one.message
    )
    return 0


def preview(unit: pools.DedupePool, threshold: int, output: options.Output) -> int:
    """Say what ``collect`` would do, without the seat and without a trace."""
    meter = meters.Meter()
    with sessions.cancelling(meter), progress.metered(meter, f"collect {unit.name}"):
        found = unit.preview(meter=meter, threshold=threshold)
    outputs.emit(_document(unit.name, threshold, found), output, _text)
    return 0


def scrub(chosen: settings.Settings, wanted: desired.Desired, name: str, given: Given, output: options.Output) -> int:
    """Read the pool again, prove it, tell the catalog; 3 where damage was found."""
    limits = given.limits()
    if name not in wanted.units:
        raise errors.NotFound(f"there is no unit {name}", hint=f"there are: {', '.join(sorted(wanted.units))}")
    with (
        sessions.writing(chosen) as db,
        contextlib.closing(opening.OpenUnits(owner=db.id, cache=chosen.caches)) as opened,
    ):
        opened.declare(observations.declared_units(wanted))
        site = sites.Site(
            db=db,
            units=opened,
            clock=clocks.from_environment(),
            actor=sessions.actor(),
            files=caches.FileCache(chosen.caches),
        )
        meter = meters.Meter()
        with sessions.cancelling(meter), progress.metered(meter, f"scrub {name}"):
            report, judged = operation.scrub(site, name, meter, limits)
    document = documents.ScrubResult(
        unit=name,
        complete=report.complete,
        round_started=report.started,
        containers=report.containers,
        read_bytes=report.read,
        remaining_bytes=report.remaining,
        false_segments=report.false,
        healed_segments=report.healed,
        lost_segments=report.lost,
        findings=tuple(f"{where}: {message}" for where, message in report.findings),
        ranges=tuple(
            documents.ScrubRange(
                image=one.image,
                disk=one.disk,
                attachment=one.attachment,
                offset=one.offset,
                length=one.length,
                message=one.message,
            )
            for ranges in report.wounded.values()
            for one in ranges
        ),
        damaged_copies=judged.damaged,
        healed_copies=judged.healed,
        indexed_copies=judged.indexed,
        unindexed_copies=judged.unindexed,
    )
    outputs.emit(document, output, _scrubbed)
    return 3 if document.findings or document.ranges else 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """The limits of a scrub as they were typed."""

    rate: str | None = None
    size: str | None = None
    span: str | None = None

    def limits(self) -> scrubs.Limits:
        """What they mean. Raises ``UsageError``."""
        try:
            rate = None if self.rate is None else quantities.parse_size(self.rate.removesuffix("/s"))
            size = None if self.size is None else quantities.parse_size(self.size)
            seconds = None if self.span is None else quantities.Duration.parse(self.span).approximate.total_seconds()
        except ValueError as error:
            raise errors.UsageError(str(error)) from error
        if rate == 0:
            raise errors.UsageError("a rate of 0 would never end", hint="such as --rate 50MiB/s")
        return scrubs.Limits(rate=rate, size=size, seconds=seconds)


def _scrubbed(document: documents.ScrubResult) -> str:
    size = quantities.show_size
    state = (
        "the round is complete"
        if document.complete
        else f"{size(document.remaining_bytes)} of the round are left for the next scrub"
    )
    lines = [f"{document.unit}: {document.containers} containers, {size(document.read_bytes)} proven; {state}"]
    if document.false_segments or document.lost_segments:
        lines.append(
            f"  {document.false_segments} segments false, {document.healed_segments} of them healed;"
            f" {document.lost_segments} that images need are lost"
        )
    lines += [f"  {found}" for found in document.findings]
    lines += [
        f"  {one.image}, {'attachment' if one.attachment else 'disk'} {one.disk}: {size(one.length)} at {one.offset}:"
        f" {one.message}"
        if one.disk
        else f"  {one.message}"
        for one in document.ranges[:_SHOWN]
    ]
    if len(document.ranges) > _SHOWN:
        lines.append(f"  and {len(document.ranges) - _SHOWN} more ranges; -o json lists them")
    lines += [
        f"  copy {copy} is Damaged: the next pass makes it anew where another copy is good"
        for copy in document.damaged_copies
    ]
    lines += [f"  copy {copy} is Complete again" for copy in document.healed_copies]
    lines += [f"  copy {copy} is whole; its index of files was made anew" for copy in document.indexed_copies]
    lines += [
        f"  copy {copy}; its disks are whole, and files ls and get read them instead of its index of files"
        for copy in document.unindexed_copies
    ]
    return "\n".join(lines)


def _document(name: str, threshold: int, found: inspections.Preview) -> documents.CollectPreview:
    verdict = found.verdict
    groups: dict[verdicts.Reason, list[int]] = defaultdict(list)
    for one in verdict.kept:
        groups[one.reason].append(one.size)
    kept = [
        documents.CollectKept(code=reason.value, message=_WHY[reason], containers=len(sizes), bytes=sum(sizes))
        for reason, sizes in sorted(groups.items())
    ]
    if found.pinned_bytes:
        # These are live as long as the writers run, so in no container's dead share.
        kept.append(
            documents.CollectKept(code="PinnedParents", message=_PINNED, containers=0, bytes=found.pinned_bytes)
        )
    return documents.CollectPreview(
        unit=name,
        threshold_percent=threshold,
        freed_bytes=found.waiting_bytes + verdict.dead_bytes + verdict.net_bytes,
        waiting_bytes=found.waiting_bytes,
        dead=documents.CollectPart(containers=len(verdict.dead), bytes=verdict.dead_bytes),
        rewritten=documents.CollectPart(containers=len(verdict.sparse), bytes=verdict.net_bytes),
        kept=tuple(kept),
    )


def _text(document: documents.CollectPreview) -> str:
    size = quantities.show_size
    sparse = f"{document.rewritten.containers} containers, more than {document.threshold_percent}% dead"
    lines = [
        f"{document.unit}: a collection would give back {size(document.freed_bytes)}",
        f"  dead       {document.dead.containers} containers, {size(document.dead.bytes)}",
        f"  rewritten  {sparse}: {size(document.rewritten.bytes)} net",
    ]
    if document.waiting_bytes:
        lines.append(f"  waiting    {size(document.waiting_bytes)} condemned by a collection that was interrupted")
    if document.kept:
        lines.append("and would leave")
    lines += [
        f"  {size(one.bytes):<10} {f'in {one.containers} containers: ' if one.containers else ''}{one.message}"
        for one in document.kept
    ]
    return "\n".join(lines)
