"""Restores of the manifests: each is made once per digest of what it says, from the best image there is."""

from __future__ import annotations

from typing import Any

import hypothesis
import planning_samples as samples
import pytest
from hypothesis import strategies as st

from reconciler.base import times
from reconciler.planning import actions, alarms, desired, explanations, observed, planner, restorations

NOW, ago = samples.NOW, samples.ago


def restore(**spec: Any) -> Any:
    return samples.make("Restore", "drill", {"client": "oblVM1", "target": {"folder": "/srv/out"}, **spec})


def images() -> observed.Series:
    copies = (samples.copy(), samples.copy(2, "dedupe", "deep"))
    return samples.series(*(samples.image(n, ago(days=3 - n), *copies) for n in (1, 2, 3)))


def plan(item: Any, **more: Any) -> tuple[actions.Plan, actions.Action | None]:
    wanted = samples.small(item)
    made = planner.plan(wanted, samples.seen(wanted, more.pop("series", images()), **more), NOW)
    return made, next((one for one in made.actions if one.type is actions.Type.RESTORE), None)


def test_it_is_due_from_the_newest_image_and_the_fast_unit() -> None:
    item = restore()
    _, found = plan(item)
    assert found is not None
    assert found.address == restorations.address("drill", restorations.digest(item))
    assert (found.state, found.image, found.copy, found.source_unit, found.client) == (
        actions.State.DUE, "img-3", 1, "fast", "oblvm1",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "image", "copy"),
    [
        ({"asOf": "2026-11-22T21:00:00Z"}, "img-2", 1),
        ({"image": "img-1"}, "img-1", 1),
        ({"image": "img-1", "copy": 2}, "img-1", 2),
    ],
)
def test_the_image_is_the_one_that_is_asked_for(spec: dict[str, Any], image: str, copy: int) -> None:
    _, found = plan(restore(**spec))
    assert found is not None and (found.image, found.copy, found.state) == (image, copy, actions.State.DUE)


@pytest.mark.parametrize(
    ("spec", "code", "said"),
    [
        ({"client": "nobody"}, "ClientUnknown", "no client is named nobody"),
        ({"image": "img-9"}, "NoImage", "image img-9"),
        ({"asOf": "2026-01-01T00:00:00Z"}, "NoImage", "no complete image at or before"),
        ({"image": "img-1", "copy": 7}, "NoImage", "copy 7 of image img-1"),
    ],
)
def test_what_cannot_be_found_is_blocked_with_the_reason(spec: dict[str, Any], code: str, said: str) -> None:
    _, found = plan(restore(**spec))
    assert found is not None and found.state is actions.State.BLOCKED
    assert found.reason.code == code and said in found.reason.message


def test_a_unit_that_is_away_is_the_reason() -> None:
    away = {
        name: observed.Unit(name=name, state="Offline", message=f"{name} is unplugged") for name in ("fast", "deep")
    }
    _, found = plan(restore(), units=away)
    assert found is not None and found.state is actions.State.BLOCKED
    assert "image img-3: unit fast is offline: fast is unplugged" in found.reason.message


def test_what_a_clock_that_was_ahead_made_is_not_the_newest() -> None:
    copies = (samples.copy(), samples.copy(2, "dedupe", "deep"))
    times = (ago(days=3), ago(days=-365), ago(days=1))
    series = samples.series(*(samples.image(n, time, *copies) for n, time in enumerate(times, 1)))
    _, found = plan(restore(), series=series)
    assert found is not None and found.image == "img-3"
    _, found = plan(restore(), series=samples.series(*series.images[:2]))
    assert found is not None and found.image == "img-2", "what was made last is the newest, whatever its time"


def test_a_name_that_two_clients_have_is_asked_about() -> None:
    other = observed.Client(id="x", slug="oblvm1-2", name="oblVM1", source="/x", first_seen=ago(days=9))
    clients = {samples.CLIENT: samples.client(), "x": other}
    _, found = plan(restore(), clients=clients)
    assert found is not None and found.reason.code == "ClientUnknown"
    assert "2 clients are named oblVM1" in found.reason.message and "oblvm1, oblvm1-2" in found.reason.message
    _, found = plan(restore(client="oblvm1"), clients=clients)
    assert found is not None and found.image == "img-3"


@pytest.mark.parametrize(("state", "due"), [("Verified", False), ("Failed", True), ("Running", True)])
def test_it_converges_once_per_digest(state: str, due: bool) -> None:
    item = restore()
    record = observed.Restoring(name="drill", digest=restorations.digest(item), state=state, at=ago(days=1))
    made, found = plan(item, restores=(record,))
    assert (found is not None) == due
    assert made.changes is any(one.state is actions.State.DUE for one in made.actions)
    _, changed = plan(restore(format="qcow2"), restores=(record,))
    assert changed is not None and changed.state is actions.State.DUE


