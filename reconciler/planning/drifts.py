"""Drift: what the world shows that the manifests do not account for. Told in every plan, changed by none.

Codes: ``UnreachableSource``, the source's own (such as ``NoDisks``), ``DiskRemoved``, ``SelectionShrunk``,
``EmptySelection``, ``UnprotectedClient``, ``DoublyMatched``, ``DisksLeftOut``, ``NeverSucceeded``, ``SuspensionEnds``,
``SuspensionOver``, ``OrphanedImages``, ``LostCopies``, ``DamagedCopies``, ``UnitOffline``,
``UnitReadOnly``, ``Draining``, ``Drained``, ``Failing``, ``VCenterGone``, ``ServiceLevelMissed``,
``VerificationFailed``, ``RestoreFailing``, ``RestoreMade``; those of snapshots are in ``snapshots``,
Approvals have theirs in ``approvals``, holds and rulings in ``rulings``, ``CannotMakeSpace`` is in ``evictions``.
``planner`` calls these functions with what it has gathered.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Iterator, Mapping

from reconciler.base import digests, times
from reconciler.planning import actions, backups, desired, histories, observed, verifications

#: A selection that lost a third of its clients, and at least this many, is drift.
_GUARDED = 3
#: So many notes of one code are told in full, the rest is counted.
_NOTES = 20
#: How long before its end a suspension is told.
_SOON = dt.timedelta(hours=24)


def sources(name: str, inventory: observed.Inventory, now: dt.datetime) -> Iterator[actions.Drift]:
    """What is wrong with a policy's source and its machines."""
    if inventory.unreachable is not None:
        known = (
            f"what is known of it is {_age(now - inventory.seen)} old"
            if inventory.machines
            else "no machine of it is known yet"
        )
        yield actions.Drift(
            code="UnreachableSource",
            object=f"BackupPolicy/{name}",
            message=f"{inventory.unreachable[1]}; {known}",
        )
    for code, message in _by_code(inventory.notes):
        yield actions.Drift(code=code, object=f"BackupPolicy/{name}", message=message)
    for machine in inventory.machines:
        if machine.problem is not None:
            yield actions.Drift(code=machine.problem[0], object=machine.source, message=machine.problem[1])


def _age(passed: dt.timedelta) -> str:
    """In the largest unit of which there are two at least."""
    seconds = max(0, int(passed.total_seconds()))
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} seconds"


