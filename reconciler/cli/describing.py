"""``holdfast describe`` and ``holdfast status``."""

from __future__ import annotations

import enum
import json
import textwrap
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from reconciler.api.documents import shapes
from reconciler.base import errors
from reconciler.catalog import alarms as told
from reconciler.catalog import images, inventories, jobs, leases
from reconciler.cli import options, outputs, settings, views
from reconciler.controller import channels, judgements, listings
from reconciler.planning import actions, alarms, servicelevels, snapshots
from reconciler.reports import tables


class Kind(enum.StrEnum):
    """What ``describe`` knows."""

    IMAGE = "image"
    CLIENT = "client"
    UNIT = "unit"
    POLICY = "policy"
    JOB = "job"
    VCENTER = "vcenter"
    SERVICE_LEVEL = "servicelevel"
    RESTORE = "restore"


class Description(shapes.Document):
    """``describe``: the object, and what belongs to it."""

    kind: str = "Description"
    of: str
    name: str
    object: dict[str, Any]
    related: dict[str, list[dict[str, Any]]]


class StandingAlarm(shapes.Shape):
    """An alarm that stands; ``toldAt`` is when somebody was last told of it."""

    key: str
    severity: str
    title: str
    message: str
    since: shapes.Time
    told_at: shapes.Time | None


class Status(shapes.Document):
    """``status``: the estate in one look."""

    kind: str = "Status"
    revision: str | None
    controller: str | None
    converged: bool
    due: int
    waiting: int
    blocked: int
    running_jobs: int
    clients: int
    unprotected: tuple[str, ...]
    problems: tuple[shapes.CodeMessage, ...]
    alarms: tuple[StandingAlarm, ...]
    channels: tuple[str, ...] | None
    channels_problem: str | None


def describe(
    # As in manifests, too: ServiceLevel, VCenter.
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help=f"{', '.join(Kind)}.", case_sensitive=False)],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name or id.")],
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """Everything known about one object."""
    document = views.look(settings.of_state(state=state, catalog=catalog), lambda view: _DESCRIBERS[kind](view, name))
    outputs.emit(document, output, _description)
    return 0


def _copies(view: views.View, **chosen: str | None) -> list[dict[str, Any]]:
    found = judgements.copy_list(view.db, view.decisions(), view.seen.units, **chosen)
    return [item.to_json() for item in found.items]


def _image(view: views.View, name: str) -> Description:
    rows = images.list_images(view.db, image_id=name)
    if not rows:
        raise errors.NotFound(f"there is no image {name}", hint="holdfast get images lists them")
    return Description(
        of="image",
        name=name,
        object=listings.image_item(rows[0]).to_json(),
        related={"copies": _copies(view, image=name), "verifications": _proofs(view, rows[0].client_id, name)},
    )


def _proofs(view: views.View, client_id: str, image: str | None = None) -> list[dict[str, Any]]:
    found = listings.verification_list(view.db, client_id=client_id).items
    return [one.to_json() for one in found if image in (None, one.image)]


def _client(view: views.View, name: str) -> Description:
    client = inventories.find_client(view.db, name)
    item = next(
        one for one in judgements.client_list(view.db, view.wanted, view.seen, view.now).items if one.id == client.id
    )
    found = listings.image_list(view.db, client_id=client.id)
    related = {
        "images": [one.to_json() for one in found.items],
        "verifications": _proofs(view, client.id),
        "restores": [one.to_json() for one in listings.restore_list(view.db, client_id=client.id).items],
    }
    return Description(of="client", name=name, object=item.to_json(), related=related)


def _unit(view: views.View, name: str) -> Description:
    item = next((one for one in judgements.unit_list(view.db, view.wanted, view.seen).items if one.name == name), None)
    if item is None:
        raise errors.NotFound(f"there is no unit {name}", hint=f"there are: {', '.join(sorted(view.wanted.units))}")
    shown = {**item.to_json(), "message": view.seen.units[name].message}
    return Description(of="unit", name=name, object=shown, related={"copies": _copies(view, unit=name)})


def _policy(view: views.View, name: str) -> Description:
    policy = view.wanted.policies.get(name)
    if policy is None:
        raise errors.NotFound(
            f"no policy {name}", hint=f"there are: {', '.join(sorted(view.wanted.policies)) or 'none'}"
        )
    coming = [
        {"address": one.address, "state": one.state.value, "reason": one.reason.message}
        for one in view.plan().actions
        if one.policy == name
    ]
    found = listings.image_list(view.db, policy=name)
    return Description(
        of="policy",
        name=name,
        object=policy.written(),
        related={"actions": coming, "images": [one.to_json() for one in found.items]},
    )


