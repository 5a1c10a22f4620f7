"""What single objects say that cannot be meant: checks that need no other object (HF4xx).

``estates`` calls ``check`` for every object. Schema says how a field is spelled; this says whether the fields of one
object make sense together. ``combinations`` does the same across objects.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Sequence
from typing import Final

from reconciler.api import exceptions, lifecycles, policies, restores, servicelevels, storage, vcenters
from reconciler.base import quantities, times
from reconciler.intake import codes, documents, findings, promises, virtual
from reconciler.planning import calendars

_LEAST_SEGMENT: Final = 4 << 10
_MOST_SEGMENT: Final = 1 << 20
_POOL_FIELDS: Final = (("segment_size", "segmentSize"), ("compression", "compression"), ("scrub", "scrub"))
_WITHIN: Final = (
    ("within", "within"),
    ("within_hourly", "withinHourly"),
    ("within_daily", "withinDaily"),
    ("within_weekly", "withinWeekly"),
    ("within_monthly", "withinMonthly"),
    ("within_yearly", "withinYearly"),
)
_COUNTS: Final = ("last", "hourly", "daily", "weekly", "monthly", "quarterly", "yearly")


def check(item: findings.Located, found: findings.Findings, now: dt.datetime | None = None) -> None:
    """Everything that the fields of one object contradict, into ``found``; with ``now``, also what has run out."""
    match item.object:
        case storage.StorageUnit(spec=spec):
            _unit(item, spec, found)
        case vcenters.VCenter(spec=spec):
            virtual.vcenter(item, spec, found)
        case policies.BackupWindow(spec=spec):
            _window(item, spec, found)
        case lifecycles.StorageLifecyclePolicy(spec=spec):
            _lifecycle(item, spec.operations, found)
        case policies.BackupPolicy(spec=spec):
            _policy(item, spec, found)
        case servicelevels.ServiceLevel(spec=spec):
            promises.service_level(item, spec, found)
        case restores.Restore(spec=spec):
            promises.restore(item, spec, found)
        case exceptions.Approval(spec=spec):
            _approval(item, spec, found, now)
        case exceptions.LegalHold(spec=spec):
            _hold(item, spec, found, now)


def _positive(
    item: findings.Located, path: documents.Path, span: quantities.Duration | None, found: findings.Findings
) -> None:
    if span is not None and not span:
        found.error(
            codes.ZERO_DURATION, item, path, "the duration must be longer than nothing", "remove it, or say how long"
        )


def _approval(
    item: findings.Located, spec: exceptions.ApprovalSpec, found: findings.Findings, now: dt.datetime | None
) -> None:
    if now is not None and spec.until <= now:
        message = f"it ran out at {times.show_minutes(spec.until)}: nothing is let go by it any more"
        hint = "remove it; plan prints one for what still waits"
        found.warn(codes.APPROVAL_EXPIRED, item, ("spec", "until"), message, hint)


def _hold(
    item: findings.Located, spec: exceptions.LegalHoldSpec, found: findings.Findings, now: dt.datetime | None
) -> None:
    if not (spec.clients or spec.policies or spec.images):
        message = "this LegalHold names no clients, no policies and no images: it would hold nothing"
        found.error(codes.EMPTY_HOLD, item, ("spec",), message, 'such as clients: ["vm1"], or clients: ["*"] for all')
    if spec.from_ is not None and spec.to is not None and spec.from_ >= spec.to:
        message = f"from must be before to ({times.show_minutes(spec.to)}): no image lies between them"
        found.error(codes.IMPOSSIBLE_SPAN, item, ("spec", "from"), message, "to itself is no longer held")
    if now is not None and spec.released is not None and spec.released.at > now:
        message = f"{times.show_minutes(spec.released.at)} has not come yet, and a release counts once it is applied"
        found.warn(codes.RELEASED_LATER, item, ("spec", "released", "at"), message, "add released when the hold ends")


# -- storage units ---------------------------------------------------------------------------------------------------


def _unit(item: findings.Located, spec: storage.StorageUnitSpec, found: findings.Findings) -> None:
    low, high = quantities.parse_percent(spec.low_water_mark), quantities.parse_percent(spec.high_water_mark)
    if low >= high:
        fields = item.object.model_dump(by_alias=True, exclude_unset=True)["spec"]
        field = "lowWaterMark" if "lowWaterMark" in fields else "highWaterMark"
        message = f"lowWaterMark ({low}%) must be below highWaterMark ({high}%)"
        found.error(codes.WATER_MARKS, item, ("spec", field), message, "98% and 80% are the defaults")
    if spec.type != "DedupePool":
        for name, alias in _POOL_FIELDS:
            if getattr(spec, name) is not None:
                message = f"{alias} is a setting of a DedupePool; a {spec.type} has none"
                found.error(codes.POOL_SETTING, item, ("spec", alias), message, "remove it", key=True)
    elif spec.segment_size is not None:
        size = quantities.parse_size(spec.segment_size)
        if size & (size - 1) or not _LEAST_SEGMENT <= size <= _MOST_SEGMENT:
            message = f"segmentSize must be a power of two from 4KiB to 1MiB, not {spec.segment_size}"
            found.error(codes.POOL_SETTING, item, ("spec", "segmentSize"), message, "128KiB is the default")
    if spec.scrub is not None:
        _positive(item, ("spec", "scrub", "every"), spec.scrub.every, found)
    if spec.immutability is not None:
        _positive(item, ("spec", "immutability", "period"), spec.immutability.period, found)
    _positive(item, ("spec", "grace"), spec.grace, found)


# -- windows ---------------------------------------------------------------------------------------------------------


def _window(item: findings.Located, spec: policies.BackupWindowSpec, found: findings.Findings) -> None:
    before = len(found.found)
    for field, spans in (("allow", spec.allow), ("deny", spec.deny)):
        for index, span in enumerate(spans):
            path = ("spec", field, index, "duration")
            if not span.duration:
                found.error(codes.IMPOSSIBLE_WINDOW, item, path, "the duration must be longer than nothing")
            elif span.duration.months or span.duration.seconds > 7 * 86400:
                message = f"a span of a window lasts at most 7d, not {span.duration}"
                found.error(codes.IMPOSSIBLE_WINDOW, item, path, message)
    if len(found.found) == before:
        wrong = calendars.check_window(spec)
        if wrong is not None:
            hint = "shorten deny, or lengthen allow"
            found.error(codes.IMPOSSIBLE_WINDOW, item, ("spec", "deny" if spec.deny else "allow"), wrong, hint)


# -- lifecycles ------------------------------------------------------------------------------------------------------


def _lifecycle(item: findings.Located, operations: Sequence[lifecycles.Operation], found: findings.Findings) -> None:
    sources = {operation.source for operation in operations}
    for index, operation in enumerate(operations):
        path: documents.Path = ("spec", "operations", index)
        _retention(item, (*path, "retention"), operation, operation.name not in sources, found)
        if operation.verify is not None:
            for field in ("content", "files", "boot"):
                _positive(item, (*path, "verify", field), getattr(operation.verify, field), found)


def _retention(
    item: findings.Located, path: documents.Path, operation: lifecycles.Operation, leaf: bool, found: findings.Findings
) -> None:
    match operation.retention:
        case lifecycles.Fixed(period=period):
            _positive(item, (*path, "period"), period, found)
        case lifecycles.Keep() as rule:
            for name, alias in _WITHIN:
                _positive(item, (*path, alias), getattr(rule, name), found)
            if all(getattr(rule, name) is None for name in (*_COUNTS, *(name for name, _ in _WITHIN))):
                hint = f"say how many: {', '.join(_COUNTS)}, or a within"
                found.error(codes.EMPTY_KEEP, item, path, "this Keep rule keeps nothing", hint)
        case lifecycles.ExpireAfterCopy() if leaf:
            message = (
                f"ExpireAfterCopy, but no operation copies from {operation.name}: it would never, or at once, expire"
            )
            hint = "use Fixed, Keep or Forever, or add a Duplication from it"
            found.error(codes.LEAF_EXPIRES_AFTER_COPY, item, (*path, "type"), message, hint)
        case lifecycles.CapacityManaged(desired=desired):
            _positive(item, (*path, "desired"), desired, found)


# -- policies --------------------------------------------------------------------------------------------------------


def _policy(item: findings.Located, spec: policies.BackupPolicySpec, found: findings.Findings) -> None:
    for index, schedule in enumerate(spec.schedules):
        _schedule(item, ("spec", "schedules", index), schedule, found)
    if spec.hooks is not None:
        _positive(item, ("spec", "hooks", "timeout"), spec.hooks.timeout, found)
    _positive(item, ("spec", "drills", "boot", "within"), spec.drills.boot.within, found)
    virtual.policy(item, spec, found)
    images: documents.Path = ("spec", "source", "diskImages")
    if spec.source.disk_images is not None:
        _glob(item, (*images, "machines"), spec.source.disk_images.machines, "folder", found)
        for index, pattern in enumerate(spec.source.disk_images.disks):
            _glob(item, (*images, "disks", index), pattern, "file", found)


def _schedule(
    item: findings.Located, path: documents.Path, schedule: policies.Schedule, found: findings.Findings
) -> None:
    if (schedule.cron is None) == (schedule.every is None):
        both = schedule.cron is not None
        message = "a schedule has either cron or every, not both" if both else "a schedule needs cron or every"
        hint = "remove one of them" if both else 'such as cron: "0 21 * * *", or every: 24h'
        found.error(codes.CRON_OR_EVERY, item, (*path, "every") if both else path, message, hint, key=both)
    if schedule.cron is not None:
        wrong = _check_cron(schedule.cron)
        if wrong is not None:
            found.error(codes.BAD_CRON, item, (*path, "cron"), wrong, 'such as "0 21 * * Sun-Fri"')
    _positive(item, (*path, "every"), schedule.every, found)
    _positive(item, (*path, "fullEvery"), schedule.full_every, found)
    _positive(item, (*path, "startingDeadline"), schedule.starting_deadline, found)
    if schedule.full_every is not None and schedule.type != "Incremental":
        message = f"fullEvery belongs to an Incremental schedule; this one is {schedule.type}"
        found.error(codes.MISPLACED_FULL_EVERY, item, (*path, "fullEvery"), message, "remove it", key=True)


#: Many schedules share few expressions.
_check_cron: Final = functools.lru_cache(maxsize=4096)(calendars.check_cron)


def _glob(item: findings.Located, path: documents.Path, pattern: str, what: str, found: findings.Findings) -> None:
    if "/" in pattern:
        message = f"{pattern!r} is matched against the name of a {what}, which has no '/': it matches nothing"
        hint = "put the folder into path" if what == "folder" else "name the file alone"
        found.error(codes.IMPOSSIBLE_GLOB, item, path, message, hint)
    elif pattern in (".", ".."):
        found.error(codes.IMPOSSIBLE_GLOB, item, path, f"no {what} is named {pattern!r}", 'such as "*"')
