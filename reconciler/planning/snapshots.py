"""Snapshots of ours at sources: which belong to work that lives, which are left over, and what removes those.

Called by ``planner`` and, for the limits of a vCenter, by ``hypervisors``. A snapshot is known because the catalog
noted it before it was made, or because an inventory shows it; either word is enough, and both together are one
snapshot. As long as its job lives nobody else touches it. Afterwards it is removed by id, for as long as it takes: a
disk that runs on a snapshot grows until its datastore is full. Snapshots of others are not ours to see.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Final

from reconciler.base import times
from reconciler.planning import actions, clients, desired, observed, retries

#: A snapshot that the catalog never noted is left alone for so long after it was made: somebody may be trying
#: something out right now, beside any job.
GRACE: Final = dt.timedelta(minutes=15)
#: What removes a snapshot, in plans, jobs and the audit.
_STEM: Final = "remove-snapshot"


def known(seen: observed.Observed) -> dict[str, observed.Snapshot]:
    """Every snapshot of ours by id: those noted, those that inventories show; what both know is put together."""
    found = {one.id: one for one in seen.snapshots}
    for _, inventory in sorted(seen.inventories.items()):
        for one in inventory.snapshots:
            noted = found.get(one.id)
            found[one.id] = one if noted is None else _together(noted, one)
    return dict(sorted(found.items()))


def _together(noted: observed.Snapshot, shown: observed.Snapshot) -> observed.Snapshot:
    """Where it is now is the source's word; what it is for is the catalog's."""
    return dataclasses.replace(
        noted, vcenter=shown.vcenter, place=shown.place, reference=shown.reference or noted.reference,
        since=noted.since or shown.since,
    )  # fmt: skip


def left(seen: observed.Observed) -> dict[str, observed.Snapshot]:
    """Those among the known ones whose job is not alive."""
    live = {job.id for job in seen.jobs}
    return {id: one for id, one in known(seen).items() if one.job not in live}


def address(slug: str, id: str) -> str:
    """The address of a removal."""
    return f"{_STEM}/{slug}/{id}"


def named(place: str) -> str:
    """The snapshot's id in the address of its removal."""
    return place.rpartition("/")[2]


def removals(
    wanted: desired.Desired, seen: observed.Observed, slugs: Mapping[str, str], now: dt.datetime
) -> Iterator[actions.Action]:
    """One RemoveSnapshot for each snapshot that is left over; ``slugs``: by client id."""
    running = {job.address for job in seen.jobs}
    unreachable = _unreachable(wanted, seen)
    noted = {one.id for one in seen.snapshots}
    for one in left(seen).values():
        place = address(_slug(one, slugs), one.id)
        attempts = seen.attempts.get(place)
        state, at, reason = _state(one, wanted, unreachable, one.id in noted, attempts, now)
        if place in running:
            state, at, reason = actions.State.DUE, one.since, _said("Running", f"it is running: {_what(one, now)}")
        yield actions.Action(
            address=place,
            type=actions.Type.REMOVE_SNAPSHOT,
            state=state,
            at=at,
            reason=reason,
            client=_slug(one, slugs),
            client_id=one.client,
            attempt=retries.number(attempts),
        )


def _state(
    one: observed.Snapshot,
    wanted: desired.Desired,
    unreachable: Mapping[str, str],
    noted: bool,
    attempts: observed.Attempts | None,
    now: dt.datetime,
) -> tuple[actions.State, dt.datetime | None, actions.Reason]:
    what = _what(one, now)
    if one.vcenter not in wanted.vcenters or wanted.is_orphaned("VCenter", one.vcenter):
        next_step = f"declare it again, or remove snapshot {one.id} of {one.machine} there by hand"
        words = f"{what}; no manifest describes VCenter {one.vcenter} any more: {next_step}"
        return actions.State.BLOCKED, one.since, _said("VCenterUnknown", words)
    if one.vcenter in unreachable:
        words = f"{what}; VCenter {one.vcenter} cannot be reached: {unreachable[one.vcenter]}"
        return actions.State.BLOCKED, one.since, _said("SourceUnreachable", words)
    if not noted and one.since is not None and abs(now - one.since) < GRACE:
        words = f"{what}; no job has noted it, and whoever made it may still be at it"
        return actions.State.WAITING, one.since + GRACE, _said("YoungSnapshot", words)
    resting = retries.resting(attempts, now)
    if resting is not None:
        until, reason = resting
        return actions.State.WAITING, until, _said(reason.code, f"{what}; {reason.message}")
    return actions.State.DUE, one.since, _said("LeftoverSnapshot", what)


def _unreachable(wanted: desired.Desired, seen: observed.Observed) -> dict[str, str]:
    """VCenters of which no policy has an answer, with the reason; one that nobody asks counts as reachable."""
    told: dict[str, str] = {}
    answered = set()
    for name, inventory in sorted(seen.inventories.items()):
        policy = wanted.policies.get(name)
        source = policy.spec.source.vmware if policy is not None else None
        if source is None:
            continue
        if inventory.unreachable is None:
            answered.add(source.vcenter)
        else:
            told.setdefault(source.vcenter, inventory.unreachable[1])
    return {name: why for name, why in told.items() if name not in answered}


def drift(
    wanted: desired.Desired, seen: observed.Observed, slugs: Mapping[str, str], now: dt.datetime
) -> Iterator[actions.Drift]:
    """Snapshots that are left over, and those that are older than their VCenter allows, whatever reads them."""
    over = left(seen)
    for one in known(seen).values():
        object = f"Client/{_slug(one, slugs)}"
        if one.id in over:
            place = address(_slug(one, slugs), one.id)
            yield actions.Drift(code="LeftoverSnapshot", object=object, message=f"{_what(one, now)}; see {place}")
        limit = _limit(one, wanted)
        if limit is not None and one.since is not None and now - one.since > limit[0]:
            ended = f"holdfast explain client {_slug(one, slugs)} says what keeps it"
            if one.id not in over:
                ended = f"its job gives it up; holdfast cancel {one.job} ends that job now"
            words = f"a snapshot of {one.machine} on VCenter {one.vcenter} is {_age(one.since, now)} old"
            message = f"{words}, longer than maxSnapshotAge {limit[1]}; {ended}"
            yield actions.Drift(code="SnapshotOld", object=object, message=message)


def _limit(one: observed.Snapshot, wanted: desired.Desired) -> tuple[dt.timedelta, str] | None:
    vcenter = wanted.vcenters.get(one.vcenter)
    if vcenter is None:
        return None
    allowed = vcenter.spec.max_snapshot_age
    return allowed.approximate, str(allowed)


def _what(one: observed.Snapshot, now: dt.datetime) -> str:
    old = f", {_age(one.since, now)} old" if one.since is not None else ""
    made = "was noted and may exist" if one.reference is None else "was left"
    return f"a snapshot of {one.machine} {made} on VCenter {one.vcenter} by {one.job}, which is over{old}"


def _age(since: dt.datetime, now: dt.datetime) -> str:
    return times.span(max(now - since, dt.timedelta(0)))


def _slug(one: observed.Snapshot, slugs: Mapping[str, str]) -> str:
    """A machine that the catalog does not know, such as after a rebuild, goes by its name."""
    return slugs.get(one.client) or clients.slug(one.machine, ())


def _said(code: str, message: str) -> actions.Reason:
    return actions.Reason(code=code, message=message)
