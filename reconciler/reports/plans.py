"""The plan as text, in the order in which a reviewer asks: what is wrong, what changes, what is due, what comes, and
what would be destroyed.

Symbols are Terraform's: ``+`` create, ``-`` delete, ``~`` change, ``.`` orphan, ``!`` blocked, ``»`` wait. Many things
of one kind are folded unless ``verbose``; reasons are whole sentences and are wrapped, never cut. Made from the
document alone, so that it cannot say what ``-o json`` does not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

from reconciler.api.documents import plans, results
from reconciler.base import quantities
from reconciler.reports import consents, folds, tables

_CHANGES: Final[Mapping[str, str]] = {"Create": "+", "Update": "~", "Orphan": ".", "Adopt": "+"}
_STATES: Final[Mapping[str, str]] = {"Waiting": "»", "Blocked": "!"}
#: Fields of one changed object, and errors, that are shown before the rest is only counted.
_FIELDS: Final = 6
_ERRORS: Final = 20
#: One and many of each type of action.
_NOUNS: Final[Mapping[str, tuple[str, str]]] = {
    "Backup": ("backup", "backups"),
    "Duplicate": ("copy", "copies"),
    "Expire": ("expiry", "expiries"),
    "Reclaim": ("collection", "collections"),
    "Verify": ("verification", "verifications"),
    "Restore": ("restore", "restores"),
    "RemoveSnapshot": ("snapshot removal", "snapshot removals"),
}


def text(document: plans.Plan, *, verbose: bool, colour: bool = False) -> str:
    """The whole page, sections that hold nothing left out, one summary line at the end."""
    width = tables.terminal()
    sections = [
        ("Problems", problems(document.problems, verbose=verbose)),
        ("Drift", _drift(document.drift, verbose=verbose)),
        ("Configuration", configuration(document.configuration, verbose=verbose)),
        ("Due now", _actions(document, "Due", verbose=verbose)),
        ("Waiting", _actions(document, "Waiting", verbose=verbose)),
        ("Blocked", _actions(document, "Blocked", verbose=verbose)),
        (f"Until {tables.moment(document.horizon)}", _actions(document, "Planned", verbose=verbose)),
        ("Would be destroyed", _destruction(document.destruction, verbose=verbose)),
    ]
    shown = [folds.section(title, lines, width) for title, lines in sections if lines]
    summary = "\n".join(folds.wrap(_summary(document), width or 1 << 20, 0, 2))
    head = [_header(document, width, verbose=verbose)] if shown else []
    page = "\n\n".join([*head, *shown, *_approval(document, width), summary])
    return folds.paint(page) if colour else page


def _approval(document: plans.Plan, width: int) -> list[str]:
    """What lets the destructive part go, as a manifest to paste: its lines are never wrapped."""
    lines = consents.manifest(document)
    if not lines:
        return []
    said = "To let it go, merge this with the revision, or run holdfast approve with the digest and --reason"
    return ["\n".join([*folds.wrap(f"{said}:", width or 1 << 20, 0, 2), *(f"  {line}" for line in lines)])]


def revision(name: str | None, *, verbose: bool) -> str:
    """A revision's name, its digest cut to twelve places unless ``verbose``."""
    if name is None:
        return "nothing in force"
    head, colon, digest = name.rpartition(":")
    return name if verbose or len(digest) <= 12 else f"{head}{colon}{digest[:12]}"


def _header(document: plans.Plan, width: int, *, verbose: bool) -> str:
    new = revision(document.revision, verbose=verbose)
    if document.in_force == document.revision:
        said = f"Plan for {new}, in force, at {tables.moment(document.now)} UTC"
    else:
        said = f"Plan {revision(document.in_force, verbose=verbose)} → {new} at {tables.moment(document.now)} UTC"
    return "\n".join(folds.wrap(said, width or 1 << 20, 0, 2))


