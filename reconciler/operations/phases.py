"""A backup in two phases: what it will read of each disk is held first, then stored.

``backups`` calls ``hold`` and ``storing`` where a policy has a holding area; ``holding`` does the copying.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

from reconciler.api import policies
from reconciler.base import errors
from reconciler.operations import changes, guestviews, holding, parents
from reconciler.sources import machines


def hold(
    live: machines.Reading,
    area: holding.Area,
    spec: policies.BackupPolicySpec,
    against: tuple[parents.Parent, Mapping[str, str]],
    job: holding.Job,
    *,
    along: bool,
) -> tuple[holding.Held, list[guestviews.GuestView]]:
    """Copy ``live`` as far as a backup will read it, and let it go; the looks at its guest come along.

    ``against``: the parent, and what the source said of itself then. ``along``: whether the unit cuts along files.
    Raises as ``holding.hold`` does.
    """
    parent, state = against
    looks = guestviews.views(live.disks, job.meter, spec, keep=live.finish().consistency == "Live")
    needs: dict[str, holding.Need | machines.Found] = {}
    for look in looks:
        try:
            needs[look.disk.name] = _need(live, look, parent, state, along=along)
        except errors.SourceError as error:
            needs[look.disk.name] = holding.unreadable(look.disk, error)
    held = holding.hold(live, area, needs, job)
    by_name = {look.disk.name: look for look in looks}
    return held, [by_name[disk.name].onto(disk) for disk in held.disks]


def _need(
    live: machines.Reading,
    look: guestviews.GuestView,
    parent: parents.Parent,
    state: Mapping[str, str],
    *,
    along: bool,
) -> holding.Need:
    disk, hidden = look.disk, look.hidden()
    if not parent.vouches or parent.of(disk.name, disk.size) is None:
        return holding.Need(changed=None, hidden=hidden)
    told = live.changes(disk.name, state)
    changed = changes.widened(told, state, disk, hidden).changed
    if changed and along:
        # What a file system says of its files lies elsewhere than the changes: it is asked while it is there.
        look.layout(changed)
    return holding.Need(changed=changed, hidden=hidden, told=told)


@contextlib.contextmanager
def storing(job: holding.Job) -> Iterator[None]:
    """The second phase, with its own rate in the job's log."""
    began, before = time.monotonic(), job.meter.reading().non_zero
    yield
    count = job.meter.reading().non_zero - before
    job.log(f"stored {holding.rate(count, time.monotonic() - began)}")
