"""Run by ``test_crashes`` as a process that is made to die: ``pool_crash_child.py ROOT ACT``."""

from __future__ import annotations

import sys
from pathlib import Path

import pool_samples as samples

from reconciler.base import meters

KEPT = samples.noise(5 * samples.MIB, 1)
ATTACHED = {"files": [samples.noise(50_000, number) for number in range(20, 30)]}
WRITTEN = samples.patch(KEPT, samples.MIB, samples.noise(3 * samples.MIB, 2))


def main(root: Path, act: str) -> None:
    """Write image ``new`` on top of ``kept``, delete ``kept``, collect, or scrub."""
    pool = samples.open_pool(root, container_size=2 * samples.MIB)
    if act == "write":
        samples.store(pool, "new", WRITTEN, parent="kept", attached=ATTACHED)
    elif act == "delete":
        pool.delete("kept")
    elif act == "collect":
        pool.reclaim(meter=meters.Meter())
    elif act == "scrub":
        pool.scrub(meter=meters.Meter())
    else:
        raise SystemExit(f"no act {act}")
    sys.stdout.write("acknowledged")
    sys.stdout.flush()
    pool.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
