"""Trying an estate: every vCenter, policy, storage unit and channel that it names, without doing anything to them.

``probe`` and ``validate --live`` call it. It takes no lease and writes to no catalog, so it runs beside a controller.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from reconciler.api import policies, vcenters
from reconciler.base import clocks, errors, files, meters, quantities
from reconciler.catalog import inventories
from reconciler.controller import channels, observations
from reconciler.operations import holding, probes, steps
from reconciler.planning import capacities, desired, observed, placements
from reconciler.sources import machines
from reconciler.sources import opening as sources
from reconciler.sources.vsphere.inventory import checks
from reconciler.storage import opening as units

#: Who owns test snapshots where there is no catalog, followed by the host.
_ALONE: Final = "probe-"
#: What a mark cannot hold.
_UNFIT: Final = re.compile(r"[^A-Za-z0-9._-]")
#: After this time nobody reads a test snapshot any more.
_STALE: Final = dt.timedelta(minutes=15)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What the catalog says, where there is one."""

    #: Id of the catalog; None where there is none.
    catalog: str | None = None
    units: Mapping[str, inventories.KnownUnit] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What is tried."""

    #: Names of policies; empty for everything that the estate names.
    policies: Collection[str] = ()
    #: Name or id of the machine that is tried, in each of them; None for the first that can be backed up.
    machine: str | None = None
    #: Where the marks on test snapshots take their time from: the loop goes by it.
    clock: clocks.Clock = dataclasses.field(default_factory=clocks.SystemClock)


def probe(
    taken: steps.Steps,
    wanted: desired.Desired,
    known: Known,
    ears: tuple[tuple[str, ...], str | None],
    wish: Wish,
    host: str,
    meter: meters.Meter,
) -> None:
    """Try it all. ``ears``: URLs that alarms go to, and what is wrong with their settings; ``host``: who asks.

    Raises ``NotFound`` for a policy that is not there, ``Cancelled`` with everything undone.
    """
    chosen = _policies(wanted, wish)
    owner = known.catalog or _ALONE + _UNFIT.sub("-", host)[:60]
    reached = {name: _vcenter(taken, one) for name, one in _vcenters(wanted, chosen, wish).items()}
    for policy in chosen:
        meter.check()
        _policy(taken, wanted, policy, owner, wish, reached, meter)
    names = _units(wanted, chosen) if wish.policies else sorted(wanted.units)
    seen = observations.look_at_units(wanted, known.units, known.catalog, None)
    for name in names:
        meter.check()
        _unit(taken, wanted, name, known, seen[name])
    if not wish.policies:
        _ears(taken, *ears)


def _policies(wanted: desired.Desired, wish: Wish) -> list[policies.BackupPolicy]:
    unknown = sorted(set(wish.policies) - wanted.policies.keys())
    if unknown:
        there = ", ".join(sorted(wanted.policies)) or "none"
        raise errors.NotFound(f"no policy {', '.join(unknown)}", hint=f"there are: {there}")
    return [wanted.policies[name] for name in sorted(wish.policies or wanted.policies)]


def _vcenters(wanted: desired.Desired, chosen: list[policies.BackupPolicy], wish: Wish) -> dict[str, vcenters.VCenter]:
    used = {policy.spec.source.vmware.vcenter for policy in chosen if policy.spec.source.vmware is not None}
    return {name: one for name, one in sorted(wanted.vcenters.items()) if name in used or not wish.policies}


def _units(wanted: desired.Desired, chosen: list[policies.BackupPolicy]) -> list[str]:
    """The units that the policies' lifecycles write to."""
    found: set[str] = set()
    for policy in chosen:
        lifecycle = wanted.lifecycles.get(policy.spec.lifecycle)
        for operation in lifecycle.spec.operations if lifecycle is not None else ():
            group = wanted.groups.get(operation.storage)
            found |= set(group.spec.members) if group is not None else {operation.storage}
    return sorted(found & wanted.units.keys())


# -- vCenters --------------------------------------------------------------------------------------------------------


