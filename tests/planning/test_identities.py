"""Two machines that claim one identity: a problem with both names, nothing is backed up, what is there stays."""

from __future__ import annotations

import dataclasses

import planning_samples as samples
from hypothesis import given
from hypothesis import strategies as st

from reconciler.planning import actions, desired, identities, observed, planner

NOW, ago = samples.NOW, samples.ago
ORIGINAL = samples.guest("db1", "esx1", "ds1", id="vsphere:/500c", source="vsphere:lab/vm-1")
CLONE = samples.guest("db1-clone", "esx2", "ds1", id="vsphere:/500c", source="vsphere:lab/vm-2")
OTHER = samples.guest("web", "esx2", "ds1")


def estate() -> desired.Desired:
    """Two policies of one VCenter."""
    return samples.estate(
        samples.unit("fast"),
        samples.lifecycle("gold", samples.operation("land", "fast")),
        samples.vcenter("lab"),
        samples.virtual("gold"),
        samples.virtual("silver"),
    )


def seen(gold: tuple[observed.Machine, ...], silver: tuple[observed.Machine, ...] = ()) -> observed.Observed:
    """Inventories by policy; ``db1`` has one image under ``gold``."""
    made = samples.seen(
        estate(),
        samples.series(samples.image(1, ago(days=3)), client=ORIGINAL.id),
        clients={one.id: dataclasses.replace(samples.client(one.id), name=one.name) for one in (ORIGINAL, OTHER)},
    )
    found = {"gold": gold, "silver": silver}
    return dataclasses.replace(
        made, inventories={name: observed.Inventory(machines=one, seen=NOW) for name, one in found.items()}
    )


def backups(plan: actions.Plan) -> set[tuple[str | None, str | None]]:
    """Client id and policy of the backups in a plan."""
    return {(one.client_id, one.policy) for one in plan.actions if one.type is actions.Type.BACKUP}


def test_a_clone_beside_its_original_is_named_with_it_and_neither_is_backed_up() -> None:
    plan = planner.plan(estate(), seen((ORIGINAL, CLONE, OTHER)), NOW)
    (problem,) = plan.problems
    assert (problem.code, problem.object) == (identities.SAME, "BackupPolicy/gold")
    assert "db1 (vsphere:lab/vm-1), db1-clone (vsphere:lab/vm-2)" in problem.message
    assert problem.hint is not None and "images stay" in problem.hint
    assert backups(plan) == {(OTHER.id, "gold")}
    assert not any(one.type is actions.Type.EXPIRE for one in plan.actions)
    assert not any(one.code == "UnprotectedClient" for one in plan.drift)


def test_so_is_one_under_another_policy() -> None:
    plan = planner.plan(estate(), seen((ORIGINAL, OTHER), (CLONE,)), NOW)
    assert [(one.code, one.object) for one in plan.problems] == [
        (identities.SAME, "BackupPolicy/gold"),
        (identities.SAME, "BackupPolicy/silver"),
    ]
    assert all("db1-clone (vsphere:lab/vm-2)" in one.message for one in plan.problems)
    assert backups(plan) == {(OTHER.id, "gold")}


def test_one_machine_under_two_policies_is_one_machine() -> None:
    plan = planner.plan(estate(), seen((ORIGINAL,), (dataclasses.replace(ORIGINAL, name="renamed meanwhile"),)), NOW)
    assert plan.problems == ()
    assert backups(plan) == {(ORIGINAL.id, "gold"), (ORIGINAL.id, "silver")}


def test_what_a_source_showed_before_it_was_lost_is_not_held_against_another_one() -> None:
    """The machine may have moved to the other vCenter, and keeps its identity there."""
    state = seen((ORIGINAL,), (CLONE,))
    lost = dataclasses.replace(state.inventories["gold"], unreachable=("SourceError", "away"))
    state = dataclasses.replace(state, inventories={**state.inventories, "gold": lost})
    assert planner.plan(estate(), state, NOW).problems == ()


def test_a_policy_that_names_another_vcenter_goes_on_with_its_series() -> None:
    wanted = samples.estate(
        samples.unit("fast"),
        samples.lifecycle("gold", samples.operation("land", "fast")),
        samples.vcenter("lab"),
        samples.vcenter("new"),
        samples.virtual("gold", vcenter="new"),
    )
    moved = dataclasses.replace(ORIGINAL, source="vsphere:new/vm-77")
    state = dataclasses.replace(seen(()), inventories={"gold": observed.Inventory(machines=(moved,), seen=NOW)})
    (backup,) = (one for one in planner.plan(wanted, state, NOW).actions if one.state is actions.State.DUE)
    assert (backup.client_id, backup.backup_type, backup.parent) == (ORIGINAL.id, "Incremental", "img-1")


@given(
    gold=st.lists(st.sampled_from([ORIGINAL, CLONE, OTHER]), max_size=3, unique=True),
    silver=st.lists(st.sampled_from([ORIGINAL, CLONE, OTHER]), max_size=3, unique=True),
)
def test_no_backup_is_made_of_a_contested_identity_and_of_every_other_one_is(
    gold: list[observed.Machine], silver: list[observed.Machine]
) -> None:
    plan = planner.plan(estate(), seen(tuple(gold), tuple(silver)), NOW)
    contested = {ORIGINAL, CLONE} <= {*gold, *silver}
    matched = {(one.id, name) for name, found in (("gold", gold), ("silver", silver)) for one in found}
    assert backups(plan) == {pair for pair in matched if pair[0] == OTHER.id or not contested}
    told = {one.object for one in plan.problems}
    assert told == {f"BackupPolicy/{name}" for id, name in matched if contested and id == ORIGINAL.id}
