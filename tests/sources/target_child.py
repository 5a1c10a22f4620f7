"""Restores one disk of random bytes: FORMAT PATH SIZE [force]. Run by the crash tests, which kill it on the way."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from reconciler.base import crashes
from reconciler.sources import targets

format_, path, size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
target = targets.open_target(format_, path, size, force="force" in sys.argv)
rng = random.Random(1)
for offset in range(0, size, 1 << 20):
    target.pwrite(offset, rng.randbytes(min(1 << 20, size - offset)))
    crashes.passing("restore.reading")
target.finish()
