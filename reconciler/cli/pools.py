"""``holdfast pool``: what a deduplicating pool holds, what it would give back, and whether it is whole.
``holdfast unit adopt``: take over a unit that another catalog owns."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
from collections.abc import Iterator
from typing import Annotated

import typer

from reconciler.api.documents import results
from reconciler.base import clocks, errors, meters, quantities
from reconciler.catalog import audits, inventories
from reconciler.cli import options, outputs, progress, seats, sessions, settings, views
from reconciler.controller import observations, passes
from reconciler.operations import recovery
from reconciler.planning import configuration, desired
from reconciler.storage import identities, opening
from reconciler.storage.dedupe import pools


class Verb(enum.StrEnum):
    """What ``pool`` does."""

    STATS = "stats"
    COLLECT = "collect"
    CHECK = "check"


class Adoption(enum.StrEnum):
    """What ``unit`` does."""

    ADOPT = "adopt"


def pool(
    verb: Annotated[Verb, typer.Argument(metavar="VERB", help="stats, collect or check.")],
    name: Annotated[str, typer.Argument(metavar="UNIT", help="A DedupePool in force.")],
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """stats: ratios and space. collect: give back the space of expired images. check: prove every byte."""
    sessions.start_logging()
    chosen = settings.of_state(state=state, catalog=catalog)
    if verb is Verb.COLLECT:
        return _collect(chosen, name, output)
    with _opened(views.look(chosen, lambda view: view.wanted), name) as unit:
        if verb is Verb.STATS:
            document = results.PoolStats.model_validate(
                {"unit": name, **dataclasses.asdict(unit.stats(meter=meters.Meter()))}
            )
            outputs.emit(document, output, _stats)
            return 0
        meter = meters.Meter()
        with sessions.cancelling(meter), progress.metered(meter, f"check {name}"):
            found = unit.check(meter=meter)
        if found:
            told = "\n  ".join(str(one) for one in found)
            raise errors.ImageDamaged(f"{name} is damaged:\n  {told}", hint="other copies of these images are not")
        message = f"{name}: every image, page and segment is whole"
        outputs.emit(results.Message(done=True, message=message), output, lambda shown: shown.message)
        return 0


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


def _collect(chosen: settings.Settings, name: str, output: options.Output) -> int:
    clock = clocks.from_environment()
    with sessions.writing(chosen) as db, seats.controlling(chosen, db, clock) as controller:
        controller.reload()
        unit = controller.site.units.get(name)
        if not isinstance(unit, pools.DedupePool):
            raise errors.UsageError(f"{name} is not a DedupePool")
        meter = meters.Meter()
        with sessions.cancelling(meter), progress.metered(meter, f"collect {name}"):
            freed = unit.reclaim(meter=meter)
    message = f"{name}: gave back {quantities.show_size(freed)}"
    outputs.emit(
        results.Message(done=True, message=message, details={"freedBytes": freed}), output, lambda one: one.message
    )
    return 0


def _stats(document: results.PoolStats) -> str:
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
        declared = observations.declared_units(configuration.effective(tree.wanted, inventories.applied(db))).get(name)
        if declared is None:
            raise errors.NotFound(f"there is no unit {name} in the estate or in force")
        identity = identities.read(declared.path, name)
        _take(controller, declared, identity)
        taken, known = recovery.import_unit(controller.site, name)
        controller.dump()
    message = f"{name} adopted: {taken} images taken into the catalog, {known} known already; their expiry waits"
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
