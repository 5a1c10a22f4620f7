"""One process of a crowd on one pool, to be killed: ``pool_crowd_child.py ROOT ROLE SEED``.

``work`` writes and deletes images in two threads while a third collects; ``write`` only writes, as another process
would; ``read`` proves what is there; ``scrub`` scrubs. What an image must hold follows from its id. Acts are
acknowledged by whole lines in ``acts``: ``stored ID`` after the commit, ``deleting ID`` before the deletion begins.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pool_samples as samples

from reconciler.base import disks, errors, meters
from reconciler.storage.dedupe import pools

MIB = samples.MIB
_BASE = samples.noise(3 * MIB, 9)
_PAGES = [samples.noise(20_000, 50 + number) for number in range(12)]
#: Small, so that a short life seals many.
CONTAINER = MIB // 2
#: Images that are kept at a time, about.
KEPT = 6


def content(image: str) -> bytes:
    """What an image holds."""
    number = int(image.rpartition("-")[2])
    dice = random.Random(number)
    data = samples.patch(_BASE, dice.randrange(0, 2 * MIB, 4096), dice.randbytes(MIB // 2))
    return data if dice.random() < 0.7 else dice.randbytes(MIB)


def attached(image: str) -> dict[str, list[bytes]]:
    """What it carries beside its disk: pages that many images share, some of its own, and part of its disk."""
    dice = random.Random(image)
    if dice.random() < 0.3:
        return {}
    own = [dice.randbytes(20_000) for _ in range(3)]
    return {"files": [*dice.sample(_PAGES, 8), *own], "disk": [content(image)[: 64 << 10]]}


def require_whole(pool: pools.DedupePool, image: str) -> None:
    """The image gives back what it must hold. Raises ``UnitError``."""
    assert samples.load(pool, image) == content(image), f"{image} reads back as something else"
    assert samples.load_attached(pool, image) == attached(image), f"{image} carries something else"


def acts(root: Path) -> tuple[set[str], set[str]]:
    """The images acknowledged as stored, and those whose deletion began."""
    path = root.parent / "acts"
    lines = path.read_text().splitlines() if path.exists() else []
    words = [line.split() for line in lines]
    return {one[1] for one in words if one[0] == "stored"}, {one[1] for one in words if one[0] == "deleting"}


def say(root: Path, line: str) -> None:
    """Acknowledge an act, in one write."""
    handle = os.open(root.parent / "acts", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, (line + "\n").encode())
    finally:
        os.close(handle)


def _write(root: Path, pool: pools.DedupePool, dice: random.Random) -> None:
    image = f"i-{os.getpid()}-{dice.randrange(10**9)}"
    stored, deleting = acts(root)
    known = sorted(stored - deleting)
    parent = dice.choice(known) if known and dice.random() < 0.5 else None
    data = content(image)
    if parent is not None and len(content(parent)) != len(data):
        parent = None
    # A writer beside which containers went is told so at its commit, and a parent may be deleted any time.
    with contextlib.suppress(errors.UnitError):
        samples.store(pool, image, disks.MemoryDisk("d", data), parent=parent, attached=attached(image))
        say(root, f"stored {image}")


def _delete(root: Path, pool: pools.DedupePool, dice: random.Random) -> None:
    stored, deleting = acts(root)
    known = sorted(stored - deleting)
    if len(known) > KEPT:
        image = dice.choice(known)
        say(root, f"deleting {image}")
        pool.delete(image)


def _read(root: Path, pool: pools.DedupePool, dice: random.Random) -> None:
    stored, deleting = acts(root)
    known = sorted(stored - deleting)
    if not known:
        time.sleep(0.05)
        return
    image = dice.choice(known)
    try:
        require_whole(pool, image)
    except errors.UnitError:
        if image in acts(root)[1]:
            return
        raise


def _collect(_root: Path, pool: pools.DedupePool, dice: random.Random) -> None:
    pool.reclaim(meter=meters.Meter(), threshold=dice.choice((0, 10, 50)))
    time.sleep(dice.random() * 0.05)


def _scrub(_root: Path, pool: pools.DedupePool, _dice: random.Random) -> None:
    # Collections take containers away while they are proven; that is no damage.
    report = pool.scrub(meter=meters.Meter())
    assert not report.wounded, f"{sorted(report.wounded.items())[:3]} {report.findings[:3]}"


def _churn(root: Path, pool: pools.DedupePool, dice: random.Random) -> None:
    _write(root, pool, dice)
    _delete(root, pool, dice)


ROLES: dict[str, tuple[Callable[[Path, pools.DedupePool, random.Random], None], ...]] = {
    "work": (_churn, _churn, _collect),
    "write": (_write,),
    "read": (_read,),
    "scrub": (_scrub,),
}


def _endlessly(act: Callable[[Path, pools.DedupePool, random.Random], None], root: Path, seed: str) -> None:
    """Do an act until the process is killed; any other end of it is an end with a message."""
    dice = random.Random(seed)
    pool = samples.open_pool(root, container_size=CONTAINER)
    try:
        while True:
            act(root, pool, dice)
    except BaseException as error:  # noqa: BLE001  whatever it is, the test must hear of it
        sys.stderr.write(f"{act.__name__}: {type(error).__name__}: {error}\n")
        sys.stderr.flush()
        os._exit(3)


def main(root: Path, role: str, seed: str) -> None:
    """Play a role until killed."""
    sys.stdout.write("began\n")
    sys.stdout.flush()
    threads = [
        threading.Thread(target=_endlessly, args=(act, root, f"{seed}-{number}"), daemon=True)
        for number, act in enumerate(ROLES[role])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
