"""The plan as Markdown for a pull request: what a reviewer must see first, then everything else, folded.

Begins with a hidden marker, so that whoever posts it finds the earlier comment and replaces it. Never longer than it
may be: what is destroyed and the summary stay whole, lists give up their ends.
"""

from __future__ import annotations

import json
from typing import Final

from reconciler.api.documents import plans, results
from reconciler.base import quantities
from reconciler.reports import consents, markup, tables

_SYMBOLS: Final = {"Create": "+", "Update": "~", "Orphan": ".", "Adopt": "+"}


def markdown(document: plans.Plan, most: int = markup.LARGEST) -> str:
    """The comment, of at most ``most`` bytes in UTF-8."""
    start = [markup.MARKER, f"## Holdfast plan for {markup.code(document.revision)}", "", _verdict(document), ""]
    return markup.page(start, _sections(document), most)


def _sections(document: plans.Plan) -> list[markup.Section]:
    held = document.destruction
    digest = [f"Digest {markup.code(held.digest)}", ""] if held.digest else []
    approval = consents.manifest(document)
    if approval:
        digest += ["To let these copies go, merge this with the revision:", "", "```yaml", *approval, "```", ""]
    changes = [line for one in document.configuration for line in change(one)]
    return [
        markup.Section("Would be destroyed", _destroyed(held), False, digest, count=held.copies),
        markup.Section("Problems", [problem(one) for one in document.problems], folded=False),
        markup.Section("Configuration", changes, folded=False, count=len(document.configuration)),
        markup.Section(
            "Drift", [f"- {markup.plain(one.object)}: {markup.plain(one.message)}" for one in document.drift]
        ),
        markup.Section("Due now", _actions(document, "Due")),
        markup.Section("Blocked", _actions(document, "Blocked")),
        markup.Section("Waiting", _actions(document, "Waiting")),
        markup.Section(f"Until {tables.moment(document.horizon)}", _actions(document, "Planned")),
    ]


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
        f"- {markup.plain(one.client)}: oldest restore point {tables.moment(one.oldest_before)} → "
        f"{tables.moment(one.oldest_after)}"
        for one in held.clients
    ]
    copies = [
        f"- {markup.code(one.image)} copy {one.copy_number} on {markup.plain(one.unit)}: promised until "
        f"{tables.moment(one.expires_before) if one.expires_before else 'newer images push it out'}"
        for one in held.items
    ]
    return [*clients, *copies]


def problem(one: results.DiagnosticItem) -> str:
    """One line of a section of problems."""
    where = f"{markup.code(f'{one.file}:{one.line}:{one.column}')} " if one.file else ""
    what = f"{markup.plain(one.object)}: " if one.object else ""
    hint = f" ({markup.plain(one.hint)})" if one.hint else ""
    return f"- {where}**{one.severity.lower()} {one.code}** {what}{markup.plain(one.message)}{hint}"


def change(one: plans.ConfigurationItem) -> list[str]:
    """The lines of one configuration change."""
    note = " (orphaned: no new work, what exists keeps its expiry)" if one.change == "Orphan" else ""
    lines = [f"- `{_SYMBOLS.get(one.change, '~')}` {markup.code(f'{one.kind}/{one.name}')}{note}"]
    if one.change == "Update":
        lines += [
            f"  - {markup.code(field.path)}: {markup.code(_short(field.before))} → {markup.code(_short(field.after))}"
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
            unit = f" → {markup.plain(one.unit)}" if one.unit and one.type in ("Backup", "Duplicate") else ""
            when = f" at {tables.moment(one.at)}" if state in ("Planned", "Waiting") and one.at else ""
            lines.append(f"- {markup.code(one.address)}{unit}{size}{when}: {markup.plain(one.reason.message)}")
    return lines
