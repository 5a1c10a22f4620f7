"""Copies on their way out by more than their rule: those that can still be taken back, and those ordered to go.

A copy that was decided to go is Expiring; until its grace has passed it can be taken back, and until its deletion has
begun every never is asked again. An image that somebody declared wrong goes although its rule would keep it, once that
is approved. Called by ``expiry``, copy by copy, and by its check inside the deleting transaction.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Final

from reconciler.api import lifecycles as kinds
from reconciler.base import times
from reconciler.planning import actions, histories, lifecycles, nevers, observed, retention, verdicts

#: Nevers that an order, once it is approved, takes away.
_BUT_FOR_ORDER: Final = frozenset({"OwesCopy", "NewestImage", "DoubtfulTime"})


def forbidden_still(
    rules: nevers.Rules, history: histories.History, image: observed.Image, copy: observed.Copy
) -> actions.Reason | None:
    """The never that forbids to delete a copy now. One that is Expiring is judged as if it were Complete.

    While it can be taken back, a copy that others need as base may be decided to go once all of them were.
    """
    leaving = {
        (dependent.id, needing.number)
        for dependent, needing in history.dependents(image, copy.unit)
        if needing.until is not None and copy.state != "Expiring"
    }
    if copy.state == "Expiring":
        copy = copy._replace(state="Complete", until=None)
        revived = image._replace(copies=tuple(copy if c.number == copy.number else c for c in image.copies))
        images = tuple(revived if one.id == image.id else one for one in history.images)
        image, history = revived, histories.History(dataclasses.replace(history.series, images=images), rules.now)
    return nevers.forbids(rules, history, lifecycles.Debts(rules.book, history, rules.now), image, copy, leaving)


def expiring(
    rules: nevers.Rules, history: histories.History, image: observed.Image, copy: observed.Copy
) -> verdicts.Verdict:
    """One that was decided to go: its grace, then its deletion, which cannot be taken back once it has begun."""
    if copy.until is None:
        words = "expires: its deletion was interrupted"
        return verdicts.Verdict(image, copy, "Due", "Interrupted", words, rules.now)
    words = f"expires: that was decided, and can be taken back until {times.show_minutes(copy.until)}"
    if copy.until > rules.now:
        return verdicts.Verdict(image, copy, "Waiting", "Grace", words, copy.until)
    after = tuple((one.id, c.number) for one, c in history.dependents(image, copy.unit))
    if after:
        return verdicts.Verdict(image, copy, "Waiting", "AfterDependents", words, copy.until, after=after)
    reason = forbidden_still(rules, history, image, copy)
    if reason is not None:
        return verdicts.Verdict(image, copy, "Blocked", reason.code, f"kept: {reason.message}", copy.until)
    words = f"expires: the time to take it back passed {times.show_minutes(copy.until)}"
    return verdicts.Verdict(image, copy, "Due", "GraceOver", words, copy.until)


def decision(order: observed.Ruling) -> retention.Decision:
    """What an order decides about every copy of its image."""
    words = f"expires: ordered by {order.by} on {times.show_minutes(order.at)}: {order.reason}"
    return retention.Decision(False, "ExpireOrdered", order.at, words)


def needs_order(
    unordered: nevers.Rules, history: histories.History, image: observed.Image, copy: observed.Copy
) -> bool:
    """Whether a never would keep a copy that its rule lets go, if its image had not been ordered to go: what it owes
    and whether it is the newest count until the order is approved. ``unordered`` are the rules without any order."""
    plain = histories.History(history.series, unordered.now)
    debts = lifecycles.Debts(unordered.book, plain, unordered.now)
    reason = nevers.forbids(unordered, plain, debts, image, copy)
    return reason is not None and reason.code in _BUT_FOR_ORDER


def unapproved(
    image: observed.Image,
    copy: observed.Copy,
    operation: str,
    rule: kinds.Retention | None,
    order: observed.Ruling,
    until: dt.datetime | None,
) -> verdicts.Verdict:
    """A copy that an order lets go, held until somebody approves that; by its rule it would stay ``until`` then."""
    held = verdicts.Held(image.lifecycle, operation, rule, None, until, order=order)
    words = f"kept: ordered to expire by {order.by}, and that waits for an approval: {order.reason}"
    return verdicts.Verdict(image, copy, "Blocked", "HeldByBrake", words, order.at, held=held)


def grace(rules: nevers.Rules, copy: observed.Copy, order: observed.Ruling | None) -> dt.timedelta | None:
    """How long a copy can be taken back: what the order says, else what its unit does. Only a good one can."""
    if copy.state not in observed.GOOD:
        return None
    if order is not None:
        return order.grace
    unit = rules.wanted.units.get(copy.unit)
    return unit.spec.grace.approximate if unit is not None and unit.spec.grace is not None else None
