"""What no world may do, judged from the bare facts by rules that are written here once more, plainly.

``deletion`` sees each copy at the moment at which its going is decided, ``violations`` the world after any step. They
share nothing with the code under test but the values: promises are remembered by what each revision of a lifecycle
said (``Era``), Keep is counted bucket by bucket, chains are followed copy by copy.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from zoneinfo import ZoneInfo

from reconciler.api import lifecycles
from reconciler.planning import desired, observed

if TYPE_CHECKING:
    import worlds

Spec = lifecycles.StorageLifecyclePolicySpec
#: A series older than this is overdue whatever its schedules: the longest gap in any estate is a week.
OVERDUE = dt.timedelta(days=15)
_TANGIBLE = ("Complete", "Damaged", "Writing", "Expiring")
_NOTHING_PROMISED = ("ExpireAfterCopy", "CapacityManaged")


class Era(NamedTuple):
    """What a lifecycle said, for images with sequence numbers above ``after``."""

    after: int
    spec: Spec


class Consented(NamedTuple):
    """What was approved of a client's copies: those of images up to a sequence number, promised in earlier eras."""

    up_to: int
    #: How many eras had ended then; what was promised since, or is promised again, stands.
    eras: int


class Lawful(NamedTuple):
    """What a legal hold keeps: images of clients with times in a span, and single images."""

    clients: frozenset[str]
    images: frozenset[str]
    since: dt.datetime | None
    until: dt.datetime | None


def hold(
    lawful: dict[str, Lawful],
    wanted: desired.Desired,
    clients: Iterable[observed.Client],
    series: Mapping[tuple[str, str], list[observed.Image]],
) -> None:
    """Legal holds grow by what their manifests name now, and end when they are released, not when they are gone."""
    known = list(clients)
    for name, item in wanted.legal_holds.items():
        spec, before = item.spec, lawful.get(name, Lawful(frozenset(), frozenset(), item.spec.from_, item.spec.to))
        if spec.released is not None:
            lawful.pop(name, None)
        elif not wanted.is_orphaned("LegalHold", name):
            named = {one.id for one in known if one.name in spec.clients}
            named |= {client for client, policy in series if policy in spec.policies}
            there = {image.id for images in series.values() for image in images if image.id in spec.images}
            lawful[name] = before._replace(clients=before.clients | named, images=before.images | there)


def held(world: worlds.World, client: str, image: observed.Image) -> bool:
    """Whether a hold keeps an image, by law or by command."""
    if any(one.kind == "Hold" and one.object == image.id for one in world.rulings):
        return True
    return any(
        image.id in one.images
        or (
            client in one.clients
            and (one.since is None or image.time >= one.since)
            and (one.until is None or image.time < one.until)
        )
        for one in world.lawful.values()
    )


def _ruled(world: worlds.World, kind: str, object: str) -> bool:
    return any((one.kind, one.object) == (kind, object) for one in world.rulings)


def remember(eras: list[Era], spec: Spec, sequence: int) -> None:
    """A lifecycle is in force in this form from now on; operations go by their new names from then on."""
    if eras and eras[-1].spec == spec:
        return
    present = {operation.name for operation in spec.operations}
    names = {old: one.name for one in spec.operations for old in one.previous_names if old not in present}
    eras[:] = [Era(era.after, respelled(era.spec, name=names, source=names)) for era in eras]
    eras.append(Era(sequence, spec))


def respelled(spec: Spec, **fields: Mapping[str, str]) -> Spec:
    """A lifecycle spec in which the values of some fields of its operations are spelled anew."""
    written = spec.written()
    for operation in written["operations"]:
        for field, names in fields.items():
            value = operation.get(field)
            if isinstance(value, list):
                operation[field] = [names.get(one, one) for one in value]
            elif value is not None:
                operation[field] = names.get(value, value)
    return Spec.model_validate(written)


# -- one deletion ------------------------------------------------------------------------------------------------------


def deletion(
    world: worlds.World,
    key: worlds.Key,
    series: observed.Series,
    image_id: str,
    number: int,
    grace: dt.timedelta | None,
) -> None:
    """Fails where a copy may not go now; with a grace, where that may not be decided now."""
    image = next(one for one in series.images if one.id == image_id)
    copy = next(one for one in image.copies if one.number == number)
    complaints = list(_complaints(world, series, image, copy, grace))
    assert not complaints, f"{image_id}/{number} ({copy.state}, {copy.operation} on {copy.unit}) goes: {complaints}"


