"""Saved plans: what the file holds beside the plan, whether it is as it was written, and which facts have moved since.

Pure: the caller reads and writes the file. ``planfile.compare`` says whether a plan is stale; the facts here say why,
in terms of what moved. What was due and has been done since moves facts too, so facts alone make nothing stale.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pydantic

from reconciler.api.documents import plans, saved
from reconciler.base import digests, errors, times
from reconciler.planning import actions, desired, observed

#: The format that is written, and the newest one that is read.
_FORMAT: Final = (1, 0)
#: How long a saved plan can be applied.
VALID: Final = dt.timedelta(days=7)
#: Addresses that are named before the rest is counted.
_NAMED: Final = 5
_SECRET: Final = re.compile(r"(?<=://)([^/@:]*):[^/@]*@")
_SECRET_WORD: Final = re.compile(r"(?i)([?&](?:ssl)?password=)[^&]*")


def without_secret(location: str) -> str:
    """A catalog's address without its password."""
    if "://" not in location:
        return location
    return _SECRET_WORD.sub(r"\1", _SECRET.sub(r"\1@", location))


def save(body: plans.Plan, facts: saved.Facts, *, estate: str, state: str, catalog: str) -> str:
    """The text of the file."""
    value = {
        **body.to_json(),
        "expiresAt": times.show(times.aware(body.now) + VALID),
        "estate": estate,
        "state": state,
        "catalog": without_secret(catalog),
        "facts": facts.to_json(),
    }
    return json.dumps({**value, "seal": _seal(value)}, indent=2, ensure_ascii=False) + "\n"


def _seal(value: Mapping[str, Any]) -> str:
    return digests.json_digest({key: one for key, one in value.items() if key != "seal"})


