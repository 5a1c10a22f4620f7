"""Run by ``test_conformance_crashes`` as a process that is made to die: ``unit_crash_child.py FACTORY ROOT ACT``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import unit_factories
import unit_samples as samples

from reconciler.base import meters
from reconciler.storage import identities

DATA = {"a": samples.noise(2 * samples.MIB, 1), "b": samples.noise(3 * samples.MIB + 5, 2)}

ATTACHED = {"files": [samples.noise(9_000, 3), b"text " * 9_000, samples.noise(9_000, 3)], "more": [b"x"]}

#: What ``files`` is replaced by.
REPLACED = [samples.noise(9_000, 3), b"other " * 9_000]


def _die(reads: int) -> None:
    if reads == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def main(name: str, root: Path, act: str) -> None:
    """Write, change or delete ``img-1``; ``die`` dies in the middle of the second disk, ``begin`` right after the start."""
    (factory,) = (factory for factory in unit_factories.FACTORIES if factory.name == name)
    unit = factory.open(root, identities.read(root, "unit"), samples.OWNER)
    if act == "write":
        samples.store(unit, samples.label(), DATA, attached=ATTACHED)
    elif act == "delete":
        unit.delete("img-1")
    elif act == "reattach":
        unit.reattach("img-1", "files", REPLACED)
    elif act == "reclaim":
        unit.reclaim(meter=meters.Meter())
    elif act == "begin":
        unit.begin(samples.label(), list(DATA))
        os.kill(os.getpid(), signal.SIGKILL)
    elif act == "die":
        samples.store(
            unit, samples.label(), [samples.SampleDisk("a", DATA["a"]), samples.SampleDisk("b", DATA["b"], before=_die)]
        )
    else:
        raise SystemExit(f"no act {act}")
    unit.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