def problems(found: Sequence[results.DiagnosticItem], *, verbose: bool) -> list[folds.Line]:
    """The section of problems, errors before warnings."""
    wrong = [one for one in found if one.severity == "Error"]
    lines = folds.fold(
        wrong, lambda _: "", _problem, lambda rest: tables.count(len(rest), "more error"),
        verbose=verbose, most=_ERRORS, shown=_ERRORS - 2,
    )  # fmt: skip
    return lines + folds.fold(
        [one for one in found if one.severity != "Error"],
        lambda one: one.code,
        _problem,
        lambda rest: f"{tables.count(len(rest), 'more warning')} {rest[0].code}",
        verbose=verbose,
    )


def _problem(one: results.DiagnosticItem) -> folds.Line:
    where = f"{one.file}:{one.line}:{one.column} " if one.file else ""
    what = f" {one.object}" if one.object else ""
    hint = f" ({one.hint})" if one.hint else ""
    symbol = "!" if one.severity == "Error" else "~"
    return folds.Line(f"{symbol} {where}{one.severity.lower()} {one.code}{what}", one.message + hint)


def _drift(found: Sequence[plans.DriftItem], *, verbose: bool) -> list[folds.Line]:
    return folds.fold(
        found,
        lambda one: one.code,
        lambda one: folds.Line(f"~ {one.object}", f"{one.message} [{one.code}]"),
        lambda rest: f"{len(rest)} more {rest[0].code}",
        verbose=verbose,
    )


def configuration(changes: Sequence[plans.ConfigurationItem], *, verbose: bool) -> list[folds.Line]:
    """The section of configuration changes, the fields of each changed object below it."""
    lines = folds.fold(
        changes,
        lambda one: (one.change, one.kind) if one.change != "Update" else one.kind + one.name,
        _changed,
        lambda rest: f"{len(rest)} more {rest[0].kind} to {rest[0].change.lower()}",
        verbose=verbose,
        most=20,
        shown=folds.SHOWN,
    )
    fields = {f"{_CHANGES[one.change]} {one.kind}/{one.name}": one.fields for one in changes if one.change == "Update"}
    result = []
    for line in lines:
        result.append(line)
        changed = fields.get(line.head, ())
        kept = changed if verbose else changed[:_FIELDS]
        for field in kept:
            before, after = _values(field.before, field.after, verbose=verbose)
            result.append(folds.Line(field.path, f"{before} → {after}", indent=6))
        if len(kept) < len(changed):
            more = tables.count(len(changed) - len(kept), "more field")
            result.append(folds.Line(f"… and {more} (-v shows all)", indent=6))
    return result


def _changed(one: plans.ConfigurationItem) -> folds.Line:
    note = "orphaned; no new work begins from it, what exists keeps its expiry" if one.change == "Orphan" else ""
    return folds.Line(f"{_CHANGES.get(one.change, '~')} {one.kind}/{one.name}", note)


def _values(before: object, after: object, *, verbose: bool) -> tuple[str, str]:
    """What a field was and is; cut short only where that still shows the difference."""
    written = [json.dumps(one if verbose else _said(one), ensure_ascii=False) for one in (before, after)]
    short = [one if verbose else tables.shorten(one, 60) for one in written]
    first, second = written if short[0] == short[1] else short
    return first, second


def _said(value: object) -> object:
    """A value without the fields of its entries that say nothing."""
    if isinstance(value, list):
        return [_said(one) for one in value]
    if isinstance(value, dict):
        return {key: _said(one) for key, one in value.items() if one not in (None, [], {})}
    return value


# -- actions -----------------------------------------------------------------------------------------------------------


def _actions(document: plans.Plan, state: str, *, verbose: bool) -> list[folds.Line]:
    # What a brake holds is told in the destructive part, once.
    held = {(item.image, item.copy_number) for item in document.destruction.items}
    chosen = [one for one in document.actions if one.state == state and not _is_held(one, held)]
    return folds.fold(
        chosen,
        lambda one: (one.type, one.policy, one.operation, one.unit, one.reason.code),
        lambda one: _action(one, state),
        _others,
        verbose=verbose,
    )


def _is_held(one: plans.ActionItem, held: set[tuple[str, int]]) -> bool:
    return one.type == "Expire" and one.state == "Blocked" and (one.image, one.copy_number) in held


