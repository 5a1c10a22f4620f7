"""The plan as text: problems, drift, configuration, what is due, what comes, what would be destroyed.

Symbols are Terraform's: ``+`` create, ``-`` delete, ``~`` change, ``.`` orphan, ``!`` blocked, ``»`` wait.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable

from reconciler.api.documents import plans, results
from reconciler.base import quantities
from reconciler.reports import tables

_CHANGES = {"Create": "+", "Update": "~", "Orphan": ".", "Adopt": "+"}
_STATES = {"Waiting": "»", "Blocked": "!"}
#: Lines per section before the rest is only counted.
_SHOWN = 20


def text(document: plans.Plan, *, verbose: bool) -> str:
    """The whole page, sections that hold nothing left out, one summary line at the end."""
    width = shutil.get_terminal_size((0, 0)).columns
    sections = [
        ("Problems", [_problem(one) for one in document.problems]),
        ("Drift", [f"  {one.object}: {one.message} [{one.code}]" for one in document.drift]),
        ("Configuration", [line for one in document.configuration for line in _change(one, verbose=verbose)]),
        ("Due now", _actions(document, "Due")),
        ("Waiting", _actions(document, "Waiting")),
        ("Blocked", _actions(document, "Blocked")),
        (f"Until {tables.moment(document.horizon)}", _actions(document, "Planned")),
        ("Destruction held back", _destruction(document)),
    ]
    parts = []
    for title, lines in sections:
        if lines:
            kept = lines if verbose else lines[:_SHOWN]
            more = [f"  … and {len(lines) - len(kept)} more (-v shows all)"] if len(kept) < len(lines) else []
            parts.append("\n".join([title, *(tables.shorten(line, width) for line in kept), *more]))
    parts.append(_summary(document))
    return "\n\n".join(parts)


def _problem(one: results.DiagnosticItem) -> str:
    where = f"{one.file}:{one.line}:{one.column}: " if one.file else ""
    what = f"{one.object}: " if one.object else ""
    return f"  {where}{one.severity.lower()} {one.code}: {what}{one.message}" + (f" ({one.hint})" if one.hint else "")


def _change(one: plans.ConfigurationItem, *, verbose: bool) -> Iterable[str]:
    note = " (orphaned: no new work, what exists keeps its expiry)" if one.change == "Orphan" else ""
    yield f"  {_CHANGES.get(one.change, '~')} {one.kind}/{one.name}{note}"
    if one.change == "Update":
        for field in one.fields[: None if verbose else 6]:
            yield f"      {field.path}: {_short(field.before)} -> {_short(field.after)}"


def _short(value: object) -> str:
    return tables.shorten(json.dumps(value, ensure_ascii=False), 40)


def _actions(document: plans.Plan, state: str) -> list[str]:
    rows = []
    for one in document.actions:
        if one.state == state:
            symbol = _STATES.get(state) or ("-" if one.type in ("Expire", "Reclaim") else "+")
            size = f" {quantities.show_size(one.bytes)}" if one.bytes else ""
            unit = f" -> {one.unit}" if one.unit and one.type in ("Backup", "Duplicate") else ""
            when = f" at {tables.moment(one.at)}" if state in ("Planned", "Waiting") and one.at else ""
            rows.append(f"  {symbol} {one.address}{unit}{size}{when}: {one.reason.message}")
    return rows


def _destruction(document: plans.Plan) -> list[str]:
    held = document.destruction
    if not held.items:
        return []
    size = quantities.show_size(held.bytes)
    lines = [f"  {tables.count(held.copies, 'copy', 'copies')}, {size}, digest {held.digest}"]
    lines += [f"  ! {one.image} on {one.unit}" for one in held.items]
    lines += [
        f"    {one.client}: oldest {tables.moment(one.oldest_before)} -> {tables.moment(one.oldest_after)}"
        for one in held.clients
    ]
    return lines


def _summary(document: plans.Plan) -> str:
    counts = document.summary
    if not counts.changes and not counts.waiting and not counts.blocked:
        return f"Nothing to do. {tables.count(counts.planned, 'action')} until {tables.moment(document.horizon)}."
    return (
        f"Plan: {tables.count(len(document.configuration), 'configuration change')}, {counts.due} due, "
        f"{counts.waiting} waiting, {counts.blocked} blocked, {counts.planned} planned."
    )
