"""A slice of ``hack/bench transports``: what is judged here is bytes and memory, as a busy machine says nothing of speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import transport_samples as samples

pytestmark = [samples.needs_peer, samples.needs_nbdkit]


def test_every_way_reads_the_same_bytes_in_bounded_memory(tmp_path: Path) -> None:
    command = [sys.executable, samples.ROOT / "hack" / "bench_transports.py", "--bytes=96MiB", "--warm", "--json"]
    command += ["--folder", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["way"]: row for row in json.loads(done.stdout)}
    assert set(rows) == {"direct", "nbdkit-vddk", "datastore", "export"}
    assert len({row["digest"] for row in rows.values()}) == 1
    assert rows["nbdkit-vddk"]["bytes"] == rows["export"]["bytes"] == rows["direct"]["bytes"] < 96 << 20
    assert rows["datastore"]["bytes"] == 96 << 20, "files tell nothing of what was never written"
    assert list(tmp_path.iterdir()) == []
