"""Two revisions compared, as text and as the comment for a pull request.

Made from the PlanComparison document alone. In text copies are counted by policy and lifecycle operation, ``verbose``
lists them; the comment begins with the marker of the plan's comment, so that one replaces the other.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Final

from reconciler.api.documents import comparisons
from reconciler.api.documents import plans as documents
from reconciler.base import quantities
from reconciler.reports import comments, folds, markup, plans, tables

_SYMBOLS: Final = {"Earlier": "-", "Later": "+", "Undated": "~", "Gain": "+", "Lose": "-", "Change": "~"}


def text(document: comparisons.PlanComparison, *, verbose: bool, colour: bool = False) -> str:
    """The whole page."""
    width = tables.terminal()
    sections = [
        ("New problems", plans.problems(document.problems, verbose=verbose)),
        ("Configuration", plans.configuration(document.configuration, verbose=verbose)),
        ("Copies that expire earlier or later", _copies(document.copies, verbose=verbose)),
        ("Bytes really freed", [folds.Line(_freed(one)) for one in document.units]),
        ("Oldest restore points", _oldest(document, verbose=verbose)),
        ("Protection", _protection(document.protection, verbose=verbose)),
    ]
    shown = [folds.section(title, lines, width) for title, lines in sections if lines]
    before, after = (plans.revision(one, verbose=verbose) for one in (document.from_revision, document.to_revision))
    head = f"From {before} to {after} at {tables.moment(document.now)} UTC"
    ends = ["\n".join(folds.wrap(words, width or 1 << 20, 0, 2)) for words in (head, _summary(document))]
    page = "\n\n".join([ends[0], *shown, ends[1]])
    return folds.paint(page) if colour else page


def markdown(document: comparisons.PlanComparison, most: int = markup.LARGEST) -> str:
    """The comment, of at most ``most`` bytes in UTF-8."""
    moved = document.copies
    lines = [
        markup.MARKER,
        f"## Holdfast from {markup.code(document.from_revision)} to {markup.code(document.to_revision)}",
        "",
        f"**{_summary(document)}**",
        "",
    ]
    sections = [
        markup.Section("New problems", [comments.problem(one) for one in document.problems], folded=False),
        markup.Section("Copies by operation", [_plainly(_group(one)) for one in moved.groups], folded=False),
        markup.Section("Bytes really freed", [_plainly(_freed(one)) for one in document.units], folded=False),
        markup.Section("Oldest restore points", [_plainly(_point(one)) for one in document.clients], folded=False),
        markup.Section("Protection", [_plainly(_protected(one)) for one in document.protection], folded=False),
        markup.Section(
            "Configuration",
            [line for one in document.configuration for line in comments.change(one)],
            folded=False,
            count=len(document.configuration),
        ),
        markup.Section(
            "Copies that expire earlier or later",
            [_plainly(_moved(one)) for one in moved.items],
            count=moved.earlier + moved.later + moved.undated,
            unlisted=moved.unlisted,
        ),
    ]
    return markup.page(lines, sections, most)


def _plainly(line: str) -> str:
    """A line of the text as an entry of a list: its symbol must not begin another one."""
    return f"- `{line[0]}` {markup.plain(line[2:])}"


# -- copies ------------------------------------------------------------------------------------------------------------


def _copies(moved: comparisons.MovedCopies, *, verbose: bool) -> list[folds.Line]:
    lines = folds.fold(
        moved.groups,
        lambda _: "",
        lambda one: folds.Line(_group(one)),
        lambda rest: tables.count(len(rest), "more operation"),
        verbose=verbose,
        most=20,
        shown=15,
    )
    if verbose:
        lines += [folds.Line(_moved(one), indent=4) for one in moved.items]
        if moved.unlisted:
            more = tables.count(moved.unlisted, "more copy", "more copies")
            lines.append(folds.Line(f"… and {more}, counted above", indent=4))
    return lines


def _group(one: comparisons.CopyGroup) -> str:
    parts = []
    if one.earlier:
        now = f" ({one.leaving} of them now)" if one.leaving else ""
        parts.append(f"{one.earlier} earlier{now}")
    if one.later:
        parts.append(f"{one.later} later")
    if one.undated:
        parts.append(f"{one.undated} with a date under one of them only")
    symbol = "-" if one.earlier else "+" if one.later else "~"
    return f"{symbol} {one.policy}, {one.lifecycle}/{one.operation}: {', '.join(parts)}"


def _moved(one: comparisons.MovedCopy) -> str:
    where = f"{one.image} copy {one.copy_number} on {one.unit}"
    return f"{_SYMBOLS[one.change]} {where} of {one.client}: {_end(one.before)} → {_end(one.after)}"


def _end(one: comparisons.EndItem) -> str:
    if one.leaves:
        return "now"
    return tables.moment(one.at) if one.at is not None else one.reason.message.removeprefix("kept: ")


def _freed(one: comparisons.FreedUnit) -> str:
    about = "about " if one.estimated else ""
    parts = []
    if one.freed_copies:
        parts.append(
            f"{about}{quantities.show_size(one.freed_bytes)} by {tables.count(one.freed_copies, 'copy', 'copies')}"
        )
    if one.kept_copies:
        kept = tables.count(one.kept_copies, "copy", "copies")
        parts.append(f"{about}{quantities.show_size(one.kept_bytes)} of {kept} stay")
    return f"{'-' if one.freed_copies else '+'} {one.unit}: {', '.join(parts)}"


# -- clients -----------------------------------------------------------------------------------------------------------


def _oldest(document: comparisons.PlanComparison, *, verbose: bool) -> list[folds.Line]:
    return folds.fold(
        document.clients,
        lambda _: "",
        lambda one: folds.Line(_point(one)),
        lambda rest: tables.count(len(rest), "more client"),
        verbose=verbose,
        most=10,
        shown=8,
    )


def _point(one: documents.OldestItem) -> str:
    return f"~ {one.client}: {tables.moment(one.oldest_before)} → {tables.moment(one.oldest_after)}"


def _protection(found: Sequence[comparisons.ProtectionItem], *, verbose: bool) -> list[folds.Line]:
    return folds.fold(
        found,
        lambda one: (one.change, one.policies_before, one.policies_after),
        lambda one: folds.Line(_protected(one)),
        lambda rest: tables.count(len(rest), "more client"),
        verbose=verbose,
    )


def _protected(one: comparisons.ProtectionItem) -> str:
    symbol = _SYMBOLS[one.change]
    if one.change == "Lose":
        return f"{symbol} {one.client}: backed up by {', '.join(one.policies_before)}, then by no policy"
    following = f"next backup {_when(one.next_after)}"
    if one.change == "Gain":
        return f"{symbol} {one.client}: backed up by {', '.join(one.policies_after)}, {following}"
    parts = []
    if one.policies_before != one.policies_after:
        parts.append(f"by {', '.join(one.policies_before)} → {', '.join(one.policies_after)}")
    if one.next_before != one.next_after:
        parts.append(f"next backup {_when(one.next_before)} → {_when(one.next_after)}")
    if one.objective_before_seconds != one.objective_after_seconds:
        before, after = _span(one.objective_before_seconds), _span(one.objective_after_seconds)
        parts.append(f"its newest image may be {before} → {after} old")
    return f"{symbol} {one.client}: {', '.join(parts)}"


def _when(moment: dt.datetime | None) -> str:
    return tables.moment(moment) if moment is not None else "never"


def _span(seconds: float | None) -> str:
    """A span in its largest whole unit."""
    if seconds is None:
        return "of any age"
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds % length == 0:
            return f"{int(seconds // length)}{unit}"
    return f"{int(seconds)}s"


def _summary(document: comparisons.PlanComparison) -> str:
    if not document.changes:
        return "No difference over this catalog."
    moved, parts = document.copies, []
    if document.problems:
        parts.append(tables.count(len(document.problems), "new problem"))
    if document.configuration:
        parts.append(tables.count(len(document.configuration), "configuration change"))
    if moved.earlier:
        now = f" ({moved.leaving} now)" if moved.leaving else ""
        parts.append(f"{tables.count(moved.earlier, 'copy expires', 'copies expire')} earlier{now}")
    if moved.later:
        parts.append(f"{tables.count(moved.later, 'copy', 'copies')} later")
    freed = sum(one.freed_bytes for one in document.units)
    if freed:
        about = "about " if any(one.estimated for one in document.units) else ""
        parts.append(f"{about}{quantities.show_size(freed)} freed")
    for change, words in (("Gain", "gain protection"), ("Lose", "lose protection")):
        count = sum(1 for one in document.protection if one.change == change)
        if count:
            verb = words if count > 1 else words.replace(" ", "s ", 1)
            parts.append(f"{tables.count(count, 'client')} {verb}")
    if document.clients:
        parts.append(f"{tables.count(len(document.clients), 'oldest restore point')} moved")
    return f"{'; '.join(parts) or 'Schedules move'}."
