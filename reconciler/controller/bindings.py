"""Which operation does which action: the table that turns a start chosen by planning into a job's task."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TypeVar

from reconciler.api import drilling
from reconciler.base import errors
from reconciler.controller import restorations
from reconciler.jobs import engines
from reconciler.operations import (
    backups,
    bootdrills,
    duplications,
    expirations,
    filedrills,
    scrubs,
    sites,
    verifications,
)
from reconciler.operations import snapshots as removals
from reconciler.planning import actions, desired, dispatch, expiry, observed, snapshots
from reconciler.planning import restorations as planned
from reconciler.planning import verifications as proofs


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """What a start was decided from."""

    site: sites.Site
    wanted: desired.Desired
    seen: observed.Observed
    #: Fencing token of the controller's lease.
    fence: int


_T = TypeVar("_T")
_Runner = Callable[[engines.JobContext], engines.Outcome]


def task(situation: Situation, start: dispatch.Start) -> engines.Task:
    """The task that does one chosen action. Raises ``NotFound`` where the plan names what is gone."""
    action = start.action
    run, pinned_copy, parent = _BINDINGS[action.type](situation, start)
    return engines.Task(
        address=action.address,
        type=action.type.value,
        attempt=action.attempt,
        client_id=action.client_id,
        policy=action.policy,
        image=action.image,
        copy=pinned_copy,
        unit=start.unit or action.unit,
        source_unit=action.source_unit,
        media_server=start.media_server,
        parent=parent,
        expected_bytes=action.adds,
        batch=start.batch,
        fence=situation.fence,
        run=run,
    )


def _backup(situation: Situation, start: dispatch.Start) -> tuple[_Runner, int | None, str | None]:
    action = start.action
    policy = situation.wanted.policies[_need(action.policy, action)]
    lifecycle = situation.wanted.lifecycles[policy.spec.lifecycle]
    operation = next(one for one in lifecycle.spec.operations if one.type == "Backup")
    client_id = _need(action.client_id, action)
    known = situation.seen.clients.get(client_id)
    if known is None:
        raise errors.NotFound(f"{action.address}: client {client_id} is not in the catalog yet")
    order = backups.BackupOrder(
        client_id=client_id,
        client_name=known.name,
        client_slug=known.slug,
        policy=policy,
        schedule=_need(action.schedule, action),
        lifecycle=lifecycle.name,
        owed=lifecycle.spec.written(),
        operation=operation.name,
        unit=_need(start.unit or action.unit, action),
        type=action.backup_type or "Full",
        slot=action.slot or action.at or situation.site.clock.now(),
        revision=situation.wanted.revision,
        parent=action.parent,
        vcenters=situation.wanted.vcenters,
    )
    return functools.partial(backups.back_up, situation.site, order), None, action.parent


def _duplicate(situation: Situation, start: dispatch.Start) -> tuple[_Runner, int | None, str | None]:
    action = start.action
    # Without a good copy all of them are read, and none of them may go.
    copy = None if action.pieces else _need(action.copy, action)
    order = duplications.DuplicateOrder(
        image=_need(action.image, action),
        operation=_need(action.operation, action),
        source_unit=_need(action.source_unit, action),
        source_copy=copy,
        unit=_need(start.unit or action.unit, action),
    )
    # The base of a chain on the target is pinned like a parent: it must not expire before this copy stands on it.
    return functools.partial(duplications.duplicate, situation.site, order), copy, action.parent


def _expire(situation: Situation, start: dispatch.Start) -> tuple[_Runner, int | None, str | None]:
    action = start.action
    image, number = _need(action.image, action), _need(action.copy, action)

    def check(series: observed.Series, standing: observed.Standing) -> None:
        seen = dataclasses.replace(situation.seen, holds=standing.holds, rulings=standing.rulings)
        now, code = situation.site.clock.now(), action.reason.code
        expiry.check_delete(situation.wanted, seen, series, image, number, now, code=code)

    order = expirations.ExpireOrder(
        image=image,
        copy=number,
        unit=_need(action.unit, action),
        reason=action.reason.message,
        check=check,
        fence=situation.fence,
        grace=action.grace,
        decided=action.reason.code in ("GraceOver", "Interrupted"),
    )
    return functools.partial(expirations.expire, situation.site, order), None, None


def _reclaim(situation: Situation, start: dispatch.Start) -> tuple[_Runner, int | None, str | None]:
    unit = _need(start.action.unit, start.action)
    return functools.partial(expirations.reclaim, situation.site, unit), None, None


def _verify(situation: Situation, start: dispatch.Start) -> tuple[_Runner, int | None, str | None]:
    action = start.action
    if action.proof is None:
        unit = _need(action.unit, action)
        return functools.partial(scrubs.scrub_slice, situation.site, unit), None, None
    policy = situation.wanted.policies.get(_need(action.policy, action))
    copy = _need(action.copy, action)
    order = verifications.VerifyOrder(
        image=_need(action.image, action),
        copy=copy,
        unit=_need(action.source_unit, action),
        kind=action.proof,
        ways=policy.spec.drills if policy is not None else drilling.Drills(),
    )
    return functools.partial(_PROOFS[action.proof], situation.site, order), copy, None


_PROOFS: Mapping[str, Callable[[sites.Site, verifications.VerifyOrder, engines.JobContext], engines.Outcome]] = {
    proofs.CONTENT: verifications.contents,
    proofs.FILES: filedrills.drill,
    proofs.BOOT: bootdrills.drill,
}


def _restore(situation: Situation, start: dispatch.Start) -> tuple[_Runner, int | None, str | None]:
    action = start.action
    item = _need(situation.wanted.restores.get(planned.named(action.address)), action)
    machine = item.spec.target.vmware
    copy = _need(action.copy, action)
    order = restorations.Order(
        item=item,
        digest=_need(action.digest, action),
        client=_need(action.client_id, action),
        image=_need(action.image, action),
        vcenter=_need(situation.wanted.vcenters.get(machine.vcenter), action) if machine is not None else None,
    )
    return functools.partial(restorations.restore, situation.site, order), copy, None


def _remove_snapshot(situation: Situation, start: dispatch.Start) -> tuple[_Runner, int | None, str | None]:
    id = snapshots.named(start.action.address)
    known = _need(snapshots.known(situation.seen).get(id), start.action)
    vcenter = _need(situation.wanted.vcenters.get(known.vcenter), start.action)
    order = removals.RemovalOrder(snapshot=known, vcenter=vcenter)
    return functools.partial(removals.remove_snapshot, situation.site, order), None, None


_BINDINGS: Mapping[actions.Type, Callable[[Situation, dispatch.Start], tuple[_Runner, int | None, str | None]]] = {
    actions.Type.BACKUP: _backup,
    actions.Type.DUPLICATE: _duplicate,
    actions.Type.EXPIRE: _expire,
    actions.Type.RECLAIM: _reclaim,
    actions.Type.VERIFY: _verify,
    actions.Type.RESTORE: _restore,
    actions.Type.REMOVE_SNAPSHOT: _remove_snapshot,
}


def _need(value: _T | None, action: actions.Action) -> _T:
    if value is None:
        raise errors.NotFound(f"{action.address}: the plan does not say enough to act on it")
    return value
