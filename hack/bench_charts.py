"""The benchmark's charts, as PNG files, drawn from its results.json alone.

``bench_dedupe`` calls ``draw`` after a full run; ``python hack/bench_charts.py results.json FOLDER`` draws them again.
matplotlib is the extra ``bench``, which ``hack/bench`` installs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

COLOURS = {"holdfast": "#1f6f8b", "restic": "#e08e45", "borg": "#7a9e4e"}


def _bars(axes: Any, result: Mapping[str, Any], value: Callable[[Mapping[str, Any]], float], steps: list[str]) -> None:
    """Groups of bars: one group a step, one bar a tool, its figure on top."""
    width = 0.8 / len(COLOURS)
    for number, (tool, colour) in enumerate(COLOURS.items()):
        chosen = [next(one for one in result["steps"] if (one["tool"], one["step"]) == (tool, step)) for step in steps]
        places = [at + (number - 1) * width for at in range(len(steps))]
        axes.bar_label(
            axes.bar(places, list(map(value, chosen)), width, label=tool, color=colour), fmt="%.0f", fontsize=8
        )
    axes.set_xticks(range(len(steps)), steps)
    axes.legend(frameon=False)


def _days(axes: Any, result: Mapping[str, Any]) -> None:
    """Ratio after each daily full, of raw bytes and of those that are not zero."""
    days = [one["day"] for one in result["days"]]
    for name, label in (("logicalBytes", "raw"), ("nonZeroBytes", "not zero")):
        ratios = [one[name] / one["onDiskBytes"] for one in result["days"]]
        axes.plot(days, ratios, marker="o", label=label)
        axes.annotate(f"{ratios[-1]:.1f}:1", (days[-1], ratios[-1]), textcoords="offset points", xytext=(4, 4))
    axes.set_xlabel("daily fulls")
    axes.legend(frameon=False)


def _limits(axes: Any, result: Mapping[str, Any]) -> None:
    """Physical limits, and Holdfast's own rates below them."""
    figures = {name: value / 1e6 for name, value in result["limits"].items()}
    for one in result["steps"]:
        if one["tool"] == "holdfast":
            figures[f"holdfast, {one['step']}"] = one["bytesPerSecond"] / 1e6
    names = list(figures)[::-1]
    colours = [COLOURS["holdfast"] if name.startswith("holdfast") else "#999999" for name in names]
    axes.bar_label(axes.barh(names, [figures[name] for name in names], color=colours), fmt="%.0f", fontsize=8)
    axes.set_xscale("log")


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write every chart into ``folder``; their paths. Raises ``ImportError`` without matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    every = ["first full", "second full", "day of change", "restore"]
    charts: dict[str, tuple[str, Callable[[Any], None]]] = {
        "rates": (
            "Throughput, MB/s of bytes that are not zero",
            lambda axes: _bars(axes, result, lambda one: one["bytesPerSecond"] / 1e6, every),
        ),
        "cpu": ("User CPU seconds", lambda axes: _bars(axes, result, lambda one: one["userSeconds"], every)),
        "memory": (
            "Peak anonymous memory, MiB, all processes",
            lambda axes: _bars(axes, result, lambda one: one["memoryBytes"] / (1 << 20), every),
        ),
        "stored": (
            "Bytes stored, MB",
            lambda axes: _bars(axes, result, lambda one: one["storedBytes"] / 1e6, every[:3]),
        ),
        "ratios": ("Bytes of all daily images over bytes stored", lambda axes: _days(axes, result)),
        "limits": ("Physical limits and Holdfast, MB/s", lambda axes: _limits(axes, result)),
    }
    found = []
    for name, (title, fill) in charts.items():
        figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
        axes.set_title(title, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        fill(axes)
        found.append(folder / f"{name}.png")
        figure.savefig(found[-1], dpi=120)
        plt.close(figure)
    return found


if __name__ == "__main__":
    for path in draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])):
        print(path)
