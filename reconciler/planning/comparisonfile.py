"""A comparison of two revisions as a document: what ``plan --from --to`` prints, in every form.

Apart from ``planfile``, which also reads plans back: a comparison is only ever shown. Pure.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from reconciler.api.documents import comparisons as documents
from reconciler.api.documents import plans, results, shapes
from reconciler.planning import comparisons, planfile

#: By unit: bytes that would come back, and whether they were counted.
Measured = Mapping[str, tuple[int, bool]]


def document(one: comparisons.Comparison, freed: Measured, kept: Measured) -> documents.PlanComparison:
    """The document; ``freed`` and ``kept`` are what the units say of ``one.freed`` and ``one.kept``."""
    return documents.PlanComparison(
        now=one.now,
        from_revision=one.before,
        to_revision=one.after,
        in_force=one.in_force,
        changes=one.changes,
        problems=tuple(results.diagnostic_item(problem) for problem in one.problems),
        configuration=tuple(planfile.change_item(change) for change in one.configuration),
        copies=_copies(one),
        units=tuple(_unit(name, one, freed, kept) for name in sorted({*one.freed, *one.kept})),
        clients=tuple(
            plans.OldestItem(client=point.client, oldest_before=point.before, oldest_after=point.after)
            for point in one.clients
        ),
        protection=tuple(_protection(item) for item in one.protection),
    )


def _copies(one: comparisons.Comparison) -> documents.MovedCopies:
    return documents.MovedCopies(
        earlier=sum(group.earlier for group in one.groups),
        later=sum(group.later for group in one.groups),
        undated=sum(group.undated for group in one.groups),
        leaving=sum(group.leaving for group in one.groups),
        groups=tuple(
            documents.CopyGroup(
                policy=group.policy,
                lifecycle=group.lifecycle,
                operation=group.operation,
                earlier=group.earlier,
                later=group.later,
                undated=group.undated,
                leaving=group.leaving,
            )
            for group in one.groups
        ),
        items=tuple(_moved(item) for item in one.moved),
        unlisted=one.unlisted,
    )


def _moved(item: comparisons.Moved) -> documents.MovedCopy:
    return documents.MovedCopy.model_validate(
        {
            "image": item.image,
            "copy": item.copy,
            "client": item.client,
            "policy": item.policy,
            "lifecycle": item.lifecycle,
            "operation": item.operation,
            "unit": item.unit,
            "change": item.change,
            "before": _end(item.before),
            "after": _end(item.after),
        }
    )


def _end(end: comparisons.End) -> documents.EndItem:
    reason = shapes.CodeMessage(code=end.code, message=end.message)
    return documents.EndItem(leaves=end.leaves, at=end.at, reason=reason)


def _unit(name: str, one: comparisons.Comparison, freed: Measured, kept: Measured) -> documents.FreedUnit:
    nothing = comparisons.Freed()
    gone, stays = freed.get(name, (0, True)), kept.get(name, (0, True))
    return documents.FreedUnit(
        unit=name,
        freed_copies=one.freed.get(name, nothing).copies,
        freed_bytes=gone[0],
        kept_copies=one.kept.get(name, nothing).copies,
        kept_bytes=stays[0],
        estimated=not (gone[1] and stays[1]),
    )


def _protection(item: comparisons.Protection) -> documents.ProtectionItem:
    return documents.ProtectionItem.model_validate(
        {
            "client": item.client,
            "change": item.change,
            "policies_before": item.policies_before,
            "policies_after": item.policies_after,
            "next_before": item.next_before,
            "next_after": item.next_after,
            "objective_before_seconds": _seconds(item.objective_before),
            "objective_after_seconds": _seconds(item.objective_after),
        }
    )


def _seconds(span: dt.timedelta | None) -> float | None:
    return span.total_seconds() if span is not None else None
