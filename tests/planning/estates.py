"""Random estates and random histories for the property tests."""

from __future__ import annotations

from typing import Any

import planning_samples as samples
from hypothesis import strategies as st

from reconciler.api import models
from reconciler.planning import desired

SCHEDULES: tuple[tuple[dict[str, Any], ...], ...] = (
    ({"name": "daily", "type": "Incremental", "every": "24h", "fullEvery": "3d"},),
    ({"name": "full", "type": "Full", "every": "12h"},),
    (
        {"name": "weekly", "type": "Full", "cron": "0 21 * * Sat"},
        {"name": "nightly", "type": "Incremental", "cron": "0 21 * * Sun-Fri", "timeZone": "Europe/Berlin"},
    ),
    (
        {"name": "full", "type": "Full", "every": "3d", "initialBackup": "NextSlot", "window": "night"},
        {"name": "middle", "type": "Cumulative", "every": "1d"},
        {"name": "small", "type": "Incremental", "every": "6h", "catchUp": "None"},
    ),
    ({"name": "daily", "type": "Incremental", "cron": "30 2 * * *", "fullEvery": "2d", "startingDeadline": "4h"},),
    (
        {"name": "weekly", "type": "Full", "every": "7d", "window": "strict"},
        {"name": "daily", "type": "Incremental", "every": "1d", "window": "strict"},
    ),
)
RETENTIONS: tuple[dict[str, Any], ...] = (
    {"type": "Fixed", "period": "1d"},
    {"type": "Fixed", "period": "4d"},
    {"type": "Keep", "last": 2},
    {"type": "Keep", "daily": 3, "weekly": 2, "prefer": "Full"},
    {"type": "Keep", "within": "2d", "keepOldest": True, "monthly": 2},
    {"type": "Keep", "withinDaily": "5d", "hourly": 4, "timeZone": "Europe/Berlin"},
    {"type": "ExpireAfterCopy"},
    {"type": "CapacityManaged"},
    {"type": "Forever"},
)
#: Proofs that are asked for: mostly none.
PROOFS: tuple[dict[str, Any], ...] = (
    {}, {}, {}, {"content": "2d"}, {"boot": "3d"}, {"content": "1mo", "files": "12h", "boot": "7d"}
)  # fmt: skip
STORAGES = ("fast", "deep", "far", "spread", "failover")
UNITS = ("fast", "deep", "far", "near")
#: Edits of a unit's manifest.
UNIT_CHANGES: tuple[dict[str, Any], ...] = (
    {"state": "Active", "maxConcurrentJobs": 4},
    {"state": "Active", "maxConcurrentJobs": 2},
    {"state": "ReadOnly"},
    {"state": "Draining"},
    {"maxConcurrentJobs": 0},
    {"immutability": {"period": "3d"}},
    {"grace": "2d"},
    {"grace": None},
    {"immutability": None},
    {"highWaterMark": "50%", "lowWaterMark": "30%"},
    {"failureDomain": "one"},
)


@st.composite
def operations(draw: st.DrawFn) -> dict[str, Any]:
    """A duplication without name and source."""
    more: dict[str, Any] = {}
    if draw(st.booleans()):
        more["existing"] = "Backfill"
    if draw(st.integers(0, 4)) == 0:
        more["window"] = draw(st.sampled_from(("night", "strict")))
    if draw(st.integers(0, 4)) == 0:
        more["schedules"] = ["full", "weekly", "daily"]
    return {"storage": draw(st.sampled_from(STORAGES)), "retention": draw(st.sampled_from(RETENTIONS)), **more}


@st.composite
def lifecycles(draw: st.DrawFn) -> models.Object:
    """One backup and up to three duplications, in a chain or fanned out."""
    retention = st.sampled_from(RETENTIONS)
    tree = [samples.operation("land", draw(st.sampled_from(("fast", "deep", "spread"))), None, draw(retention))]
    for index in range(draw(st.integers(0, 3))):
        source = draw(st.sampled_from([one["name"] for one in tree]))
        tree.append({"name": f"copy-{index}", "type": "Duplication", "source": source, **draw(operations())})
    for one in tree:
        verify = draw(st.sampled_from(PROOFS))
        if verify:
            one["verify"] = verify
    return samples.lifecycle("gold", *tree)


@st.composite
def units(draw: st.DrawFn) -> list[models.Object]:
    """Four units and two groups over them; limits, locks and states vary."""
    result: list[models.Object] = []
    for name in ("fast", "deep", "far", "near"):
        spec: dict[str, Any] = {"maxConcurrentJobs": draw(st.sampled_from((1, 2, 4)))}
        if draw(st.integers(0, 5)) == 0:
            spec["immutability"] = {"period": "2d"}
        if draw(st.integers(0, 5)) == 0:
            spec["grace"] = "36h"
        if draw(st.integers(0, 9)) == 0:
            spec["state"] = draw(st.sampled_from(("ReadOnly", "Draining")))
        result.append(samples.pool(name, **spec) if draw(st.booleans()) else samples.unit(name, **spec))
    selection = draw(st.sampled_from(("Prioritized", "RoundRobin", "LoadBalance")))
    result.append(samples.group("spread", selection, "near", "fast"))
    result.append(samples.group("failover", "Failover", "far", "near"))
    return result