def _job(view: views.View, name: str) -> Description:
    item = listings.job_item(jobs.get(view.db, name))
    said = [{"line": line.line} for line in jobs.logs(view.db, name)]
    return Description(of="job", name=name, object=item.to_json(), related={"log": said})


def _vcenter(view: views.View, name: str) -> Description:
    known = view.wanted.vcenters.get(name)
    if known is None:
        raise errors.NotFound(
            f"no vcenter {name}", hint=f"there are: {', '.join(sorted(view.wanted.vcenters)) or 'none'}"
        )
    users = [
        {"id": policy.name, "state": "Orphaned" if view.wanted.is_orphaned("BackupPolicy", policy.name) else "Active"}
        for _, policy in sorted(view.wanted.policies.items())
        if policy.spec.source.vmware is not None and policy.spec.source.vmware.vcenter == name
    ]
    over = snapshots.left(view.seen)
    standing = [
        {"id": id, "machine": one.machine, "job": one.job, "state": "LeftOver" if id in over else "InUse"}
        for id, one in snapshots.known(view.seen).items()
        if one.vcenter == name
    ]
    return Description(
        of="vcenter", name=name, object=known.written(), related={"policies": users, "snapshots": standing}
    )


def _service_level(view: views.View, name: str) -> Description:
    level = view.wanted.service_levels.get(name)
    if level is None:
        known = ", ".join(sorted(view.wanted.service_levels)) or "none"
        raise errors.NotFound(f"no ServiceLevel {name}", hint=f"there are: {known}")
    meant = [one for one in view.wanted.policies.values() if servicelevels.meant(level, one)]
    missed = [
        {"reason": one.message}
        for one in view.plan().drift
        if (one.code, one.object) == ("ServiceLevelMissed", f"ServiceLevel/{name}")
    ]
    policies = [{"id": one.name, "type": "BackupPolicy"} for one in sorted(meant, key=lambda one: one.name)]
    related = {"policies": policies, "missed": missed}
    return Description(of="servicelevel", name=name, object=level.written(), related=related)


def _restore(view: views.View, name: str) -> Description:
    made = [one.to_json() for one in listings.restore_list(view.db).items if one.name == name]
    item = view.wanted.restores.get(name)
    if item is None and not made:
        known = ", ".join(sorted(view.wanted.restores)) or "none"
        raise errors.NotFound(f"no Restore {name}", hint=f"there are: {known}")
    coming = [
        {"address": one.address, "state": one.state.value, "reason": one.reason.message}
        for one in view.plan().actions
        if one.address.startswith(f"restore/{name}@")
    ]
    shown = item.written() if item is not None else {}
    return Description(of="restore", name=name, object=shown, related={"actions": coming, "restores": made})


_DESCRIBERS = {
    Kind.IMAGE: _image, Kind.CLIENT: _client, Kind.UNIT: _unit, Kind.POLICY: _policy, Kind.JOB: _job,
    Kind.VCENTER: _vcenter, Kind.SERVICE_LEVEL: _service_level, Kind.RESTORE: _restore,
}  # fmt: skip


def _description(document: Description) -> str:
    lines = [f"{document.of} {document.name}"]
    for key, value in document.object.items():
        if key in _SAID and value:
            lines += [f"  {key}:", *(line for one in value for line in _sentence(one))]
            continue
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines.append(f"  {key}: {shown}")
    for title, items in document.related.items():
        lines.append(f"{title}: {len(items)}")
        lines += [f"  {_brief(item)}" for item in items]
    return tables.page(lines)


#: Lists of sentences, each with a code.
_SAID = ("warnings", "conditions")
_BRIEF = (
    "id", "number", "unit", "address", "machine", "job", "state", "type", "proof", "image", "time", "expiresAt",
    "target", "reason", "message", "line",
)  # fmt: skip


def _sentence(one: dict[str, Any]) -> list[str]:
    """A warning or a condition, whole: it goes on below rather than being cut."""
    head = one.get("code") or f"{one.get('type')} {one.get('status')}, {one.get('reason')}"
    text, width = f"    {head}: {one.get('message', '')}", tables.terminal()
    return textwrap.wrap(text, width, subsequent_indent=" " * 6, break_on_hyphens=False) if width else [text]


