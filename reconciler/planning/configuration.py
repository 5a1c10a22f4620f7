"""What a revision changes: manifests held against what the catalog has in force, renames followed, omission guarded.

``changes`` is the configuration part of a plan, ``effective`` the desired state that decisions are made from (the
manifests and what only the catalog still holds), ``promises`` what the catalog records when a retention changes. All
three go by the same reading of ``previousNames``, so that a plan, its application and the catalog cannot disagree.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
from collections.abc import Iterable, Iterator, Mapping

from reconciler.api import lifecycles, models, policies, storage
from reconciler.base import diagnostics, digests
from reconciler.planning import actions, columns, desired, observed

Applied = Mapping[desired.Key, observed.Applied]
#: A third of the objects gone at once, and at least this many, is taken for an accident.
_GUARDED = 3
#: The problem that says so.
GONE = "HF490"
#: Kinds that come and go with what they are for: their going is no sign of an accident.
_PASSING = frozenset({"Approval", "Restore"})
#: Covers every image: for promises that a revision not yet in force would break.
EVERY_IMAGE = 1 << 62


def previous_names(item: models.Object) -> tuple[str, ...]:
    """Names the object had before."""
    if isinstance(item, storage.StorageUnit | policies.BackupPolicy):
        return item.spec.previous_names
    return ()


def _manifests(wanted: desired.Desired) -> dict[desired.Key, models.Object]:
    return {item.key: item for item in wanted.objects() if item.key not in wanted.orphaned}


def _renamed(manifests: Mapping[desired.Key, models.Object], applied: Applied) -> dict[desired.Key, desired.Key]:
    """New key -> old key, for objects in the catalog that go on under another name."""
    result: dict[desired.Key, desired.Key] = {}
    taken: set[desired.Key] = set()
    for key in sorted(manifests):
        if key in applied:
            continue
        for name in previous_names(manifests[key]):
            old = (key[0], name)
            if old in applied and old not in manifests and old not in taken:
                result[key] = old
                taken.add(old)
                break
    return result


def gone(wanted: desired.Desired, applied: Applied) -> tuple[desired.Key, ...]:
    """The objects in force that the manifests no longer have, under no name; those that pass aside."""
    manifests = _manifests(wanted)
    renamed = set(_renamed(manifests, applied).values())
    return tuple(
        sorted(
            key
            for key, item in applied.items()
            if not item.orphaned and key[0] not in _PASSING and key not in manifests and key not in renamed
        )
    )


def gone_digest(gone: Iterable[desired.Key]) -> str:
    """What an Approval names to let these objects go."""
    return digests.json_digest({"gone": ["/".join(key) for key in gone]})


def guard(wanted: desired.Desired, applied: Applied) -> diagnostics.Diagnostic | None:
    """What stops a configuration change: an empty tree, or more than a third of the objects gone at once.

    Nothing does where ``wanted.consents`` has the digest of what is gone.
    """
    missing = gone(wanted, applied)
    if not missing or (wanted.consents and gone_digest(missing) in wanted.consents):
        return None
    held = [key for key, item in applied.items() if not item.orphaned and key[0] not in _PASSING]
    if not _manifests(wanted):
        what = f"the tree is empty, and {len(missing)} objects are in force"
    elif len(missing) >= _GUARDED and 3 * len(missing) > len(held):
        names = ", ".join("/".join(key) for key in missing[:5]) + (", …" if len(missing) > 5 else "")
        what = f"{len(missing)} of {len(held)} objects are gone at once: {names}"
    else:
        return None
    return diagnostics.Diagnostic(
        severity=diagnostics.Severity.ERROR,
        code=GONE,
        message=f"{what}; the configuration stays as it is in force",
        hint=f"bring the manifests back; or, if that is meant: holdfast approve {gone_digest(missing)}",
    )


def questions(wanted: desired.Desired, applied: Applied) -> Iterator[actions.Question]:
    """The guarded change as what is to be approved, or has been."""
    unasked = dataclasses.replace(wanted, consents=frozenset())
    found = guard(unasked, applied)
    if found is not None:
        digest = gone_digest(gone(wanted, applied))
        message = found.message.partition(";")[0]
        yield actions.Question(
            digest=digest, what="Configuration", copies=0, message=message, approved=digest in wanted.consents
        )


def effective(wanted: desired.Desired, applied: Applied) -> desired.Desired:
    """The desired state that decisions are made from: the manifests, and what only the catalog still holds, orphaned.

    Where ``guard`` objects, what is in force stands instead. Idempotent.
    """
    if guard(wanted, applied) is not None:
        return desired.gather(
            wanted.revision,
            [item.object for item in applied.values() if not item.orphaned],
            orphaned=[item.object for item in applied.values() if item.orphaned],
            consents=wanted.consents,
        )
    manifests = _manifests(wanted)
    renamed = set(_renamed(manifests, applied).values())
    left = [item.object for key, item in applied.items() if key not in manifests and key not in renamed]
    return desired.gather(wanted.revision, manifests.values(), orphaned=left, consents=wanted.consents)


def changes(wanted: desired.Desired, applied: Applied) -> tuple[actions.ConfigurationChange, ...]:
    """What putting the manifests in force would change, by kind and name; nothing where ``guard`` objects."""
    if guard(wanted, applied) is not None:
        return ()
    manifests = _manifests(wanted)
    renamed = _renamed(manifests, applied)
    result = [change for key, item in manifests.items() if (change := _change(item, applied, renamed.get(key)))]
    away = set(renamed.values())
    result += [
        actions.ConfigurationChange(change="Orphan", kind=key[0], name=key[1])
        for key, item in applied.items()
        if not item.orphaned and key not in manifests and key not in away
    ]
    return tuple(sorted(result, key=lambda change: (change.kind, change.name)))


def _change(item: models.Object, applied: Applied, old: desired.Key | None) -> actions.ConfigurationChange | None:
    before = applied.get(old or item.key)
    if before is None:
        # A saved plan must notice when what it creates is edited, so a creation shows what it creates.
        written = item.written()
        known = {key: written[key] for key in ("apiVersion", "kind") if key in written}
        return actions.ConfigurationChange(
            change="Create", kind=item.kind, name=item.name, fields=tuple(differences(known, written))
        )
    word = "Adopt" if before.orphaned else "Update"
    # Comparing the models first spares most objects the walk through their JSON.
    fields = () if before.object == item else tuple(differences(before.object.written(), item.written()))
    if not fields and not before.orphaned:
        return None
    return actions.ConfigurationChange(change=word, kind=item.kind, name=item.name, fields=fields)


def differences(before: object, after: object, path: str = "") -> Iterator[actions.FieldChange]:
    """The fields in which two JSON values differ, as paths like ``spec.operations[1].retention.period``.

    Entries of lists are held against each other by their ``name`` where they have one, by place otherwise; an index
    is that of the later list, or of the earlier one for an entry that is gone.
    """
    if before == after:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted({*before, *after}):
            yield from differences(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(before, list) and isinstance(after, list) and _named(before) and _named(after):
        earlier = {entry["name"]: (index, entry) for index, entry in enumerate(before)}
        for index, entry in enumerate(after):
            yield from differences(earlier.pop(entry["name"], (0, None))[1], entry, f"{path}[{index}]")
        for index, entry in earlier.values():
            yield actions.FieldChange(path=f"{path}[{index}]", before=entry, after=None)
    else:
        yield actions.FieldChange(path=path, before=before, after=after)


def _named(entries: list[object]) -> bool:
    names = [entry.get("name") for entry in entries if isinstance(entry, Mapping)]
    return bool(entries) and len(names) == len(entries) and None not in names and len(set(names)) == len(names)


def promises(wanted: desired.Desired, applied: Applied, up_to: int = EVERY_IMAGE) -> tuple[observed.Promise, ...]:
    """Retentions in force that the manifests change or drop: what images up to ``up_to`` have been promised.

    The catalog records them, with its newest sequence number, in the transaction that puts the manifests in force; a
    plan made before that reckons with them already. Operations go by their new names.
    """
    result = []
    for (kind, name), item in sorted(applied.items()):
        before, after = item.object, wanted.lifecycles.get(name)
        if kind != "StorageLifecyclePolicy" or not isinstance(before, lifecycles.StorageLifecyclePolicy):
            continue
        if after is None or after.spec == before.spec:
            continue
        names = operation_names(after.spec)
        now_in_force = {operation.name: operation.retention for operation in after.spec.operations}
        for operation in before.spec.operations:
            new_name = names.get(operation.name, operation.name)
            if now_in_force.get(new_name) != operation.retention:
                result.append(
                    observed.Promise(lifecycle=name, operation=new_name, retention=operation.retention, up_to=up_to)
                )
    return tuple(result)


def operation_names(spec: lifecycles.StorageLifecyclePolicySpec) -> dict[str, str]:
    """Earlier name -> present name of renamed operations."""
    present = {operation.name for operation in spec.operations}
    return {
        old: operation.name for operation in spec.operations for old in operation.previous_names if old not in present
    }


def schedule_names(policy: policies.BackupPolicy) -> dict[str, str]:
    """Earlier name -> present name of renamed schedules."""
    present = {schedule.name for schedule in policy.spec.schedules}
    return {
        old: schedule.name
        for schedule in policy.spec.schedules
        for old in schedule.previous_names
        if old not in present
    }


def anchor(
    policy: policies.BackupPolicy, schedule: policies.Schedule, seen: observed.Observed, now: dt.datetime
) -> dt.datetime:
    """From when the slots of a schedule count; ``now`` where this revision brings it, or changes its timing."""
    for policy_name in (policy.name, *policy.spec.previous_names):
        for schedule_name in (schedule.name, *schedule.previous_names):
            found = seen.anchors.get((policy_name, schedule_name))
            if found is None:
                continue
            held = seen.applied.get(("BackupPolicy", policy_name))
            before = held.object if held is not None else None
            if isinstance(before, policies.BackupPolicy):
                earlier = next((one for one in before.spec.schedules if one.name == schedule_name), schedule)
                if timing(earlier) != timing(schedule):
                    return now
            return found
    return now


def timing(schedule: policies.Schedule) -> tuple[object, ...]:
    """What makes a schedule count anew when it changes: when it is due, not what it does then."""
    return (schedule.cron, schedule.every, schedule.time_zone)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Renames:
    """Names that the catalog may still use for what manifests call otherwise, old -> new."""

    policies: Mapping[str, str]
    units: Mapping[str, str]

    def follow(self, series: Iterable[observed.Series]) -> Iterable[observed.Series]:
        """The same series under present names; series that a rename brings together become one."""
        if not self.policies and not self.units:
            return series
        return _Followed(self, series)


@dataclasses.dataclass(frozen=True, slots=True)
class _Followed:
    """Walks the series again each time, as ``Observed.series`` promises."""

    renames: Renames
    series: Iterable[observed.Series]

    def __iter__(self) -> Iterator[observed.Series]:
        touched = {*self.renames.policies, *self.renames.policies.values()}
        merged: dict[tuple[str, str], list[columns.Columns]] = {}
        for one in self.series:
            images = columns.of(one.images).renamed(self.renames.units)
            if one.policy not in touched:
                yield dataclasses.replace(one, images=images)
                continue
            name = self.renames.policies.get(one.policy, one.policy)
            merged.setdefault((one.client, name), []).append(images)
        for (client, policy), parts in sorted(merged.items()):
            if len(parts) == 1:
                yield observed.Series(client=client, policy=policy, images=parts[0])
                continue
            ordered = tuple(sorted(itertools.chain(*parts), key=lambda image: image.sequence))
            yield observed.Series(client=client, policy=policy, images=ordered)


def renames(wanted: desired.Desired) -> Renames:
    """What ``previousNames`` say of policies and units; a name that an object has now is never followed."""
    return Renames(policies=_aliases(wanted.policies), units=_aliases(wanted.units))


def _aliases(objects: Mapping[str, models.Object]) -> dict[str, str]:
    return {
        old: name
        for name in sorted(objects, reverse=True)
        for old in previous_names(objects[name])
        if old not in objects
    }
