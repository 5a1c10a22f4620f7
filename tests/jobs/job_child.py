"""A process of its own that runs one slow job: ``job_child.py CATALOG ADDRESS``, until it is stopped or killed.

The work counts 4 KiB every 5 ms. After the end of the callable it appends a line to ``CATALOG.returned``, before
the engine can give the row its last state.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from reconciler.base import clocks, errors
from reconciler.catalog import database
from reconciler.jobs import embedded, engines


def main(location: str, address: str) -> None:
    """Run the job until it ends."""

    def work(context: engines.JobContext) -> engines.Outcome:
        try:
            while True:
                context.meter.check()
                context.meter.add(scanned=4096)
                time.sleep(0.005)
        except errors.Cancelled:
            time.sleep(0.3)  # tidying up takes a moment, in which the row must still say Running
            Path(f"{location}.returned").write_text(str(time.time_ns()))
            raise

    db = database.open_writing(location)
    with embedded.Engine(db, clock=clocks.SystemClock()) as engine:
        engine.start(engines.Task(address=address, type="Backup", run=work))
        while engine.live():
            engine.wait(1.0)
    db.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