@st.composite
def policies(draw: st.DrawFn) -> list[models.Object]:
    """One or two policies over the same lifecycle."""
    result = []
    for name in ("gold", "silver")[: draw(st.integers(1, 2))]:
        spec: dict[str, Any] = {"retries": {"count": draw(st.integers(0, 2))}}
        if draw(st.booleans()):
            spec["limits"] = {"maxConcurrentJobs": 1}
        made = samples.policy(name, *draw(st.sampled_from(SCHEDULES)), **spec)
        metadata = made.metadata.model_copy(update={"labels": {"tier": name}})
        result.append(made.model_copy(update={"metadata": metadata}))
    return result


@st.composite
def service_levels(draw: st.DrawFn) -> models.Object:
    """A promise about one of the policies, or both."""
    spec: dict[str, Any] = {"selector": {"matchLabels": {"tier": draw(st.sampled_from(("gold", "silver")))}}}
    spec["rpo"] = draw(st.sampled_from(("26h", "3d")))
    if draw(st.booleans()):
        spec["verified"] = draw(st.sampled_from(PROOFS[3:]))
    if draw(st.booleans()):
        spec |= {"copies": 2, "failureDomains": 2, "copyWithin": "12h"}
    return samples.make("ServiceLevel", draw(st.sampled_from(("low", "high"))), spec)


@st.composite
def restores(draw: st.DrawFn) -> models.Object:
    """A restore of one of the machines."""
    spec: dict[str, Any] = {"client": draw(st.sampled_from(("oblVM1", "oblVM1", "oblVM2", "nobody")))}
    chosen = draw(st.integers(0, 5))
    if chosen == 0:
        spec["image"] = f"img-{draw(st.integers(1, 9))}"
    elif chosen == 1:
        spec["asOf"] = f"2026-11-{draw(st.integers(20, 28))}T00:00:00Z"
    spec["target"] = {"folder": draw(st.sampled_from(("/srv/a", "/srv/b")))}
    return samples.make("Restore", draw(st.sampled_from(("drill", "other"))), spec)


def windows() -> list[models.Object]:
    """A nightly window, and one of weekday evenings that ends what runs and has a hole."""
    hole = [{"days": ["Wed"], "start": "22:00", "duration": "1h"}]
    week = ("Mon", "Tue", "Wed", "Thu", "Fri")
    return [
        samples.window("night", "20:00", "10h"),
        samples.window("strict", "21:00", "3h", week, overrun="Stop", deny=hole, timeZone="Europe/Berlin"),
    ]


@st.composite
def estates(draw: st.DrawFn) -> desired.Desired:
    """A whole estate."""
    objects = [*draw(units()), draw(lifecycles()), *draw(policies()), *windows()]
    if draw(st.integers(0, 4)) == 0:
        reach = ["fast", "deep", "far", "near"][: draw(st.integers(2, 4))]
        objects.append(samples.make("MediaServer", "ms1", {"storageUnits": reach, "maxConcurrentJobs": 2}))
    if draw(st.booleans()):
        objects += [draw(restores()), draw(service_levels())]
    revision = draw(st.integers(1, 9))
    return samples.estate(*objects, revision=f"dir@blake3:{revision}")


#: Steps in the life of a world: a word and its arguments.
STEPS = st.one_of(
    st.tuples(st.just("pass"), st.sampled_from((0.02, 0.5, 3.0, 11.0, 24.0, 24.0, 60.0, 240.0))),
    st.tuples(st.just("back"), st.sampled_from((0.5, 30.0))),
    st.tuples(st.just("lifecycle"), lifecycles()),
    st.tuples(st.just("policies"), policies()),
    st.tuples(st.just("orphan"), st.sampled_from(("gold", "silver"))),
    st.tuples(st.just("outage"), st.sampled_from(("fast", "deep", "far", "near"))),
    st.tuples(st.just("return"), st.sampled_from(("fast", "deep", "far", "near"))),
    st.tuples(st.just("damage"), st.tuples(st.integers(0, 30), st.sampled_from(("Damaged", "Lost")))),
    st.tuples(st.just("request"), st.integers(0, 1)),
    st.tuples(
        st.just("trouble"),
        st.lists(st.sampled_from(("Failed", "Lost", "Partial", "Cancelled", "Succeeded")), max_size=12),
    ),
)
