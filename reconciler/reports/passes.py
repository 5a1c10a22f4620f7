"""What a pass did, as text."""

from __future__ import annotations

import collections

from reconciler.api.documents import plans, results
from reconciler.reports import tables

_MARKS = {"Succeeded": "+", "Partial": "~"}


def text(document: results.ApplyResult, plan: plans.Plan | None = None) -> str:
    """One line for each action, what stands in the way of the rest, and a summary."""
    lines = []
    for one in document.actions:
        told = f": {one.error.code}: {one.error.message}" if one.error else ""
        lines.append(f"  {_MARKS.get(one.state, '!')} {one.address} {one.state.lower()}{told}")
    if plan is not None:
        # What a pass could not even ask: without a word of it, nothing to do looks like nothing to worry about.
        lines += [f"  ! {one.object}: {one.message}" for one in plan.drift if one.code == "UnreachableSource"]
        for action in plan.actions:
            if action.state in ("Blocked", "Waiting"):
                when = f" until {tables.moment(action.at)}" if action.state == "Waiting" and action.at else ""
                lines.append(
                    f"  {'!' if action.state == 'Blocked' else '»'} {action.address}{when}: {action.reason.message}"
                )
        if plan.drift:
            counted = collections.Counter(one.code for one in plan.drift)
            kinds = ", ".join(f"{number} {code}" for code, number in sorted(counted.items()))
            lines.append(f"Drift: {kinds} (holdfast plan says what, and the next step)")
    if document.held and plan is not None and plan.destruction.digest is not None:
        count = tables.count(document.held, "copy", "copies")
        lines.append(f"Held: {count} would go before a promise ends; holdfast approve lets them go:")
        lines.append(f"  {plan.destruction.digest}")
    failed = document.failed + document.partial
    lines.append(
        f"Applied {tables.count(document.configuration, 'configuration change')}; {document.succeeded} succeeded,"
        f" {failed} failed or partial, {document.waiting} waiting, {document.blocked} blocked."
        + (" Converged." if document.converged else "")
    )
    return "\n".join(lines)
