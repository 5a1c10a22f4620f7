"""A slice of the benchmark, half a GB of guests beside restic and borg: what is judged here is bytes, as speed differs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = 8 << 30


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount the guests that are made")
def test_the_slice_stores_no_more_than_it_may(tmp_path: Path) -> None:
    assert shutil.disk_usage(tmp_path).free > NEEDED, f"{tmp_path} needs {NEEDED >> 30} GiB free"
    folders = [f"--{name}={tmp_path / name}" for name in ("lab", "work", "out")]
    command = [sys.executable, ROOT / "hack" / "bench_dedupe.py", "--quick", *folders]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    judged = {row["key"]: row["verdict"] for row in document["rows"] if row["verdict"] != "not judged"}
    assert set(judged) == {"stored", "separate", "dayPlace", "memory"}
    assert set(judged.values()) <= {"pass", "aim"}
