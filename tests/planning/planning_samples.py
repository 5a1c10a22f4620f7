"""Plain ways to write desired and observed states: manifests as users write them, images as the catalog has them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any

from reconciler.api import lifecycles, models, policies, registry
from reconciler.base import digests, times
from reconciler.planning import actions, desired, observed

NOW = times.parse("2026-11-23T21:00Z")
CLIENT = "diskimages:/srv/guests/oblVM1"
FIXED_7D = {"type": "Fixed", "period": "7d"}
FOREVER = {"type": "Forever"}


def at(text: str) -> dt.datetime:
    """A time in RFC 3339."""
    return times.parse(text)


def ago(**passed: float) -> dt.datetime:
    """Before ``NOW``."""
    return NOW - dt.timedelta(**passed)


def make(kind: str, name: str, spec: dict[str, Any]) -> Any:
    """An object of any kind, as a manifest writes it."""
    return registry.KINDS[kind].model_validate({"metadata": {"name": name}, "spec": spec})


def unit(name: str, **spec: Any) -> models.Object:
    """A Directory unit, unless ``type`` says otherwise."""
    return make("StorageUnit", name, {"type": "Directory", "path": f"/srv/{name}", **spec})


def pool(name: str, **spec: Any) -> models.Object:
    """A DedupePool unit."""
    return unit(name, type="DedupePool", **spec)


def group(name: str, selection: str, *members: str) -> models.Object:
    """A storage unit group."""
    return make("StorageUnitGroup", name, {"selection": selection, "members": list(members)})


def operation(
    name: str, storage: str, source: str | None = None, retention: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """One operation; a duplication where it has a source."""
    type = "Duplication" if source else "Backup"
    written = {"name": name, "type": type, "storage": storage, "retention": retention or FIXED_7D, **more}
    return {**written, "source": source} if source else written


def lifecycle(name: str, *operations: dict[str, Any]) -> lifecycles.StorageLifecyclePolicy:
    """A storage lifecycle policy."""
    made: lifecycles.StorageLifecyclePolicy = make("StorageLifecyclePolicy", name, {"operations": list(operations)})
    return made


def policy(name: str = "gold", *schedules: dict[str, Any], lifecycle: str = "gold", **spec: Any) -> Any:
    """A backup policy; daily incrementals by default."""
    written = {
        "source": {"diskImages": {"path": "/srv/guests"}},
        "schedules": list(schedules) or [{"name": "daily", "type": "Incremental", "every": "24h"}],
        "lifecycle": lifecycle,
        **spec,
    }
    made: policies.BackupPolicy = make("BackupPolicy", name, written)
    return made


def vcenter(name: str = "lab", **spec: Any) -> models.Object:
    """A VCenter."""
    return make("VCenter", name, {"server": f"{name}.example", "credentialRef": {"env": "LAB"}, **spec})


def virtual(name: str = "gold", *schedules: dict[str, Any], vcenter: str = "lab", **spec: Any) -> Any:
    """A policy of the virtual machines of a VCenter."""
    source = {"vmware": {"vcenter": vcenter, "include": [{"name": "*"}]}}
    return policy(name, *schedules, source=source, **spec)


def guest(name: str, host: str | None = None, *datastores: str, **fields: Any) -> observed.Machine:
    """A virtual machine as a VCenter shows it, with an identity of its own."""
    values = {"id": f"vsphere:/{name}", "source": f"vsphere:lab/{name}", "disks": ("Hard disk 1",), **fields}
    return observed.Machine(name=name, host=host, datastores=datastores, **values)


def snapshot(id: str, machine: str = "vm1", job: str = "j-000001", **fields: Any) -> observed.Snapshot:
    """A snapshot of ours, noted an hour ago."""
    values = {
        "vcenter": "lab", "client": f"vsphere:/{machine}", "place": "vm-57", "reference": "snapshot-58",
        "since": ago(hours=1), **fields,
    }  # fmt: skip
    return observed.Snapshot(id=id, machine=machine, job=job, **values)


def window(name: str, start: str, duration: str, days: Iterable[str] = (), **spec: Any) -> models.Object:
    """A window that opens at the same time on each of some days, every day by default."""
    all_days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
    span = {"days": list(days) or all_days, "start": start, "duration": duration}
    return make("BackupWindow", name, {"allow": [span], **spec})


def estate(*objects: models.Object, revision: str = "dir@blake3:1") -> desired.Desired:
    """A desired state."""
    return desired.gather(revision, objects)


def small(*more: models.Object, land: dict[str, Any] | None = None, **spec: Any) -> desired.Desired:
    """A policy ``gold`` that lands on the Directory ``fast`` and is duplicated into the pool ``deep``."""
    return estate(
        unit("fast"),
        pool("deep"),
        lifecycle("gold", operation("land", "fast", retention=land), operation("dedupe", "deep", "land", FOREVER)),
        policy("gold", **spec),
        *more,
    )


def machine(id: str = CLIENT, *disks: str, name: str | None = None) -> observed.Machine:
    """A machine as a source shows it."""
    return observed.Machine(id=id, name=name or id.rpartition("/")[2], source=id, disks=disks or ("disk.img",))


def client(id: str = CLIENT, seen: dt.datetime = NOW - dt.timedelta(days=100)) -> observed.Client:
    """A client the catalog knows."""
    name = id.rpartition("/")[2]
    return observed.Client(id=id, slug=name.lower(), name=name, source=id, first_seen=seen)


def copy(
    number: int = 1, operation: str = "land", unit: str = "fast", state: str = "Complete", **fields: Any
) -> observed.Copy:
    """A copy, made when its image was unless told otherwise."""
    return observed.Copy(
        number, operation, unit, state, fields.pop("created_at", NOW), fields.pop("stored", 1000),
        fields.pop("base", None), **fields,
    )  # fmt: skip


def image(
    sequence: int, time: dt.datetime, *copies: observed.Copy, type: str = "Full", spec: Any = None, **fields: Any
) -> observed.Image:
    """An image ``img-<sequence>``; ``spec`` is the lifecycle spec that made it."""
    return observed.Image(
        id=fields.pop("id", f"img-{sequence}"),
        schedule=fields.pop("schedule", "daily"),
        type=type,
        state=fields.pop("state", "Complete"),
        time=time,
        sequence=sequence,
        slot=fields.pop("slot", time),
        lifecycle=fields.pop("lifecycle", "gold"),
        owed=owed_key(spec) if spec is not None else "none",
        parent=fields.pop("parent", None),
        size_bytes=fields.pop("size", 5000),
        copies=copies or (copy(),),
        disks=fields.pop("disks", ("disk.img",)),
        **fields,
    )


def owed_key(spec: lifecycles.StorageLifecyclePolicySpec) -> str:
    """The digest under which a lifecycle spec is kept."""
    return digests.json_digest(spec.written())


def series(*images: observed.Image, client: str = CLIENT, policy: str = "gold") -> observed.Series:
    """One series."""
    return observed.Series(client=client, policy=policy, images=images)


def seen(wanted: desired.Desired, *all_series: observed.Series, **fields: Any) -> observed.Observed:
    """An observed state in which ``wanted`` is in force since long ago, all units are online, one machine is known."""
    machines = fields.pop("machines", (machine(),))
    since = fields.pop("since", NOW - dt.timedelta(days=100))
    online = {
        name: observed.Unit(name=name, state="Online", total_bytes=10**9, free_bytes=5 * 10**8,
                            standalone=item.spec.type == "DedupePool")
        for name, item in wanted.units.items()
    }  # fmt: skip
    anchors = {(p.name, s.name): since for p in wanted.policies.values() for s in p.spec.schedules}
    values: dict[str, Any] = {
        "series": all_series,
        "clients": {one.id: client(one.id) for one in machines},
        "inventories": {name: observed.Inventory(machines=machines, seen=NOW) for name in wanted.policies},
        "units": online,
        "applied": {item.key: observed.Applied(object=item, since=since) for item in wanted.objects()},
        "in_force": wanted.revision,
        "anchors": anchors,
        "owed": {owed_key(one.spec): one.spec for one in wanted.lifecycles.values()},
    }
    return observed.Observed(**{**values, **fields})


def by_address(plan: actions.Plan) -> dict[str, actions.Action]:
    """The actions of a plan by address, which must be unique."""
    found = {action.address: action for action in plan.actions}
    assert len(found) == len(plan.actions), "addresses repeat"
    return found


def states(plan: actions.Plan) -> dict[str, tuple[str, str]]:
    """State and reason code by address."""
    return {address: (one.state.value, one.reason.code) for address, one in by_address(plan).items()}
