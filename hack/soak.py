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
sys.path[:0] = [str(TESTS), *(str(TESTS / name) for name in ("faults", "dedupe", "planning", "cli", "vsphere"))]

import fault_rounds  # noqa: E402
import hypothesis  # noqa: E402
import kills  # noqa: E402
import pool_kills  # noqa: E402
import test_state_machine as lives  # noqa: E402
import years  # noqa: E402
from fault_estates import Estate  # noqa: E402
from hypothesis.stateful import run_state_machine_as_test  # noqa: E402

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


def soak_vsphere(cycles: int, seed: int) -> int:
    """Nights of eight virtual machines under random faults; the exit code."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-soak-"))
    try:
        score = fault_rounds.soak(folder, cycles, seed, lambda line: print(line, flush=True))
    except BaseException:
        print(f"failed under seed {seed}; the estate is {folder}")
        raise
    print(", ".join(f"{count} {what}" for what, count in sorted(score.states.items())))
    print(f"{score.cycles} backups in {score.rounds} nights; {score.images} images, every one as it was frozen;")
    print(f"{score.left} snapshots were left by a pass and removed by the next")
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


def soak_planner(steps: int, seed: int) -> int:
    """Whole lives of simulated estates, forty to a seed; the exit code. The first that fails is shown shrunk."""
    began, number = time.monotonic(), seed
    while lives.TALLY["steps"] < steps:
        try:
            run_state_machine_as_test(hypothesis.seed(number)(lives.Life), settings=_LIVES)
        except BaseException:
            print(f"failed with --seed {number}, after {lives.TALLY['steps']} steps")
            raise
        print(f"{lives.TALLY['steps']} steps, up to seed {number}, {time.monotonic() - began:.0f} s", flush=True)
        number += 1
    for what, count in sorted(lives.TALLY.items()):
        print(f"{count:8} {what}")
    return 0


#: Lives of thirty steps, forty to a seed.
_LIVES = hypothesis.settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)


def soak_year(days: int, machines: int) -> int:
    """A year of the sample estate's nights; the exit code."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-year-"))
    counts = {"daily": 14, "weekly": 8, "monthly": 12}
    try:
        year = years.live(folder, years.sample(**counts), machines=machines, days=days, tell=print)
        assert days < 365 or year.counted("dedupe") == counts
    except BaseException:
        print(f"failed; the estate is {folder}")
        raise
    shutil.rmtree(folder)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="hack/soak", description=__doc__)
    modes = parser.add_subparsers(dest="mode", required=True)
    for name, text, soak, first, second in (
        ("kills", "kill holdfast run at random moments", soak_kills, ("rounds", 200), ("seed", 1)),
        ("pool", "kill processes that share a pool in every phase", soak_pool, ("rounds", 200), ("seed", 1)),
        ("planner", "lead the planner through whole lives", soak_planner, ("steps", 50_000), ("seed", 1)),
        ("vsphere", "nights of virtual machines under random faults", soak_vsphere, ("cycles", 200), ("seed", 1)),
        ("year", "a year of nights of the sample estate", soak_year, ("days", 365), ("machines", 8)),
    ):
        mode = modes.add_parser(name, help=text)
        mode.set_defaults(soak=soak)
        for option, default in (first, second):
            mode.add_argument(f"--{option}", type=int, default=default)
    chosen = vars(parser.parse_args(arguments))
    soak = chosen.pop("soak")
    del chosen["mode"]
    return int(soak(**chosen))


if __name__ == "__main__":
    sys.exit(main())
