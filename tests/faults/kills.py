"""Killing ``holdfast run`` at random moments; ``test_random_kills`` does a few rounds, ``hack/soak kills`` many.

Each round starts the loop over disks that changed and a clock that moved on, kills it once or twice in a row, and at
the end of a series the estate must converge with everything that was ever committed, and not retired by a rule, intact.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import signal
import sqlite3
import subprocess
import time
from collections import Counter

from fault_estates import Estate

#: Seconds after the first job began, or the lease was taken, within which a kill lands; short ones are likelier.
SPAN = 0.8
#: Seconds to wait for a job to begin.
IDLE = 2.0


@dataclasses.dataclass(kw_only=True, slots=True)
class Score:
    """What the kills met."""

    #: Processes killed while they lived.
    kills: int = 0
    #: Job type -> jobs that a kill interrupted.
    interrupted: Counter[str] = dataclasses.field(default_factory=Counter)


def strike(estate: Estate, dice: random.Random, score: Score, *, patience: float = 60) -> None:
    """Start the loop and kill it: sometimes soon after it took its lease, mostly soon after it began a job."""
    before, jobs = _lease(estate), _jobs(estate)
    aimed, delay = dice.random() < 0.75, dice.random() ** 2
    process = estate.command.start("run", ".", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + patience
    try:
        # Most of a process's first second is Python starting, which is not what is to be interrupted.
        while _lease(estate) == before:
            assert process.poll() is None, f"run ended by itself: {process.communicate()[1]}"
            assert time.monotonic() < deadline, "run never took its lease"
            time.sleep(0.01)
        # Where nothing is left to do no job begins, and the kill meets an idle loop.
        idle = time.monotonic() + IDLE
        while aimed and _jobs(estate) == jobs and time.monotonic() < idle:
            time.sleep(0.002)
        time.sleep(delay * SPAN)
        assert process.poll() is None, f"run ended by itself: {process.communicate()[1]}"
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    score.kills += 1
    if (estate.folder / ".holdfast" / "catalog.sqlite").exists():
        # Their process is dead, and nobody has said so yet: exactly what the kill interrupted.
        for job in estate.items("jobs"):
            if job["state"] in ("Running", "Queued"):
                score.interrupted[job["type"]] += 1


def series(estate: Estate, dice: random.Random, rounds: int, *, first: int = 1) -> Score:
    """So many rounds, then convergence; what the kills met. ``first`` numbers the contents of the disks."""
    score = Score()
    ever: set[tuple[str, str]] = set()
    for number in range(first, first + rounds):
        if dice.random() < 0.8:
            estate.pass_day(number)
        for _ in range(2 if dice.random() < 0.3 else 1):
            strike(estate, dice, score)
            ever |= {(unit, image) for unit, labels in estate.held().items() for image in labels}
    settle(estate, ever)
    return score


def settle(estate: Estate, ever: set[tuple[str, str]]) -> None:
    """A plain pass converges, and whatever is gone was let go by a rule."""
    estate.command.run("apply", "--yes", ".")
    estate.require_converged()
    held = {(unit, image) for unit, labels in estate.held().items() for image in labels}
    expired = {(copy["unit"], copy["image"]) for copy in estate.items("copies") if copy["state"] == "Expired"}
    unproven = {(unit, image) for unit, image in ever if unit == "pool"}
    known = {copy["image"] for copy in estate.items("copies")}
    # A duplicate is acknowledged only once it was proven, so an unproven one may be made anew; a first copy never.
    assert ever - unproven <= held | expired, "an image that its unit had committed is gone"
    assert {image for _, image in ever} <= known
    slots = Counter((unit, client, slot) for unit, client, slot in estate.holdings().elements())
    assert max(slots.values(), default=0) == 1, "one slot was backed up twice"


def _lease(estate: Estate) -> bytes:
    try:
        return (estate.folder / ".holdfast" / "controller.lock").read_bytes()
    except FileNotFoundError:
        return b""


def _jobs(estate: Estate) -> int:
    """How many jobs were ever begun. Read from the file itself: a kill must follow within milliseconds."""
    catalog = estate.folder / ".holdfast" / "catalog.sqlite"
    if not catalog.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{catalog}?mode=ro", uri=True, timeout=5)) as connection:
        return int(connection.execute("select count(*) from jobs").fetchone()[0])
