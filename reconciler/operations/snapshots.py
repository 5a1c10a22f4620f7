"""Removing a snapshot that a dead job left at its source: first whoever reads it, then the snapshot, then the record.

A disk library that still has the snapshot open makes its removal fail half way, or reads blocks that are being merged
away. So a reader that outlived its job is ended here where it runs on this host, and waited for where it does not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
from typing import Final

from reconciler.api import vcenters
from reconciler.base import crashes, errors
from reconciler.catalog import jobs, snapshots, workers
from reconciler.jobs import engines
from reconciler.operations import sites
from reconciler.planning import sightings
from reconciler.sources import machines, opening

#: Seconds in which a killed process has to be gone.
PATIENCE: Final = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RemovalOrder:
    """One snapshot to remove."""

    snapshot: sightings.Snapshot
    vcenter: vcenters.VCenter


def remove_snapshot(site: sites.Site, order: RemovalOrder, context: engines.JobContext) -> engines.Outcome:
    """Remove it by its id, and forget it; one that is not there any more is forgotten alone.

    Raises ``SourceError``: the source refuses or cannot be reached, or somebody still reads the snapshot; or
    ``Cancelled``. Repeating it does no harm.
    """
    one = order.snapshot
    noted = snapshots.find(site.db, one.id)
    for reader in noted.readers if noted is not None else ():
        _end(site, order, reader, context)
    wanted = machines.Snapshot(
        id=one.id,
        vcenter=order.vcenter.name,
        machine=one.client,
        machine_name=one.machine,
        place=one.place,
        job=one.job,
        reference=one.reference,
    )
    found = opening.remove_snapshot(order.vcenter, site.db.id, wanted, context.meter)
    crashes.passing("snapshot.removed")
    if found:
        snapshots.removed(site.db, one, site.clock.now(), site.actor)
        context.log(f"removed snapshot {one.id} of {one.machine} on VCenter {one.vcenter}, left by {one.job}")
    else:
        snapshots.gone(site.db, one.id)
        context.log(f"snapshot {one.id} of {one.machine} is not on VCenter {one.vcenter} any more, or never was")
    return engines.Outcome()


def _end(site: sites.Site, order: RemovalOrder, reader: str, context: engines.JobContext) -> None:
    """See to it that a reader is gone. Raises ``SourceError`` where that has to be waited for."""
    one = order.snapshot
    what = f"{one.machine}: snapshot {one.id} on VCenter {one.vcenter}, left by {one.job}"
    if not workers.local(reader):
        if _given_up(site, order):
            context.log(f"{what}: its reader on {workers.host(reader)} should have given it up long ago")
            return
        raise errors.SourceError(
            f"{what}, is read by process {workers.pid(reader)} on {workers.host(reader)}, of which nothing is known"
            " here",
            hint=f"make sure that it has ended; after maxSnapshotAge ({order.vcenter.spec.max_snapshot_age}) it counts"
            " as ended",
        )
    if workers.pid(reader) == os.getpid() or not workers.alive(reader):
        return
    if any(
        workers.pid(row.worker) == workers.pid(reader) for row in jobs.list_jobs(site.db, state=("Queued", "Running"))
    ):
        raise errors.SourceError(
            f"{what}, is read by process {workers.pid(reader)}, which is at work on other jobs",
            hint="it is tried again; holdfast get jobs --job-state Running shows them",
        )
    _kill(reader, what)
    context.log(f"{what}: killed process {workers.pid(reader)}, which still read it")


def _given_up(site: sites.Site, order: RemovalOrder) -> bool:
    since = order.snapshot.since
    limit = order.vcenter.spec.max_snapshot_age
    return since is not None and limit.after(since) < site.clock.now()


def _kill(reader: str, what: str) -> None:
    """SIGKILL, and wait. By a handle of the process, so that one which took its number meanwhile is left alone."""
    number = workers.pid(reader)
    with contextlib.ExitStack() as stack:
        try:
            handle = os.pidfd_open(number)
            stack.callback(os.close, handle)
            if not workers.alive(reader):
                return
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        except ProcessLookupError:
            return
        except OSError as error:
            raise errors.SourceError(
                f"{what}, is read by process {number}, which cannot be ended: {error.strerror}",
                hint=f"end it: kill -9 {number}",
            ) from error
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        if not poll.poll(PATIENCE * 1000):
            raise errors.SourceError(
                f"{what}, is read by process {number}, which does not end {PATIENCE:.0f} s after SIGKILL",
                hint="it hangs in the kernel; look at the storage that it reads",
            )
