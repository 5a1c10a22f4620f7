"""Plain ways to fill a catalog: one policy, one lifecycle, machines, images with copies."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reconciler.api import exceptions, lifecycles, policies, storage
from reconciler.base import meters
from reconciler.catalog import database, images, inventories, jobs, workers
from reconciler.planning import actions, observed

NOW = dt.datetime(2026, 11, 23, 21, 0, 0, 123456, tzinfo=dt.UTC)
CHILD = Path(__file__).with_name("catalog_child.py")
#: Children that were started and not yet waited for.
CHILDREN: list[subprocess.Popen[str]] = []
CLIENT = "diskimages:/srv/guests/oblVM1"
#: For tests of what only a file, or only a server, can do.
on_sqlite = pytest.mark.parametrize("location", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("location", ["postgresql"], indirect=True)


def later(**passed: float) -> dt.datetime:
    """``NOW`` and something."""
    return NOW + dt.timedelta(**passed)


def unit(name: str, **spec: Any) -> storage.StorageUnit:
    """A Directory unit."""
    written = {"type": "Directory", "path": f"/srv/{name}", **spec}
    return storage.StorageUnit.model_validate({"metadata": {"name": name}, "spec": written})


def lifecycle(name: str = "gold", *operations: dict[str, Any]) -> storage.StorageUnit | Any:
    """A lifecycle; by default one Backup operation ``land`` and one Duplication ``dedupe``."""
    default = (operation("land"), operation("dedupe", type="Duplication", source="land", storage="pool"))
    return lifecycles.StorageLifecyclePolicy.model_validate(
        {"metadata": {"name": name}, "spec": {"operations": list(operations or default)}}
    )


def operation(name: str, **fields: Any) -> dict[str, Any]:
    """One operation as users write it."""
    plain = {"name": name, "type": "Backup", "storage": "fast", "retention": {"type": "Fixed", "period": "7d"}}
    return {**plain, **fields}


def policy(name: str = "obl", *schedules: dict[str, Any], **spec: Any) -> policies.BackupPolicy:
    """A policy; by default with the one schedule ``nightly`` at 21:00 UTC."""
    written = {
        "source": {"diskImages": {"path": "/srv/guests"}},
        "schedules": list(schedules or (schedule("nightly"),)),
        "lifecycle": "gold",
        **spec,
    }
    return policies.BackupPolicy.model_validate({"metadata": {"name": name}, "spec": written})


def schedule(name: str, **fields: Any) -> dict[str, Any]:
    """One schedule as users write it."""
    return {"name": name, "type": "Full", "cron": "0 21 * * *", **fields}


def legal_hold(name: str, **spec: Any) -> exceptions.LegalHold:
    """A LegalHold manifest."""
    return exceptions.LegalHold.model_validate({"metadata": {"name": name}, "spec": spec})


def apply(
    db: database.Database,
    *objects: Any,
    revision: str = "main@sha1:1",
    now: dt.datetime = NOW,
    changes: tuple[tuple[str, str, str], ...] = (),
    fence: int | None = None,
) -> None:
    """Put objects in force; ``changes`` are (change, kind, name)."""
    listed = tuple(actions.ConfigurationChange(change=what, kind=kind, name=name) for what, kind, name in changes)
    inventories.apply_configuration(
        db, revision=revision, objects=objects, changes=listed, now=now, actor="tester", fence=fence
    )


def machine(folder: str, **fields: Any) -> observed.Machine:
    """A machine with one disk."""
    plain: dict[str, Any] = {"id": f"diskimages:/srv/guests/{folder}", "name": folder, "disks": ("a.img",)}
    return observed.Machine(**{**plain, "source": plain["id"], **fields})


def see(db: database.Database, *names: str, policy: str = "obl") -> None:
    """Let a policy's source show machines."""
    inventories.see_machines(db, policy, [machine(name) for name in names], NOW)


