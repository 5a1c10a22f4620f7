"""``holdfast restore``: disks, a staged machine or a machine in a vCenter, from the catalog or a unit alone."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from pathlib import Path

from reconciler.api import vcenters
from reconciler.base import clocks, errors, meters, times
from reconciler.catalog import configurations, database, inventories
from reconciler.cli import (
    options,
    outputs,
    progress,
    restoredocuments,
    restoreoptions,
    restorerecords,
    restoreworks,
    sessions,
    settings,
)
from reconciler.controller import choices
from reconciler.intake import estates
from reconciler.jobs import embedded, engines
from reconciler.operations import restores
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
        client=client, to=to, vcenter=vcenter, names=disk or [], format=format, subformat=subformat, staged=staged,
        machine={key: value for key, value in machine.items() if value},
        force=force, read_back=read_back, dry_run=dry_run, reason=reason, output=output,
    )  # fmt: skip
    asked.check()
    if unit is not None:
        if image or as_of or copy:
            raise errors.UsageError("--unit takes an image's id alone", hint="leave out --image, --as-of and --copy")
        return _from_folder(unit, asked, asked.work(_declared(Path.cwd(), asked.vcenter), (unit,)))
    chosen = settings.of_state(state=state, catalog=catalog)
    moment = restoreoptions.moment(as_of)
    choice = sessions.read(chosen, lambda db: choices.choose(db, client, image=image, as_of=moment, copy=copy))
    found = sessions.read(chosen, lambda db: _in_force(db, vcenter))
    known = sessions.read(chosen, inventories.known_units)
    folders = tuple(Path(one.path) for one in known.values())
    work = asked.work(found or _declared(chosen.estate, vcenter), folders)
    if dry_run:
        notes: list[str] = []
        rate = sessions.read(chosen, lambda db: choices.rate(db, choice.unit))
        with contextlib.closing(choice.open(chosen.caches, lambda failure: notes.append(str(failure)))) as stored:
            work.plan(stored)
            found_document = restoredocuments.document(choice, work, notes=notes, rate=rate, dry_run=True)
            outputs.emit(found_document, output, restoredocuments.text)
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
    subformat: str | None
    staged: bool
    #: Options of a machine that were given.
    machine: dict[str, object]
    force: bool
    read_back: bool
    dry_run: bool
    reason: str | None
    output: options.Output

    @property
    def said(self) -> restorerecords.Said:
        """What the records say was asked for, before anything is decided."""
        target = f"vsphere:{self.vcenter}" if self.to is None else str(self.to.absolute())
        form = "machine" if self.to is None else "staged" if self.staged else self.format
        return restorerecords.Said(target=target, format=form, disks=tuple(self.names), subformat=self.subformat)

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
        if self.vcenter is not None and self.read_back:
            raise errors.UsageError("--read-back is for --to", hint="a machine in a vCenter is always read back")
        if self.subformat is not None and self.format != "vmdk":
            raise errors.UsageError("--subformat is for --format vmdk")
        if self.staged and self.format != "raw":
            raise errors.UsageError("--staged makes VMDKs", hint="leave out --format")

    def work(self, vcenter: vcenters.VCenter | None, units: tuple[Path, ...]) -> restoreworks.Work:
        """What is to be done; ``units``: folders of the storage units."""
        if vcenter is not None:
            wanted = {key: value for key, value in self.machine.items() if key != "power_on"}
            power_on = bool(self.machine.get("power_on"))
            return restoreworks.Machine(vcenter=vcenter, names=self.names, wanted=wanted, power_on=power_on)
        to = self.to or Path()
        if self.staged:
            return restoreworks.Staged(to=to, names=self.names, force=self.force, read_back=self.read_back)
        order = restores.Order(
            to=to, disks=self.names, format=self.format, subformat=self.subformat, force=self.force,
            read_back=self.read_back, units=units,
        )  # fmt: skip
        return restoreworks.Disks(order)


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
    rate = choices.rate(db, choice.unit)
    with embedded.foreground(db, order, clock=clock) as context, sessions.cancelling(context.meter):
        # Only now does the row keep the copies that are still there.
        choice = choices.staying(db, choice)
        record = restorerecords.Record(db, clock, choice, asked.said, asked.reason, context)
        with record, contextlib.closing(choice.open(chosen.caches, record.failed)) as stored:
            notes = record.notes
            work.plan(stored)
            with progress.metered(context.meter, f"restore {choice.client.name}"):
                work.run(stored, context.meter, context.log)
            record.done(work.outcome(), stored.source)
        work.then()
    seconds = time.monotonic() - started
    found = restoredocuments.document(choice, work, seconds=seconds, notes=notes, rate=rate, dry_run=False)
    outputs.emit(found, asked.output, restoredocuments.text)
    return 0


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
                # There is no catalog whose log would take the lines; the notes are in the document.
                work.run(stored, meter, _LOGGER.info)
                work.then()
    seconds = time.monotonic() - started
    document = restoredocuments.document(choice, work, seconds=seconds, dry_run=asked.dry_run)
    outputs.emit(document, asked.output, restoredocuments.text)
    return 0
