"""What Restores and ServiceLevels say that cannot be meant, alone and with the policies they select (HF426 to HF428).

``meanings`` asks about each object, ``combinations`` about ServiceLevels and the policies under them: a promise that a
lifecycle or a schedule cannot keep is an error in the pull request, not an alarm at night.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from reconciler.api import lifecycles, policies, restores, servicelevels, storage
from reconciler.base import quantities, times
from reconciler.intake import codes, documents, findings, virtual
from reconciler.planning import calendars

_DAY: Final = dt.timedelta(days=1)
#: How far back so many of each natural period reach at least.
_REACHES: Final = (
    ("hourly", dt.timedelta(hours=1)),
    ("daily", _DAY),
    ("weekly", 7 * _DAY),
    ("monthly", 28 * _DAY),
    ("quarterly", 90 * _DAY),
    ("yearly", 365 * _DAY),
)
_WITHIN: Final = ("within", "within_hourly", "within_daily", "within_weekly", "within_monthly", "within_yearly")
_VERIFY: Final = ("content", "files", "boot")


def restore(item: findings.Located, spec: restores.RestoreSpec, found: findings.Findings) -> None:
    """One Restore."""
    target = {"folder": spec.target.folder, "device": spec.target.device, "vmware": spec.target.vmware}
    virtual.one_of(item, ("spec", "target"), target, found, code=codes.RESTORE_SETTING)
    if spec.image is not None and spec.as_of is not None:
        message = "an image is chosen by its id or by a time, not by both"
        found.error(codes.RESTORE_SETTING, item, ("spec", "asOf"), message, "remove one of them", key=True)
    if spec.copy_number is not None and spec.image is None:
        message = "a copy has a number within its image, and no image is named"
        found.error(codes.RESTORE_SETTING, item, ("spec", "copy"), message, "name the image, or remove it", key=True)
    if spec.subformat is not None and spec.format != "vmdk":
        message = f"subformat belongs to vmdk; the format is {spec.format}"
        found.error(codes.RESTORE_SETTING, item, ("spec", "subformat"), message, "remove it", key=True)
    if sum(one is not None for one in target.values()) != 1:
        return
    if spec.target.staged or spec.target.vmware is not None:
        _machine(item, spec, found)
    if spec.target.device is not None:
        _device(item, spec, found)


def _machine(item: findings.Located, spec: restores.RestoreSpec, found: findings.Findings) -> None:
    """A whole machine, as a folder or in a vCenter: its disks have the form that machines take."""
    what = "a machine in a vCenter" if spec.target.vmware is not None else "a staged folder"
    if spec.format != "raw":
        message = f"{what} has disks of its own form, not {spec.format}"
        found.error(codes.RESTORE_SETTING, item, ("spec", "format"), message, "remove it", key=True)
    if spec.target.staged and spec.target.folder is None:
        message = "staged makes a machine of a folder, and none is given"
        found.error(codes.RESTORE_SETTING, item, ("spec", "target", "staged"), message, "remove it", key=True)
    if spec.overwrite and spec.target.vmware is not None:
        message = "overwrite is for files and devices; a machine is never overwritten"
        hint = "remove it; replace: true under vmware makes the new one beside the old and then renames that"
        found.error(codes.RESTORE_SETTING, item, ("spec", "overwrite"), message, hint, key=True)
    if spec.read_back and spec.target.vmware is not None:
        message = "a machine in a vCenter is always read back"
        found.error(codes.RESTORE_SETTING, item, ("spec", "readBack"), message, "remove it", key=True)
    if spec.salvage and spec.target.vmware is not None:
        message = "what can be had of damaged copies becomes disks in a folder, not a machine in a vCenter"
        hint = "restore to a folder, look at what is left, then make a machine of it"
        found.error(codes.RESTORE_SETTING, item, ("spec", "salvage"), message, hint, key=True)


def _device(item: findings.Located, spec: restores.RestoreSpec, found: findings.Findings) -> None:
    if spec.format != "raw":
        message = f"a device takes raw bytes, not {spec.format}"
        found.error(codes.RESTORE_SETTING, item, ("spec", "format"), message, "remove it", key=True)
    if not spec.overwrite:
        message = "what the device holds will be lost"
        found.error(codes.RESTORE_SETTING, item, ("spec", "target", "device"), message, "say overwrite: true")
    if len(spec.disks) > 1:
        message = f"a device takes one disk, not {len(spec.disks)}"
        found.error(codes.RESTORE_SETTING, item, ("spec", "disks"), message, "write one Restore for each disk")


def service_level(item: findings.Located, spec: servicelevels.ServiceLevelSpec, found: findings.Findings) -> None:
    """One ServiceLevel."""
    verified = spec.verified is not None and any(getattr(spec.verified, kind) is not None for kind in _VERIFY)
    if not verified and all(one is None for one in (spec.rpo, spec.copies, spec.failure_domains, spec.retention)):
        hint = "say rpo, copies, failureDomains, retention or verified"
        found.error(codes.SERVICE_LEVEL, item, ("spec",), "this ServiceLevel promises nothing", hint)
    spans: list[tuple[documents.Path, quantities.Duration | None]] = [
        (("spec", "rpo"), spec.rpo), (("spec", "retention"), spec.retention), (("spec", "copyWithin"), spec.copy_within)
    ]  # fmt: skip
    spans += [(("spec", "verified", kind), getattr(spec.verified, kind, None)) for kind in _VERIFY]
    for path, span in spans:
        if span is not None and not span:
            message = "the duration must be longer than nothing"
            found.error(codes.ZERO_DURATION, item, path, message, "remove it, or say how long")
    if spec.copies is not None and spec.failure_domains is not None and spec.failure_domains > spec.copies:
        message = f"{spec.copies} copies cannot lie in {spec.failure_domains} failure domains"
        found.error(codes.SERVICE_LEVEL, item, ("spec", "failureDomains"), message, "ask for as many copies at least")


def keeps(
    item: findings.Located,
    level: servicelevels.ServiceLevel,
    policy: policies.BackupPolicy,
    operations: Sequence[tuple[lifecycles.Operation, tuple[storage.StorageUnit, ...]]],
    found: findings.Findings,
) -> None:
    """Whether a policy can keep the promise; ``operations`` are those of its lifecycle, with the units of each."""
    for field, message, hint in _broken(level.spec, policy, operations):
        found.error(codes.PROMISE_BROKEN, item, ("spec", field), f"BackupPolicy/{policy.name}: {message}", hint)


def _broken(
    spec: servicelevels.ServiceLevelSpec,
    policy: policies.BackupPolicy,
    operations: Sequence[tuple[lifecycles.Operation, tuple[storage.StorageUnit, ...]]],
) -> Iterator[tuple[str, str, str]]:
    name = policy.spec.lifecycle
    # A copy that only waits for the next one is none that stays.
    everywhere = [
        (one, units)
        for one, units in operations
        if one.schedules is None and not isinstance(one.retention, lifecycles.ExpireAfterCopy)
    ]
    if spec.copies is not None and len(everywhere) < spec.copies:
        yield "copies", f"lifecycle {name} keeps {len(everywhere)} of every image", "add a Duplication to it"
    domains = {
        unit.spec.failure_domain or f"unit/{unit.name}" for _, units in everywhere for unit in units if unit is not None
    }
    if spec.failure_domains is None or spec.failure_domains > (spec.copies or 100) or not domains:
        pass
    elif len(everywhere) < spec.failure_domains <= len(domains):
        words = f"lifecycle {name} keeps {len(everywhere)} copies of an image: they cannot lie in more failure domains"
        yield "failureDomains", words, "add a Duplication to it"
    elif len(domains) < spec.failure_domains:
        listed = ", ".join(sorted(domains))
        yield "failureDomains", f"the copies of lifecycle {name} all lie in {listed}", "copy to a unit elsewhere"
    if spec.retention is not None and not _reaches((one.retention for one, _ in operations), spec.retention):
        yield "retention", f"no operation of lifecycle {name} keeps images that long", "lengthen one of its retentions"
    crons = [one.cron for one in policy.spec.schedules if one.cron is not None]
    gap = calendars.together(crons, [one.every for one in policy.spec.schedules if one.every is not None])
    if spec.rpo and gap is not None and gap > spec.rpo.approximate:
        yield "rpo", f"its schedules leave {times.span(gap)} between two backups", "back up more often"


def _reaches(retentions: Iterable[lifecycles.Retention], wanted: quantities.Duration) -> bool:
    """Whether any rule keeps something that is as old as wanted; where that cannot be told it may."""
    return any(_reach(one, wanted) for one in retentions)


def _reach(rule: lifecycles.Retention, wanted: quantities.Duration) -> bool:
    match rule:
        case lifecycles.Forever():
            return True
        case lifecycles.Fixed(period=period):
            return period.approximate >= wanted.approximate
        case lifecycles.Keep():
            spans = [one.approximate for name in _WITHIN if (one := getattr(rule, name)) is not None]
            spans += [count * unit for name, unit in _REACHES if (count := getattr(rule, name)) is not None]
            return rule.last is not None or any(span >= wanted.approximate for span in spans)
        case _:
            return False
