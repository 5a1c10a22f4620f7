"""``holdfast restore``: disks, a staged machine or a machine in a vCenter, from the catalog or a unit alone."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from reconciler.api import vcenters
from reconciler.api.documents import results
from reconciler.base import clocks, errors, meters, quantities, times
from reconciler.catalog import audits, configurations, database
from reconciler.cli import options, outputs, progress, restoreoptions, restoreworks, sessions, settings
from reconciler.controller import choices
from reconciler.intake import estates
from reconciler.jobs import embedded, engines
from reconciler.operations import findings, restores
from reconciler.sources import machinetargets
from reconciler.storage import opening

_LOGGER = logging.getLogger(__name__)


def restore(
    client: restoreoptions.Client,
    to: restoreoptions.To = None,
    image: restoreoptions.Image = None,
    as_of: restoreoptions.AsOf = None,
    copy: restoreoptions.Copy = None,
    disk: restoreoptions.Disk = None,
    format: restoreoptions.Form = "raw",
    staged: restoreoptions.Staged = False,
    vcenter: restoreoptions.VCenter = None,
    name: restoreoptions.Name = None,
    folder: restoreoptions.Folder = None,
    host: restoreoptions.Host = None,
    datastore: restoreoptions.Datastore = None,
    pool: restoreoptions.Pool = None,
    identity: restoreoptions.Identity = None,
    via: restoreoptions.Via = None,
    power_on: restoreoptions.PowerOn = False,
    replace: restoreoptions.Replace = False,
    unit: restoreoptions.Unit = None,
    dry_run: restoreoptions.DryRun = False,
    force: restoreoptions.Force = False,
    reason: restoreoptions.Reason = None,
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """Restore a machine, its disks or one of them, and prove every byte against the image."""
    sessions.start_logging()
    machine = {
        "name": name, "folder": folder, "host": host, "datastore": datastore, "pool": pool, "identity": identity,
        "via": via, "replace": replace, "power_on": power_on,
    }  # fmt: skip
    asked = _Asked(
        client=client, to=to, vcenter=vcenter, names=disk or [], format=format, staged=staged,
        machine={key: value for key, value in machine.items() if value},
        force=force, dry_run=dry_run, reason=reason, output=output,
    )  # fmt: skip
    asked.check()
    if unit is not None:
        if image or as_of or copy:
            raise errors.UsageError("--unit takes an image's id alone", hint="leave out --image, --as-of and --copy")
        return _from_folder(unit, asked, asked.work(_declared(Path.cwd(), asked.vcenter)))
    chosen = settings.of_state(state=state, catalog=catalog)
    moment = _moment(as_of)
    choice = sessions.read(chosen, lambda db: choices.choose(db, client, image=image, as_of=moment, copy=copy))
    found = sessions.read(chosen, lambda db: _in_force(db, vcenter))
    work = asked.work(found or _declared(chosen.estate, vcenter))
    if dry_run:
        notes: list[str] = []
        with contextlib.closing(choice.open(chosen.caches, lambda failure: notes.append(str(failure)))) as stored:
            work.plan(stored)
            outputs.emit(_document(choice, work, 0.0, notes, dry_run=True), output, _text)
        return 0
    with sessions.writing(chosen) as db:
        return _from_catalog(db, chosen, choice, asked, work)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """The command line."""

    client: str
    to: Path | None
    vcenter: str | None
    names: list[str]
    format: str
    staged: bool
    #: Options of a machine that were given.
    machine: dict[str, object]
    force: bool
    dry_run: bool
    reason: str | None
    output: options.Output

    @property
    def target(self) -> str:
        """Where it goes, in the words of the command line."""
        return f"vcenter {self.vcenter}" if self.to is None else str(self.to.absolute())

    def check(self) -> None:
        """Raises ``UsageError`` for words that contradict each other."""
        if self.format not in restores.FORMATS:
            raise errors.UsageError(f"--format {self.format}: choose one of {', '.join(restores.FORMATS)}")
        if (self.to is None) == (self.vcenter is None):
            raise errors.UsageError(
                "exactly one of --to and --vcenter is needed",
                hint="--to DIR writes disks into a folder, --vcenter NAME makes the machine again",
            )
        for word, known in (("identity", machinetargets.IDENTITIES), ("via", machinetargets.VIAS)):
            if self.machine.get(word, known[0]) not in known:
                raise errors.UsageError(f"--{word} {self.machine[word]}: choose one of {', '.join(known)}")
        if self.vcenter is None and self.machine:
            words = ", ".join(f"--{word.replace('_', '-')}" for word in self.machine)
            raise errors.UsageError(f"{words} without --vcenter", hint="a folder takes disks, not a machine")
        if self.vcenter is not None and (self.force or self.staged or self.format != "raw"):
            raise errors.UsageError(
                "--force, --staged and --format are for --to", hint="--replace takes the place of a machine"
            )
        if self.staged and self.format != "raw":
            raise errors.UsageError("--staged makes VMDKs", hint="leave out --format")

    def work(self, vcenter: vcenters.VCenter | None) -> restoreworks.Work:
        """What is to be done."""
        if vcenter is not None:
            wanted = {key: value for key, value in self.machine.items() if key != "power_on"}
            power_on = bool(self.machine.get("power_on"))
            return restoreworks.Machine(vcenter=vcenter, names=self.names, wanted=wanted, power_on=power_on)
        to = self.to or Path()
        if self.staged:
            return restoreworks.Staged(to=to, names=self.names, force=self.force)
        return restoreworks.Disks(to=to, names=self.names, format=self.format, force=self.force)


def _moment(text: str | None) -> dt.datetime | None:
    if text is None:
        return None
    try:
        return times.parse(text)
    except ValueError as error:
        raise errors.UsageError(f"--as-of: {error}") from error


def _in_force(db: database.Database, name: str | None) -> vcenters.VCenter | None:
    if name is None:
        return None
    found = configurations.applied(db).get(("VCenter", name))
    return found.object if found is not None and isinstance(found.object, vcenters.VCenter) else None


def _declared(estate: Path | None, name: str | None) -> vcenters.VCenter | None:
    """The VCenter of the manifests: it may be newer than what is in force, or the catalog is lost.

    Raises ``NotFound`` or ``ConfigurationError``.
    """
    if name is None:
        return None
    known: tuple[str, ...] = ()
    if estate is not None:
        desired = estates.load(estate).desired
        if desired is None:
            raise errors.ConfigurationError(
                f"the manifests in {estate} have errors, and VCenter {name} is not in force",
                hint="holdfast validate lists them",
            )
        if name in desired.vcenters:
            return desired.vcenters[name]
        known = tuple(sorted(desired.vcenters))
    listed = f"there is {', '.join(known)}" if known else "declare it in the manifests"
    raise errors.NotFound(f"there is no VCenter {name}", hint=listed)


def _from_catalog(
    db: database.Database,
    chosen: settings.Settings,
    choice: choices.Choice,
    asked: _Asked,
    work: restoreworks.Work,
) -> int:
    """Under a job's row, so that the copy cannot expire meanwhile and ``get jobs`` shows the restore."""
    clock, started = clocks.from_environment(), time.monotonic()
    order = engines.Order(
        address=f"restore/{choice.client.slug}@{times.show(clock.now())}",
        type="Restore",
        client_id=choice.client.id,
        policy=choice.policy,
        image=choice.image,
        copy=choice.copy,
        source_unit=choice.unit,
    )
    notes: list[str] = []
    with embedded.foreground(db, order, clock=clock) as context, sessions.cancelling(context.meter):
        # Only now does the row keep the copies that are still there.
        choice = choices.staying(db, choice)
        record = findings.recorder(db, clock, sessions.actor(), context.log, notes)
        details: dict[str, object] = {"copy": choice.copy, "unit": choice.unit, "reason": asked.reason or ""}
        try:
            with contextlib.closing(choice.open(chosen.caches, record)) as stored:
                work.plan(stored)
                with progress.metered(context.meter, f"restore {choice.client.name}"):
                    work.run(stored, context.meter)
        except BaseException as error:
            said = {"code": getattr(error, "code", type(error).__name__), "error": str(error)}
            _record(db, clock, "RestoreFailed", choice, {**details, "target": asked.target, "notes": notes, **said})
            raise
        outcome = work.outcome()
        details |= {"target": outcome.target, "notes": [*outcome.notes, *notes]}
        if outcome.via is not None:
            details |= {"via": outcome.via, "identity": outcome.identity}
        _record(db, clock, "Restored", choice, details)
        work.then()
    seconds = time.monotonic() - started
    outputs.emit(_document(choice, work, seconds, notes, dry_run=False), asked.output, _text)
    return 0


