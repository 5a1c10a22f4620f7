"""``holdfast files get``: files and folders out of an image, to a folder or a tar archive, from the best copy.

The paths are found in the search cache where that knows the image, so that only disks that are needed are opened. Like
``restore`` it works under a job's row, so that the copies it reads stay, and leaves a record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import typer

from reconciler.api.documents import files as documents
from reconciler.base import clocks, digests, errors, files, meters, times
from reconciler.catalog import database, machines, restores
from reconciler.cli import commands, filelisting, fileoptions, options, outputs, restoreoptions, sessions, settings
from reconciler.controller import choices
from reconciler.jobs import embedded
from reconciler.operations import (
    browsedtrees,
    failovers,
    filecontents,
    fileplaces,
    filerestores,
    findings,
    foldersinks,
    tarsinks,
)
from reconciler.reports import files as reports
from reconciler.storage import opening, units

#: Folders of files that this process, or another, has open: there is nothing beside which to write anew.
_OPENED: Final = re.compile(r"/proc/(\d+|\d+/task/\d+)/fd")
#: Other words for ``-``: in the place of these links must nothing be put.
_STDOUT: Final = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def get(
    client: fileoptions.Client,
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH", help=f"Files or folders: {fileoptions.PATHS}; * ? [...] ** too.")
    ],
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", parser=options.path, help="Folder to restore to; made if need be."),
    ] = None,
    tar: Annotated[
        str | None, typer.Option("--tar", metavar="FILE", help="A tar archive instead; - is stdout.")
    ] = None,
    image: fileoptions.Image = None,
    as_of: fileoptions.AsOf = None,
    copy: fileoptions.Copy = None,
    whole: Annotated[bool, typer.Option("--paths", help="Keep the folders above: DIR/etc/passwd.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there already.")] = False,
    reason: restoreoptions.Reason = None,
    unit: fileoptions.Unit = None,
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """Restore single files and whole folders with their times, rights, owners, links and attributes. What cannot be
    kept is said. Nothing is written over without --force, and a file is there whole or not at all."""
    sessions.start_logging()
    fileoptions.require_alone(unit, image=image, copy=copy, **{"as-of": as_of})
    tar = "-" if tar in _STDOUT else tar
    if (to is None) == (tar is None):
        raise errors.UsageError("exactly one of --to and --tar is needed", hint="--to DIR, --tar FILE or --tar -")
    if tar == "-" and sys.stdout.isatty():
        raise errors.UsageError("a terminal is no place for an archive", hint="--tar - | tar -x, or --tar FILE")
    if tar == "-" and output is options.Output.JSON:
        raise errors.UsageError("--tar - has stdout for the archive", hint="-o json goes with --tar FILE")
    asked = _Asked(paths=paths, to=to, tar=tar, whole=whole, force=force, reason=reason, output=output)
    if unit is not None:
        asked.require_outside([unit])
        return _from_folder(unit, client, asked)
    chosen = settings.of_state(state=state, catalog=catalog)
    moment = options.moment(as_of, "--as-of")

    def look(db: database.Database) -> choices.Choice:
        asked.require_outside([Path(one.path) for one in machines.known_units(db).values()])
        now = clocks.from_environment().now()
        return choices.choose(db, client, image=image, as_of=moment, copy=copy, now=now)

    choice = sessions.read(chosen, look)
    tree = filelisting.known(chosen, choice.image)
    picked = asked.picks(tree) if tree is not None else None
    with sessions.writing(chosen) as db:
        return _from_catalog(db, chosen, choice, asked, picked)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """The command line."""

    paths: list[str]
    to: Path | None
    tar: str | None
    whole: bool
    force: bool
    reason: str | None
    output: options.Output

    @property
    def target(self) -> str:
        """Where it goes, in the words of the command line."""
        if self.to is not None:
            return str(self.to.absolute())
        return "stdout" if self.tar == "-" else options.words(str(Path(self.tar or "").absolute()))

    def require_outside(self, units: Sequence[Path]) -> None:
        """Raises ``UsageError`` for a place in one of these storage units."""
        place = self.to if self.to is not None else Path(self.tar or "").resolve().parent
        if self.tar != "-":
            opening.require_outside(place, units)

    def picks(self, tree: fileplaces.Tree) -> tuple[filerestores.Pick, ...]:
        """What the paths mean. Raises ``NotFound`` and ``UsageError``."""
        places = [place for path in self.paths for place in fileplaces.expand(tree, path)]
        return filerestores.picks(tree.volumes, places, paths=self.whole)

    @contextlib.contextmanager
    def sink(self, picked: tuple[filerestores.Pick, ...], report: filecontents.Report) -> Iterator[filecontents.Sink]:
        """Where it goes, opened. Raises ``TargetExists`` and ``TargetError``."""
        if self.to is not None:
            with foldersinks.FolderSink(self.to, report, force=self.force) as folder:
                for pick in picked:
                    folder.require_free(pick.names)
                yield folder
        elif self.tar == "-":
            yield tarsinks.TarSink(sys.stdout.buffer, report)
        else:
            with _archive(Path(self.tar or ""), force=self.force) as stream:
                yield tarsinks.TarSink(stream, report)


@contextlib.contextmanager
def _archive(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """A file that has its name once it is whole; a pipe, a device or an open file is written to as it is."""
    there = _status(path)
    if there is None and path.is_symlink():
        raise errors.TargetExists(f"{path} is a link that leads nowhere", hint="remove it, or choose another name")
    # What goes into a pipe takes nothing's place.
    if there is not None and not force and not stat.S_ISFIFO(there.st_mode):
        raise errors.TargetExists(f"{path} is there already", hint="--force writes over it")
    if there is not None and (not stat.S_ISREG(there.st_mode) or _OPENED.fullmatch(str(path.parent.resolve()))):
        with _written(path), path.open("r+b" if stat.S_ISBLK(there.st_mode) else "wb", buffering=1 << 20) as stream:
            yield stream
        return
    # A link stays, and leads to the new file.
    path = path.resolve()
    temporary = files.temporary_name(path)
    try:
        with _written(path), temporary.open("xb", buffering=1 << 20) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    files.sync_folder(path.absolute().parent)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.TargetError(f"{path}: {error.strerror}") from error


def _from_catalog(
    db: database.Database,
    chosen: settings.Settings,
    choice: choices.Choice,
    asked: _Asked,
    picked: tuple[filerestores.Pick, ...] | None,
) -> int:
    clock, started = clocks.from_environment(), time.monotonic()
    order = choice.order("Restore", times.show(clock.now()))
    report = filecontents.Report()
    notes: list[str] = []
    with embedded.foreground(db, order, clock=clock) as context, sessions.cancelling(context.meter):
        # Only now does the row keep the copies that are still there.
        choice = choices.staying(db, choice)
        failed = findings.recorder(db, clock, sessions.actor(), context.log, notes)
        with contextlib.closing(choice.open(chosen.caches, failed)) as stored:
            record = _Record(db, clock, choice, asked, context.id, stored)
            _run(stored, asked, picked, report, context.meter, record)
    return _emit(asked, choice, report, notes, time.monotonic() - started)


def _from_folder(folder: Path, image: str, asked: _Asked) -> int:
    started, meter, report = time.monotonic(), meters.Meter(), filecontents.Report()
    with (
        contextlib.closing(opening.open_folder(folder.absolute())) as unit,
        contextlib.closing(opening.open_image(unit, image)) as stored,
        sessions.cancelling(meter),
    ):
        choice = choices.of_folder(stored.label, folder)
        _run(stored, asked, None, report, meter, lambda _report: contextlib.nullcontext())
    return _emit(asked, choice, report, [], time.monotonic() - started)


def _run(
    stored: units.StoredImage,
    asked: _Asked,
    picked: tuple[filerestores.Pick, ...] | None,
    report: filecontents.Report,
    meter: meters.Meter,
    record: Callable[[filecontents.Report], contextlib.AbstractContextManager[None]],
) -> None:
    with browsedtrees.Browsers(stored, meter) as browsers:
        if picked is None:
            picked = asked.picks(browsedtrees.BrowsedTree(browsers))
        with asked.sink(picked, report) as sink, record(report), _drawn(meter, stored.label.client_name):
            filerestores.restore(browsers, picked, sink, report, meter)


def _drawn(meter: meters.Meter, client: str) -> contextlib.AbstractContextManager[None]:
    """Progress where there is a terminal; what draws it is loaded for that alone."""
    if not sys.stderr.isatty():
        return contextlib.nullcontext()
    drawn: contextlib.AbstractContextManager[None] = commands.load("progress").metered(meter, f"files of {client}")
    return drawn


class _Record:
    """Leaves the record of a restore: who, what and why. A catalog that refuses stops nothing."""

    def __init__(
        self,
        db: database.Database,
        clock: clocks.Clock,
        choice: choices.Choice,
        asked: _Asked,
        job: str,
        stored: failovers.FailoverImage,
    ) -> None:
        self._db, self._clock, self._choice, self._asked, self._job = db, clock, choice, asked, job
        self._stored = stored

    @contextlib.contextmanager
    def __call__(self, report: filecontents.Report) -> Iterator[None]:
        asked, choice = self._asked, self._choice
        begun = restores.Begun(
            name=None,
            digest=digests.json_digest([choice.image, asked.target, *map(options.words, asked.paths)]),
            client_id=choice.client.id,
            image=choice.image,
            copy=choice.copy,
            unit=choice.unit,
            target=asked.target,
            format="files" if asked.to is not None else "tar",
            by=sessions.actor(),
            reason=asked.reason or "",
            job=self._job,
            at=self._clock.now(),
        )
        number = None
        with sessions.unstopped("that the restore begins"):
            number = restores.begin(self._db, begun)
        try:
            yield
        except BaseException as error:
            self._end(number, report, str(error) or type(error).__name__)
            raise
        lost = f"{report.failed} files could not be restored" if report.failed else ""
        self._end(number, report, lost)

    def _end(self, number: int | None, report: filecontents.Report, message: str) -> None:
        details = {
            "paths": [options.words(path) for path in self._asked.paths],
            "files": report.files,
            "bytes": report.bytes,
            "failed": report.failed,
        }
        if number is None:
            return
        with sessions.unstopped("how the restore ended"):
            state = "Failed" if message else "Verified"
            source = self._stored.source
            restores.end(
                self._db,
                number,
                state=state,
                now=self._clock.now(),
                message=message,
                copy=source.number,
                unit=source.unit,
                details=details,
            )


def _emit(asked: _Asked, choice: choices.Choice, report: filecontents.Report, notes: list[str], seconds: float) -> int:
    readable = fileplaces.readable
    document = documents.FileRestoreResult(
        client=choice.client.slug,
        image=choice.image,
        image_time=choice.time,
        copy_number=choice.copy,
        unit=choice.unit,
        format="files" if asked.to is not None else "tar",
        target=asked.target,
        state="Partial" if report.failed else "Restored",
        files=report.files,
        directories=report.directories,
        symlinks=report.symlinks,
        links=report.links,
        specials=report.specials,
        streams=report.streams,
        bytes=report.bytes,
        wall_seconds=round(seconds, 3),
        failed=report.failed,
        failures=tuple(
            documents.FileFailure(path=readable(one.path), code=one.code, message=one.message)
            for one in report.failures
        ),
        renamed=tuple(documents.FileName(path=readable(path), name=readable(name)) for path, name in report.renamed),
        notes=(*choice.notes, *notes, *report.notes),
    )
    if asked.tar == "-":
        outputs.note(reports.restored(document))
    else:
        outputs.emit(document, asked.output, reports.restored)
    return 3 if report.failed else 0