def _action(one: plans.ActionItem, state: str) -> folds.Line:
    symbol = _STATES.get(state) or ("-" if one.type in ("Expire", "Reclaim") else "+")
    size = f", {quantities.show_size(one.bytes)}" if one.bytes else ""
    unit = ""
    if one.unit and one.type in ("Backup", "Duplicate"):
        unit = f" → {one.unit}"
    elif one.unit and one.type == "Expire":
        unit = f" on {one.unit}"
    when = ""
    if one.at is not None and state in ("Planned", "Waiting"):
        when = f", {'at' if state == 'Planned' else 'until'} {tables.moment(one.at)}"
    return folds.Line(f"{symbol} {one.address}{unit}{size}{when}", one.reason.message)


def _others(rest: Sequence[plans.ActionItem]) -> str:
    nouns = _NOUNS[rest[0].type]
    known = sum(one.bytes or 0 for one in rest)
    size = f", {quantities.show_size(known)}" if known else ""
    return f"{len(rest)} more {nouns[0 if len(rest) == 1 else 1]}{size}"


# -- the destructive part ----------------------------------------------------------------------------------------------


def _destruction(held: plans.Destruction, *, verbose: bool) -> list[folds.Line]:
    if not held.items:
        return []
    lines = [folds.Line(f"{_destroyed(held)}; digest {held.digest}")]
    lines += folds.fold(
        held.clients,
        lambda _: "",
        lambda one: folds.Line(
            f"~ {one.client}",
            f"oldest restore point {tables.moment(one.oldest_before)} → {tables.moment(one.oldest_after)}",
        ),
        lambda rest: tables.count(len(rest), "more client"),
        verbose=verbose,
    )
    lines += folds.fold(
        held.items,
        lambda one: one.unit,
        _copy,
        lambda rest: f"{tables.count(len(rest), 'more copy', 'more copies')} on {rest[0].unit}",
        verbose=verbose,
    )
    return [*lines, *_consent(held)]


def _copy(one: plans.DestroyedItem) -> folds.Line:
    until = tables.moment(one.expires_before) if one.expires_before else "newer images push it out"
    return folds.Line(f"! {one.image} copy {one.copy_number} on {one.unit}", f"promised until {until}")


def _consent(held: plans.Destruction) -> list[folds.Line]:
    """What lets the destructive part go: the last lines under it."""
    if held.approved:
        return [folds.Line("this part is approved")]
    return [folds.Line("none of it goes before its promise unless it is approved")]


def _destroyed(held: plans.Destruction) -> str:
    size = f"{'about ' if held.estimated else ''}{quantities.show_size(held.bytes)}"
    return f"{tables.count(held.copies, 'copy', 'copies')} ({size})"


# -- the last line -----------------------------------------------------------------------------------------------------


def _summary(document: plans.Plan) -> str:
    held = {(item.image, item.copy_number) for item in document.destruction.items}
    waiting, planned = document.summary.waiting, document.summary.planned
    blocked = sum(1 for one in document.actions if one.state == "Blocked" and not _is_held(one, held))
    destroyed = []
    if held:
        verdict = "approved" if document.destruction.approved else "needs an approval"
        destroyed = [f"{_destroyed(document.destruction)} would be destroyed: {verdict}"]
    rest = [f"{waiting} waiting, {blocked} blocked"] if waiting or blocked else []
    if not document.summary.changes:
        ahead = f"{tables.count(planned, 'action')} until {tables.moment(document.horizon)}"
        return f"No changes. {'; '.join([*rest, *destroyed, ahead])}."
    now = []
    if document.configuration:
        now.append(tables.count(len(document.configuration), "configuration change"))
    due = _due(document)
    if due:
        now.append(f"{due} due")
    return f"Plan: {'; '.join([*now, *rest, *destroyed])}."


def _due(document: plans.Plan) -> str:
    counts: dict[str, int] = {}
    for one in document.actions:
        if one.state == "Due":
            counts[one.type] = counts.get(one.type, 0) + 1
    return ", ".join(tables.count(counts[type], *_NOUNS[type]) for type in _NOUNS if type in counts)
