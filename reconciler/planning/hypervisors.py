"""What may be asked of hypervisors at the same time: the limits of each VCenter, for ``dispatch`` and for the plan.

A backup of a virtual machine counts against its ESX host, against each datastore that it lies on, and against the open
snapshots of its VCenter, over all policies that name that VCenter. Snapshots that are left over count as open until
they are gone. A machine of which the last inventory knew no host or datastore counts against the snapshots alone. So
does a restore of the manifests that makes a machine, and against the host and the datastore that it names.
"""

from __future__ import annotations

import collections
from typing import Final, NamedTuple

from reconciler.planning import actions, desired, observed, restorations, snapshots

#: Why a due backup of a virtual machine has to wait, as plans say it.
CODES: Final = frozenset({"MachineBusy", "HostBusy", "DatastoreBusy", "SnapshotsOpen"})


class _Asked(NamedTuple):
    """What one backup, or one restore, asks of a VCenter."""

    vcenter: str
    host: str | None
    datastores: frozenset[str]


class Hypervisors:
    """What is taken of each VCenter's limits, and what is left; it counts up and never down."""

    def __init__(self, wanted: desired.Desired, seen: observed.Observed) -> None:
        self._wanted = wanted
        self._seen = seen
        self._aliases = {old: name for name, one in wanted.policies.items() for old in one.spec.previous_names}
        #: By policy, then by client id; made when first asked for.
        self._machines: dict[str, dict[str, observed.Machine]] = {}
        self._hosts: collections.Counter[tuple[str, str]] = collections.Counter()
        self._datastores: collections.Counter[tuple[str, str]] = collections.Counter()
        self._running: collections.Counter[str] = collections.Counter()
        self._left = collections.Counter(one.vcenter for one in snapshots.left(seen).values() if wanted.vcenters)

    def take(self, work: observed.Job | actions.Action, client: str | None) -> None:
        """Count a backup or a restore that runs, or starts; what has to do with no VCenter counts nothing."""
        asked = self._asked(work, client)
        if asked is None:
            return
        self._running[asked.vcenter] += 1
        if asked.host is not None:
            self._hosts[asked.vcenter, asked.host] += 1
        for name in asked.datastores:
            self._datastores[asked.vcenter, name] += 1

    def refuses(self, action: actions.Action) -> actions.Reason | None:
        """Which limit keeps one more backup or restore from starting now, or None."""
        asked = self._asked(action, action.client_id)
        vcenter = self._wanted.vcenters.get(asked.vcenter) if asked is not None else None
        if asked is None or vcenter is None:
            return None
        limits, name = vcenter.spec.limits, asked.vcenter
        if asked.host is not None and self._hosts[name, asked.host] >= limits.per_host:
            words = f"{self._hosts[name, asked.host]} machines of host {asked.host} are read already"
            return _full("HostBusy", words, name, "perHost", limits.per_host)
        for datastore in sorted(asked.datastores):
            if self._datastores[name, datastore] >= limits.per_datastore:
                words = f"{self._datastores[name, datastore]} machines on datastore {datastore} are read already"
                return _full("DatastoreBusy", words, name, "perDatastore", limits.per_datastore)
        if self._running[name] + self._left[name] >= limits.open_snapshots:
            left = f", {self._left[name]} of them left over" if self._left[name] else ""
            words = f"{self._running[name] + self._left[name]} snapshots are open{left}"
            return _full("SnapshotsOpen", words, name, "openSnapshots", limits.open_snapshots)
        return None

    def load(self, vcenter: str) -> str:
        """What is taken of a VCenter's limits, in words."""
        limits = self._wanted.vcenters[vcenter].spec.limits
        read, left = self._running[vcenter], self._left[vcenter]
        more = f", {left} {'snapshot is' if left == 1 else 'snapshots are'} left over" if left else ""
        some = f"{read} {'machine is' if read == 1 else 'machines are'} read{more}"
        said = [f"{some}, of {limits.open_snapshots} snapshots at most"]
        for what, counted, most in (
            ("host", self._hosts, limits.per_host),
            ("datastore", self._datastores, limits.per_datastore),
        ):
            said += [f"{what} {name}: {n} of {most}" for (of, name), n in sorted(counted.items()) if of == vcenter]
        return "; ".join(said)

    def vcenter(self, action: actions.Action) -> str | None:
        """The VCenter that an action asks something of, if any."""
        asked = self._asked(action, None)
        return asked.vcenter if asked is not None else None

    def _asked(self, work: observed.Job | actions.Action, client: str | None) -> _Asked | None:
        if work.type == actions.Type.RESTORE:
            made = restorations.machine(self._wanted, work.address)
            stores = frozenset((made.datastore,)) if made is not None and made.datastore is not None else frozenset()
            return _Asked(made.vcenter, made.host, stores) if made is not None else None
        if work.type != actions.Type.BACKUP:
            return None
        name = work.policy or ""
        known = self._wanted.policies.get(name) or self._wanted.policies.get(self._aliases.get(name, ""))
        source = known.spec.source.vmware if known is not None else None
        if known is None or source is None:
            return None
        machine = self._shown(known.name).get(client or "") or self._elsewhere(source.vcenter, client or "")
        if machine is None:
            return _Asked(source.vcenter, None, frozenset())
        return _Asked(source.vcenter, machine.host, frozenset(machine.datastores))

    def _elsewhere(self, vcenter: str, client: str) -> observed.Machine | None:
        """A machine that a policy matches no more, as another policy of the same VCenter shows it."""
        for name, policy in sorted(self._wanted.policies.items()):
            source = policy.spec.source.vmware
            if source is not None and source.vcenter == vcenter and client in self._shown(name):
                return self._shown(name)[client]
        return None

    def _shown(self, policy: str) -> dict[str, observed.Machine]:
        if policy not in self._machines:
            names = (policy, *self._wanted.policies[policy].spec.previous_names)
            inventory = next((self._seen.inventories[one] for one in names if one in self._seen.inventories), None)
            machines = inventory.machines if inventory is not None else ()
            self._machines[policy] = {machine.id: machine for machine in machines}
        return self._machines[policy]


def _full(code: str, words: str, vcenter: str, field: str, limit: int) -> actions.Reason:
    return actions.Reason(code=code, message=f"{words} (limits.{field} of VCenter {vcenter} is {limit})")
