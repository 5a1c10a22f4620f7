"""What an attempt at a restore into a vCenter finds of the ones before it, and what it makes of it."""

from __future__ import annotations

import pytest
from vm_restores import IMAGE, NOW, UUID, World

from reconciler.base import errors
from reconciler.sources import machinetargets, opening


def test_what_could_not_be_removed_is_swept_while_its_process_lives(world: World) -> None:
    for on in ("RemoveSnapshot_Task", "Destroy_Task"):
        world.lab.fault(on=on, kind="task", fault="InsufficientResourcesFault")
    with pytest.raises(errors.HoldfastError, match="removing the snapshot"):
        world.restore(via="datastore", name="back")
    assert len(world.halfmade()) == 1
    target = world.restore(via="datastore", name="back")
    assert any("half-made by a dead restore, was removed" in note for note in target.notes)
    assert world.names() == ["back", "vm1"]


def test_an_order_takes_up_what_it_had_named_until_it_is_released(world: World) -> None:
    world.restore(name="back", order="x")
    calls = world.lab.state()["calls"]
    target = world.restore(name="back", order="x", replace=True)
    assert target.found == "Named" and world.names() == ["back", "vm1"]
    now = world.lab.state()["calls"]
    assert not [name for name in now if name in ("ImportVApp", "CreateSnapshot_Task") and now[name] != calls[name]]
    with pytest.raises(errors.TargetError, match=f"holds image {IMAGE}, not another"):
        wanted = machinetargets.Wanted(image="another", disks={}, name="back", order="x", replace=True)
        opening.machine_target(world.vcenter, world.label.configuration, wanted, NOW)
    for order in ("y", None):
        with pytest.raises(errors.TargetExists):
            world.plan(name="back", order=order)
    target.release()
    assert "holdfast.restore" not in {one.key for one in world.config("back").extraConfig if one.value}
    with pytest.raises(errors.TargetExists):
        world.plan(name="back", order="x")


def test_a_naming_whose_answer_is_lost_is_waited_for(world: World) -> None:
    world.lab.mode(taskMillis=300)
    world.lab.fault(on="ReconfigVM_Task", kind="reset", skip=3)
    world.restore(replace=True)
    world.prove("vm1")
    (aside,) = (name for name in world.names() if name.startswith("vm1.replaced-"))
    assert (world.lab.machine("vm1")["instanceUuid"], world.lab.machine(aside)["powerState"]) == (
        f"{UUID}1", "poweredOff",
    )  # fmt: skip
