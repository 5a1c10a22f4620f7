"""Many rounds of what ``tests/faults`` does a few times; called by ``hack/soak``."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "faults")]

import kills  # noqa: E402
from fault_estates import Estate  # noqa: E402

#: Rounds between two proofs: few enough that a failure points at what caused it.
SERIES = 5


def soak_kills(rounds: int, seed: int) -> int:
    """Series after series in one estate that grows old; the exit code."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-soak-"))
    estate = Estate(folder / "root")
    estate.root.mkdir()
    estate.build()
    dice, done, struck = random.Random(seed), 0, 0
    interrupted: Counter[str] = Counter()
    began = time.monotonic()
    estate.command.run("apply", "--yes", ".")
    while done < rounds:
        count = min(SERIES, rounds - done)
        try:
            score = kills.series(estate, dice, count, first=done + 1)
        except BaseException:
            print(f"failed in rounds {done + 1} to {done + count} of seed {seed}; the estate is {estate.folder}")
            raise
        done += count
        struck += score.kills
        interrupted += score.interrupted
        met = ", ".join(f"{count} {type}" for type, count in sorted(interrupted.items())) or "none"
        print(f"{done} rounds, {struck} kills, {time.monotonic() - began:.0f} s; jobs interrupted: {met}", flush=True)
    shutil.rmtree(folder)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="hack/soak", description=__doc__)
    modes = parser.add_subparsers(dest="mode", required=True)
    mode = modes.add_parser("kills", help="kill holdfast run at random moments")
    mode.add_argument("--rounds", type=int, default=200)
    mode.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)
    return soak_kills(chosen.rounds, chosen.seed)


if __name__ == "__main__":
    sys.exit(main())
