"""A whole estate: absolute paths, the order of files, the words the design promises, and the time it takes."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
import time
from pathlib import Path

import intake_samples
import pytest

from reconciler.intake import codes, estates, trees

#: The goal is 2 s on an idle machine; test machines are slower and busy.
SECONDS = 12


def test_relative_paths_begin_at_the_manifest(tmp_path: Path) -> None:
    text = intake_samples.changed(
        ("path: /srv/units/array", "path: array"),
        ("path: /srv/units/pool", "path: ../../pool/./x/.."),
        ("path: /srv/guests", "path: ../guests"),
    )
    (tmp_path / "estate" / "sub").mkdir(parents=True)
    intake_samples.load(tmp_path / "estate" / "sub", file=text)
    desired = estates.load(tmp_path / "estate").desired
    assert desired is not None
    assert desired.units["array"].spec.path == str(tmp_path / "estate" / "sub" / "array")
    assert desired.units["pool"].spec.path == str(tmp_path / "pool")
    assert desired.policies["nightly"].spec.source.disk_images.path == str(tmp_path / "estate" / "guests")


def test_the_same_estate_means_the_same_through_a_link_and_a_relative_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    plain = intake_samples.load(
        tmp_path / "real" / "deep", file=intake_samples.changed(("path: /srv/guests", "path: ../guests"))
    )
    (tmp_path / "link").symlink_to("real/deep")
    monkeypatch.chdir(tmp_path / "real")
    assert plain == estates.load(tmp_path / "link") == estates.load(Path("deep"))


def test_units_that_meet_through_relative_paths_are_seen(tmp_path: Path) -> None:
    text = intake_samples.changed(
        ("path: /srv/units/array", f"path: {tmp_path}/a"), ("path: /srv/units/pool", "path: @@a/b")
    )
    intake_samples.expect(tmp_path, text, codes.OVERLAPPING_PATHS)


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_files_does_not_matter(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    parts = intake_samples.GOOD.split("---\n") * 2
    for number, part in enumerate(parts):
        words = part.split(" ")
        if chance.random() < 0.5:
            words[chance.randrange(len(words))] = chance.choice(["x", "{", "gold", "1.5", ""])
        (tmp_path / f"f{number}.yaml").write_text(" ".join(words))
    tree = trees.read_tree(tmp_path)
    files = list(tree.files)
    chance.shuffle(files)
    assert estates.judge(dataclasses.replace(tree, files=tuple(files))) == estates.judge(tree)


def test_problems_of_all_files_come_at_once_and_in_order(tmp_path: Path) -> None:
    loaded = intake_samples.load(
        tmp_path,
        a="a: [\n",
        b=intake_samples.changed(("type: Directory", "type: Directry"), ("period: 7d", "period: 1h")),
        c="kind: X\napiVersion: holdfast/v1alpha1\n",
        d=b"\xff",
    )
    assert [(one.position.file, one.code) for one in loaded.diagnostics if one.position] == [
        ("a.yaml", codes.NOT_YAML),
        ("b.yaml", codes.WRONG_WORD),
        ("b.yaml", codes.RETENTION_TOO_SHORT),
        ("c.yaml", codes.UNKNOWN_KIND),
        ("d.yaml", codes.NOT_TEXT),
    ]


def big_estate(root: Path) -> None:
    """2,000 objects in 1,004 files, with staggered schedules."""
    lines = ["apiVersion: holdfast/v1alpha1", "kind: StorageUnit", "metadata: {name: NAME}"]
    for number in range(1000):
        pool = [*lines, f"spec: {{type: DedupePool, path: /srv/{number}, failureDomain: d{number}}}", "---"]
        if number % 4 == 0:
            other = f"""apiVersion: holdfast/v1alpha1
kind: StorageLifecyclePolicy
metadata: {{name: l{number}}}
spec:
  operations:
    - {{name: land, type: Backup, storage: u{number}, retention: {{type: Fixed, period: 3d}}}}
    - name: copy
      type: Duplication
      source: land
      storage: u{number + 1}
      retention: {{type: Keep, daily: 14, weekly: 8}}
"""
        else:
            when = f"{number % 60} {number % 24}"
            other = f"""apiVersion: holdfast/v1alpha1
kind: BackupPolicy
metadata: {{name: p{number}}}
spec:
  source: {{diskImages: {{path: /srv/guests/{number}}}}}
  schedules:
    - {{name: full, type: Full, cron: "{when} * * Sat", timeZone: Europe/Berlin}}
    - {{name: daily, type: Incremental, cron: "{when} * * Sun-Fri", timeZone: Europe/Berlin}}
  lifecycle: l{number // 4 * 4}
"""
        folder = root / f"part{number % 20}"
        folder.mkdir(exist_ok=True)
        (folder / f"f{number}.yaml").write_text("\n".join(pool).replace("NAME", f"u{number}") + "\n" + other)
    for number in range(4):
        (root / f"empty{number}.yaml").write_text("# nothing yet\n")


def test_two_thousand_objects_are_validated_soon(tmp_path: Path) -> None:
    big_estate(tmp_path)
    program = (
        "import sys, pathlib; from reconciler.intake import estates; l = estates.load(pathlib.Path(sys.argv[1])); "
    )
    program += "print(l.objects, len(l.diagnostics))"
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["2000", "0"], done.stderr
    assert time.monotonic() - began < SECONDS


def test_validating_loads_no_more_than_it_needs() -> None:
    program = "import sys; import reconciler.intake.estates; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "pydantic" in loaded
    assert not loaded & {"sqlmodel", "sqlalchemy", "rich", "typer", "lmdb", "zstandard", "asyncio", "watchfiles"}