def test_one_that_goes_back_to_what_was_made_says_when() -> None:
    item = restore()
    record = observed.Restoring(name="drill", digest=restorations.digest(item), state="Verified", at=ago(days=1))
    for before, said in ((None, True), (restore(format="qcow2"), True), (item, False)):
        applied = {} if before is None else {item.key: observed.Applied(object=before, since=ago(days=2))}
        made, _ = plan(item, restores=(record,), applied=applied)
        assert ("RestoreMade" in {one.code for one in made.drift}) == said
        assert not said or times.show(record.at) in made.drift[0].message


def test_one_that_was_killed_goes_on_from_the_image_that_it_read() -> None:
    item = restore()
    for state, image, expected in (
        ("Running", "img-1", "img-1"),
        ("Running", "gone", "img-3"),
        ("Failed", "img-1", "img-3"),
    ):
        record = observed.Restoring(
            name="drill", digest=restorations.digest(item), state=state, at=ago(days=1), image=image
        )
        _, found = plan(item, restores=(record,))
        assert found is not None and found.image == expected


def test_a_machine_is_restored_to_where_the_plan_says() -> None:
    vmware = {"vcenter": "vc1", "name": "back", "replace": True}
    _, found = plan(restore(target={"vmware": vmware}))
    assert found is not None and found.reason.message.endswith(
        "to VCenter vc1 as back, in place of the one that is there"
    )


def test_the_digest_is_about_what_is_said_and_stays_what_it_was() -> None:
    said = restorations.digest(restore())
    # Written down here: a version that knows more settings must come to the same.
    assert said == "blake3:eea1dc9090c52c9094fe78fd78ca74719e7958780468a910e1009f92013d26a8"
    assert restorations.digest(restore(format="raw", overwrite=False, disks=[])) == said
    moment = restorations.digest(restore(asOf="2026-11-22T21:00:00Z"))
    assert restorations.digest(restore(asOf="2026-11-22T22:00:00+01:00")) == moment != said
    assert restorations.digest(restore(overwrite=True)) not in (said, moment)


def test_a_failed_one_waits_and_is_tried_again() -> None:
    item = restore()
    attempts = observed.Attempts(failed=1, lost=0, last_finished=NOW, last_state="Failed", message="no space")
    place = restorations.address("drill", restorations.digest(item))
    made, found = plan(item, attempts={place: attempts})
    assert found is not None and (found.state, found.attempt) == (actions.State.WAITING, 2)
    assert "no space" in found.reason.message
    # Somebody waits for it: whoever hears alarms hears of it.
    wanted = samples.small(item)
    (alarm,) = alarms.alarms(made, wanted, samples.seen(wanted, images()))
    assert alarm.key == "RestoreFailing/drill" and "no space" in alarm.message
    lost = observed.Attempts(failed=1, lost=1, last_finished=NOW, last_state="Lost", message="killed")
    assert not [one for one in plan(item, attempts={place: lost})[0].drift if one.code == "RestoreFailing"]


@pytest.mark.parametrize(
    ("running", "state"),
    [
        ("restore/drill@0123456789ab", actions.State.WAITING),
        ("restore/drills@0123456789ab", actions.State.DUE),
        ("restore/drill@2026-11-23T10:00:00Z", actions.State.DUE),
    ],
)
def test_what_was_asked_for_before_ends_first_or_it_would_be_what_stays(running: str, state: actions.State) -> None:
    job = observed.Job(id="j-1", address=running, type="Restore", state="Running", client=samples.CLIENT)
    _, found = plan(restore(overwrite=True), jobs=(job,))
    assert found is not None and found.state is state


def test_the_copy_it_will_read_does_not_leave_before() -> None:
    old = samples.series(
        *(samples.image(n, ago(days=30 - n), samples.copy(created_at=ago(days=30 - n))) for n in range(1, 6))
    )
    wanted = samples.estate(
        samples.unit("fast"), samples.lifecycle("gold", samples.operation("land", "fast")), samples.policy("gold"),
        restore(image="img-1"),
    )  # fmt: skip
    made = planner.plan(wanted, samples.seen(wanted, old), NOW)
    leaving = [one for one in made.actions if one.type is actions.Type.EXPIRE and one.state is actions.State.DUE]
    assert [one.image for one in leaving] == ["img-2"]
    (kept,) = [one for one in made.actions if one.address == "expire/img-1/1"]
    (told,) = explanations.image(wanted, samples.seen(wanted, old), old, "img-1", NOW, made)
    assert kept.at is None and "needs it first" in kept.reason.message
    assert (told.state, told.message) == ("Waiting", kept.reason.message)
    without = desired.gather(wanted.revision, [one for one in wanted.objects() if one.kind != "Restore"])
    made = planner.plan(without, samples.seen(without, old), NOW)
    due = [one for one in made.actions if one.state is actions.State.DUE]
    assert [one.image for one in due if one.type is actions.Type.EXPIRE] == ["img-1", "img-2"]


