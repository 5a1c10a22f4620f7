"""Close looks at a world at rest: what must hold of any plan, asked one at a time because each costs several plans.

A ``Look`` gets the world, which it does not change, and a number to choose with.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable
from typing import Any

import edits
import planning_samples as samples
import witnesses
import worlds

from reconciler.planning import actions, desired, expiry, explanations, histories, observed, planner

Look = Callable[[worlds.World, int], None]
MOMENT = dt.timedelta(microseconds=1)
#: Codes of decisions in which a rule keeps a copy, rather than what depends on other copies.
_RULES = ("Fixed", "Keep", "Forever")


def order(world: worlds.World, pick: int) -> None:
    """The order in which facts arrive changes nothing."""
    world.pass_by(hours=25)
    try:
        again, facts = worlds.shuffled(world.wanted, world.observe(), pick)
        _equal(planner.plan(again, facts, world.now), world.plan())
    finally:
        world.pass_by(hours=-25)


def _equal(one: actions.Plan, other: actions.Plan) -> None:
    for field in dataclasses.fields(one):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, tuple):
            left, right = [x for x in left if x not in right], [x for x in right if x not in left]
        assert left == right, f"{field.name}: {left} {right}"
    assert one == other


def later(world: worlds.World, pick: int) -> None:
    """Time alone never takes a deletion back."""
    if not all(witnesses.calm(tuple(images), world.now) for images in world.images.values()):
        return
    seen = world.observe()
    for hours in (1.0, 30.0, 24.0 * (pick % 40)):
        released = _released(world.wanted, seen, world.now)
        then = _kept(world.wanted, seen, world.now + dt.timedelta(hours=hours))
        for place in released:
            assert then.get(place) not in _RULES, f"{place} was free to go, and is kept by {then[place]} later"


def longer(world: worlds.World, pick: int) -> None:
    """More retention of an operation loses no copy of it that less retention keeps."""
    item = world.wanted.lifecycles.get("gold")
    if item is None or world.plan().problems:
        return
    chosen = item.spec.operations[pick % len(item.spec.operations)]
    more = edits.retention(world.wanted, pick, _longer(chosen.retention.written(), pick))
    assert more is not None
    seen = world.observe()
    for hours in (0.0, 100.0):
        at = world.now + dt.timedelta(hours=hours)
        before, after = _kept(world.wanted, seen, at), _kept(more, seen, at)
        for place, code in before.items():
            if place[2] == chosen.name and code in _RULES:
                assert after.get(place) in (*_RULES, "OwesCopy"), (
                    f"{place}: {code} before, {after.get(place)} with more"
                )


def _longer(rule: dict[str, Any], pick: int) -> dict[str, Any]:
    if rule["type"] == "Keep":
        counts = ("last", "hourly", "daily", "weekly", "monthly", "quarterly", "yearly")
        return {**rule, **{name: rule[name] + 1 + pick % 3 for name in counts if rule.get(name)}}
    return {"type": "Fixed", "period": "8d"} if rule["type"] == "Fixed" and pick % 2 else {"type": "Forever"}


def apart(world: worlds.World, pick: int) -> None:
    """One more policy with a machine, a lifecycle and a unit of its own changes no action of the others."""
    if world.plan().problems:
        return
    number = pick % 4
    more = edits.put(
        world.wanted,
        samples.unit("apart"),
        samples.lifecycle("apart", samples.operation("land", "apart")),
        samples.policy("apart", {"name": "daily", "type": "Full", "every": "24h"}, lifecycle="apart", priority=number),
    )
    seen = world.observe()
    machine = samples.machine("diskimages:/srv/apart")
    inventories = {**seen.inventories, "apart": observed.Inventory(machines=(machine,), seen=world.now)}
    units = {**seen.units, "apart": observed.Unit(name="apart", state="Online", total_bytes=9, free_bytes=9)}
    other = planner.plan(more, dataclasses.replace(seen, inventories=inventories, units=units), world.now)
    mine = [one for one in other.actions if one.policy != "apart"]
    assert tuple(mine) == world.plan().actions


def explained(world: worlds.World, pick: int) -> None:
    """``explain`` says what is decided now, and what it names as the end is one."""
    seen = world.observe()
    every = [(series, image) for series in seen.series for image in series.images]
    if not every:
        return
    series, image = every[pick % len(every)]
    decided = {(d.image, d.copy): d for d in expiry.decisions(world.wanted, seen, world.now)}
    for copy, said in zip(
        image.copies, explanations.image(world.wanted, seen, series, image.id, world.now), strict=True
    ):
        if copy.state == "Expired":
            assert said.state == "Expired"
            continue
        found = decided[image.id, copy.number]
        assert (said.code, said.message) == (found.reason.code, found.reason.message)
        assert said.at is None or said.at >= world.now or said.state in ("Due", "Blocked"), said
        if said.state == "Kept" and said.code == "Fixed" and said.at is not None:
            _ends(world, seen, (image.id, copy.number), said)


def _ends(world: worlds.World, seen: observed.Observed, place: tuple[str, int], said: explanations.Sentence) -> None:
    assert said.at is not None
    before = _verdict(world.wanted, seen, said.at - MOMENT, place)
    assert before.state != "Due", f"{place} leaves before {said.at}: {before}"
    then = _verdict(world.wanted, seen, said.at, place)
    assert (then.state in ("Due", "Planned") or bool(then.after)) == (said.release == "it leaves then"), (said, then)


def spoken(world: worlds.World, pick: int) -> None:
    """Machines, policies and units are explained by the plan's own actions."""
    seen, plan = world.observe(), world.plan()
    decided = {one.address: (one.state.value, one.reason.code, one.reason.message) for one in plan.actions}
    effective = world.effective()
    said = [explanations.policy(world.wanted, seen, plan, name, world.now) for name in sorted(effective.policies)]
    said += [explanations.unit(world.wanted, seen, plan, name) for name in sorted(effective.units)]
    for client in seen.clients.values():
        mine = [series for series in seen.series if series.client == client.id]
        said.append(explanations.client(world.wanted, seen, plan, client.slug, mine, world.now))
    for one in (sentence for sentences in said for sentence in sentences):
        assert one.code and one.message
        if one.about in decided:
            assert (one.state, one.code, one.message) == decided[one.about]


def _verdicts(wanted: desired.Desired, seen: observed.Observed, at: dt.datetime) -> list[expiry.Verdict]:
    judge = expiry.Judge(worlds.configuration.effective(wanted, seen.applied), seen, at)
    followed = worlds.configuration.renames(judge.wanted).follow(seen.series)
    return [one for series in followed for one in judge.verdicts(histories.History(series, at), everything=True)]


def _verdict(
    wanted: desired.Desired, seen: observed.Observed, at: dt.datetime, place: tuple[str, int]
) -> expiry.Verdict:
    return next(one for one in _verdicts(wanted, seen, at) if (one.image.id, one.copy.number) == place)


def _kept(wanted: desired.Desired, seen: observed.Observed, at: dt.datetime) -> dict[tuple[str, int, str], str]:
    """What is decided about each copy: its code where it is kept, ``gone`` where it may go."""
    return {
        (one.image.id, one.copy.number, one.copy.operation): "gone" if one.state in ("Due", "Planned") else one.code
        for one in _verdicts(wanted, seen, at)
    }


def _released(wanted: desired.Desired, seen: observed.Observed, at: dt.datetime) -> set[tuple[str, int, str]]:
    return {place for place, code in _kept(wanted, seen, at).items() if code == "gone"}


LOOKS: tuple[Look, ...] = (order, later, longer, apart, explained, spoken)
