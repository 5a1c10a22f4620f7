"""``holdfast restore``: disks, a staged machine or a machine in a vCenter, from the catalog or a unit alone."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from pathlib import Path

from reconciler.api.documents import restores as documents
from reconciler.base import clocks, digests, errors, meters, times
from reconciler.catalog import database, machines
from reconciler.cli import (
    commands,
    options,
    outputs,
    progress,
    restoredocuments,
    restoreoptions,
    sessions,
    settings,
)
from reconciler.controller import choices, restorerecords
from reconciler.jobs import embedded, engines
from reconciler.operations import restores, restoreworks, salvages
from reconciler.planning import sightings, worktypes
from reconciler.sources import machinetargets
from reconciler.storage import opening, units

_LOGGER = logging.getLogger(__name__)


def restore(
    client: restoreoptions.Client,
    to: restoreoptions.To = None,
    image: restoreoptions.Image = None,
    as_of: restoreoptions.AsOf = None,
    copy: restoreoptions.Copy = None,
    disk: restoreoptions.Disk = None,
    format: restoreoptions.Form = "raw",
    subformat: restoreoptions.Subformat = None,
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
    read_back: restoreoptions.ReadBack = False,
    salvage: restoreoptions.Salvage = False,
    reason: restoreoptions.Reason = None,
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """Restore a machine, its disks or one of them, and prove every byte against the image."""
    sessions.start_logging()
    given = {
        "name": name, "folder": folder, "host": host, "datastore": datastore, "pool": pool, "identity": identity,
        "via": via, "replace": replace, "power_on": power_on,
    }  # fmt: skip
    asked = _Asked(
        client=client, to=to, vcenter=vcenter, names=disk or [], format=format, subformat=subformat, staged=staged,
        machine={key: value for key, value in given.items() if value not in (None, False)},
        force=force, read_back=read_back, salvage=salvage, dry_run=dry_run, reason=reason, output=output,
    )  # fmt: skip
    asked.check()
    if unit is not None:
        if image or as_of or copy:
            raise errors.UsageError("--unit takes an image's id alone", hint="leave out --image, --as-of and --copy")
        return _from_folder(unit, asked, asked.work(None, (unit,)))
    chosen = settings.of_state(state=state, catalog=catalog)
    moment = options.moment(as_of, "--as-of")

    def look(db: database.Database) -> tuple[choices.Choice, tuple[Path, ...], float | None]:
        now = clocks.from_environment().now()
        found = choices.choose(db, client, image=image, as_of=moment, copy=copy, now=now, proven=True)
        folders = tuple(Path(one.path) for one in machines.known_units(db).values())
        return found, folders, choices.rate(db, found.unit)

    choice, folders, rate = sessions.read(chosen, look)
    for note in choice.notes:
        # Before anything is read: whoever wants another image can stop here.
        _LOGGER.warning("%s", note)
    work = asked.work(chosen, folders)
    if dry_run:
        notes: list[str] = []
        with contextlib.closing(choice.open(chosen.caches, lambda failure: notes.append(str(failure)))) as stored:
            work.plan(stored)
            said = restoredocuments.document(
                choice, work.outcome(), notes=notes, rate=rate, dry_run=True, salvage=asked.salvage
            )
            return _emit(said, asked)
    with sessions.writing(chosen) as db:
        return _from_catalog(db, chosen, choice, asked, work, rate)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """The command line."""

    client: str
    to: Path | None
    vcenter: str | None
    names: list[str]
    format: str
    subformat: str | None
    staged: bool
    #: Options of a machine that were given.
    machine: dict[str, object]
    force: bool
    read_back: bool
    #: Whether blocks that no copy can give become zeros.
    salvage: bool
    dry_run: bool
    reason: str | None
    output: options.Output

    def placed(self, order: engines.Order, choice: choices.Choice) -> engines.Order:
        """The order as it is known by: what writes over the machine itself goes on beside no backup of it."""
        here = self.machine.get("replace") or (
            self.force and self.to is not None and sightings.lies_at(choice.client.id, str(self.to.resolve()))
        )
        return dataclasses.replace(order, address=f"{order.address}{worktypes.IN_PLACE}") if here else order

    def said(self, image: str) -> restorerecords.Said:
        """What the records say was asked for, before anything is decided but the image."""
        target = f"vsphere:{self.vcenter}" if self.to is None else str(self.to.absolute())
        form = "machine" if self.to is None else "staged" if self.staged else self.format
        return restorerecords.Said(
            name=None,
            digest=digests.json_digest([image, target, form, self.subformat, tuple(self.names)]),
            target=target,
            format=form,
            by=sessions.actor(),
            reason=self.reason or "",
        )

    def check(self) -> None:
        """Raises ``UsageError`` for words that contradict each other."""
        if self.format not in restores.FORMATS:
            raise errors.UsageError(f"--format {self.format}: choose one of {', '.join(restores.FORMATS)}")
        if (self.to is None) == (self.vcenter is None):
            raise errors.UsageError(
                "exactly one of --to and --vcenter is needed",
                hint="--to DIR writes disks into a folder, --vcenter NAME makes the machine again",
            )
        for word, value in self.machine.items():
            if value == "":
                # A variable that was not set: what is so by default may be another machine.
                raise errors.UsageError(f"--{word}: this is empty", hint="name one, or leave it out")
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
        if self.vcenter is not None and self.salvage:
            raise errors.UsageError("--salvage is for --to", hint="look at what is left before it becomes a machine")
        if self.vcenter is not None and self.read_back:
            raise errors.UsageError("--read-back is for --to", hint="a machine in a vCenter is always read back")
        if self.subformat is not None and self.format != "vmdk":
            raise errors.UsageError("--subformat is for --format vmdk")
        if self.staged and self.format != "raw":
            raise errors.UsageError("--staged makes VMDKs", hint="leave out --format")

    def came(self, work: restoreworks.Work, stored: units.StoredImage, meter: meters.Meter) -> restoreworks.Outcome:
        """What it came to, where something is missing by files, too."""
        outcome = work.outcome()
        if outcome.missing:
            outcome = commands.load("salvaging").told(outcome, stored, meter)
        return outcome

    def work(self, chosen: settings.Settings | None, units: tuple[Path, ...]) -> restoreworks.Work:
        """What is to be done; ``units``: folders of the storage units; ``chosen`` is None where there is no catalog."""
        work: restoreworks.Work
        to = self.to or Path()
        # Loaded only where they are asked for: disks have no need of what is known of virtual machines.
        if self.vcenter is not None:
            wanted = {key: value for key, value in self.machine.items() if key != "power_on"}
            power_on = bool(self.machine.get("power_on"))
            work = commands.load("restoremachines").machine(
                self.vcenter, chosen, names=self.names, wanted=wanted, power_on=power_on
            )
            return work
        if self.staged:
            work = commands.load("restoremachines").staged(
                to=to, names=self.names, force=self.force, read_back=self.read_back, units=units
            )
            return work
        order = restores.Order(
            to=to, disks=self.names, format=self.format, subformat=self.subformat, force=self.force,
            read_back=self.read_back, units=units,
        )  # fmt: skip
        return restoreworks.Disks(order)


def _from_catalog(
    db: database.Database,
    chosen: settings.Settings,
    choice: choices.Choice,
    asked: _Asked,
    work: restoreworks.Work,
    rate: float | None,
) -> int:
    """Under a job's row, so that the copy cannot expire meanwhile and ``get jobs`` shows the restore."""
    clock, started = clocks.from_environment(), time.monotonic()
    order = asked.placed(choice.order("Restore", times.show(clock.now())), choice)
    notes: list[str] = []
    ended = engines.Outcome()
    with (
        embedded.foreground(db, order, clock=clock, outcome=lambda: ended) as context,
        sessions.cancelling(context.meter),
    ):
        # Only now does the row keep the copies that are still there.
        choice = choices.staying(db, choice)
        said = asked.said(choice.image)
        record = restorerecords.Record(db, clock, choice, said, context, sessions.unstopped)
        with (
            record,
            contextlib.closing(
                salvages.opened(choice.open(chosen.caches, record.failed), salvage=asked.salvage)
            ) as stored,
        ):
            notes = record.notes
            work.plan(stored)
            with progress.metered(context.meter, f"restore {choice.client.name}"):
                work.run(stored, context.meter, context.log)
            outcome = asked.came(work, stored, context.meter.aside())
            record.done(outcome, stored.source)
        if outcome.lacking is not None:
            ended = engines.Outcome(state=engines.State.PARTIAL, failure=outcome.lacking)
        work.release()
        work.then()
    seconds = time.monotonic() - started
    found = restoredocuments.document(
        choice, outcome, seconds=seconds, notes=notes, rate=rate, dry_run=False, salvage=asked.salvage
    )
    return _emit(found, asked)


