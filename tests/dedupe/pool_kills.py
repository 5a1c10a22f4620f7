"""Killing processes that share a pool; ``test_crowds`` does a round per phase, ``hack/soak pool`` hundreds.

Each round a crowd works on one pool: a worker that writes, deletes and collects, at times a writer, a reader or a
scrubber beside it. One of them dies at a named point, the others by a kill at a random moment. After a few rounds the
pool is opened, swept and collected: everything acknowledged is there, and nothing else is.
"""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pool_crowd_child as child
import pool_samples as samples

from reconciler.base import crashes, meters
from reconciler.storage.dedupe import containers

#: Points that only a scrub of a pool with a damaged page passes.
SCRUB = ("pool.scrub-found", "pool.scrub-healed", "pool.scrub-placed", "pool.damage-listed")
#: Points that a crowd passes; attachments are put in place by those who repair them alone.
POINTS = tuple(point for point in crashes.POINTS if point.startswith("pool.") and point != "pool.reattached")
#: Seconds that a crowd may live before what is left of it is killed.
LIFE = 6.0


@dataclasses.dataclass(kw_only=True, slots=True)
class Score:
    """What the kills met."""

    rounds: int = 0
    #: Point -> processes that died there.
    landed: Counter[str] = dataclasses.field(default_factory=Counter)
    #: Processes killed at a random moment.
    anywhere: int = 0
    stored: int = 0


def create(root: Path) -> None:
    """An empty pool for a crowd."""
    samples.create(root, segment_size=32 << 10)


def round_(root: Path, point: str, dice: random.Random, score: Score) -> None:
    """One crowd, one of which is to die at ``point``."""
    if point in SCRUB:
        _spoil_page(root, dice)
    victim = "scrub" if point in SCRUB else "work"
    roles = {victim, "work", *(role for role in ("read", "write") if dice.random() < 0.4)}
    armed = f"{point}:{1 if point in SCRUB else dice.choice((1, 1, 2, 3))}"
    crowd = {role: _start(root, role, f"{dice.random()}", armed if role == victim else "") for role in sorted(roles)}
    deadline = time.monotonic() + LIFE
    try:
        while crowd[victim].poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(dice.random() ** 2 * 0.3)
    finally:
        for process in crowd.values():
            process.kill()
        said = {role: process.communicate()[1] for role, process in crowd.items()}
    for role, process in crowd.items():
        assert process.returncode == -signal.SIGKILL, f"{role} ended by itself: {said[role]}"
    score.rounds += 1
    if time.monotonic() < deadline:
        score.landed[point] += 1
    score.anywhere += len(crowd) - 1


def _start(root: Path, role: str, seed: str, armed: str) -> subprocess.Popen[str]:
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parents[1])])
    environment = {**os.environ, "HOLDFAST_TEST": "1", "HOLDFAST_CRASH": armed, "PYTHONPATH": paths}
    command = [sys.executable, child.__file__, str(root), role, seed]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _spoil_page(root: Path, dice: random.Random) -> None:
    """Change a bit of a page in one of its two containers: nothing is lost by that."""
    found = samples.container_files(root, "meta-b")
    if not found:
        return
    pool = samples.open_pool(root, owner=None)
    path = dice.choice(found)
    record = dice.choice(containers.read_footer(path, pool._opened().header.id).records)
    samples.flip(path, record)
    pool.close()


def settle(root: Path, score: Score) -> None:
    """Everything that was acknowledged reads back; after a collection nothing is left that no image needs."""
    pool = samples.open_pool(root, container_size=child.CONTAINER)
    try:
        pool.sweep([])
        assert pool.unreadable() == ()
        held = {one.label.id for one in pool.list()}
        stored, deleting = child.acts(root)
        assert stored - deleting <= held, "an image was acknowledged and is gone"
        for image in held:
            child.require_whole(pool, image)
        # The rest of a round that a kill interrupted, and a whole one: the page may have been spoiled behind the first.
        for _ in range(2):
            pool.scrub(meter=meters.Meter())
        while pool.reclaim(meter=meters.Meter(), threshold=0):
            pass
        assert samples.leftovers(root) == []
        report = pool.scrub(meter=meters.Meter())
        assert (report.complete, report.findings, report.wounded) == (True, (), {}), report
        assert pool.check(meter=meters.Meter()) == ()
        stats = pool.stats(meter=meters.Meter())
        assert (stats.dead_bytes, stats.stored_bytes) == (0, samples.container_bytes(root))
        score.stored = len(stored)
        for image in held:
            child.require_whole(pool, image)
        # So that the thousandth round is no slower than the first.
        for image in sorted(held)[: -2 * child.KEPT]:
            child.say(root, f"deleting {image}")
            pool.delete(image)
    finally:
        pool.close()


def empty(root: Path) -> None:
    """With the last image the last container goes."""
    pool = samples.open_pool(root)
    for held in list(pool.list()):
        pool.delete(held.label.id)
    pool.reclaim(meter=meters.Meter())
    assert samples.container_files(root) == []
    pool.close()
