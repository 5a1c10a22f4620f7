"""What objects call each other: names that must be unique, and names that must exist (HF3xx).

``estates`` calls ``check`` with everything that was read. ``Names`` knows which names there are: those of good objects,
those of objects that have errors of their own, and any word in a file that could not be read to its end. So one mistake
is reported once, and not again for every reference to what it hides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from reconciler.api import lifecycles, policies, registry, restores, storage
from reconciler.intake import codes, documents, findings, manifests

_STORAGE: Final = ("StorageUnit", "StorageUnitGroup")
_WORD: Final = re.compile(rb"[A-Za-z0-9_.-]+")


class Names:
    """Which objects there are, good ones and others."""

    def __init__(
        self, objects: Iterable[findings.Located], broken: Iterable[manifests.Key], unread: Iterable[bytes]
    ) -> None:
        self._declared: dict[str, set[str]] = {}
        for item in objects:
            self._declared.setdefault(item.object.kind, set()).add(item.object.name)
        self._broken: dict[str, set[str]] = {}
        possible = {word for data in unread for word in _WORD.findall(data)}
        for kind, name in broken:
            self._broken.setdefault(kind, set()).add(name)
            if kind not in registry.KINDS:
                possible.add(name.encode(errors="replace"))
        #: Names that an object of any kind may have.
        self._possible = frozenset(possible)

    def of(self, *kinds: str) -> set[str]:
        """Every name that objects of these kinds have, errors or not."""
        return set().union(*(known.get(kind, ()) for known in (self._declared, self._broken) for kind in kinds))

    def has(self, name: str, *kinds: str) -> bool:
        """Whether an object of one of the kinds has this name, or may have it: its kind or its file is unreadable."""
        known = any(name in self._declared.get(kind, ()) or name in self._broken.get(kind, ()) for kind in kinds)
        return known or name.encode() in self._possible


def check(objects: Sequence[findings.Located], names: Names, found: findings.Findings) -> None:
    """Every problem with names, into ``found``. ``objects`` are ordered by place."""
    _unique(objects, found)
    _ambiguous(objects, found)
    _previous_names(objects, found)
    for item in objects:
        match item.object:
            case storage.StorageUnitGroup(spec=spec):
                _listed(item, "members", spec.members, names, found)
            case storage.MediaServer(spec=spec):
                _listed(item, "storageUnits", spec.storage_units, names, found)
            case lifecycles.StorageLifecyclePolicy(spec=spec):
                _operations(item, spec.operations, names, found)
            case policies.BackupPolicy(spec=spec):
                _policy(item, spec, names, found)
            case restores.Restore(spec=spec) if spec.target.vmware is not None:
                _refer(
                    item,
                    ("spec", "target", "vmware", "vcenter"),
                    spec.target.vmware.vcenter,
                    ("VCenter",),
                    names,
                    found,
                )
    _filters(objects, names, found)


def _unique(objects: Sequence[findings.Located], found: findings.Findings) -> None:
    first: dict[manifests.Key, findings.Located] = {}
    for item in objects:
        before = first.setdefault(item.object.key, item)
        if before is not item:
            place = before.position()
            message = f"declared twice; the first is at {place.file}:{place.line}:{place.column}"
            found.error(codes.DUPLICATE_OBJECT, item, ("metadata", "name"), message, "rename or remove one of them")


def _ambiguous(objects: Sequence[findings.Located], found: findings.Findings) -> None:
    units = {item.object.name: item for item in objects if item.object.kind == "StorageUnit"}
    for item in objects:
        if item.object.kind == "StorageUnitGroup" and item.object.name in units:
            place = units[item.object.name].position()
            message = f"a StorageUnit has the same name, at {place.file}:{place.line}:{place.column}"
            hint = "lifecycles name units and groups alike; rename one of them"
            found.error(codes.AMBIGUOUS_STORAGE, item, ("metadata", "name"), message, hint)


def _previous_names(objects: Sequence[findings.Located], found: findings.Findings) -> None:
    """A former name must be free, and claimed by one alone: history goes to one heir."""
    kinds: dict[str, list[_Claim]] = {}
    for item in objects:
        match item.object:
            case storage.StorageUnit(name=name, spec=spec):
                kinds.setdefault("unit", []).append(_Claim(item, ("spec",), name, spec.previous_names))
            case policies.BackupPolicy(name=name, spec=spec):
                kinds.setdefault("policy", []).append(_Claim(item, ("spec",), name, spec.previous_names))
                _claims([_claim(item, "schedules", index, one) for index, one in enumerate(spec.schedules)], found)
            case lifecycles.StorageLifecyclePolicy(spec=spec):
                _claims([_claim(item, "operations", index, one) for index, one in enumerate(spec.operations)], found)
    for claims in kinds.values():
        _claims(claims, found)


def _claim(item: findings.Located, field: str, index: int, entry: policies.Schedule | lifecycles.Operation) -> _Claim:
    return _Claim(item, ("spec", field, index), entry.name, entry.previous_names)


class _Claim(NamedTuple):
    """The names that one thing had before."""

    item: findings.Located
    path: documents.Path
    owner: str
    names: tuple[str, ...]


def _claims(claims: Sequence[_Claim], found: findings.Findings) -> None:
    """Judge the claims within one name space."""
    taken = {claim.owner for claim in claims}
    heirs: dict[str, str] = {}
    for claim in claims:
        for index, name in enumerate(claim.names):
            path = (*claim.path, "previousNames", index)
            heir = heirs.setdefault(name, claim.owner)
            if name in taken:
                message = f"the previous name {name} is still in use"
                hint = "a name that is in use keeps its history"
                found.error(codes.PREVIOUS_NAME, claim.item, path, message, hint)
            elif heir != claim.owner:
                message = f"the previous name {name} is claimed by {heir} already"
                found.error(codes.PREVIOUS_NAME, claim.item, path, message, "history goes to one heir")


def _refer(
    item: findings.Located,
    path: documents.Path,
    name: str,
    kinds: tuple[str, ...],
    names: Names,
    found: findings.Findings,
) -> None:
    if not names.has(name, *kinds):
        hint = findings.did_you_mean(name, names.of(*kinds)) or f"declare it as a {kinds[0]}, or correct the name"
        found.error(codes.DANGLING, item, path, f"there is no {' or '.join(kinds)} named {name}", hint)


def _listed(item: findings.Located, field: str, listed: Sequence[str], names: Names, found: findings.Findings) -> None:
    """A list of storage units: each exists, none stands twice."""
    seen: set[str] = set()
    groups = names.of("StorageUnitGroup") - names.of("StorageUnit")
    for index, name in enumerate(listed):
        path = ("spec", field, index)
        if name in seen:
            found.error(codes.DUPLICATE_NAME, item, path, f"{name} stands twice in this list", "remove one of them")
        elif name in groups:
            message = f"{name} is a StorageUnitGroup; only units can stand here"
            found.error(codes.DANGLING, item, path, message, "list the group's members instead")
        else:
            _refer(item, path, name, ("StorageUnit",), names, found)
        seen.add(name)


def _operations(
    item: findings.Located, operations: Sequence[lifecycles.Operation], names: Names, found: findings.Findings
) -> None:
    first: dict[str, lifecycles.Operation] = {}
    for index, operation in enumerate(operations):
        path: documents.Path = ("spec", "operations", index)
        if first.setdefault(operation.name, operation) is not operation:
            message = f"two operations are named {operation.name}"
            found.error(codes.DUPLICATE_NAME, item, (*path, "name"), message, "rename one of them")
        _refer(item, (*path, "storage"), operation.storage, _STORAGE, names, found)
        if operation.window is not None:
            _refer(item, (*path, "window"), operation.window, ("BackupWindow",), names, found)
    backups = [index for index, operation in enumerate(operations) if operation.type == "Backup"]
    if not backups:
        message = "a lifecycle needs one operation of type Backup; this one has none"
        found.error(codes.BACKUP_COUNT, item, ("spec", "operations"), message, "every image begins with a backup")
    for index in backups[1:]:
        message = "a lifecycle has one operation of type Backup, not several"
        hint = f"make it a Duplication with source: {operations[backups[0]].name}"
        found.error(codes.BACKUP_COUNT, item, ("spec", "operations", index, "type"), message, hint)
    for index, operation in enumerate(operations):
        _source(item, ("spec", "operations", index), operation, first, found)


def _source(
    item: findings.Located,
    path: documents.Path,
    operation: lifecycles.Operation,
    operations: Mapping[str, lifecycles.Operation],
    found: findings.Findings,
) -> None:
    source = operation.source
    if operation.type == "Backup":
        if source is not None:
            message = "a Backup reads the machine and has no source"
            found.error(codes.SOURCE_MISPLACED, item, (*path, "source"), message, "remove it", key=True)
        return
    if source is None:
        choices = ", ".join(name for name in operations if name != operation.name)
        hint = f"name the operation whose copy is duplicated: {choices}" if choices else None
        found.error(codes.SOURCE_MISPLACED, item, path, "a Duplication needs a source", hint)
    elif source not in operations:
        hint = findings.did_you_mean(source, operations) or f"operations here: {', '.join(operations)}"
        found.error(codes.DANGLING, item, (*path, "source"), f"there is no operation named {source} here", hint)
    else:
        chain = [operation.name]
        step: str | None = source
        while step is not None and step not in chain:
            chain.append(step)
            step = operations[step].source if step in operations and operations[step].type == "Duplication" else None
        if step == operation.name:
            circle = " from ".join((*chain, step))
            message = f"operations copy in a circle: {circle}"
            found.error(codes.SOURCE_CYCLE, item, (*path, "source"), message, "one must come from the Backup")


def _policy(item: findings.Located, spec: policies.BackupPolicySpec, names: Names, found: findings.Findings) -> None:
    _refer(item, ("spec", "lifecycle"), spec.lifecycle, ("StorageLifecyclePolicy",), names, found)
    if spec.source.vmware is not None:
        place = ("spec", "source", "vmware", "vcenter")
        _refer(item, place, spec.source.vmware.vcenter, ("VCenter",), names, found)
    seen: set[str] = set()
    for index, schedule in enumerate(spec.schedules):
        path: documents.Path = ("spec", "schedules", index)
        if schedule.name in seen:
            message = f"two schedules are named {schedule.name}"
            found.error(codes.DUPLICATE_NAME, item, (*path, "name"), message, "rename one of them")
        seen.add(schedule.name)
        if schedule.window is not None:
            _refer(item, (*path, "window"), schedule.window, ("BackupWindow",), names, found)


def _filters(objects: Sequence[findings.Located], names: Names, found: findings.Findings) -> None:
    """A schedule that an operation filters by must exist in some policy that uses the lifecycle."""
    known: dict[str, set[str]] = {}
    for item in objects:
        if isinstance(item.object, policies.BackupPolicy):
            known.setdefault(item.object.spec.lifecycle, set()).update(
                schedule.name for schedule in item.object.spec.schedules
            )
    # A policy with errors may use any lifecycle and have any schedules.
    if names.of("BackupPolicy") - {item.object.name for item in objects if item.object.kind == "BackupPolicy"}:
        return
    for item in objects:
        if not isinstance(item.object, lifecycles.StorageLifecyclePolicy) or item.object.name not in known:
            continue
        schedules = known[item.object.name]
        for index, operation in enumerate(item.object.spec.operations):
            for place, name in enumerate(operation.schedules or ()):
                if name not in schedules and not names.has(name):
                    hint = findings.did_you_mean(name, schedules) or f"schedules: {', '.join(sorted(schedules))}"
                    message = f"no policy with this lifecycle has a schedule named {name}"
                    path = ("spec", "operations", index, "schedules", place)
                    found.error(codes.DANGLING, item, path, message, hint)