def _brief(item: dict[str, Any]) -> str:
    parts = [str(item[key]) for key in _BRIEF if item.get(key) is not None]
    if item.get("decision"):
        parts.append(str(item["decision"]["message"]))
    return "  ".join(parts)


def status(
    output: options.Format = options.Output.TEXT, state: options.State = None, catalog: options.Catalog = None
) -> int:
    """Whether the estate is in force, protected and converging."""
    chosen = settings.of_state(state=state, catalog=catalog)
    document = views.look(chosen, lambda view: _judge(view, leases.holder(chosen.state, view.db), chosen.ears))
    outputs.emit(document, output, _status)
    return 0


def _judge(view: views.View, holder: leases.Holder | None, ears: settings.Ears) -> Status:
    plan = view.plan()
    clients = judgements.client_list(view.db, view.wanted, view.seen, view.now).items
    drifting = {one.object for one in plan.drift}
    away = [
        shapes.CodeMessage(code=f"Unit{one.state}", message=f"{one.name}: {one.message}")
        for one in view.seen.units.values()
        if one.state != "Online"
        and not view.wanted.is_orphaned("StorageUnit", one.name)
        and f"StorageUnit/{one.name}" not in drifting
    ]
    return Status(
        revision=view.seen.in_force,
        controller=holder.describe() if holder else None,
        converged=not plan.changes,
        due=len(plan.in_state(actions.State.DUE)),
        waiting=len(plan.in_state(actions.State.WAITING)),
        blocked=len(plan.in_state(actions.State.BLOCKED)),
        running_jobs=len(view.seen.jobs),
        clients=len(clients),
        unprotected=tuple(
            one.slug for one in clients if any(c.type == "Protected" and c.status != "True" for c in one.conditions)
        ),
        problems=(
            *away,
            *(shapes.CodeMessage(code=one.code, message=f"{one.object}: {one.message}") for one in plan.drift),
        ),
        alarms=tuple(_standing(view, plan)),
        channels=tuple(one.name for one in channels.channels(ears.urls)) if ears.known else None,
        channels_problem=ears.trouble,
    )


def _standing(view: views.View, plan: actions.Plan) -> Iterator[StandingAlarm]:
    """The alarms of this moment; nobody reads manifests here, so what is wrong with them the last pass knows."""
    kept = told.records(view.db)
    now = {one.key: one for one in alarms.alarms(plan, view.wanted, view.seen)}
    frozen = {
        key: record.alarm for key, record in kept.items() if key.startswith(alarms.FROZEN) and record.over_at is None
    }
    for key, alarm in sorted({**frozen, **now}.items()):
        record = kept.get(key)
        yield StandingAlarm(
            key=key,
            severity=alarm.severity,
            title=alarm.title,
            message=alarm.message,
            since=record.since if record is not None else view.now,
            told_at=record.told_at if record is not None else None,
        )


def _status(document: Status) -> str:
    lines = [
        f"revision    {document.revision or 'none in force'}",
        f"controller  {document.controller or 'none lives'}",
        f"jobs        {document.running_jobs} running",
        f"actions     {document.due} due, {document.waiting} waiting, {document.blocked} blocked",
        f"clients     {document.clients}, not protected: {', '.join(document.unprotected) or 'none'}",
    ]
    lines += [f"problem     {one.message} [{one.code}]" for one in document.problems]
    lines += [f"alarm       {one.title} [{one.key}]" for one in document.alarms]
    lines.append(f"told to     {_hearers(document)}")
    width = tables.terminal()
    # The next step stands at the end of a line: it goes on below rather than being cut.
    return "\n".join(part for line in lines for part in (_wrapped(line, width) if width else [line]))


def _wrapped(line: str, width: int) -> list[str]:
    head, *more = textwrap.wrap(line[12:], width - 12, break_long_words=False, break_on_hyphens=False)
    return [tables.shorten(line[:12] + head, width), *(" " * 12 + part for part in more)]


def _hearers(document: Status) -> str:
    if document.channels_problem is not None:
        return f"nobody: {document.channels_problem}"
    if document.channels is None:
        return "unknown here; ask from the folder of the estate"
    if document.channels:
        return ", ".join(document.channels)
    if document.alarms:
        return "nobody. A brake nobody hears fills the unit: set HOLDFAST_NOTIFY, or [notify] in holdfast.toml"
    return "nobody; set HOLDFAST_NOTIFY, or [notify] in holdfast.toml"
