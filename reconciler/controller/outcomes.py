"""What a pass came to: the document and the exit code, from what finished and the plan that stands afterwards."""

from __future__ import annotations

from collections.abc import Sequence

from reconciler.api.documents import results, shapes
from reconciler.jobs import engines
from reconciler.planning import actions, configuration

#: Reasons for which an action is blocked because something asked for could not be done.
_UNABLE = frozenset({"UnitOffline", "UnitReadOnly", "UnitFull", "UnitMissing"})


def result(plan: actions.Plan, finished: Sequence[engines.Finished], configuration: int) -> results.ApplyResult:
    """The pass as a document."""
    states = [one.state for one in finished]
    return results.ApplyResult(
        revision=plan.revision,
        configuration=configuration,
        succeeded=states.count(engines.State.SUCCEEDED),
        partial=states.count(engines.State.PARTIAL),
        failed=sum(state not in (engines.State.SUCCEEDED, engines.State.PARTIAL) for state in states),
        waiting=len(plan.in_state(actions.State.WAITING)),
        blocked=len(plan.in_state(actions.State.BLOCKED)),
        held=len(plan.destruction.items) if not plan.destruction.approved else 0,
        converged=not plan.changes,
        actions=tuple(
            results.ActionOutcome(
                address=one.address,
                type=one.type,
                state=one.state,
                job=one.job_id,
                error=shapes.CodeMessage(code=one.failure.code, message=one.failure.message) if one.failure else None,
            )
            for one in finished
        ),
    )


def exit_code(document: results.ApplyResult, plan: actions.Plan) -> int:
    """3 for a failure, 4 for destruction or a configuration change that a brake holds, else 0."""
    unable = any(action.reason.code in _UNABLE for action in plan.in_state(actions.State.BLOCKED))
    if document.failed or document.partial or unable:
        return 3
    held = document.held or any(problem.code == configuration.GONE for problem in plan.problems)
    return 4 if held else 0
