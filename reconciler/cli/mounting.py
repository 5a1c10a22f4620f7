"""``holdfast mount``: an image's disks over NBD and its files as a folder, from the catalog or a unit alone.

It serves until it is interrupted or told to end, and leaves nothing behind. What is read stays meanwhile: a job's row
of type ``Mount`` keeps every copy of the image from expiring, and a killed command's row is ``Lost`` and keeps nothing.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import typer

from reconciler.api.documents import mounts as documents
from reconciler.base import clocks, errors, meters, quantities, times
from reconciler.catalog import audits, database
from reconciler.cli import mountworks, options, outputs, restoreoptions, sessions, settings
from reconciler.controller import choices
from reconciler.jobs import embedded
from reconciler.operations import exports, failovers, findings
from reconciler.planning import worktypes
from reconciler.storage import opening

_LOGGER = logging.getLogger(__name__)
#: Seconds between two looks whether what is served still lives.
_LOOK: Final = 1.0
#: The port that IANA gave to NBD.
_LOCAL: Final = "127.0.0.1"

Unit = Annotated[Path | None, typer.Option("--unit", metavar="PATH", help="Serve from this unit's folder alone.")]
Writable = Annotated[bool, typer.Option("--writable", help="Clients may write; what they write is forgotten.")]
Socket = Annotated[Path | None, typer.Option("--socket", metavar="PATH", help="The Unix socket of the NBD server.")]
Port = Annotated[
    int | None, typer.Option("--port", metavar="N", help="Serve NBD over TCP at this port; 0: a free one.")
]
Address = Annotated[str, typer.Option("--address", metavar="IP", help="With --port: where to listen.")]
At = Annotated[
    Path | None,
    typer.Option(
        "--at", metavar="DIR", parser=options.path, help="A folder in which disks and files appear, read-only."
    ),
]


def mount(
    client: restoreoptions.Client,
    image: restoreoptions.Image = None,
    as_of: restoreoptions.AsOf = None,
    copy: restoreoptions.Copy = None,
    disk: restoreoptions.Disk = None,
    unit: Unit = None,
    writable: Writable = False,
    socket: Socket = None,
    port: Port = None,
    address: Address = _LOCAL,
    at: At = None,
    reason: restoreoptions.Reason = None,
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """Serve an image's disks over NBD, and its files as a folder, until interrupted."""
    sessions.start_logging()
    asked = mountworks.Asked(
        names=tuple(disk or ()), writable=writable, socket=socket, port=port, address=address, at=at
    )
    asked.check()
    # Who closes the terminal is done looking.
    with sessions.stopping(signal.SIGHUP) as stop:
        if unit is not None:
            if image or as_of or copy:
                raise errors.UsageError(
                    "--unit takes an image's id alone", hint="leave out --image, --as-of and --copy"
                )
            return _from_folder(unit, client, asked, output, stop)
        chosen = settings.of_state(state=state, catalog=catalog)
        moment = options.moment(as_of, "--as-of")
        now = clocks.from_environment().now()
        choice = sessions.read(
            chosen, lambda db: choices.choose(db, client, image=image, as_of=moment, copy=copy, now=now)
        )
        with sessions.writing(chosen) as db:
            return _from_catalog(db, chosen, choice, asked, reason or "", output, stop)


def _from_folder(
    folder: Path, image: str, asked: mountworks.Asked, output: options.Output, stop: threading.Event
) -> int:
    folder = folder.absolute()
    with (
        contextlib.closing(opening.open_folder(folder)) as unit,
        contextlib.closing(opening.open_image(unit, image)) as stored,
    ):
        choice = choices.of_folder(stored.label, folder)
    with mountworks.serve(asked, choice, None, _log) as served:
        outputs.emit(_document(choice, served), output, _text)
        _until(stop, meters.Meter(), served)
    return 0


def _from_catalog(
    db: database.Database,
    chosen: settings.Settings,
    choice: choices.Choice,
    asked: mountworks.Asked,
    reason: str,
    output: options.Output,
    stop: threading.Event,
) -> int:
    """Under a job's row, so that no copy can expire meanwhile and ``get jobs`` shows who looks at what."""
    clock = clocks.from_environment()
    order = choice.order(worktypes.MOUNT, times.show_milliseconds(clock.now()))
    with embedded.foreground(db, order, clock=clock) as context:
        # Only now does the row keep the copies that are still there.
        choice = choices.staying(db, choice)
        for note in choice.notes:
            _LOGGER.warning("%s", note)
        record = findings.recorder(db, clock, sessions.actor(), context.log, [])
        with mountworks.serve(asked, choice, chosen.caches, _recording(choice, record)) as served:
            details = {
                "copy": choice.copy, "unit": choice.unit, "disks": [one.name for one in served.disks],
                "writable": asked.writable, "at": str(served.mount_point or ""), "reason": reason,
            }  # fmt: skip
            with db.writing() as connection:
                audits.record(
                    connection,
                    now=clock.now(),
                    actor=sessions.actor(),
                    event="Mounted",
                    object=choice.image,
                    details=details,
                )
            outputs.emit(_document(choice, served), output, _text)
            _until(stop, context.meter, served)
    return 0


def _until(stop: threading.Event, meter: meters.Meter, served: mountworks.Served) -> None:
    """Wait for the end. Raises ``Cancelled`` where somebody else asked for it, ``SourceError`` where a server died."""
    while not stop.wait(_LOOK):
        meter.check()
        served.check()


def _log(trouble: exports.Trouble) -> None:
    _LOGGER.error("%s", trouble.error)


def _recording(
    choice: choices.Choice, record: Callable[[failovers.Failure], None]
) -> Callable[[exports.Trouble], None]:
    """Tells of what goes wrong, and notes once for each copy what was found."""
    known: set[tuple[int, str]] = set()

    def told(trouble: exports.Trouble) -> None:
        if trouble.copy is None:
            _log(trouble)
        number = 0 if trouble.copy is None and len(choice.copies) == 1 else trouble.copy
        if number is None or (number, trouble.error.code) in known:
            return
        known.add((number, trouble.error.code))
        record(
            failovers.Failure(image=choice.image, source=mountworks.source(choice, number, None), error=trouble.error)
        )

    return told


def _document(choice: choices.Choice, served: mountworks.Served) -> documents.MountResult:
    return documents.MountResult(
        client=choice.client.slug,
        image=choice.image,
        image_time=choice.time,
        copy_number=choice.copy,
        unit=choice.unit,
        disks=served.disks,
        mount_point=str(served.mount_point) if served.mount_point is not None else None,
    )


def _text(document: documents.MountResult) -> str:
    time = times.show(document.image_time)
    lines = [f"{document.image} of {document.client} (copy {document.copy_number} on {document.unit}, {time})"]
    for disk in document.disks:
        kind = "writable, changes are forgotten" if disk.writable else "read-only"
        lines.append(f"  {disk.name}  {quantities.show_size(disk.size_bytes)}  {kind}")
        if disk.uri is not None:
            lines.append(f"    {disk.uri}")
    if document.mount_point is not None:
        lines.append(f"  {document.mount_point}/disks  raw disks; {document.mount_point}/files  their files")
    example = next((disk.uri for disk in document.disks if disk.uri is not None), None)
    if example is not None:
        lines.append(f"use it with: qemu-img convert -f raw -O qcow2 '{example}' disk.qcow2")
        lines.append(f"        or: nbdcopy '{example}' disk.img; nbd-client, qemu and libguestfs take the address too")
    lines.append("served until interrupted (Ctrl-C)")
    return "\n".join(lines)
