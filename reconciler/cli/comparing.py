"""``holdfast plan --from REV --to REV``: two revisions of the estate's repository over the live catalog."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path

from reconciler.api.documents import comparisons as documents
from reconciler.base import clocks, diagnostics, errors
from reconciler.catalog import database, inventories
from reconciler.cli import options, outputs, settings
from reconciler.controller import freeing, jumps, observations
from reconciler.intake import estates
from reconciler.planning import comparisonfile, comparisons, configuration, desired, observed, standpoints
from reconciler.reports import changes
from reconciler.storage import opening


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """How a comparison is asked for and shown."""

    #: A revision, or None for what is in force.
    before: str | None
    #: A revision, or None for the work tree.
    after: str | None
    output: options.PlanOutput
    verbose: bool
    #: Bytes that a comment may have.
    most: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Read:
    """Manifests and what was found with them."""

    manifests: desired.Desired
    problems: tuple[diagnostics.Diagnostic, ...] = ()


def compare(chosen: settings.Settings, wish: Wish, *, detailed: bool) -> int:
    """Compute and print the comparison; the exit code: 4 where the manifests of a revision have errors, of which it
    then speaks alone. Raises ``UsageError`` for what is no revision."""
    estate = chosen.estate or Path()
    before = estates.load_revision(estate, wish.before) if wish.before is not None else None
    after = estates.load_revision(estate, wish.after) if wish.after is not None else estates.load(estate)
    for loaded, name in ((before, wish.before), (after, wish.after or "the work tree")):
        if loaded is not None and loaded.desired is None:
            outputs.note(f"holdfast: the manifests of {name} have errors; there is nothing to compare")
            _emit(_refusal(before, after, loaded.diagnostics), wish)
            return errors.ConfigurationError.exit_code
    document = _over_catalog(chosen, _read(before) if before is not None else None, _read(after), _listed(wish))
    _emit(document, wish)
    return 2 if detailed and document.changes else 0


def _listed(wish: Wish) -> int:
    """How many copies are worth holding one by one: the page lists none, a comment has room for few."""
    if wish.output is options.PlanOutput.MARKDOWN:
        return wish.most // 64
    return comparisons.LISTED if wish.verbose or wish.output is options.PlanOutput.JSON else 0


def _emit(document: documents.PlanComparison, wish: Wish) -> None:
    if wish.output is options.PlanOutput.MARKDOWN:
        outputs.emit(document, options.Output.TEXT, lambda shown: changes.markdown(shown, wish.most))
        return
    colour = outputs.colours(sys.stdout)
    outputs.emit(
        document, options.Output(wish.output), lambda shown: changes.text(shown, verbose=wish.verbose, colour=colour)
    )


def _read(loaded: estates.Loaded) -> _Read:
    assert loaded.desired is not None
    return _Read(manifests=loaded.desired, problems=loaded.diagnostics)


def _refusal(
    before: estates.Loaded | None, after: estates.Loaded, problems: tuple[diagnostics.Diagnostic, ...]
) -> documents.PlanComparison:
    """A document that holds problems and nothing else."""
    nothing = comparisons.Comparison(
        now=clocks.from_environment().now(),
        before=before.revision if before is not None else "none",
        after=after.revision,
        in_force=None,
        problems=problems,
        configuration=(),
        groups=(),
        moved=(),
        unlisted=0,
        freed={},
        kept={},
        clients=(),
        protection=(),
    )
    return comparisonfile.document(nothing, {}, {})


def _over_catalog(
    chosen: settings.Settings, before: _Read | None, after: _Read, listed: int
) -> documents.PlanComparison:
    """Reads again if a writer came in between."""
    while True:
        with contextlib.ExitStack() as stack:
            db = database.open_reading(chosen.catalog)
            if db is not None:
                stack.callback(db.close)
            made = _once(db, before, after, listed)
            if db is None or db.still_valid():
                return made


def _once(db: database.Database | None, before: _Read | None, after: _Read, listed: int) -> documents.PlanComparison:
    clock = clocks.from_environment()
    now = clock.now()
    applied = inventories.applied(db) if db else {}
    known = inventories.inventories(db) if db else {}
    if before is None:
        before = _Read(manifests=standpoints.of_catalog(applied, inventories.in_force(db) if db else None))
    states = comparisons.revisions(before.manifests, after.manifests, applied, now)
    first, second = (
        standpoints.Revision(
            manifests=manifests,
            effective=effective,
            inventories=observations.survey(effective, known, now, db.id if db else None),
            problems=read.problems,
        )
        for read, (manifests, effective) in zip((before, after), states, strict=True)
    )
    with contextlib.closing(opening.OpenUnits(owner=None, cache=None)) as units:
        everything = _together(first.effective, second.effective, applied)
        units.declare(observations.declared_units(everything))
        jump = jumps.at_start(db, clock, now) if db else None
        seen = observations.gather(db, everything, second.inventories, observations.look(db, everything, units), jump)
        found = comparisons.compare(first, second, seen, now, listed=listed)
        return comparisonfile.document(found, _measured(found.freed, units), _measured(found.kept, units))


def _together(
    first: desired.Desired, second: desired.Desired, applied: Mapping[desired.Key, observed.Applied]
) -> desired.Desired:
    """All units of both, and of what is in force: where one name means two folders, the catalog knows which it is."""
    in_force = configuration.effective(standpoints.of_catalog(applied, None), applied)
    return dataclasses.replace(second, units={**first.units, **second.units, **in_force.units})


def _measured(going: Mapping[str, comparisons.Freed], units: opening.OpenUnits) -> Mapping[str, tuple[int, bool]]:
    return freeing.freed(
        {
            name: freeing.Going(images=one.images, copies=one.copies, stored_bytes=one.stored_bytes)
            for name, one in going.items()
        },
        units,
    )