def read(text: str, now: dt.datetime) -> saved.SavedPlan:
    """Read a saved plan back.

    Raises ``UsageError`` for what is no plan, ``FormatTooNew`` for a format that this version does not know whole,
    ``StalePlan`` where the text is not what was written, or its time is over.
    """
    try:
        value: Any = json.loads(text)
    except ValueError as error:
        raise errors.UsageError(f"this is not a saved plan: {error}") from error
    if not isinstance(value, dict) or value.get("kind") != "Plan":
        raise errors.UsageError("this is not a saved plan: its kind is not Plan", hint="plan --out FILE saves one")
    _require_known(str(value.get("formatVersion", "")))
    if value.get("seal") != _seal(value):
        raise errors.StalePlan("the saved plan was edited: it does not match its seal", hint="make it again")
    try:
        body = saved.SavedPlan.model_validate(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise errors.UsageError(f"this is not a whole plan: {where}: {first['msg']}") from error
    if times.aware(body.expires_at) < now:
        raise errors.StalePlan(
            f"the saved plan could be applied until {times.show_minutes(times.aware(body.expires_at))}",
            hint="plan again, and review what is new",
        )
    return body


def _require_known(version: str) -> None:
    match = re.fullmatch(r"(\d{1,6})\.(\d{1,6})", version)
    if match is None:
        raise errors.UsageError(f"this is not a saved plan: its formatVersion is {version or 'missing'}")
    # A newer minor format adds keys that somebody agreed to and this version would pass over.
    if (int(match[1]), int(match[2])) > _FORMAT:
        raise errors.FormatTooNew(
            f"the plan has format {version}; this version applies up to {_FORMAT[0]}.{_FORMAT[1]}",
            hint="apply it with the version that made it, or make it again with this one",
        )


def since(body: plans.Plan, now: dt.datetime) -> Iterator[str]:
    """What time alone has changed since a plan was made, in words: no reason to refuse it."""
    made = times.aware(body.now)
    fell = [
        one.address
        for one in body.actions
        if one.state in ("Planned", "Waiting") and one.at is not None and made < times.aware(one.at) <= now
    ]
    if fell:
        rest = f" and {len(fell) - _NAMED} more" if len(fell) > _NAMED else ""
        yield f"fell due since the plan was made, and is done too: {', '.join(fell[:_NAMED])}{rest}"
    kept = [
        one
        for one in body.destruction.items
        if one.expires_before is not None and made < times.aware(one.expires_before) <= now
    ]
    if kept:
        yield f"of its destructive part {len(kept)} copies have had their promise kept since, and go without approval"


# -- facts -------------------------------------------------------------------------------------------------------------


def facts(
    plan: actions.Plan, wanted: desired.Desired, seen: observed.Observed, *, also: saved.Facts | None = None
) -> saved.Facts:
    """What due and destructive actions of a plan were decided from, and what ``also`` speaks of; reads the series once
    more."""
    touched = [one for one in plan.actions if one.state is actions.State.DUE]
    units = {unit for one in touched for unit in (one.unit, one.source_unit, *one.candidates) if unit is not None}
    units |= {item.unit for item in plan.destruction.items}
    keys = {(one.client_id, one.policy) for one in touched if one.client_id is not None and one.policy is not None}
    if also is not None:
        units |= {unit.name for unit in also.units}
        ids = {client.slug: id for id, client in seen.clients.items()}
        keys |= {(ids.get(one.client, one.client), one.policy) for one in also.series}
    images = {item.image for item in plan.destruction.items}
    return saved.Facts(
        configuration=digests.json_digest(
            [[item.object.written(), item.orphaned] for _, item in sorted(seen.applied.items())]
        ),
        approvals=digests.json_digest(_approvals(wanted, seen)),
        exceptions=digests.json_digest(_exceptions(seen)),
        units=tuple(_unit(name, seen.units.get(name)) for name in sorted(units)),
        series=tuple(_series(one, seen) for one in seen.series if _concerns(one, keys, images)),
    )


def _concerns(series: observed.Series, keys: set[tuple[str, str]], images: set[str]) -> bool:
    if (series.client, series.policy) in keys:
        return True
    return bool(images) and any(image.id in images for image in series.images)


def _approvals(wanted: desired.Desired, seen: observed.Observed) -> list[list[object]]:
    written: list[list[object]] = [[name, item.written()] for name, item in sorted(wanted.approvals.items())]
    given: list[list[object]] = [[one.digest, one.copies, one.by, times.show(one.until)] for one in seen.approvals]
    ended: list[list[object]] = [
        [one.lifecycle, one.operation, one.before, one.client, one.up_to, one.digest] for one in seen.releases
    ]
    return [*written, *sorted(given, key=str), *sorted(ended, key=str)]


def _exceptions(seen: observed.Observed) -> list[list[object]]:
    holds: list[list[object]] = [
        [one.name, sorted(one.clients), sorted(one.images), _moment(one.since), _moment(one.until)]
        for one in seen.holds
    ]
    rulings: list[list[object]] = [[one.kind, one.object, one.by] for one in seen.rulings]
    return [*sorted(holds, key=str), *sorted(rulings, key=str)]


def _moment(value: dt.datetime | None) -> str | None:
    return times.show(value) if value is not None else None


def _unit(name: str, unit: observed.Unit | None) -> saved.UnitFact:
    if unit is None:
        return saved.UnitFact(name=name, id=None, state="Unknown")
    return saved.UnitFact(name=name, id=unit.id, state=unit.state)


def _series(series: observed.Series, seen: observed.Observed) -> saved.SeriesFact:
    client = seen.clients.get(series.client)
    rows = [
        [image.id, image.state, [[copy.number, copy.unit, copy.state] for copy in image.copies]]
        for image in series.images
    ]
    return saved.SeriesFact(
        client=client.slug if client is not None else series.client,
        policy=series.policy,
        images=len(rows),
        newest=series.images[-1].id if series.images else None,
        digest=digests.json_digest(rows),
    )


def moved(before: saved.Facts, after: saved.Facts) -> Iterator[str]:
    """What moved between two readings of the facts, in words."""
    if before.configuration != after.configuration:
        yield "another configuration is in force"
    if before.approvals != after.approvals:
        yield "approvals were given, used or withdrawn"
    if before.exceptions != after.exceptions:
        yield "holds or rulings were made or ended"
    units = {one.name: one for one in after.units}
    for unit in before.units:
        now = units.get(unit.name)
        if now is None:
            continue
        if unit.id is not None and now.id is not None and unit.id != now.id:
            yield f"unit {unit.name} is another unit now"
        if unit.state != now.state:
            yield f"unit {unit.name} is {now.state.lower()} now"
    yield from _moved_series(before, after)


def _moved_series(before: saved.Facts, after: saved.Facts) -> Iterator[str]:
    series = {(one.policy, one.client): one for one in before.series}
    for now in after.series:
        was = series.pop((now.policy, now.client), None)
        name = f"series {now.policy}/{now.client}"
        if was is None:
            yield f"{name} has {now.images} images that the plan did not touch"
        elif was.newest != now.newest:
            yield f"{name} has a new image {now.newest}"
        elif was.images != now.images:
            yield f"{name} has {now.images} images, it had {was.images}"
        elif was.digest != now.digest:
            yield f"copies of {name} have changed"
