"""A small slice of ``hack/bench files``: every figure is there, and the bounds hold that do not depend on size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "hack" / "bench_files.py"


def test_a_slice_of_the_benchmark() -> None:
    small = ("--files", "6000", "--images", "12", "--guests", "2", "--guest-images", "5", "--real", "400", "--json")
    done = subprocess.run([sys.executable, BENCH, *small], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout)
    assert figures["missed"] == []
    assert figures["one"]["images"] == 12
    assert figures["one"]["searches"]["rare"]["found"] >= 1
    assert figures["many"]["searches"]["common"]["found"] > figures["many"]["searches"]["none"]["found"] == 0
    assert {kind: one["names"] >= 400 for kind, one in figures["real"].items()} == {"ntfs": True, "ext4": True}
