"""The plan as Markdown for a pull request: what a reviewer must see first, then everything else, folded.

Begins with a hidden marker, so that whoever posts it finds the earlier comment and replaces it. Never longer than it
may be: what is destroyed and the summary stay whole, lists give up their ends.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Final

from reconciler.api.documents import plans, results
from reconciler.base import quantities
from reconciler.reports import tables

MARKER: Final = "<!-- holdfast-plan -->"
#: What the strictest of the usual forges takes.
LARGEST: Final = 65_536
#: Room without which not even the summary fits.
SMALLEST: Final = 2_048
_SYMBOLS: Final = {"Create": "+", "Update": "~", "Orphan": ".", "Adopt": "+"}
_SPECIAL: Final = re.compile(r"([\\`*_\[\]<>#|~&])")


@dataclasses.dataclass(frozen=True, slots=True)
class _Section:
    """A heading and its lines; ``head`` are lines that stay where the others go."""

    title: str
    lines: Sequence[str]
    folded: bool = True
    head: Sequence[str] = ()
    #: How many things the lines speak of, where that is not one each.
    count: int | None = None


def markdown(document: plans.Plan, most: int = LARGEST) -> str:
    """The comment, of at most ``most`` bytes in UTF-8."""
    start = [MARKER, f"## Holdfast plan for {_code(document.revision)}", "", _verdict(document), ""]
    sections = [one for one in _sections(document) if one.lines or one.head]
    room = most - len("\n".join(start).encode()) - 1
    shown = [""] * len(sections)
    # The first sections matter most, so they take what they need first; each keeps its heading.
    reserved = [len(_render(one, 0).encode()) + 1 for one in sections]
    for number, one in enumerate(sections):
        others = sum(reserved[number + 1 :])
        shown[number] = _fitting(one, room - others)
        room -= len(shown[number].encode()) + 1
    return "\n".join([*start, *(one for one in shown if one)]).rstrip("\n") + "\n"


def _sections(document: plans.Plan) -> list[_Section]:
    held = document.destruction
    digest = (f"Digest {_code(held.digest)}", "") if held.digest else ()
    changes = [line for one in document.configuration for line in _change(one)]
    return [
        _Section("Would be destroyed", _destroyed(held), False, digest, count=held.copies),
        _Section("Problems", [_problem(one) for one in document.problems], folded=False),
        _Section("Configuration", changes, folded=False, count=len(document.configuration)),
        _Section("Drift", [f"- {_plain(one.object)}: {_plain(one.message)}" for one in document.drift]),
        _Section("Due now", _actions(document, "Due")),
        _Section("Blocked", _actions(document, "Blocked")),
        _Section("Waiting", _actions(document, "Waiting")),
        _Section(f"Until {tables.moment(document.horizon)}", _actions(document, "Planned")),
    ]


def _fitting(section: _Section, room: int) -> str:
    """As many of a section's lines as fit, the fewest being none."""
    low, high = 0, len(section.lines)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(_render(section, middle).encode()) <= room else (low, middle - 1)
    return _render(section, low)


def _render(section: _Section, count: int) -> str:
    left = len(section.lines) - count
    title = f"{section.title} ({len(section.lines) if section.count is None else section.count})"
    body = [*section.head, *section.lines[:count]]
    if left:
        body.append(f"- … and {left} more: `holdfast plan -v`")
    if section.folded:
        return "\n".join([f"<details><summary>{title}</summary>", "", *body, "", "</details>", ""])
    return "\n".join([f"### {title}", "", *body, ""])


def _verdict(document: plans.Plan) -> str:
    counts, held = document.summary, document.destruction
    parts = [
        tables.count(len(document.configuration), "configuration change"),
        f"{counts.due} due",
        f"{counts.waiting} waiting",
        f"{counts.blocked} blocked",
        f"{counts.planned} planned",
    ]
    if not counts.changes and not held.copies:
        return f"**Nothing to do.** {', '.join(parts[1:])}."
    destroys = ""
    if held.copies:
        about = "about " if held.estimated else ""
        size = f"{about}{quantities.show_size(held.bytes)}"
        destroys = f" **Destroys {tables.count(held.copies, 'copy', 'copies')} ({size})**"
        destroys += " as approved." if held.approved else "; that part waits for an approval."
    return f"{', '.join(parts)}.{destroys}"


def _destroyed(held: plans.Destruction) -> list[str]:
    """Whose oldest restore point moves, then every copy."""
    clients = [
        f"- {_plain(one.client)}: oldest restore point {tables.moment(one.oldest_before)} → "
        f"{tables.moment(one.oldest_after)}"
        for one in held.clients
    ]
    copies = [
        f"- {_code(one.image)} copy {one.copy_number} on {_plain(one.unit)}: promised until "
        f"{tables.moment(one.expires_before) if one.expires_before else 'newer images push it out'}"
        for one in held.items
    ]
    return [*clients, *copies]


def _problem(one: results.DiagnosticItem) -> str:
    where = f"{_code(f'{one.file}:{one.line}:{one.column}')} " if one.file else ""
    what = f"{_plain(one.object)}: " if one.object else ""
    hint = f" ({_plain(one.hint)})" if one.hint else ""
    return f"- {where}**{one.severity.lower()} {one.code}** {what}{_plain(one.message)}{hint}"


def _change(one: plans.ConfigurationItem) -> list[str]:
    note = " (orphaned: no new work, what exists keeps its expiry)" if one.change == "Orphan" else ""
    lines = [f"- `{_SYMBOLS.get(one.change, '~')}` {_code(f'{one.kind}/{one.name}')}{note}"]
    if one.change == "Update":
        lines += [
            f"  - {_code(field.path)}: {_code(_short(field.before))} → {_code(_short(field.after))}"
            for field in one.fields
        ]
    return lines


def _short(value: object) -> str:
    return tables.shorten(json.dumps(value, ensure_ascii=False), 80)


def _actions(document: plans.Plan, state: str) -> list[str]:
    lines = []
    for one in document.actions:
        if one.state == state:
            size = f" {quantities.show_size(one.bytes)}" if one.bytes else ""
            unit = f" → {_plain(one.unit)}" if one.unit and one.type in ("Backup", "Duplicate") else ""
            when = f" at {tables.moment(one.at)}" if state in ("Planned", "Waiting") and one.at else ""
            lines.append(f"- {_code(one.address)}{unit}{size}{when}: {_plain(one.reason.message)}")
    return lines


def _plain(text: str) -> str:
    """Text that means nothing but itself, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """A code span, whatever backticks the text holds."""
    flat = " ".join(text.split())
    longest = max((len(run) for run in re.findall(r"`+", flat)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{fence}{pad}{flat}{pad}{fence}"