def _by_code(notes: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Each code once, with everything that was said under it."""
    said: dict[str, dict[str, None]] = {}
    for code, message in notes:
        said.setdefault(code, {})[message] = None
    for code, messages in sorted(said.items()):
        more = [f"and {len(messages) - _NOTES} more"] if len(messages) > _NOTES else []
        yield code, "; ".join([*list(messages)[:_NOTES], *more])


def notes(found: Mapping[str, Mapping[str, observed.Machine]], slugs: Mapping[str, str]) -> Iterator[actions.Drift]:
    """What sources say of machines that can be backed up all the same: client id -> policy -> machine."""
    for id, by_policy in sorted(found.items()):
        told = dict.fromkeys(note for _, one in sorted(by_policy.items()) for note in one.notes)
        for code, message in _by_code(told):
            yield actions.Drift(code=code, object=f"Client/{slugs.get(id, id)}", message=message)


def vcenters(wanted: desired.Desired) -> Iterator[actions.Drift]:
    """VCenters that policies still name and that no manifest describes any more."""
    users: dict[str, list[str]] = {}
    for name, policy in sorted(wanted.policies.items()):
        source = policy.spec.source.vmware
        if source is None or wanted.is_orphaned("BackupPolicy", name):
            continue
        if source.vcenter not in wanted.vcenters or wanted.is_orphaned("VCenter", source.vcenter):
            users.setdefault(source.vcenter, []).append(name)
    for name, policies in sorted(users.items()):
        yield actions.Drift(
            code="VCenterGone",
            object=f"VCenter/{name}",
            message=f"no manifest describes it any more, and {', '.join(policies)} still"
            f" {'names' if len(policies) == 1 else 'name'} it; bring it back, or let them name another one",
        )


def selection(name: str, inventory: observed.Inventory, protected: Iterable[str]) -> actions.Question | None:
    """A selection that became empty, or lost a third of the clients it has images of, as what is to be approved."""
    before = set(protected)
    gone = before - {machine.id for machine in inventory.machines}
    emptied = before and not inventory.machines
    if not emptied and (len(gone) < _GUARDED or 3 * len(gone) <= len(before)):
        return None
    return actions.Question(
        digest=digests.json_digest({"policy": name, "gone": sorted(gone)}),
        what="Selection",
        copies=0,
        message=f"the selection lost {len(gone)} of {len(before)} clients that have images",
        approved=False,
    )


def shrunk(name: str, question: actions.Question) -> actions.Drift:
    """The alarm about a selection, until somebody has approved it."""
    message = f"{question.message}; their images stay; if it is meant: holdfast approve {question.digest}"
    return actions.Drift(code="SelectionShrunk", object=f"BackupPolicy/{name}", message=message)


def clients(
    known: Mapping[str, observed.Client],
    matched: Mapping[str, list[str]],
    slugs: Mapping[str, str],
    retired: Collection[str] = (),
) -> Iterator[actions.Drift]:
    """Known clients that no policy matches, save those that were retired, and machines that several match."""
    for id in sorted(known):
        if id not in matched and id not in retired:
            yield actions.Drift(
                code="UnprotectedClient",
                object=f"Client/{known[id].slug}",
                message=f"{known[id].name} is matched by no policy; its images keep their expiry; if it is gone for"
                f" good: holdfast retire {known[id].slug}",
            )
    for id in sorted(matched):
        names = sorted(set(matched[id]))
        if len(names) > 1:
            yield actions.Drift(
                code="DoublyMatched",
                object=f"Client/{slugs.get(id, id)}",
                message=f"matched by {len(names)} policies, which all back it up: {', '.join(names)}; leave it to one",
            )


def empty(name: str, inventory: observed.Inventory, now: dt.datetime) -> Iterator[actions.Drift]:
    """A selection that matches nothing, and never had images."""
    if not inventory.machines and inventory.unreachable is None and inventory.seen <= now:
        yield actions.Drift(
            code="EmptySelection",
            object=f"BackupPolicy/{name}",
            message="its selection matches no machine; look at the path and the pattern of its source",
        )


def left_out(found: Mapping[str, Mapping[str, observed.Machine]], slugs: Mapping[str, str]) -> Iterator[actions.Drift]:
    """Files that look like disks and that no policy of their machine selects: client id -> policy -> machine."""
    for id, by_policy in sorted(found.items()):
        names = set.intersection(*(set(one.left_out) for one in by_policy.values()))
        if names:
            policies = ", ".join(sorted(by_policy))
            verb = "looks like a disk and is" if len(names) == 1 else "look like disks and are"
            yield actions.Drift(
                code="DisksLeftOut",
                object=f"Client/{slugs.get(id, id)}",
                message=f"{', '.join(sorted(names))} {verb} not backed up; add a pattern to the disks of {policies},"
                " or move away what needs no backup",
            )


def never(found: Iterable[actions.Overdue]) -> Iterator[actions.Drift]:
    """Series past their objective that never had a success."""
    for one in found:
        if not one.succeeded:
            yield actions.Drift(
                code="NeverSucceeded",
                object=f"BackupPolicy/{one.policy}/{one.client}",
                message=f"no backup has succeeded yet; holdfast explain client {one.client} says why",
            )


def suspensions(wanted: desired.Desired, now: dt.datetime) -> Iterator[actions.Drift]:
    """Policies whose suspension is about to end, or is over and still written down."""
    for name, policy in sorted(wanted.policies.items()):
        suspend = policy.spec.suspend
        if suspend is None or wanted.is_orphaned("BackupPolicy", name) or suspend.until > now + _SOON:
            continue
        end = times.show_minutes(suspend.until)
        if suspend.until > now:
            code = "SuspensionEnds"
            message = f"backups begin again {end}; move until, if {suspend.reason} takes longer"
        else:
            code, message = "SuspensionOver", f"its suspension ended {end}; take suspend out of the manifest"
        yield actions.Drift(code=code, object=f"BackupPolicy/{name}", message=message)


def removed_disks(
    history: histories.History, machine: observed.Machine, slug: str, policy: str
) -> Iterator[actions.Drift]:
    """Disks of the images since the last full that the machine no longer has."""
    disks: dict[str, None] = {}
    for place in reversed(history.sound.places):
        shape = history.images.shapes[place]
        disks.update(dict.fromkeys(shape.disks))
        if shape.type == "Full":
            break
    gone = sorted(set(disks) - set(machine.disks))
    if gone and machine.problem is None:
        yield actions.Drift(
            code="DiskRemoved",
            object=f"Client/{slug}",
            message=f"{', '.join(gone)} is no longer there; policy {policy} last had it, until the next full",
        )


def orphans(counts: Mapping[str, tuple[int, int]]) -> Iterator[actions.Drift]:
    """Images of policies that no manifest describes any more: policy -> (images, clients)."""
    for name, (images, owners) in sorted(counts.items()):
        yield actions.Drift(
            code="OrphanedImages",
            object=f"BackupPolicy/{name}",
            message=f"{images} images of {owners} clients; no new backups, and they keep the expiry they had;"
            " the manifest brought back takes them up again",
        )


def losses(counts: Mapping[tuple[str, str], int]) -> Iterator[actions.Drift]:
    """Copies that are Lost or Damaged: (unit, state) -> how many."""
    for (unit, state), count in sorted(counts.items()):
        words = "its folder lacks them" if state == "Lost" else "their bytes contradict their digests"
        yield actions.Drift(
            code="LostCopies" if state == "Lost" else "DamagedCopies",
            object=f"StorageUnit/{unit}",
            message=f"{count} copies are {state}: {words}; what can be is made anew; holdfast get copies --unit {unit}",
        )


def units(wanted: desired.Desired, seen: observed.Observed) -> Iterator[actions.Drift]:
    """Declared units that are not online."""
    for name in sorted(wanted.units):
        found = seen.units.get(name)
        state = found.state if found is not None else "Offline"
        if state == "Online":
            continue
        message = found.message if found is not None and found.message else f"unit {name} is {state}"
        yield actions.Drift(
            code="UnitReadOnly" if state == "ReadOnly" else "UnitOffline",
            object=f"StorageUnit/{name}",
            message=message,
        )


def drains(left: Mapping[str, int]) -> Iterator[actions.Drift]:
    """Units that are being emptied: unit -> copies that still lie on it."""
    for name, count in sorted(left.items()):
        if count:
            lying = "1 copy still lies" if count == 1 else f"{count} copies still lie"
            code, message = "Draining", f"{lying} on it; the plan says what becomes of each"
        else:
            code, message = "Drained", f"unit {name} is empty and can be removed"
        yield actions.Drift(code=code, object=f"StorageUnit/{name}", message=message)


def failing(policy: str, slug: str, found: backups.Failing) -> actions.Drift:
    """A series that fails."""
    message = f"{found.message} ({found.reason})" if found.reason == "WindowTooShort" else found.message
    return actions.Drift(code="Failing", object=f"BackupPolicy/{policy}/{slug}", message=message)


def restoring(found: Iterable[tuple[str, str]]) -> Iterator[actions.Drift]:
    """Restores of the manifests whose attempts fail: (name, what the last one ended with)."""
    for name, message in found:
        words = f"it is not made, and is tried again: {message}"
        yield actions.Drift(code="RestoreFailing", object=f"Restore/{name}", message=words)


def restored(found: Mapping[str, observed.Restoring]) -> Iterator[actions.Drift]:
    """Changed manifests that ask for what was made already, by name."""
    for name, record in found.items():
        words = f"it asks for what was made on {times.show(record.at)}; another reason would have it made again"
        yield actions.Drift(code="RestoreMade", object=f"Restore/{name}", message=words)


def missed(level: str, policy: str, slug: str, reasons: Iterable[str]) -> actions.Drift:
    """Promises of a ServiceLevel that one series does not keep."""
    message = f"{policy}/{slug}: {'; '.join(reasons)}"
    return actions.Drift(code="ServiceLevelMissed", object=f"ServiceLevel/{level}", message=message)


def unproven(
    history: histories.History, asked: Iterable[verifications.Asked], seen: observed.Observed, slug: str
) -> Iterator[actions.Drift]:
    """Drills of one series whose last word is that they failed, and contents that proved false and still do.

    A failure outlives its image only as long as another drill is to come, which will say what is so now.
    """
    coming: frozenset[str] = frozenset()
    if (history.series.client, history.series.policy) in seen.trials and next(history.newest(), None) is not None:
        coming = frozenset(one.kind for one in asked)
    drills = (verifications.last(history, seen, kind, None, remembered=kind in coming) for kind in verifications.DRILLS)
    for found in (*drills, *verifications.wanting(history, seen.verifications)):
        if found is not None and found.state == "Failed":
            when = times.show_minutes(found.at)
            message = f"{found.kind} of {found.image} (copy {found.copy}) failed {when}: {found.message}"
            if verifications.gone(history, found):
                message += "; it has expired since"
            yield actions.Drift(code="VerificationFailed", object=f"Client/{slug}", message=message)
