"""``holdfast init``: a working estate from a few questions. The only command that makes a unit's folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from reconciler.api import registry
from reconciler.api.documents import results
from reconciler.base import errors
from reconciler.cli import options, outputs
from reconciler.intake import estates

_MODELINE = "# yaml-language-server: $$schema=${schema}\n"

_STORAGE = Template(
    _MODELINE
    + """# Where copies stay: a fast folder for the newest, a deduplicating pool for the rest.
apiVersion: holdfast/v1alpha1
kind: StorageUnit
metadata: {name: fast}
spec:
  type: Directory
  path: ${fast}
  maxConcurrentJobs: 8
  failureDomain: fast
---
apiVersion: holdfast/v1alpha1
kind: StorageUnit
metadata: {name: pool}
spec:
  type: DedupePool
  path: ${pool}
  maxConcurrentJobs: 4
  failureDomain: pool
"""
)

_LIFECYCLE = Template(
    _MODELINE
    + """# Every copy's place and lifetime: seven days on the fast unit, then by day, week and month in the pool.
apiVersion: holdfast/v1alpha1
kind: StorageLifecyclePolicy
metadata: {name: standard}
spec:
  operations:
    - name: land
      type: Backup
      storage: fast
      retention: {type: Fixed, period: 7d}
    - name: dedupe
      type: Duplication
      source: land
      storage: pool
      retention: {type: Keep, daily: 14, weekly: 8, monthly: 12, timeZone: ${zone}}
"""
)

_POLICY = Template(
    _MODELINE
    + """# Which machines, and when: each folder under the path is a machine, the image files in it are its disks.
# A machine without images is backed up at the next apply; after that, once a day, with a full every week.
apiVersion: holdfast/v1alpha1
kind: BackupPolicy
metadata: {name: machines}
spec:
  source:
    diskImages: {path: ${machines}, machines: "*", disks: ["*.img", "*.raw", "*.qcow2", "*.vmdk", "*.vhdx"]}
  schedules:
    - {name: daily, type: Incremental, every: ${every}, fullEvery: 7d, timeZone: ${zone}}
  lifecycle: standard
  limits: {maxConcurrentJobs: 8, maxStreamsPerClient: 2}
"""
)

_IGNORE = """# The catalog, locks and caches of this estate; storage and machines are data, not configuration.
.holdfast/
${folders}"""

_HOOKS = """repos:
  - repo: local
    hooks:
      - id: holdfast-validate
        name: holdfast validate
        entry: holdfast validate
        args: [.]
        language: system
        pass_filenames: false
        files: \\.ya?ml$
"""


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the new estate; made if need be.")],
    machines: Annotated[str | None, typer.Option(help="Folder of machine folders.")] = None,
    fast: Annotated[str | None, typer.Option(help="Folder of the fast storage unit.")] = None,
    pool: Annotated[str | None, typer.Option(help="Folder of the deduplicating pool.")] = None,
    every: Annotated[str | None, typer.Option(help="How often machines are backed up, such as 24h.")] = None,
    zone: Annotated[str | None, typer.Option("--time-zone", help="IANA time zone in which days begin.")] = None,
    yes: options.Yes = False,
    output: options.Format = options.Output.TEXT,
) -> int:
    """Write manifests, storage folders, .gitignore and a pre-commit entry. Overwrites nothing."""
    if not yes and not outputs.terminal():
        raise errors.UsageError(
            "init asks a few questions, and there is no terminal", hint="use --yes for the defaults"
        )
    answers = {
        "machines": _ask("Folder of machine folders", machines, "machines", yes=yes),
        "fast": _ask("Folder of the fast storage unit", fast, "storage/fast", yes=yes),
        "pool": _ask("Folder of the deduplicating pool", pool, "storage/pool", yes=yes),
        "every": _ask("How often each machine is backed up", every, "24h", yes=yes),
        "zone": _ask("Time zone in which days begin", zone, "UTC", yes=yes),
    }
    wanted = _files(answers)
    for name in wanted:
        if (folder / name).exists():
            raise errors.TargetExists(f"{folder / name} exists", hint="init overwrites nothing; choose another folder")
    for name in ("machines", "fast", "pool"):
        (folder / answers[name]).mkdir(parents=True, exist_ok=True)
    for name, text in wanted.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    loaded = estates.load(folder)
    if loaded.desired is None:
        for name in wanted:
            (folder / name).unlink()
        raise errors.ConfigurationError(
            "these answers do not make a valid estate; nothing was written", loaded.diagnostics
        )
    message = f"{folder}: {loaded.objects} objects. Next: holdfast plan {folder}, then holdfast apply {folder}"
    outputs.emit(
        results.Message(done=True, message=message, details={"files": sorted(wanted)}), output, lambda one: one.message
    )
    return 0


def _ask(question: str, given: str | None, default: str, *, yes: bool) -> str:
    if given is not None:
        return given
    if yes:
        return default
    sys.stderr.write(f"{question} [{default}]: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip() or default


def _files(answers: dict[str, str]) -> dict[str, str]:
    words = {key: json.dumps(value) if key != "every" else value for key, value in answers.items()}
    words["schema"] = "schemas/manifest.json"
    inside = [answers[key] for key in ("machines", "fast", "pool") if not answers[key].startswith(("/", "..", "~"))]
    return {
        "storage.yaml": _STORAGE.substitute(words),
        "lifecycle.yaml": _LIFECYCLE.substitute(words),
        "policy.yaml": _POLICY.substitute(words),
        "schemas/manifest.json": json.dumps(registry.manifest_schema(), indent=2) + "\n",
        ".gitignore": Template(_IGNORE).substitute(folders="".join(f"/{one.strip('/')}/\n" for one in inside)),
        ".pre-commit-config.yaml": _HOOKS,
    }