def _complaints(
    world: worlds.World,
    series: observed.Series,
    image: observed.Image,
    copy: observed.Copy,
    grace: dt.timedelta | None,
) -> Iterator[str]:
    needing = [
        other.id
        for other in series.images
        for one in other.copies
        if one.base == image.id
        and one.unit == copy.unit
        and one.state in _TANGIBLE
        # Both may still be taken back, and then both are.
        and not (grace is not None and one.state == "Expiring" and one.until is not None)
    ]
    # A lost one that was made anew for another operation is no base any more.
    again = [c for c in image.copies if c.number != copy.number and c.unit == copy.unit and c.state in _TANGIBLE]
    if needing and not (copy.state == "Lost" and again):
        yield f"6: base of {needing}"
    if copy.state == "Lost":
        return
    if world.jump is not None:
        yield "the clock jumped"
    if copy.busy or copy.state == "Writing":
        yield "3: in use"
    declared = world.effective().units.get(copy.unit)
    lock = declared.spec.immutability if declared is not None else None
    if lock is not None and lock.period.after(copy.created_at) > world.now:
        yield "4: locked"
    ordered = _ruled(world, "Expire", image.id) and image.id in world.approved_orders
    if image.time > world.now + dt.timedelta(minutes=15) and not ordered:
        yield "its time is later than now"
    if image.state == "Complete" and not ordered and not _ruled(world, "Waive", f"{image.id}/{copy.number}"):
        yield from _owes(world, image, copy, series)
        yield from _piece(world, image, copy, series)
    if held(world, series.client, image):
        yield from _last_of(world, series, [image], image, copy)
    if calm(series.images, world.now):
        if not _retired(world, series.client):
            yield from _last(world, series, image, copy)
            yield from _last_proven(world, series, image, copy)
        # What was decided before a grace is decided.
        if copy.state != "Expiring" and not ordered:
            yield from _broken_promises(world, world.planned[series.client, series.policy], image, copy)


def calm(images: tuple[observed.Image, ...], now: dt.datetime) -> bool:
    """Whether times rise with sequences and none lies ahead."""
    moments = [image.time for image in images]
    return moments == sorted(moments) and all(moment <= now for moment in moments)


def _owes(world: worlds.World, image: observed.Image, copy: observed.Copy, series: observed.Series) -> Iterator[str]:
    """The second never."""
    others = [c for c in image.copies if c.number != copy.number and c.operation == copy.operation]
    if any(readable(series.images, image, other) for other in others):
        return
    made = {one.operation for one in image.copies if one.state != "Writing"}
    for one in owed(world.owed[image.owed], image.schedule):
        if one.source == copy.operation and one.name not in made:
            yield f"2: owes {one.name}"


def _piece(world: worlds.World, image: observed.Image, copy: observed.Copy, series: observed.Series) -> Iterator[str]:
    """The second never, too: what is whole of damaged copies stays while a copy may be made anew of it."""
    remains = [one for one in image.copies if one.state in ("Complete", "Damaged")]
    if copy not in remains or len(remains) < 2 or any(readable(series.images, image, one) for one in remains):
        return
    newest = world.effective().lifecycles.get(image.lifecycle)
    for one in owed(world.owed[image.owed], image.schedule):
        states = {other.state for other in image.copies if other.operation == one.name}
        rules = [now.retention.type for now in (newest.spec.operations if newest else ()) if now.name == one.name]
        made = states & {"Complete", "Expiring", "Expired"}
        if rules == ["Forever"] and states & {"Damaged", "Lost"} and not made:
            yield f"2: a piece of {one.name}"


def owed(spec: Spec, schedule: str) -> list[lifecycles.Operation]:
    """The operations that an image of a schedule is owed: filtered ones, and what hangs on them, are not."""
    result: dict[str, lifecycles.Operation] = {}
    for _ in spec.operations:
        for one in spec.operations:
            wanted = one.schedules is None or schedule in one.schedules
            if wanted and (one.source is None or one.source in result):
                result[one.name] = one
    return list(result.values())


def readable(
    images: tuple[observed.Image, ...],
    image: observed.Image,
    copy: observed.Copy,
    without: tuple[str, int] | None = None,
) -> bool:
    """Whether a copy, and every base it needs on its unit, is Complete."""
    if copy.state != "Complete" or (image.id, copy.number) == without:
        return False
    if copy.base is None:
        return True
    base = next((one for one in images if one.id == copy.base), None)
    return base is not None and any(
        one.unit == copy.unit and readable(images, base, one, without) for one in base.copies
    )