def _from_folder(folder: Path, asked: _Asked, work: restoreworks.Work) -> int:
    started, meter = time.monotonic(), meters.Meter()
    notes: list[str] = []
    with (
        contextlib.closing(opening.open_folder(folder.absolute())) as unit,
        contextlib.closing(opening.open_image(unit, asked.client)) as found,
        contextlib.ExitStack() as stack,
    ):
        choice, stored = choices.of_folder(found.label, folder), found
        if asked.salvage:
            alone = choice.open(None, lambda failure: notes.append(str(failure)))
            stored = stack.enter_context(contextlib.closing(salvages.SalvagedImage(alone)))
        work.plan(stored)
        if not asked.dry_run:
            with sessions.cancelling(meter), progress.metered(meter, f"restore {asked.client}"):
                # There is no catalog whose log would take the lines; the notes are in the document.
                work.run(stored, meter, _LOGGER.info)
                work.then()
        outcome = asked.came(work, stored, meter.aside())
    seconds = time.monotonic() - started
    document = restoredocuments.document(
        choice, outcome, seconds=seconds, notes=notes, dry_run=asked.dry_run, salvage=asked.salvage
    )
    return _emit(document, asked)


def _emit(document: documents.RestoreResult, asked: _Asked) -> int:
    outputs.emit(document, asked.output, restoredocuments.text)
    return 3 if document.missing_bytes else 0
