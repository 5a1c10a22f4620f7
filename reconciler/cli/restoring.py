"""``holdfast restore``: from the catalog, or from a unit's folder alone."""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from pathlib import Path
from typing import Annotated

import typer

from reconciler.api.documents import results
from reconciler.base import clocks, errors, meters, quantities, times
from reconciler.catalog import audits, database
from reconciler.cli import options, outputs, progress, sessions, settings
from reconciler.controller import choices
from reconciler.jobs import embedded, engines
from reconciler.operations import restores
from reconciler.storage import opening


def restore(
    client: Annotated[str, typer.Argument(metavar="CLIENT|IMAGE", help="A client; with --unit an image's id.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder for the restored disks; made if need be.")],
    image: Annotated[
        str | None, typer.Option("--image", metavar="ID", help="This image; the newest by default.")
    ] = None,
    as_of: Annotated[
        str | None, typer.Option("--as-of", metavar="TIME", help="The newest image at or before TIME.")
    ] = None,
    copy: Annotated[
        int | None, typer.Option("--copy", metavar="N", help="This copy; the fastest good one by default.")
    ] = None,
    disk: Annotated[
        list[str] | None, typer.Option("--disk", metavar="NAME", help="Only this disk; may be repeated.")
    ] = None,
    format: Annotated[str, typer.Option("--format", help="raw, qcow2 or vmdk.")] = "raw",
    unit: Annotated[
        Path | None, typer.Option("--unit", metavar="PATH", help="Restore from this unit's folder alone.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be restored; write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite disks that are there already.")] = False,
    reason: Annotated[str | None, typer.Option("--reason", help="Why, for the audit log.")] = None,
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """Restore a machine's disks and prove every byte against the image."""
    sessions.start_logging()
    if format not in restores.FORMATS:
        raise errors.UsageError(f"--format {format}: choose one of {', '.join(restores.FORMATS)}")
    if unit is not None:
        if image or as_of or copy:
            raise errors.UsageError("--unit takes an image's id alone", hint="leave out --image, --as-of and --copy")
        return _from_folder(unit, client, to, disk or [], format, dry_run=dry_run, force=force, output=output)
    chosen = settings.of_state(state=state, catalog=catalog)
    moment = _moment(as_of)
    choice = sessions.read(chosen, lambda db: choices.choose(db, client, image=image, as_of=moment, copy=copy))
    request = _Request(choice=choice, to=to, disks=disk or [], format=format, force=force, reason=reason)
    if dry_run:
        with contextlib.closing(choice.open(chosen.caches)) as stored:
            plan = restores.prepare(stored.label, names=request.disks, folder=to, format=format, force=force)
            outputs.emit(_document(request.choice, plan, (), 0.0, dry_run=True), output, _text)
        return 0
    with sessions.writing(chosen) as db:
        return _from_catalog(db, chosen, request, output)


class _Request:
    """One restore from the catalog."""

    def __init__(
        self, *, choice: choices.Choice, to: Path, disks: list[str], format: str, force: bool, reason: str | None
    ) -> None:
        self.choice = choice
        self.to = to
        self.disks = disks
        self.format = format
        self.force = force
        self.reason = reason


def _moment(text: str | None) -> dt.datetime | None:
    if text is None:
        return None
    try:
        return times.parse(text)
    except ValueError as error:
        raise errors.UsageError(f"--as-of: {error}") from error


def _from_catalog(db: database.Database, chosen: settings.Settings, request: _Request, output: options.Output) -> int:
    """Under a job's row, so that the copy cannot expire meanwhile and ``get jobs`` shows the restore."""
    choice, clock, started = request.choice, clocks.from_environment(), time.monotonic()
    order = engines.Order(
        address=f"restore/{choice.client.slug}@{times.show(clock.now())}",
        type="Restore",
        client_id=choice.client.id,
        policy=choice.policy,
        image=choice.image,
        copy=choice.copy,
        source_unit=choice.unit,
    )
    with contextlib.closing(choice.open(chosen.caches)) as stored:
        plan = restores.prepare(
            stored.label, names=request.disks, folder=request.to, format=request.format, force=request.force
        )
        with embedded.foreground(db, order, clock=clock) as context, sessions.cancelling(context.meter):
            with progress.metered(context.meter, f"restore {choice.client.name}"):
                restored = restores.restore(plan, stored, context.meter)
            with db.writing() as connection:
                audits.record(
                    connection,
                    now=clock.now(),
                    actor=sessions.actor(),
                    event="Restored",
                    object=choice.image,
                    details={"copy": choice.copy, "target": str(request.to.absolute()), "reason": request.reason or ""},
                )
    outputs.emit(_document(choice, plan, restored, time.monotonic() - started, dry_run=False), output, _text)
    return 0


def _from_folder(
    folder: Path,
    image: str,
    to: Path,
    names: list[str],
    format: str,
    *,
    dry_run: bool,
    force: bool,
    output: options.Output,
) -> int:
    started, meter = time.monotonic(), meters.Meter()
    with (
        contextlib.closing(opening.open_folder(folder.absolute())) as unit,
        contextlib.closing(unit.open(image)) as stored,
    ):
        plan = restores.prepare(stored.label, names=names, folder=to, format=format, force=force)
        choice = choices.of_folder(stored.label, folder)
        restored: tuple[restores.Restored, ...] = ()
        if not dry_run:
            with sessions.cancelling(meter), progress.metered(meter, f"restore {image}"):
                restored = restores.restore(plan, stored, meter)
    outputs.emit(_document(choice, plan, restored, time.monotonic() - started, dry_run=dry_run), output, _text)
    return 0


def _document(
    choice: choices.Choice,
    plan: restores.RestorePlan,
    restored: tuple[restores.Restored, ...],
    seconds: float,
    *,
    dry_run: bool,
) -> results.RestoreResult:
    done = {one.name: one for one in restored}
    return results.RestoreResult(
        client=choice.client.slug,
        image=choice.image,
        image_time=choice.time,
        copy_number=choice.copy,
        unit=choice.unit,
        format=plan.format,
        target=str(plan.folder.absolute()),
        dry_run=dry_run,
        state="Planned" if dry_run else "Verified",
        wall_seconds=round(seconds, 3),
        disks=tuple(
            results.RestoredDisk(
                name=record.name,
                path=str(path.absolute()),
                size_bytes=record.size,
                written_bytes=done[record.name].written if record.name in done else 0,
                digest=record.digest,
                verified=record.name in done,
            )
            for record, path in plan.disks
        ),
    )


def _text(document: results.RestoreResult) -> str:
    verb = "would restore" if document.dry_run else "restored"
    lines = [
        f"{verb} {document.image} (copy {document.copy_number} on {document.unit}, {times.show(document.image_time)})"
    ]
    for disk in document.disks:
        proof = "every block proven" if disk.verified else "not written"
        lines.append(f"  {disk.path}  {quantities.show_size(disk.size_bytes)}  {proof}")
    if not document.dry_run and document.wall_seconds:
        total = sum(disk.size_bytes for disk in document.disks)
        rate = quantities.show_size(int(total / document.wall_seconds))
        lines.append(f"{quantities.show_size(total)} in {quantities.show_seconds(document.wall_seconds)}, {rate}/s")
    return "\n".join(lines)
