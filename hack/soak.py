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
sys.path[:0] = [str(TESTS), str(TESTS / "faults"), str(TESTS / "dedupe")]

import kills  # noqa: E402
import pool_kills  # noqa: E402
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


def soak_pool(rounds: int, seed: int) -> int:
    """Crowds on one pool, each with a death at the next named point; the exit code is 1 if a phase was never met."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-soak-"))
    root, dice, score = folder / "pool", random.Random(seed), pool_kills.Score()
    pool_kills.create(root)
    pool_kills.round_(root, "pool.after-manifest", dice, score)
    began = time.monotonic()
    for number in range(rounds):
        try:
            pool_kills.round_(root, pool_kills.POINTS[number % len(pool_kills.POINTS)], dice, score)
            if number % SERIES == SERIES - 1 or number == rounds - 1:
                pool_kills.settle(root, score)
        except BaseException:
            print(f"failed in round {number + 1} of seed {seed}; the pool is {root}")
            raise
        if number % SERIES == SERIES - 1:
            deaths = f"{score.landed.total()} deaths at {len(score.landed)} points, {score.anywhere} anywhere"
            print(f"{number + 1} rounds, {deaths}, {score.stored} images, {time.monotonic() - began:.0f} s", flush=True)
    pool_kills.empty(root)
    missed = [point for point in pool_kills.POINTS if not score.landed[point]]
    print(", ".join(f"{count} {point}" for point, count in sorted(score.landed.items())))
    if missed and rounds >= 2 * len(pool_kills.POINTS):
        print(f"no kill landed at {', '.join(missed)}; the pool is {root}")
        return 1
    shutil.rmtree(folder)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="hack/soak", description=__doc__)
    modes = parser.add_subparsers(dest="mode", required=True)
    soaks = {"kills": soak_kills, "pool": soak_pool}
    for name, text in (
        ("kills", "kill holdfast run at random moments"),
        ("pool", "kill processes that share a pool in every phase of their work"),
    ):
        mode = modes.add_parser(name, help=text)
        mode.add_argument("--rounds", type=int, default=200)
        mode.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)
    return soaks[chosen.mode](chosen.rounds, chosen.seed)


if __name__ == "__main__":
    sys.exit(main())
