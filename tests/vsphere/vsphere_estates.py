"""The lab as tests of this folder use it: the peer, a VCenter value for it, sources and small estates on it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "hack"))

import vsphere_labs

from reconciler.api import policies, vcenters
from reconciler.sources import machines as sources
from reconciler.sources.vsphere import machines

MIB = 1 << 20
#: One small disk.
DISKS = [{"sizeBytes": MIB}]


def needed() -> None:
    """Skip where the lab cannot run."""
    lacking = vsphere_labs.available()
    if lacking:
        pytest.skip(lacking)


def vcenter(lab: vsphere_labs.Lab, **extra: Any) -> vcenters.VCenter:
    """The VCenter of a lab; ``extra`` goes into its spec."""
    return vcenters.VCenter.model_validate(json.loads(lab.vcenter_yaml(**extra)))


def source(lab: vsphere_labs.Lab, owner: str = "nobody", spec: dict[str, Any] | None = None, **wanted: Any) -> Any:
    """The source of a policy that selects everything, unless ``wanted`` says more; ``spec`` adds to the VCenter's."""
    wanted.setdefault("include", [{"name": "*"}])
    told = vcenters.VMware.model_validate({"vcenter": "lab", **wanted})
    return machines.VMware(wanted=told, vcenter=vcenter(lab, **spec or {}), looks=machines.Looks(), owner=owner)


def policy(**wanted: Any) -> policies.BackupPolicy:
    """A policy named ``virtual`` that selects from the lab."""
    wanted.setdefault("include", [{"name": "*"}])
    schedule = {"name": "daily", "type": "Full", "cron": "0 21 * * *"}
    spec = {"source": {"vmware": {"vcenter": "lab", **wanted}}, "schedules": [schedule], "lifecycle": "gold"}
    document = {
        "apiVersion": "holdfast/v1alpha1",
        "kind": "BackupPolicy",
        "metadata": {"name": "virtual"},
        "spec": spec,
    }
    return policies.BackupPolicy.model_validate(document)


def names(found: sources.Inventory) -> list[str]:
    """Of the machines of an inventory, none of which may be unreachable."""
    assert found.unreachable is None, found.unreachable
    return [one.name for one in found.machines]


def problems(found: sources.Inventory) -> dict[str, str]:
    """Codes of problems by machine."""
    return {one.name: one.problem.code for one in found.machines if one.problem is not None}


def codes(notes: Sequence[sources.Found]) -> list[str]:
    """Codes of notes."""
    return [one.code for one in notes]


#: One site, pool and lifecycle, and a policy that selects from the lab; ``{selection}`` is JSON.
ESTATE = """apiVersion: holdfast/v1alpha1
kind: StorageUnit
metadata: {{name: shelf}}
spec: {{type: Directory, path: shelf, maxConcurrentJobs: 8}}
---
apiVersion: holdfast/v1alpha1
kind: StorageLifecyclePolicy
metadata: {{name: gold}}
spec:
  operations:
    - {{name: land, type: Backup, storage: shelf, retention: {{type: Fixed, period: 7d}}}}
---
apiVersion: holdfast/v1alpha1
kind: BackupPolicy
metadata: {{name: virtual}}
spec:
  source: {{vmware: {selection}}}
  schedules:
    - {{name: daily, type: Full, cron: "0 21 * * *", timeZone: UTC}}
  lifecycle: gold
"""


def write_estate(folder: Path, lab: vsphere_labs.Lab, spec: dict[str, Any] | None = None, **wanted: Any) -> Path:
    """An estate in ``folder``, and the storage unit that it names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shelf").mkdir(exist_ok=True)
    wanted.setdefault("include", [{"name": "*"}])
    selection = json.dumps({"vcenter": "lab", **wanted})
    (folder / "estate.yaml").write_text(ESTATE.format(selection=selection))
    (folder / "vcenter.yaml").write_text(lab.vcenter_yaml(**spec or {}))
    return folder
