"""One file out of an image, and looks at its folders: from the command to its end, the start of the process included.

``hack/bench onefile`` calls it. A machine with one ext4 disk of 1.2 GB of incompressible data, in files of 1 MB and
many small ones, is backed up into a Directory and a DedupePool by the installed command. Then each question is asked
several times by a process of its own; the figures are the least and the median of the time on the wall, and the least
processor time, which is what an idle machine would take. ``--cold`` drops the caches of the system before each. Exit
code 1 where a bound is missed on the wall.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "cli"), str(ROOT / "tests")]

import estate_samples  # noqa: E402
import holdfast_command  # noqa: E402

MIB = 1 << 20
#: Seconds that are to be reached.
GET, LIST, FIND = 1.0, 0.5, 1.0


def disk(path: Path, size: int, small: int, seed: int) -> None:
    """An ext4 volume of that many bytes in files of 1 MB, and of many small files."""
    rng = random.Random(seed)
    tree = path.with_suffix(".tree")
    (tree / "large").mkdir(parents=True)
    for number in range(size // MIB):
        (tree / "large" / f"file-{number}.bin").write_bytes(rng.randbytes(MIB))
    for number in range(small):
        folder = tree / "small" / f"d{number // 100}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{rng.randrange(16**6):x}-{number}.txt").write_bytes(b"x" * rng.randrange(2000))
    with path.open("wb") as file:
        file.truncate(size + size // 5 + small * 8192 + 64 * MIB)
    make = ["mke2fs", "-q", "-F", "-t", "ext4", "-N", str(small * 2 + 20_000), "-d", tree, path]
    subprocess.run(make, check=True)
    shutil.rmtree(tree)


def asked(command: holdfast_command.Command, words: list[str | Path], rounds: int, *, cold: bool) -> dict[str, Any]:
    """Seconds of a command."""
    walls, processors = [], []
    for _ in range(rounds):
        if cold:
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("3")
        before, began = os.times(), time.monotonic()
        command.run(*words)
        walls.append(time.monotonic() - began)
        after = os.times()
        processors.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return {
        "least": round(min(walls), 3),
        "median": round(statistics.median(walls), 3),
        "processor": round(min(processors), 3),
    }


def measured(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every figure."""
    estate = estate_samples.build(folder / "estate", duplicate="yes", retention="{type: Forever}")
    (estate.folder / "machines" / "alpha").mkdir()
    disk(estate.folder / "machines" / "alpha" / "system.img", chosen.bytes, chosen.small, chosen.seed)
    command = holdfast_command.Command(folder=estate.folder, whole=True)
    command.run("apply", ".", "--yes", timeout=1200)
    wanted = f"/large/file-{chosen.bytes // MIB // 2}.bin"
    out = folder / "out"
    questions: dict[str, tuple[float, list[str | Path]]] = {
        "ls": (LIST, ["files", "ls", "alpha", "/small/d7"]),
        "ls large": (LIST, ["files", "ls", "alpha", "/large"]),
        "find": (FIND, ["files", "find", f"*-{chosen.small // 2}.txt"]),
        "versions": (FIND, ["files", "versions", "alpha", wanted]),
        "get, Directory": (GET, ["files", "get", "alpha", wanted, "--to", out, "--force", "--copy", "1"]),
        "get, DedupePool": (GET, ["files", "get", "alpha", wanted, "--to", out, "--force", "--copy", "2"]),
    }
    found: dict[str, Any] = {}
    for name, (bound, words) in questions.items():
        found[name] = {"bound": bound, **asked(command, words, chosen.rounds, cold=chosen.cold)}
    return found


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=1200 * MIB, help="of the files of 1 MB")
    parser.add_argument("--small", type=int, default=20_000, help="small files")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cold", action="store_true", help="drop the system's caches before each; needs root")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="work here; a temporary folder by default")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        figures = measured(chosen, Path(folder))
    print(json.dumps(figures, indent=None if chosen.json else 2))
    return 1 if any(one["least"] > one["bound"] for one in figures.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