def draft(id: str, **fields: Any) -> images.ImageDraft:
    """An image of oblVM1 about to be written to unit ``fast``."""
    plain: dict[str, Any] = {
        "id": id, "client_id": CLIENT, "policy": "obl", "schedule": "nightly", "lifecycle": "gold",
        "owed": lifecycle().spec.written(), "type": "Full", "time": NOW, "slot": NOW.replace(microsecond=0),
        "revision": "main@sha1:1", "parent": None, "operation": "land", "unit": "fast", "job": "j-000001",
        "disks": (("a.img", 4096), ("b.img", 8192)),
    }  # fmt: skip
    return images.ImageDraft(**{**plain, **fields})


def facts(name: str, size: int) -> images.DiskFacts:
    """A disk that was read."""
    return images.DiskFacts(name=name, size=size, sector=512, digest=f"blake3-1m:{name}", blake3=None)


def commit(db: database.Database, id: str, *, state: str = "Complete", base: str | None = None, **fields: Any) -> None:
    """Commit an image that was begun by ``draft``."""
    plain: dict[str, Any] = {
        "changes": "FullRead", "consistency": "Offline", "warnings": (), "source_state": {"a.img": {"mtime": "1"}},
        "disks": (facts("a.img", 4096), facts("b.img", 8192)), "now": later(minutes=1), "actor": "tester",
        "result": images.CopyResult(stored_bytes=1000, base=base),
    }  # fmt: skip
    images.commit_image(db, id, state=state, **{**plain, **fields})


def image(db: database.Database, id: str, **fields: Any) -> int:
    """A committed image with copy 1 on ``fast``; its sequence number."""
    sequence = images.begin_image(db, draft(id, **fields))
    commit(db, id)
    return sequence


def duplicate(db: database.Database, id: str, *, unit: str = "pool", operation: str = "dedupe") -> int:
    """A further complete copy; its number."""
    number = images.begin_copy(db, id, operation=operation, unit=unit, job="j-000002", now=NOW)
    images.commit_copy(db, id, number, images.CopyResult(stored_bytes=500, base=None), later(minutes=2), "tester")
    return number


def expire(db: database.Database, id: str, number: int) -> None:
    """Take a copy away without asking."""
    images.mark_expiring(db, id, number, now=NOW, check=lambda *_: None, actor="tester", reason="Fixed 7d passed")
    images.mark_expired(db, id, number, NOW, "tester")


def enqueue(db: database.Database, address: str, **fields: Any) -> str:
    """A queued job of this process."""
    plain: dict[str, Any] = {"type": "Backup", "attempt": 1, "worker": workers.this(), "now": NOW}
    return jobs.enqueue(db, address=address, **{**plain, **fields})


def end(db: database.Database, id: str, state: str, *, now: dt.datetime = NOW, message: str = "broke") -> None:
    """Start and finish a job."""
    jobs.start(db, id, now)
    error = None if state == "Succeeded" else ("SourceError", message)
    jobs.finish(db, id, state=state, error=error, reading=meters.Reading(scanned=7), wall_seconds=1.5, now=now)


def copies(db: database.Database, id: str) -> dict[int, str]:
    """State of each copy of an image, by number."""
    return {row.number: row.state for row in images.list_copies(db, image_id=id)}


def child(*words: str, **environment: str) -> subprocess.Popen[str]:
    """A process that does one of the things in ``catalog_child``; it says what it did on its standard output."""
    process = subprocess.Popen(
        [sys.executable, str(CHILD), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
    )
    CHILDREN.append(process)
    return process


def heard(process: subprocess.Popen[str]) -> str:
    """The next line that a child says."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str], word: str = "go") -> None:
    """Let a child that waits go on."""
    assert process.stdin is not None
    process.stdin.write(word + "\n")
    process.stdin.flush()


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL, and wait until it is gone."""
    process.kill()
    finish(process)


def finish(process: subprocess.Popen[str]) -> int:
    """Wait for a child's end; its exit status."""
    process.communicate(timeout=20)
    CHILDREN.remove(process)
    return process.returncode


def eventually(true: Callable[[], bool], seconds: float = 5) -> bool:
    """Whether something comes true in time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