def _retired(world: worlds.World, client: str) -> bool:
    """Whether a client needs no copy any more: retired, and matched by no policy in force."""
    wanted = world.effective()
    return _ruled(world, "Retire", client) and not any(
        machine.id == client
        for name, policy in wanted.policies.items()
        if not wanted.is_orphaned("BackupPolicy", name)
        for source in (name, *policy.spec.previous_names)
        for machine in world.machines.get(source, ())
    )


def _last(world: worlds.World, series: observed.Series, image: observed.Image, copy: observed.Copy) -> Iterator[str]:
    """The first never."""
    newest = [
        one
        for one in reversed(series.images)
        # One that was declared wrong is not what a restore would want.
        if one.state == "Complete" and one.id not in world.approved_orders and _there(world, series, one)
    ]
    kept = newest[: 3 if newest and world.now - newest[0].time > OVERDUE else 1]
    yield from _last_of(world, series, kept, image, copy)


def _last_proven(
    world: worlds.World, series: observed.Series, image: observed.Image, copy: observed.Copy
) -> Iterator[str]:
    """An image that failed a drill is not the only one left."""
    for one in reversed(series.images):
        if one.state != "Complete" or one.id in world.approved_orders or not _there(world, series, one):
            continue
        if not any(_failed(world, one.id, kind) for kind in ("Files", "Boot")):
            yield from _last_of(world, series, [one], image, copy)
            return


def _failed(world: worlds.World, image: str, kind: str) -> bool:
    """Whether the last word of one kind about an image is that it failed."""
    found = sorted((one.at, one.state) for key, one in world.results.items() if (key[0], key[2]) == (image, kind))
    return any(state == "Failed" for at, state in found if at == found[-1][0])


def _last_of(
    world: worlds.World,
    series: observed.Series,
    kept: Iterable[observed.Image],
    image: observed.Image,
    copy: observed.Copy,
) -> Iterator[str]:
    """Which of these images can be read now, and could not without the copy."""
    for one in kept:
        if _there(world, series, one) and not _there(world, series, one, (image.id, copy.number)):
            yield f"1 or 5: the last good copy of {one.id}"


def _there(
    world: worlds.World, series: observed.Series, image: observed.Image, without: tuple[str, int] | None = None
) -> bool:
    return any(
        readable(series.images, image, copy, without) and world.units.get(copy.unit, "Online") != "Offline"
        for copy in image.copies
    )


def _broken_promises(
    world: worlds.World, series: observed.Series, image: observed.Image, copy: observed.Copy
) -> Iterator[str]:
    """Every retention that was in force for the copy's operation since its image was made has to let it go."""
    if image.state != "Complete":
        newer = [one for one in series.images if one.state == "Complete" and one.sequence > image.sequence]
        if not newer or newer[0].time + dt.timedelta(days=7) > world.now:
            yield "Partial, and not seven days complete again"
        return
    if copy.state == "Damaged" and any(
        other.operation == copy.operation and readable(series.images, image, other) for other in image.copies
    ):
        return
    if _moved(world, series, image, copy):
        return
    eras = world.eras[image.lifecycle]
    given = world.consented.get((series.client, image.lifecycle, copy.operation), ())
    ended = max((one.eras for one in given if image.sequence <= one.up_to), default=0)
    for number, (era, later) in enumerate(zip(eras, [*eras[1:], None], strict=True)):
        if (later is not None and later.after < image.sequence) or number < ended:
            continue
        for one in era.spec.operations:
            if one.name == copy.operation:
                if later is None and one.retention.type == "CapacityManaged" and _too_full(world, copy.unit):
                    continue
                yield from _kept_by(one.retention, series, image, copy, world.now, later is None)


def _moved(world: worlds.World, series: observed.Series, image: observed.Image, copy: observed.Copy) -> bool:
    """Whether the copy's unit is to be emptied, and a good one of its operation lies on another that is there."""
    declared = world.effective().units
    return declared[copy.unit].spec.state == "Draining" and any(
        other.operation == copy.operation
        and readable(series.images, image, other)
        and declared[other.unit].spec.state != "Draining"
        and world.units.get(other.unit, "Online") != "Offline"
        for other in image.copies
    )


def _too_full(world: worlds.World, name: str) -> bool:
    """Whether a unit is above its low water mark, or on its way down."""
    declared, seen = world.effective().units[name], world.observe().units[name]
    low = int(declared.spec.low_water_mark.rstrip("%"))
    filled = seen.total_bytes - seen.free_bytes - seen.reclaimable_bytes
    return 100 * filled > low * seen.total_bytes or name in world.emptying


