"""``holdfast catalog rebuild``: after the state folder was lost, the catalog again from the units and the manifests."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from reconciler.api.documents import results
from reconciler.base import clocks, errors, meters, times
from reconciler.catalog import database, leases, servers
from reconciler.cli import options, outputs, progress, sessions, settings
from reconciler.controller import observations
from reconciler.intake import estates
from reconciler.operations import rebuilds
from reconciler.storage import identities, opening


class Verb(enum.StrEnum):
    """What ``catalog`` does."""

    REBUILD = "rebuild"


def catalog(
    _verb: Annotated[Verb, typer.Argument(metavar="VERB", help="rebuild.")],
    more: Annotated[list[str] | None, typer.Argument(metavar="UNIT", help="More units, as after --from.")] = None,
    units: Annotated[
        list[str] | None,
        typer.Option(
            "--from", metavar="UNIT", help="A unit's name or folder; a dump, or a restored backup of the catalog."
        ),
    ] = None,
    estate: Annotated[
        Path | None, typer.Option("--estate", metavar="DIR", help="The estate whose manifests declare the units.")
    ] = None,
    catalog_id: Annotated[
        str | None, typer.Option("--catalog-id", metavar="UUID", help="Which catalog, where units belong to several.")
    ] = None,
    image: Annotated[str | None, typer.Option("--image", metavar="ID", help="A certain backup of the catalog.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would come to.")] = False,
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="TEXT", parser=options.words, help="Why; kept in the audit log.")
    ] = None,
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """rebuild: make a lost catalog again from what its units hold. All expiry then waits for one approval."""
    sessions.start_logging()
    chosen = _settings(estate, state, catalog)
    words = [*(units or []), *(more or [])]
    if not words:
        raise errors.UsageError("which units?", hint="--from UNIT, by name or by folder; several may be given")
    wanted = estates.load(chosen.estate).desired if chosen.estate is not None else None
    wish = dataclasses.replace(
        _wish(words, observations.declared_units(wanted) if wanted is not None else {}),
        catalog=catalog_id,
        image=image,
        reason=reason or "",
        restores=rebuilds.overwriting(wanted) if wanted is not None else (),
        rehearsal=dry_run,
    )
    if not dry_run:
        # Before the units are read: that may take long.
        _require_empty(chosen)
    meter, started = meters.Meter(), time.monotonic()
    with (
        sessions.cancelling(meter),
        progress.metered(meter, "rebuild the catalog"),
        contextlib.closing(rebuilds.find(wish, meter)) as found,
        _target(chosen, dry_run=dry_run) as db,
    ):
        clock = clocks.from_environment()
        done = rebuilds.rebuild(db, found, wish, clock.now(), sessions.actor(), meter)
    shown = _document(done, servers.shown(chosen.catalog), time.monotonic() - started, dry_run=dry_run)
    outputs.emit(shown, output, _text)
    return 0


def _settings(estate: Path | None, state: Path | None, catalog: str | None) -> settings.Settings:
    """Where the catalog will be. Its state folder may be lost, so that the manifests here show the estate."""
    if estate is not None:
        return settings.of_estate(estate, state=state, catalog=catalog)
    if estates.load(Path.cwd()).objects:
        return settings.of_estate(Path.cwd(), state=state, catalog=catalog)
    return settings.of_state(state=state, catalog=catalog)


def _wish(words: list[str], declared: Mapping[str, opening.Declared]) -> rebuilds.Wish:
    """Units and files among the words; ``declared``: those of the manifests, none where these have errors."""
    names = {unit.path.resolve(): name for name, unit in declared.items()}
    units: dict[Path, rebuilds.Given] = {}
    files = []
    for word in words:
        path = declared[word].path if word in declared else Path(word).absolute()
        if path.is_file():
            files.append(path)
        elif (path / identities.FILE_NAME).is_file():
            units[path.resolve()] = rebuilds.Given(path=path, name=names.get(path.resolve()))
        else:
            known = f"; the manifests declare {', '.join(sorted(declared))}" if declared else ""
            raise errors.NotFound(
                f"{word}: {path} holds no unit",
                hint=f"give the folder with the unit's {identities.FILE_NAME}, mounted{known}",
            )
    return rebuilds.Wish(units=tuple(units.values()), files=tuple(files))


def _require_empty(chosen: settings.Settings) -> None:
    # Boxed: a catalog that is not there is as empty as one can be.
    database.read(chosen.catalog, lambda db: (rebuilds.require_empty(db),))


@contextlib.contextmanager
def _target(chosen: settings.Settings, *, dry_run: bool) -> Iterator[database.Database]:
    """The catalog to fill: with ``dry_run`` one that is thrown away. Raises ``LeaseHeld`` while a controller lives."""
    if dry_run:
        with (
            tempfile.TemporaryDirectory(prefix="holdfast-") as folder,
            contextlib.closing(database.open_writing(str(Path(folder) / "catalog.sqlite"))) as db,
        ):
            yield db
        return
    with sessions.writing(chosen, create=True) as db, leases.shut(chosen.state, db):
        yield db


def _document(done: rebuilds.Rebuilt, location: str, seconds: float, *, dry_run: bool) -> results.CatalogRebuildResult:
    tally, used = done.tally, done.used
    return results.CatalogRebuildResult.model_validate({
        "catalog": done.catalog,
        "location": location,
        "dry_run": dry_run,
        "source": {"kind": used.kind, "place": used.place, "time": used.at} if used is not None else None,
        "units": tuple(tally.units),
        "clients": tally.clients,
        "images": tally.images,
        "copies": tally.copies,
        "images_taken": tally.images_taken,
        "copies_taken": tally.copies_taken,
        "lost": tally.lost,
        "damaged": tally.damaged,
        "unreachable": tuple({"unit": unit, "copies": count} for unit, count in tally.unreachable.items()),
        "jobs_lost": tally.jobs_lost,
        "requests_dropped": tally.requests_dropped,
        "warnings": done.warnings,
        "wall_seconds": round(seconds, 3),
    })  # fmt: skip


def _text(document: results.CatalogRebuildResult) -> str:
    verb = "would make" if document.dry_run else "made"
    lines = [f"{verb} catalog {document.catalog} at {document.location}"]
    source = document.source
    if source is None:
        lines.append("  from labels alone")
    else:
        lines.append(f"  from {source.kind.lower()} {source.place} of {times.show_minutes(source.time)}")
    lines.append(f"  units    {', '.join(document.units) or 'none'}")
    lines.append(f"  clients  {document.clients}")
    lines.append(f"  images   {document.images}, {document.images_taken} of them told by labels alone")
    lines.append(f"  copies   {document.copies}, {document.copies_taken} of them told by labels alone")
    lines.append(f"  lost     {document.lost} copies that their units do not hold")
    if document.jobs_lost or document.requests_dropped:
        lines.append(f"  dropped  {document.jobs_lost} jobs, {document.requests_dropped} requests")
    lines.extend(f"  warning: {one}" for one in document.warnings)
    if not document.dry_run:
        lines.append("all expiry waits until it is approved once: holdfast plan prints the Approval")
    return "\n".join(lines)
