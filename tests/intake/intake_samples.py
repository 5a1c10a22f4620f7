"""A good estate in one text, and a way to write down where a diagnostic must stand.

A test changes a piece of the estate and puts ``@@`` in front of the very character at which it expects each finding.
"""

from __future__ import annotations

from pathlib import Path

from reconciler.base import diagnostics
from reconciler.intake import estates

MARK = "@@"

GOOD = """\
apiVersion: holdfast/v1alpha1
kind: StorageUnit
metadata: {name: array, labels: {tier: fast}}
spec:
  type: Directory
  path: /srv/units/array
  failureDomain: room-1
---
apiVersion: holdfast/v1alpha1
kind: StorageUnit
metadata: {name: pool}
spec:
  type: DedupePool
  path: /srv/units/pool
  failureDomain: room-2
  segmentSize: 128KiB
---
apiVersion: holdfast/v1alpha1
kind: StorageUnitGroup
metadata: {name: fast}
spec: {selection: LoadBalance, members: [array]}
---
apiVersion: holdfast/v1alpha1
kind: MediaServer
metadata: {name: server}
spec: {maxConcurrentJobs: 8, storageUnits: [array, pool]}
---
apiVersion: holdfast/v1alpha1
kind: BackupWindow
metadata: {name: night}
spec:
  timeZone: Europe/Berlin
  allow: [{days: [Mon, Tue], start: "20:00", duration: 10h}]
  deny: [{days: [Tue], start: "21:00", duration: 1h}]
---
apiVersion: holdfast/v1alpha1
kind: StorageLifecyclePolicy
metadata: {name: gold}
spec:
  operations:
    - {name: land, type: Backup, storage: fast, retention: {type: Fixed, period: 7d}}
    - name: dedupe
      type: Duplication
      source: land
      storage: pool
      window: night
      retention: {type: Keep, daily: 14, weekly: 8}
---
apiVersion: holdfast/v1alpha1
kind: BackupPolicy
metadata: {name: nightly}
spec:
  source:
    diskImages: {path: /srv/guests, machines: "vm*", disks: ["*.img"]}
  schedules:
    - {name: weekly-full, type: Full, cron: "0 21 * * Sat", timeZone: Europe/Berlin}
    - {name: daily, type: Incremental, cron: "0 21 * * Sun-Fri", timeZone: Europe/Berlin, window: night}
  lifecycle: gold
"""


def changed(*pairs: tuple[str, str]) -> str:
    """``GOOD`` with pieces exchanged; each old piece must stand there exactly once."""
    text = GOOD
    for old, new in pairs:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times"
        text = text.replace(old, new)
    return text


def marked(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without marks, and the line and column of each."""
    places, clean = [], ""
    for piece in text.split(MARK)[:-1]:
        clean += piece
        places.append((clean.count("\n") + 1, len(clean) - clean.rfind("\n")))
    return clean + text.split(MARK)[-1], places


def load(folder: Path, **files: str | bytes) -> estates.Loaded:
    """Write files named ``<key>.yaml`` and load them."""
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / f"{name}.yaml").write_bytes(data)
    return estates.load(folder)


def found(folder: Path, text: str) -> list[tuple[int, int, str]]:
    """Line, column and code of every diagnostic for one file of this text."""
    loaded = load(folder, file=text)
    for one in loaded.diagnostics:
        assert one.position is not None and one.position.file == "file.yaml"
    wrong = any(one.severity is diagnostics.Severity.ERROR for one in loaded.diagnostics)
    assert (loaded.desired is None) == wrong
    return [(one.position.line, one.position.column, one.code) for one in loaded.diagnostics if one.position]


def expect(folder: Path, text: str, *codes: str) -> estates.Loaded:
    """Load the marked text: exactly the given codes, each at its mark, in order of place. Returns what was loaded."""
    clean, places = marked(text)
    assert len(places) == len(codes), "one mark per code"
    assert found(folder, clean) == sorted((*place, code) for place, code in zip(places, codes, strict=True))
    return load(folder, file=clean)
