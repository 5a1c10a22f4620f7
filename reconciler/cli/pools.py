"""``holdfast pool``: what a deduplicating pool holds, what it would give back, and whether it is whole.
``holdfast unit adopt``: take over a unit that another catalog owns."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
from collections.abc import Iterator, Mapping
from typing import Annotated

import typer

from reconciler.api.documents import pools as documents
from reconciler.api.documents import results
from reconciler.base import clocks, errors, meters, quantities
from reconciler.catalog import audits, inventories
from reconciler.cli import options, outputs, progress, seats, sessions, settings, upkeep, views
from reconciler.controller import observations, passes
from reconciler.operations import rebuilds, recovery
from reconciler.planning import desired
from reconciler.storage import identities, opening
from reconciler.storage.dedupe import pools, verdicts


class Verb(enum.StrEnum):
    """What ``pool`` does."""

    STATS = "stats"
    COLLECT = "collect"
    SCRUB = "scrub"
    CHECK = "check"


class Adoption(enum.StrEnum):
    """What ``unit`` does."""

    ADOPT = "adopt"


def pool(
    verb: Annotated[Verb, typer.Argument(metavar="VERB", help="stats, collect, scrub or check.")],
    name: Annotated[str, typer.Argument(metavar="UNIT", help="A DedupePool in force.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="collect: only say what would come back.")] = False,
    threshold: Annotated[
        str | None,
        typer.Option(metavar="PERCENT", help="collect: rewrite containers of which more is dead; 50% by default."),
    ] = None,
    rate: Annotated[str | None, typer.Option(metavar="SIZE/s", help="scrub: read no faster, such as 50MiB/s.")] = None,
    limit: Annotated[str | None, typer.Option(metavar="SIZE", help="scrub: stop after so many bytes.")] = None,
    span: Annotated[str | None, typer.Option("--for", metavar="DURATION", help="scrub: stop after so long.")] = None,
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """stats: ratios and space. collect: give back the space of expired images. scrub: read again, prove and heal,
    a part at a time. check: prove every byte now, changing nothing."""
    sessions.start_logging()
    chosen = settings.of_state(state=state, catalog=catalog)
    _require_fitting(
        verb,
        {
            Verb.COLLECT: {"--dry-run": dry_run, "--threshold": threshold},
            Verb.SCRUB: {"--rate": rate, "--limit": limit, "--for": span},
        },
    )
    share = verdicts.THRESHOLD if threshold is None else _percent(threshold)
    if verb is Verb.COLLECT and not dry_run:
        return upkeep.collect(chosen, name, share, output)
    wanted = views.look(chosen, lambda view: view.wanted)
    if verb is Verb.SCRUB:
        return upkeep.scrub(chosen, wanted, name, upkeep.Given(rate=rate, size=limit, span=span), output)
    with _opened(wanted, name) as unit:
        if verb is Verb.COLLECT:
            return upkeep.preview(unit, share, output)
        if verb is Verb.STATS:
            document = documents.PoolStats.model_validate(
                {"unit": name, **dataclasses.asdict(unit.stats(meter=meters.Meter()))}
            )
            outputs.emit(document, output, _stats)
            return 0
        meter = meters.Meter()
        with sessions.cancelling(meter), progress.metered(meter, f"check {name}"):
            found = unit.check(meter=meter)
        if found:
            told = "\n  ".join(str(one) for one in found)
            raise errors.ImageDamaged(
                f"{name} is damaged:\n  {told}",
                hint=f"holdfast pool scrub {name} heals what it can, and says which images need what is lost",
            )
        message = f"{name}: every image, page and segment is whole"
        outputs.emit(results.Message(done=True, message=message), output, lambda shown: shown.message)
        return 0


def _require_fitting(verb: Verb, given: Mapping[Verb, Mapping[str, object]]) -> None:
    """Raise ``UsageError`` for an option of another verb."""
    for owner, values in given.items():
        for option, value in values.items():
            if value and owner is not verb:
                raise errors.UsageError(f"{option} is for pool {owner}, not for pool {verb}")


def _percent(text: str) -> int:
    try:
        return quantities.parse_percent(text)
    except ValueError as error:
        raise errors.UsageError(str(error)) from error


@contextlib.contextmanager
def _opened(wanted: desired.Desired, name: str) -> Iterator[pools.DedupePool]:
    """The pool, opened for reading."""
    declared = observations.declared_units(wanted).get(name)
    if declared is None:
        raise errors.NotFound(f"there is no unit {name}", hint=f"there are: {', '.join(sorted(wanted.units))}")
    with contextlib.closing(opening.open_unit(declared, owner=None)) as unit:
        if not isinstance(unit, pools.DedupePool):
            raise errors.UsageError(f"{name} is a {declared.type}", hint="pool commands take a DedupePool")
        yield unit


def _stats(document: documents.PoolStats) -> str:
    size = quantities.show_size
    lines = [
        f"unit    {document.unit}, generation {document.generation}",
        f"images  {document.images}, {size(document.logical_bytes)} raw, {size(document.non_zero_bytes)} not zero",
        f"stored  {size(document.stored_bytes)}, {document.containers} containers, {document.segments} segments",
        f"ratio   {document.ratio or 0:.2f}:1 raw, {document.non_zero_ratio or 0:.2f}:1 of what is not zero",
        f"dead    {size(document.dead_bytes)}, {size(document.reclaimable_bytes)} to be had by collecting",
    ]
    return "\n".join(lines)


def unit(
    _verb: Annotated[Adoption, typer.Argument(metavar="VERB", help="adopt.")],
    name: Annotated[str, typer.Argument(metavar="UNIT", help="A unit of the estate.")],
    yes: options.Yes = False,
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """adopt: make this catalog the owner of a unit, and take its images into the catalog. Their expiry waits."""
    sessions.start_logging()
    chosen = settings.of_state(state=state, catalog=catalog)
    clock = clocks.from_environment()
    if not yes and not (
        outputs.terminal() and outputs.ask(f"Take over {name}? Its present owner must no longer use it.")
    ):
        raise errors.UsageError("adopting a unit needs an answer", hint="use --yes once no other catalog uses the unit")
    with sessions.writing(chosen) as db, seats.controlling(chosen, db, clock) as controller:
        tree = controller.reload()
        wanted = passes.effective_now(tree.wanted, db, clock.now())
        declared = observations.declared_units(wanted).get(name)
        if declared is None:
            raise errors.NotFound(f"there is no unit {name} in the estate or in force")
        identity = identities.read(declared.path, name)
        _take(controller, declared, identity)
        done = recovery.import_unit(controller.site, name, rebuilds.overwriting(wanted))
        controller.dump()
    message = (
        f"{name} adopted: {done.taken} images taken into the catalog, {done.known} known already; their expiry waits"
    )
    message = "; ".join([message, *map(rebuilds.taken_as_made, done.made)])
    outputs.emit(results.Message(done=True, message=message), output, lambda one: one.message)
    return 0


def _take(controller: passes.Controller, declared: opening.Declared, identity: identities.Identity) -> None:
    """Record first who owned it, then write the owner: a crash in between is repeated by adopting again."""
    site = controller.site
    with site.db.writing() as connection:
        audits.record(
            connection,
            now=site.clock.now(),
            actor=site.actor,
            event="UnitAdopted",
            object=f"StorageUnit/{declared.name}",
            details={"from": identity.owner, "id": identity.id},
        )
    identities.write(declared.path, dataclasses.replace(identity, owner=site.db.id))
    known = inventories.KnownUnit(name=declared.name, id=identity.id, type=identity.type, path=str(declared.path))
    inventories.learn_unit(site.db, known, site.clock.now(), site.actor)