def _kept_by(
    rule: lifecycles.Retention,
    series: observed.Series,
    image: observed.Image,
    copy: observed.Copy,
    now: dt.datetime,
    in_force: bool,
) -> Iterator[str]:
    if isinstance(rule, lifecycles.Fixed):
        if rule.period.after(image.time) > now:
            yield f"promised {rule.period}"
    elif isinstance(rule, lifecycles.Keep):
        states = ("Complete", "Damaged", "Lost") if copy.state == "Damaged" else ("Complete",)
        counted = [
            one
            for one in series.images
            if one.state == "Complete"
            and one.lifecycle == image.lifecycle
            and any(c.operation == copy.operation and c.state in states for c in one.copies)
        ]
        if image.id in keep(rule, counted):
            yield f"promised {rule.written()}"
    elif rule.type == "Forever" or (in_force and rule.type == "CapacityManaged"):
        yield f"promised {rule.type}"


_BUCKETS: dict[str, Callable[[dt.datetime], Any]] = {
    "hourly": lambda at: (at.date(), at.hour),
    "daily": lambda at: at.date(),
    "weekly": lambda at: at.isocalendar()[:2],
    "monthly": lambda at: (at.year, at.month),
    "quarterly": lambda at: (at.year, (at.month - 1) // 3),
    "yearly": lambda at: at.year,
}


def keep(rule: lifecycles.Keep, images: list[observed.Image]) -> set[str]:
    """Ids of the images that a Keep rule keeps; periods in days and hours alone."""
    zone = ZoneInfo(rule.time_zone)
    ordered = sorted(images, key=lambda one: (one.time, one.sequence), reverse=True)
    kept: set[str] = set()
    if not ordered:
        return kept
    for name, bucket in (("last", None), *_BUCKETS.items()):
        grouped: dict[Any, list[observed.Image]] = {}
        for one in ordered:
            grouped.setdefault(bucket(one.time.astimezone(zone)) if bucket else one.id, []).append(one)
        count = getattr(rule, name)
        if count is not None:
            kept.update(_chosen(rule, group) for group in list(grouped.values())[:count])
            if rule.keep_oldest and len(grouped) < count:
                kept.add(ordered[-1].id)
        period = getattr(rule, f"within_{name}" if bucket else "within", None)
        if period is not None:
            edge = ordered[0].time - period.approximate
            inside = [[one for one in group if one.time > edge] for group in grouped.values()]
            kept.update(_chosen(rule, group) for group in inside if group)
    return kept


def _chosen(rule: lifecycles.Keep, group: list[observed.Image]) -> str:
    full = [one for one in group if one.type == "Full"] if rule.prefer == "Full" else []
    return (full or group)[0].id


# -- the world ---------------------------------------------------------------------------------------------------------


def violations(world: worlds.World) -> list[str]:
    """What no world may come to."""
    result = []
    for (client, policy), images in world.images.items():
        there = {(i.id, c.unit) for i in images for c in i.copies if c.state not in ("Expired", "Lost")}
        lost = {(i.id, c.unit) for i in images for c in i.copies if c.state == "Lost"}
        for image in images:
            for copy in image.copies:
                needed = (str(copy.base), copy.unit)
                if copy.base is not None and copy.state == "Complete" and needed not in there and needed not in lost:
                    result.append(f"6: {image.id} on {copy.unit} lost its base {copy.base}")
            result += _uncopied(world, image)
            units = [copy.unit for copy in image.copies if copy.state in _TANGIBLE]
            if len(units) != len(set(units)):
                result.append(f"{image.id} lies twice on one unit: {sorted(units)}")
        complete = [image for image in images if image.state == "Complete" and image.id not in world.ordered]
        newest = complete[-1] if complete else None
        # Where a unit lost the last copy, what went was its record.
        if (
            newest is not None
            and client not in world.retired
            and all(copy.state == "Expired" and (newest.id, copy.number) not in world.losses for copy in newest.copies)
        ):
            result.append(f"1: {client} {policy}: nothing is left of {newest.id}")
    return result


def _uncopied(world: worlds.World, image: observed.Image) -> list[str]:
    if image.state != "Complete":
        return []
    if image.id in world.ordered:
        return []
    had = {copy.operation for copy in image.copies}
    waived = {one.object for one in world.rulings if one.kind == "Waive"}
    gone = {
        copy.operation
        for copy in image.copies
        if copy.state == "Expired"
        and (image.id, copy.number) not in world.losses
        and f"{image.id}/{copy.number}" not in waived
    } - {copy.operation for copy in image.copies if copy.state == "Complete"}
    return [
        f"2: {image.id}: {one.source} went before {one.name} was made"
        for one in owed(world.owed[image.owed], image.schedule)
        if one.source in gone and one.name not in had
    ]
