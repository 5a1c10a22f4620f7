"""A plan as a document: what ``plan`` prints, and what ``apply FILE`` holds against a fresh plan.

Pure; ``savedplans`` reads and writes the file's text. A saved plan is compared in what somebody agreed to:
configuration changes, the destructive part, and the actions that were due at the plan's own ``now``. What fell due
since is no difference, nor is what has been done since by the loop.
"""

from __future__ import annotations

from reconciler.api.documents import plans, results, shapes
from reconciler.base import digests
from reconciler.planning import actions


def document(plan: actions.Plan) -> plans.Plan:
    """The document of a plan."""
    body = plans.Plan(
        now=plan.now,
        horizon=plan.horizon,
        revision=plan.revision,
        in_force=plan.in_force,
        digest="",
        problems=tuple(results.diagnostic_item(one) for one in plan.problems),
        drift=tuple(plans.DriftItem(code=one.code, object=one.object, message=one.message) for one in plan.drift),
        configuration=tuple(change_item(one) for one in plan.configuration),
        actions=tuple(_action(one) for one in plan.actions),
        destruction=_destruction(plan.destruction),
        summary=_summary(plan),
    )
    return body.model_copy(update={"digest": digest(body)})


def digest(body: plans.Plan) -> str:
    """``blake3:<hex>`` over everything in the document but the digest itself."""
    return digests.json_digest({key: value for key, value in body.to_json().items() if key != "digest"})


def change_item(one: actions.ConfigurationChange) -> plans.ConfigurationItem:
    """One configuration change as a document has it."""
    fields = tuple(plans.FieldItem(path=f.path, before=f.before, after=f.after) for f in one.fields)
    return plans.ConfigurationItem.model_validate(
        {"change": one.change, "kind": one.kind, "name": one.name, "fields": fields}
    )


def _action(one: actions.Action) -> plans.ActionItem:
    return plans.ActionItem(
        address=one.address,
        type=one.type.value,
        state=one.state.value,
        at=one.at,
        after=one.after,
        policy=one.policy,
        schedule=one.schedule,
        client=one.client,
        image=one.image,
        copy_number=one.copy,
        operation=one.operation,
        unit=one.unit,
        source_unit=one.source_unit,
        bytes=one.bytes,
        reason=shapes.CodeMessage(code=one.reason.code, message=one.reason.message),
    )


def _destruction(one: actions.Destruction) -> plans.Destruction:
    return plans.Destruction(
        digest=one.digest,
        copies=len(one.items),
        bytes=one.bytes if one.bytes is not None else sum(item.bytes for item in one.items),
        estimated=one.estimated,
        approved=one.approved,
        items=tuple(
            plans.DestroyedItem(
                image=item.image,
                copy_number=item.copy,
                unit=item.unit,
                expires_before=item.expires_before,
                expires_after=item.expires_after,
            )
            for item in one.items
        ),
        clients=tuple(
            plans.OldestItem(client=point.client, oldest_before=point.before, oldest_after=point.after)
            for point in one.clients
        ),
    )


def _summary(plan: actions.Plan) -> plans.Summary:
    count = {state: len(plan.in_state(state)) for state in actions.State}
    return plans.Summary(
        due=count[actions.State.DUE],
        waiting=count[actions.State.WAITING],
        blocked=count[actions.State.BLOCKED],
        planned=count[actions.State.PLANNED],
        changes=plan.changes,
    )


def compare(saved: plans.Plan, fresh: plans.Plan) -> tuple[str, ...]:
    """What moved between a saved plan and a fresh one made for the same ``now``: sentences; empty if nothing did.

    Configuration changes that are in force since, actions that are done or running since and copies whose promise has
    ended since do not count; anything new, or changed, does.
    """
    return (*_moved_configuration(saved, fresh), *_moved_destruction(saved, fresh), *_moved_actions(saved, fresh))


def _moved_configuration(saved: plans.Plan, fresh: plans.Plan) -> list[str]:
    before = {(one.kind, one.name): one for one in saved.configuration}
    after = {(one.kind, one.name): one for one in fresh.configuration}
    result = []
    for kind, name in sorted({*before, *after}):
        if (kind, name) not in before:
            result.append(f"{kind}/{name}: {after[kind, name].change} is new")
        elif (kind, name) not in after:
            if fresh.in_force != saved.revision:
                result.append(f"{kind}/{name}: {before[kind, name].change} is no longer part of the plan")
        elif before[kind, name] != after[kind, name]:
            result.append(f"{kind}/{name}: {after[kind, name].change} is not what it was")
    return result


def _moved_destruction(saved: plans.Plan, fresh: plans.Plan) -> list[str]:
    before = {(item.image, item.copy_number) for item in saved.destruction.items}
    grown = [item for item in fresh.destruction.items if (item.image, item.copy_number) not in before]
    if grown:
        return [f"the destructive part holds {len(grown)} copies more, such as {grown[0].image}/{grown[0].copy_number}"]
    if fresh.destruction.items and _causes(saved) != _causes(fresh):
        return ["the destructive part has other causes than it had"]
    if fresh.destruction.items and saved.destruction.approved and not fresh.destruction.approved:
        return ["the destructive part was approved, and is not any more"]
    return []


def _causes(body: plans.Plan) -> str | None:
    return body.destruction.digest


def _moved_actions(saved: plans.Plan, fresh: plans.Plan) -> list[str]:
    """Due at the saved plan's own now: what is new since, and what can no longer start."""
    before = {one.address: one for one in saved.actions if one.state == "Due"}
    result = []
    for one in fresh.actions:
        if one.state == "Due" and one.address not in before and not _fell_due(one, saved):
            result.append(f"{one.address}: due, and not part of the saved plan")
        elif one.address in before and one.state == "Blocked":
            result.append(f"{one.address}: {one.reason.message}")
    return result


def _fell_due(one: plans.ActionItem, saved: plans.Plan) -> bool:
    """Whether an action could not be due yet at the saved plan's now."""
    listed = next((other for other in saved.actions if other.address == one.address), None)
    if listed is not None and listed.state in ("Waiting", "Planned"):
        return True
    if one.at is None:
        return False
    # The image that a duplication reads was made by a backup of the saved plan, or by the loop, since.
    return one.at > saved.now or (one.type == "Duplicate" and one.at == saved.now)