def _vcenter(taken: steps.Steps, vcenter: vcenters.VCenter) -> bool:
    """Whether somebody is logged in."""
    subject = f"VCenter/{vcenter.name}"

    def trusted() -> steps.Said:
        return steps.passed(f"its certificate is trusted, SHA-1 {checks.certificate(vcenter)}")

    # Each tells its own trouble: a password that is wrong is not asked for where nobody knows who would hear it.
    ready = [
        taken.take(subject, "tls", trusted),
        taken.take(subject, "credential", lambda: steps.passed(f"from {checks.credential(vcenter)}")),
    ]
    if not all(ready):
        taken.note(subject, "login", steps.skipped("not tried, for the reasons above"))
        return False
    return taken.take(subject, "login", lambda: steps.passed(checks.about(vcenter)))


def _privileges(
    taken: steps.Steps, subject: str, vcenter: vcenters.VCenter, chosen: machines.Machine, wanted: vcenters.VMware
) -> None:
    def work() -> steps.Said:
        found = checks.privileges(vcenter, chosen.id, wanted)
        if found is None:
            return steps.skipped("the server does not say who may do what")
        if not found.missing:
            return steps.passed(f"all {found.asked} that a backup of {chosen.name} needs")
        told = "; ".join(f"on {name}: {', '.join(lacking)}" for name, lacking in found.missing.items())
        return steps.failed(f"missing {told}", "add them to the user's role, and let it propagate")

    taken.take(subject, "privileges", work)


# -- policies --------------------------------------------------------------------------------------------------------


def _policy(
    taken: steps.Steps,
    wanted: desired.Desired,
    policy: policies.BackupPolicy,
    owner: str,
    wish: Wish,
    reached: Mapping[str, bool],
    meter: meters.Meter,
) -> None:
    subject = f"BackupPolicy/{policy.name}"
    virtual = policy.spec.source.vmware
    need = None
    if policy.spec.source.catalog is not None:
        taken.note(subject, "selection", steps.skipped("the catalog itself, which is always there"))
    elif virtual is not None and not reached.get(virtual.vcenter, False):
        taken.note(subject, "selection", steps.skipped(f"nobody is logged in at VCenter {virtual.vcenter}"))
    else:
        need = _machine(taken, subject, wanted, policy, owner, wish, meter)
    hooks = policy.spec.hooks
    if hooks is not None and (hooks.before or hooks.after):
        taken.note(
            subject, "hooks", steps.skipped("a probe runs no hooks", "try them by hand; they run around backups")
        )
    area = holding.area(policy)
    if area is not None:
        taken.take(subject, "holding area", lambda: probes.area(area, need))


def _machine(
    taken: steps.Steps,
    subject: str,
    wanted: desired.Desired,
    policy: policies.BackupPolicy,
    owner: str,
    wish: Wish,
    meter: meters.Meter,
) -> int | None:
    """Bytes of the disks of the machine that was tried."""
    quiet = probes.harmless(policy)

    def source() -> machines.Source:
        return sources.Sources(wanted.vcenters, owner).of(quiet)

    inventory = probes.selection(taken, subject, source())
    if inventory is None:
        return None
    if owner.startswith(_ALONE):
        _sweep(taken, subject, wanted, inventory, owner, wish, meter)
    try:
        chosen = probes.choose(inventory, wish.machine)
    except errors.NotFound as error:
        taken.note(subject, "machine", steps.failed(error.message, error.hint))
        return None
    virtual = policy.spec.source.vmware
    if virtual is not None:
        _privileges(taken, subject, wanted.vcenters[virtual.vcenter], chosen, virtual)
    return probes.trial(taken, subject, source, chosen, owner, meter, wish.clock, snapshots=virtual is not None)


def _sweep(
    taken: steps.Steps,
    subject: str,
    wanted: desired.Desired,
    inventory: machines.Inventory,
    owner: str,
    wish: Wish,
    meter: meters.Meter,
) -> None:
    """Remove what killed probes of this host left: without a catalog there is no loop that would."""
    for one in inventory.snapshots:
        if one.created is None or wish.clock.now() - one.created < _STALE:
            continue  # another probe may be reading it

        def work(one: machines.Snapshot = one) -> steps.Said:
            sources.remove_snapshot(wanted.vcenters[one.vcenter], owner, one, meter)
            return steps.warned(f"removed {one.reference} of {one.machine_name}, which a killed probe had left")

        taken.take(subject, f"sweep {one.machine_name}", work)