def _record(
    db: database.Database, clock: clocks.Clock, event: str, choice: choices.Choice, details: Mapping[str, object]
) -> None:
    """Who did it and why, in the audit log; a restore needs the catalog least when it is needed most."""
    try:
        with db.writing() as connection:
            audits.record(
                connection, now=clock.now(), actor=sessions.actor(), event=event, object=choice.image, details=details
            )
    except errors.CatalogError as error:
        _LOGGER.error("the audit log does not say %s of %s: %s", event, choice.image, error)


def _from_folder(folder: Path, asked: _Asked, work: restoreworks.Work) -> int:
    started, meter = time.monotonic(), meters.Meter()
    with (
        contextlib.closing(opening.open_folder(folder.absolute())) as unit,
        contextlib.closing(unit.open(asked.client)) as stored,
    ):
        work.plan(stored)
        choice = choices.of_folder(stored.label, folder)
        if not asked.dry_run:
            with sessions.cancelling(meter), progress.metered(meter, f"restore {asked.client}"):
                work.run(stored, meter)
                work.then()
    document = _document(choice, work, time.monotonic() - started, (), dry_run=asked.dry_run)
    outputs.emit(document, asked.output, _text)
    return 0


def _document(
    choice: choices.Choice, work: restoreworks.Work, seconds: float, notes: Sequence[str], *, dry_run: bool
) -> results.RestoreResult:
    outcome = work.outcome()
    return results.RestoreResult(
        client=choice.client.slug,
        image=choice.image,
        image_time=choice.time,
        copy_number=choice.copy,
        unit=choice.unit,
        format=outcome.format,
        target=outcome.target,
        dry_run=dry_run,
        state="Planned" if dry_run else "Verified",
        wall_seconds=round(seconds, 3),
        disks=outcome.disks,
        via=outcome.via,
        identity=outcome.identity,
        phases=outcome.phases,
        notes=(*outcome.notes, *notes),
    )