def test_a_manifest_that_goes_undoes_and_asks_nothing() -> None:
    wanted = samples.small()
    seen = samples.seen(samples.small(restore()), images())
    made = planner.plan(wanted, seen, NOW)
    assert not any(one.type is actions.Type.RESTORE for one in made.actions)
    assert [(one.change, one.kind) for one in made.configuration] == [("Orphan", "Restore")]
    item = restore()
    record = observed.Restoring(name="drill", digest=restorations.digest(item), state="Verified", at=ago(days=1))
    gone = {item.key: observed.Applied(object=item, since=ago(days=2), orphaned=True)}
    made = planner.plan(wanted, samples.seen(wanted, images(), restores=(record,), applied=gone), NOW)
    assert "RestoreMade" not in {one.code for one in made.drift}


# -- which image is the best --------------------------------------------------------------------------------------------


def failed(image: str, kind: str = "Boot", state: str = "Failed") -> observed.Verification:
    return observed.Verification(image=image, copy=1, kind=kind, state=state, at=ago(hours=1), message="no prompt")


@pytest.mark.parametrize(
    ("bad", "spec", "image", "words"),
    [
        ((), {}, "img-3", ""),
        ((3,), {}, "img-2", "is newer: its Boot failed"),
        ((2, 3), {}, "img-1", "image: img-3 takes it all the same"),
        ((2,), {}, "img-3", ""),
        ((1, 2, 3), {}, "img-3", "every image that can be restored is damaged or failed a drill; this one is img-3"),
        ((3,), {"image": "img-3"}, "img-3", ""),
        ((2,), {"asOf": "2026-11-22T21:00:00Z"}, "img-1", "img-2"),
    ],
)
def test_an_image_that_failed_a_drill_is_passed_over(
    bad: tuple[int, ...], spec: dict[str, Any], image: str, words: str
) -> None:
    found = {f"img-{n}": (failed(f"img-{n}"),) for n in bad}
    _, action = plan(restore(**spec), verifications=found)
    assert action is not None and (action.image, action.state) == (image, actions.State.DUE)
    told = action.reason.message.partition("; ")[2]
    assert words in told if words else not told


def test_a_later_drill_that_passed_makes_it_good_again() -> None:
    again = failed("img-3", state="Passed")._replace(at=NOW)
    _, action = plan(restore(), verifications={"img-3": (failed("img-3"), again)})
    assert action is not None and action.image == "img-3"


_IMAGE = st.tuples(st.sampled_from(["Complete", "Damaged", "Lost"]), st.booleans(), st.booleans(), st.booleans())


@hypothesis.given(st.lists(_IMAGE, min_size=1, max_size=7))
def test_the_best_image_is_whole_and_proven_then_whole_then_what_there_is(drawn: list[Any]) -> None:
    made, found, wrong = [], {}, []
    for number, (copy, complete, bad, ordered) in enumerate(drawn, 1):
        state = "Complete" if complete else "Partial"
        made.append(samples.image(number, ago(days=9 - number), samples.copy(state=copy), state=state))
        if bad:
            found[f"img-{number}"] = (failed(f"img-{number}"),)
        if ordered:
            wrong.append(observed.Ruling(kind="Expire", object=f"img-{number}", by="ann", at=NOW, reason="wrong"))
    _, action = plan(restore(), series=samples.series(*made), verifications=found, rulings=tuple(wrong))
    readable = [
        (n, copy == "Complete", not bad, not ordered)
        for n, (copy, complete, bad, ordered) in enumerate(drawn, 1)
        if complete and copy != "Lost"
    ]
    for trusted in (True, False):
        for wanted in ((True, True), (True, False), (False, True), (False, False)):
            fitting = [n for n, *rest in readable if rest == [*wanted, trusted]]
            if fitting:
                assert action is not None and action.image == f"img-{fitting[-1]}"
                return
    assert action is not None and action.state is actions.State.BLOCKED