# -- units -----------------------------------------------------------------------------------------------------------


def _unit(taken: steps.Steps, wanted: desired.Desired, name: str, known: Known, seen: observed.Unit) -> None:
    subject = f"StorageUnit/{name}"
    declared = observations.declared_unit(wanted.units[name])
    if not taken.take(subject, "path", lambda: _path(declared)):
        return
    taken.take(subject, "identity", lambda: _identity(declared, known))
    taken.take(subject, "writable", lambda: _writable(wanted, declared))
    taken.take(subject, "space", lambda: _space(wanted, declared, seen))
    reaching = [server for server, _ in placements.servers(wanted, (name,))]
    if reaching:
        taken.note(subject, "media servers", steps.passed(f"reached by {', '.join(reaching)}"))
    else:
        said = steps.failed("no enabled MediaServer reaches it", "name it in a MediaServer's storageUnits")
        taken.note(subject, "media servers", said)


def _path(declared: units.Declared) -> steps.Said:
    if declared.path.is_dir():
        return steps.passed(f"{declared.path} is a folder")
    return steps.failed(f"{declared.path} is not a folder", "mount it, create it, or correct the path")


def _identity(declared: units.Declared, known: Known) -> steps.Said:
    there = known.units.get(declared.name)
    look = units.look(declared, known_id=there.id if there is not None else None, owner=known.catalog)
    if look.identity is not None and known.catalog is None:
        return steps.warned(
            f"unit {look.identity.id} of catalog {look.identity.owner}; no catalog here to compare it with",
            "if this estate is a new one, the unit has to be adopted: holdfast unit adopt",
        )
    if look.state != "Online":
        return steps.failed(look.message)
    return steps.passed(
        f"unit {look.identity.id}" if look.identity is not None else "first use: the first apply names it"
    )


def _writable(wanted: desired.Desired, declared: units.Declared) -> steps.Said:
    state = wanted.units[declared.name].spec.state
    if state != "Active":
        return steps.skipped(f"state: {state}; it takes nothing new")
    with files.unit_errors(declared.name):
        probes.writable(declared.path)
    return steps.passed("a file was made and removed")


def _space(wanted: desired.Desired, declared: units.Declared, seen: observed.Unit) -> steps.Said:
    spec = wanted.units[declared.name].spec
    room = capacities.space(seen)
    if room is None:
        system = os.statvfs(declared.path)
        total, free = system.f_blocks * system.f_frsize, system.f_bavail * system.f_frsize
        room = capacities.Space(total, free, 0)
    share = 100 * room.filled // room.total if room.total else 0
    text = f"{quantities.show_size(room.free)} of {quantities.show_size(room.total)} free, {share}% filled"
    text += f", highWaterMark {spec.high_water_mark}"
    full = capacities.full(declared.name, spec, room)
    if full is not None and seen.standalone and seen.id is not None:
        return steps.warned(
            f"{text}: {full.message}", "a collection may give some back: holdfast pool collect --dry-run"
        )
    if full is not None:
        return steps.failed(f"{text}: {full.message}", "free space, or raise the mark")
    return steps.passed(text)


# -- channels --------------------------------------------------------------------------------------------------------


def _ears(taken: steps.Steps, urls: tuple[str, ...], trouble: str | None) -> None:
    if trouble is not None:
        taken.note("Notifications", "settings", steps.failed(trouble))
    for name, readable in _channels(urls):
        said = steps.passed("a URL; nothing is sent, holdfast notify test does")
        if not readable:
            said = steps.failed("not a URL", "such as mailto://user:password@example.org")
        taken.note(f"Notifications/{name}", "url", said)
    if not urls and trouble is None:
        hint = "set HOLDFAST_NOTIFY, or urls under [notify] in holdfast.toml"
        taken.note("Notifications", "settings", steps.warned("nobody hears alarms", hint))


def _channels(urls: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
    for channel in channels.channels(urls):
        yield channel.name, not channel.name.startswith("unreadable#")