def _text(document: results.RestoreResult) -> str:
    verb = "would restore" if document.dry_run else "restored"
    lines = [
        f"{verb} {document.image} (copy {document.copy_number} on {document.unit}, {times.show(document.image_time)})"
    ]
    if document.via is not None:
        lines.append(f"  {document.target}  by {document.via}, {document.identity} identity")
    for disk in document.disks:
        proof = "every block proven" if disk.verified else "not written"
        shown = disk.name if document.via is not None else disk.path
        lines.append(f"  {shown}  {quantities.show_size(disk.size_bytes)}  {proof}")
    lines.extend(f"  {_phase(one)}" for one in document.phases)
    lines.extend(f"  note: {note}" for note in document.notes)
    if not document.dry_run and document.wall_seconds:
        total = sum(disk.size_bytes for disk in document.disks)
        rate = quantities.show_size(int(total / document.wall_seconds))
        lines.append(f"{quantities.show_size(total)} in {quantities.show_seconds(document.wall_seconds)}, {rate}/s")
    return "\n".join(lines)


def _phase(phase: results.RestorePhase) -> str:
    line = f"{phase.name} {quantities.show_seconds(phase.seconds)}"
    if not phase.bytes or not phase.seconds:
        return line
    return f"{line}, {quantities.show_size(int(phase.bytes / phase.seconds))}/s"
