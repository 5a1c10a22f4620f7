"""The controller's seat: lease, engine and units, for commands that act. Apart from ``sessions``, which stays light."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from reconciler.base import clocks
from reconciler.catalog import database, leases
from reconciler.catalog.fileindexes import caches
from reconciler.cli import outputs, sessions, settings
from reconciler.controller import channels, notifications, passes
from reconciler.jobs import embedded
from reconciler.operations import sites
from reconciler.storage import opening

#: How long running jobs may take to stop when the process is asked to, in seconds.
GRACE = 30.0


@contextlib.contextmanager
def controlling(chosen: settings.Settings, db: database.Database, clock: clocks.Clock) -> Iterator[passes.Controller]:
    """The controller's seat. Raises ``LeaseHeld`` naming the holder. Leaves no job running."""
    lease = leases.acquire(chosen.state, db, clock.now(), sessions.actor(), str(chosen.estate or ""))
    stuck: tuple[str, ...] = ()
    with contextlib.ExitStack() as stack:
        stack.callback(lease.release)
        units = opening.OpenUnits(owner=db.id, cache=chosen.caches)
        stack.callback(units.close)
        engine = embedded.Engine(db, clock=clock)
        site = sites.Site(
            db=db,
            units=units,
            clock=clock,
            actor=sessions.actor(),
            caches=chosen.caches,
            evidence=chosen.evidence,
            files=caches.FileCache(chosen.caches),
        )
        notifier = notifications.Notifier(
            db=db,
            clock=clock,
            actor=sessions.actor(),
            channels=channels.channels(chosen.ears.urls),
            repeat=chosen.ears.repeat,
            place=str(chosen.estate or chosen.state),
        )
        stack.callback(notifier.close)
        if chosen.ears.trouble is not None:
            outputs.note(f"holdfast: alarms reach nobody: {chosen.ears.trouble}")
        try:
            yield passes.Controller(
                site=site, engine=engine, lease=lease, state=chosen.state, estate=chosen.estate, notifier=notifier
            )
        finally:
            stuck = engine.stop(GRACE)
            if stuck:
                outputs.note(f"holdfast: these jobs did not stop in {GRACE:.0f} s: {', '.join(stuck)}")
                os._exit(1)
