"""The rows of the deduplication benchmark: what is asked, what was found, and whether that is enough.

``bench_dedupe`` fills them and prints the table. A row has a floor, which a release must reach, and an aim. A row that
could not be measured says why and fails the run like one that misses. In a quick run only rows about bytes are judged:
a small lab on a busy machine says nothing about speed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table."""

    key: str
    text: str
    floor: float
    aim: float
    #: Shown behind the figures: ``x``, ``%``, ``s``, ``:1``, ``MiB``.
    unit: str
    #: Whether small figures are good ones.
    small: bool
    #: ``Speed`` and ``Span`` (many days, or more change than a slice has) are judged in a full run alone.
    about: Literal["Speed", "Bytes", "Span"]

    def reached(self, found: float, mark: float) -> bool:
        return found <= mark if self.small else found >= mark


def _row(key: str, about: str, floor: float, aim: float, unit: str, text: str) -> Row:
    return Row(
        key=key,
        text=text,
        floor=floor,
        aim=aim,
        unit=unit,
        small=aim < floor,
        about=about.capitalize(),  # type: ignore[arg-type]
    )


ROWS = (
    _row("firstRate", "Speed", 2.5, 4, "x", "first full of the lab, throughput over restic's"),
    _row("firstCpu", "Speed", 0.40, 0.30, "x", "first full, user CPU seconds over restic's"),
    _row("stored", "Bytes", 0.75, 0.60, "x", "bytes stored after it, over the better of restic and borg"),
    _row("separate", "Bytes", 3, 1.5, "%", "added by a guest of files the pool holds, over their bytes"),
    _row("secondRate", "Speed", 0.6, 0.8, "x", "second full, nothing changed, over pread + BLAKE3"),
    _row("incremental", "Speed", 2, 0.5, "s", "incremental of known changes, the part that does not grow"),
    _row("dayFiles", "Span", 1.3, 1.1, "x", "stored for new and appended data, over it packed alone"),
    _row("dayPlace", "Bytes", 10, 5, "x", "stored for 8 KiB writes in place, over them packed alone"),
    _row("restoreRate", "Speed", 3, 5, "x", "restore of a whole disk, throughput over restic's"),
    _row("restoreAged", "Speed", 0.8, 0.9, "x", "restore of the newest image after the dailies, over first full"),
    _row("amplification", "Speed", 1.5, 1.2, "x", "the same, bytes read from the device over bytes needed"),
    _row("cumulative", "Span", 25, 40, ":1", "raw bytes of all daily images over bytes stored"),
    _row("memory", "Bytes", 800, 500, "MiB", "peak anonymous memory with eight jobs at once"),
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What came of a row: a figure, or why there is none; and what else is worth knowing."""

    value: float | None = None
    note: str = ""


def verdict(row: Row, found: Found | None, *, quick: bool) -> str:
    """``aim``, ``pass``, ``MISS``, ``not measured``, or ``not judged``."""
    if found is None or found.value is None:
        return "not measured"
    if quick and row.about != "Bytes":
        return "not judged"
    if row.reached(found.value, row.aim):
        return "aim"
    return "pass" if row.reached(found.value, row.floor) else "MISS"


def failed(found: Mapping[str, Found], *, quick: bool) -> list[str]:
    """Keys of the rows that fail the run."""
    return [row.key for row in ROWS if verdict(row, found.get(row.key), quick=quick) in ("MISS", "not measured")]


def document(found: Mapping[str, Found], *, quick: bool) -> list[dict[str, Any]]:
    """The table as JSON values."""
    return [
        {
            "key": row.key,
            "text": row.text,
            "unit": row.unit,
            "floor": row.floor,
            "aim": row.aim,
            "found": found.get(row.key, Found()).value,
            "note": found.get(row.key, Found()).note,
            "verdict": verdict(row, found.get(row.key), quick=quick),
        }
        for row in ROWS
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table as lines of text."""
    lines = [f"{'':<62}  {'floor':>10}  {'aim':>10}  {'found':>10}  verdict"]
    for row in rows:
        figures = [_figure(row[name], row["unit"]) for name in ("floor", "aim", "found")]
        lines.append(f"{row['text']:<62}  " + "".join(f"{one:>10}  " for one in figures) + row["verdict"])
        if row["note"]:
            lines.append(f"    {row['note']}")
    return lines


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    joined = unit if unit in ("x", "%", ":1") else f" {unit}"
    return (f"{value:.0f}" if value >= 100 else f"{value:.3g}") + joined
