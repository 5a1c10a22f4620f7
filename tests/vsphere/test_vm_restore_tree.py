"""Restores of the manifests into a vCenter, by the installed command: made once, also over kills, and never twice."""

from __future__ import annotations

import datetime as dt
import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import virtual_estates
from vm_restores import DATACENTER, MIB, UUID, machine

STAGED, OVER = (
    f"""
apiVersion: holdfast/v1alpha1
kind: Restore
metadata: {{name: {name}}}
spec: {{client: vm1, target: {target}}}
"""
    for name, target in (
        ("staged", "{folder: out, staged: true}"),
        ("over", "{vmware: {vcenter: lab, name: vm2}}"),
    )
)


class Tree(virtual_estates.VirtualEstate):
    """An estate with an image of ``vm1``, beside which Restores may be declared."""

    def declare(self, called: str, /, *, code: int | None = 0, crash: str | None = None, **target: Any) -> str:
        """Put one Restore of ``vm1`` alone into the tree and make a pass; what that said."""
        document = {
            "apiVersion": "holdfast/v1alpha1", "kind": "Restore", "metadata": {"name": called},
            "spec": {"client": "vm1", "target": {"vmware": {"vcenter": "lab", **target}}, "reason": f"case {called}"},
        }  # fmt: skip
        (self.folder / "restore.yaml").write_text(json.dumps(document))
        command = self.command if crash is None else self.command.crashing(crash)
        done = command.run("apply", "--yes", ".", code=code)
        return done.stdout + done.stderr

    def names(self) -> set[str]:
        """Every machine there is."""
        return {one["name"] for one in self.lab.state()["machines"]}

    def record(self, name: str) -> dict[str, Any]:
        """What ``get restores`` says of a Restore."""
        (found,) = [one for one in self.items("restores") if one["name"] == name]
        return found


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """Two machines, and a backup of the first."""
    root = tmp_path_factory.mktemp("tree")
    with virtual_estates.vsphere_labs.Lab.start(
        root / "lab", machines=[machine(1), machine(2)], datacenters=[DATACENTER], taskMillis=1
    ) as lab:
        made = Tree(root, lab)
        made.build(source={"include": [{"name": "vm1"}]})
        lab.write("vm1", "Hard disk 1", MIB, b"of the backup" * 1000)
        made.apply()
        yield made


def test_a_machine_is_made_once_as_it_is_told_to(tree: Tree) -> None:
    place = {"name": "back", "folder": "restored", "host": "esx2", "datastore": "ds2", "powerOn": True}
    (tree.folder / "staged.yaml").write_text(STAGED)
    tree.declare("drill", **place)
    assert (tree.folder / "out" / "vm1.vmx").exists() and tree.record("staged")["format"] == "staged"
    assert tree.contents()["back"] == tree.contents()["vm1"]
    made = tree.lab.machine("back")
    assert (made["folder"], made["host"], made["powerState"]) == ("restored", "esx2", "poweredOn")
    assert made["instanceUuid"] != f"{UUID}1" and made["snapshots"] == []
    record = tree.record("drill")
    assert (record["state"], record["format"], record["target"]) == ("Verified", "machine", "vsphere:lab")
    assert [disk["verified"] for disk in record["disks"]] == [True, True]
    (job,) = [one for one in tree.items("jobs") if one["type"] == "Restore" and "drill" in one["address"]]
    assert (job["state"], job["image"], job["id"]) == ("Succeeded", record["image"], record["job"])
    restored = [one["details"] for one in tree.items("audit") if one["event"] == "Restored"]
    (details,) = [one for one in restored if one["restore"] == "drill"]
    assert (details["target"], details["reason"]) == ("vsphere:lab/DC0/vm/restored/back", "case drill")
    assert (details["via"], details["identity"]) == ("import", "new")
    # Once more nothing is made, and never over a machine that is there.
    before = tree.contents()
    (tree.folder / "staged.yaml").write_text(OVER)
    said = tree.declare("drill", code=3, **place)
    (tree.folder / "staged.yaml").unlink()
    assert tree.contents() == before
    assert "there is a machine vm2 in /DC0/vm/gold" in said + tree.record("over")["message"]


@pytest.mark.parametrize(
    ("point", "target", "left"),
    [
        ("machine.disk-written", {"name": "one", "via": "datastore"}, "half"),
        ("restore.proven", {"name": "two", "powerOn": True}, "two"),
    ],
)
def test_a_killed_one_is_finished_by_the_next_pass(tree: Tree, point: str, target: dict[str, Any], left: str) -> None:
    before = tree.names()
    tree.declare(point, code=-signal.SIGKILL, crash=point, **target)
    (there,) = tree.names() - before
    assert ("half" if ".holdfast-" in there else there) == left
    reference = tree.lab.machine(there)["moref"]
    tree.declare(point, **target)
    name = target["name"]
    assert tree.record(point)["state"] == "Verified"
    assert tree.contents()[name] == tree.contents()["vm1"]
    # What was proven is taken up; what was not is made anew, and its half is gone.
    assert (tree.lab.machine(name)["moref"] == reference) == (left != "half")
    assert tree.names() == before | {name}
    assert (tree.lab.machine(name)["powerState"] == "poweredOn") == bool(target.get("powerOn"))


def test_what_was_proven_takes_its_name_and_is_never_made_twice(tree: Tree) -> None:
    target = {"name": "vm2", "replace": True, "powerOn": True}
    old = tree.contents()["vm2"]
    tree.declare("instead", code=-signal.SIGKILL, crash="machine.old-renamed", **target)
    (half,) = (one for one in tree.names() if ".holdfast-" in one)
    (aside,) = (one for one in tree.names() if one.startswith("vm2.replaced-"))
    there, reference = tree.names(), tree.lab.machine(half)["moref"]
    tree.lab.act(half, "power", state="poweredOn")
    tree.declare("instead", code=3, **target)
    assert "somebody runs it" in tree.record("instead")["message"]
    assert tree.names() == there
    tree.lab.act(half, "power", state="poweredOff")
    # As if the next attempt had been killed while it read that again.
    words = f"for the proof of restore {half[-8:]}"
    tree.lab.act(half, "foreignSnapshot", name="holdfast-proof", description=words)
    tree.set_clock(tree.now() + dt.timedelta(minutes=10))
    tree.lab.fault(on="PowerOnVM_Task", kind="task", fault="InsufficientResourcesFault", message="no memory today")
    assert "no memory today" in tree.declare("instead", code=3, **target)
    # It is there all the same, and the restore is made.
    assert tree.record("instead")["state"] == "Verified"
    made = tree.lab.machine("vm2")
    assert (made["moref"], made["snapshots"]) == (reference, [])
    assert tree.names() == there - {half} | {"vm2"}
    contents = tree.contents()
    assert (contents["vm2"], contents[aside]) == (contents["vm1"], old)
