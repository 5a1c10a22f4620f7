"""Machines that claim one identity: a clone that kept its original's instance UUID, or one machine in two places.

A client is known by its identity, not by its name. Where two machines that live now claim the same one, nobody can say
whose images those of the client are; neither is backed up until they differ, and what is there stays.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Final

from reconciler.base import diagnostics
from reconciler.planning import desired, observed

#: Two machines claim one identity.
SAME: Final = "HF492"


def contested(wanted: desired.Desired, surveyed: Mapping[str, observed.Inventory]) -> dict[str, tuple[str, ...]]:
    """Client ids that several machines claim, each with the machines in words.

    ``surveyed``: inventories by policy. What a source showed before it could not be asked any more is not held against
    what another one shows now: the machine may have moved there.
    """
    places: dict[str, dict[str, str]] = {}
    crowds: dict[str, int] = {}
    for name, inventory in sorted(surveyed.items()):
        if wanted.is_orphaned("BackupPolicy", name):
            continue
        here = collections.Counter(machine.id for machine in inventory.machines)
        for machine in inventory.machines:
            crowds[machine.id] = max(crowds.get(machine.id, 0), here[machine.id])
            if inventory.unreachable is None or here[machine.id] > 1:
                places.setdefault(machine.id, {}).setdefault(machine.source, _words(machine))
    return {
        id: tuple(sorted(found.values())) for id, found in sorted(places.items()) if len(found) > 1 or crowds[id] > 1
    }


def problem(policy: str, id: str, machines: tuple[str, ...]) -> diagnostics.Diagnostic:
    """What a plan says of it, once for each policy that matches one of them."""
    return diagnostics.Diagnostic(
        severity=diagnostics.Severity.ERROR,
        code=SAME,
        message=f"{max(len(machines), 2)} machines have the identity {id}: {', '.join(machines)}; none is backed up",
        object=f"BackupPolicy/{policy}",
        hint="give all but one of them an identity of its own, or leave them out of the selection; images stay",
    )


def _words(machine: observed.Machine) -> str:
    """Its name and its place, which often ends with the name."""
    return machine.source if machine.source.endswith(f"/{machine.name}") else f"{machine.name} ({machine.source})"
