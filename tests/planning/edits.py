"""Edits of manifests as people make them: each returns the new revision, or None where there is nothing to edit."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import planning_samples as samples

from reconciler.api import models, registry
from reconciler.planning import desired

Wanted = desired.Desired


def _revision(wanted: Wanted, *objects: models.Object) -> Wanted:
    number = int(wanted.revision.rpartition(":")[2])
    return samples.estate(*objects, revision=f"dir@blake3:{number + 1}")


def put(wanted: Wanted, *items: models.Object) -> Wanted:
    """These objects are there, instead of those of their names."""
    return _revision(wanted, *wanted.objects(), *items)


def drop(wanted: Wanted, kind: str) -> Wanted:
    """Without a kind."""
    return _revision(wanted, *(item for item in wanted.objects() if item.kind != kind))


def without(wanted: Wanted, gone: models.Object) -> Wanted:
    """Without one object."""
    return _revision(wanted, *(item for item in wanted.objects() if item.key != gone.key))


def fewer(wanted: Wanted, share: int) -> Wanted:
    """Every ``share``-th object alone; none at all from 100 on."""
    return _revision(wanted, *(item for index, item in enumerate(wanted.objects()) if index % share and share < 100))


def changed(item: models.Object, change: Callable[[dict[str, Any]], None], name: str | None = None) -> models.Object:
    """An object whose written spec was changed in place."""
    written = item.written()
    change(written["spec"])
    return registry.KINDS[item.kind].model_validate({"metadata": {"name": name or item.name}, "spec": written["spec"]})


# -- lifecycles --------------------------------------------------------------------------------------------------------


def _edit_lifecycle(wanted: Wanted, change: Callable[[list[dict[str, Any]]], object]) -> Wanted | None:
    item = wanted.lifecycles.get("gold")
    return put(wanted, changed(item, lambda spec: change(spec["operations"]))) if item is not None else None


def retention(wanted: Wanted, pick: int, rule: dict[str, Any]) -> Wanted | None:
    """Another rule for one operation."""
    return _edit_lifecycle(wanted, lambda ops: ops[pick % len(ops)].update(retention=rule))


def add_operation(wanted: Wanted, pick: int, more: dict[str, Any]) -> Wanted | None:
    """One more duplication, of any operation, to a depth of four."""

    def add(operations: list[dict[str, Any]]) -> None:
        names = {one["name"] for one in operations}
        free = next((f"copy-{index}" for index in range(8) if f"copy-{index}" not in names), None)
        if free is not None and len(operations) < 6:
            shallow = [one["name"] for one in operations if _depth(operations, one) < 4]
            operations.append({**more, "name": free, "type": "Duplication", "source": shallow[pick % len(shallow)]})

    return _edit_lifecycle(wanted, add)


def _depth(operations: list[dict[str, Any]], one: dict[str, Any]) -> int:
    parent = next((other for other in operations if other["name"] == one.get("source")), None)
    return 1 + _depth(operations, parent) if parent is not None else 1


def remove_operation(wanted: Wanted, pick: int) -> Wanted | None:
    """A leaf goes."""

    def remove(operations: list[dict[str, Any]]) -> None:
        sources = {one.get("source") for one in operations}
        leaves = [one for one in operations if one["type"] == "Duplication" and one["name"] not in sources]
        if leaves:
            operations.remove(leaves[pick % len(leaves)])

    return _edit_lifecycle(wanted, remove)


def rename_operation(wanted: Wanted, pick: int) -> Wanted | None:
    """One operation, and what names it as source."""

    def rename(operations: list[dict[str, Any]]) -> None:
        chosen = operations[pick % len(operations)]
        old, new = chosen["name"], _next(chosen["name"])
        chosen.update(name=new, previousNames=[old])
        for one in operations:
            if one.get("source") == old:
                one["source"] = new

    return _edit_lifecycle(wanted, rename)


def _next(name: str) -> str:
    """Another name that no earlier one of this object had."""
    stem, _, number = name.partition("--")
    return f"{stem}--{int(number or 1) + 1}"


# -- policies ----------------------------------------------------------------------------------------------------------


def _policy(wanted: Wanted, pick: int) -> models.Object | None:
    names = sorted(wanted.policies)
    return wanted.policies[names[pick % len(names)]] if names else None


def rename_policy(wanted: Wanted, pick: int) -> Wanted | None:
    """A policy under another name."""
    item = _policy(wanted, pick)
    if item is None:
        return None
    fresh = changed(item, lambda spec: spec.update(previousNames=[item.name]), _next(item.name))
    return put(without(wanted, item), fresh)


def rename_schedule(wanted: Wanted, pick: int) -> Wanted | None:
    """A schedule under another name, and the filters that name it."""
    item = _policy(wanted, pick)
    if item is None:
        return None
    names: dict[str, str] = {}

    def rename(spec: dict[str, Any]) -> None:
        chosen = spec["schedules"][pick % len(spec["schedules"])]
        names[chosen["name"]] = _next(chosen["name"])
        chosen.update(previousNames=[chosen["name"]], name=names[chosen["name"]])

    def follow(spec: dict[str, Any]) -> None:
        for one in spec["operations"]:
            if one.get("schedules"):
                one["schedules"] = [*one["schedules"], *(names[n] for n in one["schedules"] if n in names)]

    renamed = changed(item, rename)
    return put(wanted, renamed, *(changed(one, follow) for one in wanted.lifecycles.values()))


def suspend(wanted: Wanted, pick: int, now: dt.datetime, days: int) -> Wanted | None:
    """A pause for so many days; none where they are negative."""
    item = _policy(wanted, pick)
    if item is None:
        return None
    until = _text(now + dt.timedelta(days=days))
    pause = {"reason": "the storage moves", "until": until} if days > 0 else None
    return put(wanted, changed(item, lambda spec: spec.update(suspend=pause)))


# -- units -------------------------------------------------------------------------------------------------------------


def unit(wanted: Wanted, pick: int, change: dict[str, Any]) -> Wanted | None:
    """Some fields of a unit."""
    names = sorted(wanted.units)
    if not names:
        return None
    return put(wanted, changed(wanted.units[names[pick % len(names)]], lambda spec: spec.update(change)))


def rename_unit(wanted: Wanted, old: str) -> Wanted | None:
    """A unit under another name, in all that names it."""
    item = wanted.units.get(old)
    if item is None:
        return None
    new = _next(old)

    def follow(spec: dict[str, Any]) -> None:
        for field in ("members", "storageUnits"):
            if field in spec:
                spec[field] = [new if one == old else one for one in spec[field]]
        for one in spec.get("operations", ()):
            if one["storage"] == old:
                one["storage"] = new

    fresh = changed(item, lambda spec: spec.update(previousNames=[old]), new)
    others = (*wanted.groups.values(), *wanted.media_servers.values(), *wanted.lifecycles.values())
    return put(without(wanted, item), fresh, *(changed(one, follow) for one in others))


# -- holds -------------------------------------------------------------------------------------------------------------


def legal_hold(wanted: Wanted, name: str, client: str, since: dt.datetime | None) -> Wanted:
    """One more client under a hold, whose beginning stays what it was."""
    known = wanted.legal_holds.get(name)
    if known is not None and known.spec.released is None:
        fresh = changed(known, lambda spec: spec.update(clients=sorted({*spec["clients"], client})))
    else:
        begin = {"from": _text(since)} if since is not None else {}
        fresh = samples.make("LegalHold", name, {"clients": [client], "reason": "the court says so", **begin})
    return put(wanted, fresh)


def release_hold(wanted: Wanted, name: str, now: dt.datetime) -> Wanted | None:
    """Ended as a hold is ended."""
    known = wanted.legal_holds.get(name)
    if known is None:
        return None
    released = {"by": "ann", "at": _text(now), "reason": "the case is closed"}
    return put(wanted, changed(known, lambda spec: spec.update(released=released)))


def _text(moment: dt.datetime) -> str:
    return moment.replace(microsecond=0).isoformat()
