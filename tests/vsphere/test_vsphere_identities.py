"""A clone that kept its original's instance UUID: a problem that names both, and no backup of either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import virtual_estates
from virtual_estates import VirtualEstate, vsphere_labs


def backups(plan: dict[str, Any]) -> set[str]:
    """Machines that the plan backs up."""
    return {one["client"] for one in plan["actions"] if one["type"] == "Backup"}


def test_two_live_machines_under_one_instance_uuid_are_a_problem_of_the_plan(tmp_path: Path) -> None:
    machines = virtual_estates.machines(3, size=virtual_estates.MIB)
    with vsphere_labs.Lab.start(tmp_path / "lab", machines=machines) as lab:
        estate = VirtualEstate(tmp_path, lab).build(storage="pool")
        assert backups(estate.command.json("plan", ".")) == {"vm1", "vm2", "vm3"}
        lab.act("vm2", "duplicateUuid", of="vm1")
        plan = estate.command.json("plan", ".")
        (problem,) = plan["problems"]
        assert (problem["code"], problem["object"]) == ("HF492", "BackupPolicy/vms")
        assert "/vm1" in problem["message"] and "/vm2" in problem["message"] and problem["hint"]
        assert backups(plan) == {"vm3"}
        # A selection that leaves the clone out does not make the original the one that is meant.
        estate.build(storage="pool", source={"exclude": [{"name": "vm2"}]})
        plan = estate.command.json("plan", ".")
        (drift,) = (one for one in plan["drift"] if one["code"] == "SameIdentity")
        assert drift["object"].endswith("/vm1") and "/vm2 beside the selection" in drift["message"]
        assert plan["problems"] == [] and backups(plan) == {"vm3"}
