"""Which copies may leave and which must not, copy by copy, and by which rule.

``Judge.verdicts`` is what the planner makes Expire actions and the destructive part from; ``decisions`` is the same for
``get copies``; ``check_delete`` runs the nevers once more inside the catalog's deleting transaction. A copy goes only
when the rule in force and every retention promised to it let it go, no copy that stays needs it, and no never forbids
it. What cannot be judged stays. Whether its unit can delete now is the planner's question: that delays a deletion.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from reconciler.api import lifecycles as kinds
from reconciler.base import errors, times
from reconciler.planning import (
    actions,
    configuration,
    departures,
    desired,
    drains,
    histories,
    lifecycles,
    nevers,
    observed,
    promises,
    retention,
    rulings,
    sieves,
    verdicts,
)

#: How long a Partial image stays once its series has a newer complete one.
PARTIAL_STAYS: Final = dt.timedelta(days=7)
#: Nevers that only people end; the others end with newer images, so that what they keep now may go before its promise.
_LASTING: Final = frozenset({"LegalHold", "Held"})


Held = verdicts.Held
Verdict = verdicts.Verdict


class Judge(nevers.Rules):
    """The rules of one desired state over one observed one, with the promises made earlier."""

    def __init__(self, wanted: desired.Desired, seen: observed.Observed, now: dt.datetime) -> None:
        super().__init__(wanted, seen, now)
        self.promises = promises.Promises(wanted, seen, self.book)
        self.draining = drains.draining(wanted)
        self.sieve = sieves.Sieve(self.book, self.draining)

    def promised(self, history: histories.History, image: observed.Image, copy: observed.Copy) -> bool:
        """Whether an earlier retention that was promised to a copy still keeps it. One that has passed does not."""
        operation, client = self.book.operation(image.lifecycle, copy.operation), history.series.client
        standing = any(released is None for _, released in self.promises.made(client, image, operation))
        return standing and self.holder(history)(image, copy)

    def verdicts(
        self,
        history: histories.History,
        *,
        everything: bool = False,
        until: dt.datetime | None = None,
        used: Mapping[tuple[str, int], str] | None = None,
    ) -> list[Verdict]:
        """What becomes of the copies of a series, newest image first.

        Kept copies are left out unless ``everything``; those that time alone lets go by ``until`` are Planned. ``used``
        names, by image id and copy number, the due action that reads a copy or builds on it: that goes first.
        """
        return _Trial(self, history, everything, until, used or {}).hear()

    def holder(self, history: histories.History) -> Callable[[observed.Image, observed.Copy], bool]:
        """For one series: whether a promise, or the lack of an approval, holds a copy that its rule lets go."""
        trial = _Trial(self, history, False, None, {})
        gone = retention.Decision(False, "", None)

        def holds(image: observed.Image, copy: observed.Copy) -> bool:
            operation = self.book.operation(image.lifecycle, copy.operation)
            return trial.held(image, copy, operation, self.book.rule(image, operation), gone)[0] is not None

        return holds


def decisions(wanted: desired.Desired, seen: observed.Observed, now: dt.datetime) -> Iterator[actions.CopyDecision]:
    """What is decided about every copy that has not expired, series by series, oldest image first."""
    judge = Judge(configuration.effective(wanted, seen.applied), seen, now)
    for series in configuration.renames(judge.wanted).follow(seen.series):
        yield from _decisions(judge, series)


def _decisions(judge: Judge, series: observed.Series) -> list[actions.CopyDecision]:
    verdicts = judge.verdicts(histories.History(series, judge.now), everything=True)
    result = [
        actions.CopyDecision(
            image=one.image.id,
            copy=one.copy.number,
            expires_at=one.held.until if one.held is not None else one.at,
            reason=actions.Reason(code=one.code, message=one.message),
        )
        for one in verdicts
    ]
    order = {image.id: index for index, image in enumerate(series.images)}
    return sorted(result, key=lambda one: (order[one.image], one.copy))


def check_delete(
    wanted: desired.Desired,
    seen: observed.Observed,
    series: observed.Series,
    image_id: str,
    number: int,
    now: dt.datetime,
    *,
    code: str | None = None,
) -> None:
    """Refuse a deletion that a never forbids, judged on ``series`` as the deleting transaction reads it.

    ``seen`` has the holds and rulings of that moment too. ``code`` is that of the decision: a copy that moved goes only
    while its successor is good, one that was ordered to go only while the order stands. Raises ``NeverViolated`` naming
    the copy and the reason; also where the series lacks the copy.
    """
    judge = Judge(configuration.effective(wanted, seen.applied), seen, now)
    (series,) = configuration.renames(judge.wanted).follow((series,))
    history = histories.History(series, now)
    image = next((one for one in series.images if one.id == image_id), None)
    copy = next((one for one in image.copies if one.number == number), None) if image is not None else None
    if copy is not None and copy.state == "Expiring" and copy.until is None:
        return  # its deletion has begun, perhaps half done: what is left has to go
    if image is None or copy is None:
        raise errors.NeverViolated(f"copy {number} of image {image_id} is not in the catalog; nothing is deleted")
    if code == "ExpireOrdered" and judge.register.ordered(image_id) is None:
        raise errors.NeverViolated(
            f"copy {number} of image {image_id} on {copy.unit} must stay: the order that it goes was taken back"
        )
    reason = departures.forbidden_still(judge, history, image, copy)
    operation = judge.book.operation(image.lifecycle, copy.operation)
    if reason is None and code == "Drained" and drains.stands(judge, history, image, operation) is None:
        reason = actions.Reason(code="NotMoved", message=f"there is no other good copy of {operation}")
    if reason is not None:
        raise errors.NeverViolated(
            f"copy {number} of image {image_id} on {copy.unit} must stay: {reason.message}",
            hint="nothing was deleted; the next plan shows what holds it",
        )


class _Trial:
    """The copies of one series before the judge. Newest image first, so that bases learn who needs them."""

    def __init__(
        self,
        judge: Judge,
        history: histories.History,
        everything: bool,
        until: dt.datetime | None,
        used: Mapping[tuple[str, int], str],
    ) -> None:
        self.judge = judge
        self.history = history
        self.everything = everything
        self.until = until
        self.used = used
        self.debts = lifecycles.Debts(judge.book, history, judge.now)
        self.leaving: set[tuple[str, int]] = set()
        #: Copies that a promise holds and nothing else.
        self.parting: set[tuple[str, int]] = set()
        self.kept = sieves.Kept(judge.book, history)
        self._chain: frozenset[str] | None = None

    def hear(self) -> list[Verdict]:
        """Judge every copy, or those alone of images of which something may be said."""
        images = self.history.images
        if self.everything:
            places: Sequence[int] = range(len(images) - 1, -1, -1)
        else:
            places = self.judge.sieve.at_issue(self.history, self.kept, self.until or self.judge.now)
        result = []
        for image in (images[place] for place in places):
            copies = [copy for copy in image.copies if copy.state != "Expired"]
            if len(copies) > 1 and nevers.must_stay(self.judge, self.history, image) is not None:
                # Of several copies that may all go, the one that would have stayed longest is the last to be judged.
                copies.sort(key=lambda copy: (self._end(image, copy), copy.number))
            elif self.judge.draining:
                # One that its own rule lets go is no reason for another to leave the unit that is being emptied.
                copies.sort(key=lambda copy: copy.unit in self.judge.draining)
            for copy in copies:
                verdict = self._judge(image, copy)
                if verdict is not None:
                    result.append(verdict)
        return result

    def _end(self, image: observed.Image, copy: observed.Copy) -> dt.datetime:
        rule = self.judge.book.rule(image, self._operation(image, copy))
        end = retention.end(rule, image.time) if isinstance(rule, kinds.Fixed) else None
        return end or (_LAST if isinstance(rule, kinds.Forever | kinds.CapacityManaged) else image.time)

    def _operation(self, image: observed.Image, copy: observed.Copy) -> str:
        return self.judge.book.operation(image.lifecycle, copy.operation)

    def _judge(self, image: observed.Image, copy: observed.Copy) -> Verdict | None:
        if copy.state == "Expiring":
            self.leaving.add((image.id, copy.number))
            return departures.expiring(self.judge, self.history, image, copy)
        if copy.state == "Writing":
            return self._keep(image, copy, "Writing", "it is being written")
        operation = self._operation(image, copy)
        rule = self.judge.book.rule(image, operation)
        order = self.judge.register.ordered(image.id)
        decision = self._decide(image, copy, operation, rule)
        if order is not None and decision.keeps:
            return self._ordered(image, copy, operation, rule, order, decision.at)
        if decision.keeps:
            return self._stays(image, copy, operation, decision)
        held, released = self.held(image, copy, operation, rule, decision)
        if order is not None and (
            held is not None or departures.needs_order(self.judge.unordered, self.history, image, copy)
        ):
            return self._ordered(image, copy, operation, rule, order, held.until if held is not None else None)
        if held is not None:
            lasting = self._lasting(image, copy)
            if lasting is not None:
                return Verdict(image, copy, "Blocked", lasting.code, f"kept: {lasting.message}", decision.at)
            self.parting.add((image.id, copy.number))
            code, words = "RebuiltCatalog", "it came back with its unit; nothing of that expires until it is approved"
            if held.before is not None:
                code, words = "HeldByBrake", promises.told(held.before, held.until)
            return Verdict(image, copy, "Blocked", code, f"kept: {words}", decision.at, held=held)
        if released is not None:
            text = f"{decision.text}; approved by {released.by}"
            decision = decision._replace(code="Approved", text=text)
        return self._release(image, copy, operation, decision)

    def _lasting(self, image: observed.Image, copy: observed.Copy) -> actions.Reason | None:
        """What people ruled that keeps a copy although a promise ends: it is no part of what would go."""
        going = self.leaving | self.parting
        reason = nevers.forbids(self.judge, self.history, self.debts, image, copy, going)
        return reason if reason is not None and reason.code in _LASTING else None

    def _ordered(
        self,
        image: observed.Image,
        copy: observed.Copy,
        operation: str,
        rule: kinds.Retention | None,
        order: observed.Ruling,
        until: dt.datetime | None,
    ) -> Verdict | None:
        """One that would stay but for the order that its image goes, as somebody declared it wrong: it goes once that
        is approved."""
        free = nevers.forbids(self.judge, self.history, self.debts, image, copy, self.leaving) is None
        client = self.history.series.client
        if free and self.judge.promises.released(client, image, operation, rulings.named(order)) is None:
            return departures.unapproved(image, copy, operation, rule, order, until)
        return self._release(image, copy, operation, departures.decision(order), order)

    # -- the rule in force ---------------------------------------------------------------------------------------------

    def _decide(
        self, image: observed.Image, copy: observed.Copy, operation: str, rule: kinds.Retention | None
    ) -> retention.Decision:
        if image.id in self.history.doubtful:
            text = "its time is later than now, or contradicts its sequence"
            return retention.Decision(True, "DoubtfulTime", None, text)
        if image.state == "Partial":
            return self._partial(image)
        if copy.unit in self.judge.draining:
            other = drains.stands(self.judge, self.history, image, operation)
            if other is not None and (image.id, other.number) not in self.leaving:
                text = f"unit {copy.unit} is being emptied, and copy {other.number} on {other.unit} is good"
                return retention.Decision(False, "Drained", None, text)
        if rule is None:
            return retention.Decision(True, "NoRule", None, "no lifecycle says how long it stays")
        if copy.state in sieves.MISSING and any(
            self._operation(image, other) == operation for other in self.history.good(image)
        ):
            return retention.Decision(
                False, "Replaced", None, f"it is {copy.state}, and another copy of {operation} is good"
            )
        if isinstance(rule, kinds.Keep):
            return self._kept_by(rule, image, operation, copy.state in sieves.MISSING)
        return retention.single(rule, self._candidate(image, operation), self.judge.now)

    def _candidate(self, image: observed.Image, operation: str) -> retention.Candidate:
        tree = self.judge.book.tree(self.history.series.policy, image)
        children = tree.children.get(operation, ())
        return retention.Candidate(
            image.id,
            image.time,
            image.sequence,
            image.type == "Full",
            len(children),
            self.debts.owing(image, operation) if children else (),
            image.id in self._next_chain() if children else False,
        )

    def _partial(self, image: observed.Image) -> retention.Decision:
        later = next((one for one in self.history.sound if one.sequence > image.sequence), None)
        if later is None:
            return retention.Decision(True, "Partial", None, "Partial, and no complete image has followed yet")
        at = later.time + PARTIAL_STAYS
        text = f"Partial, complete again since {times.show_minutes(later.time)}"
        return retention.Decision(at > self.judge.now, "Partial", at, text)

    def _kept_by(self, rule: kinds.Keep, image: observed.Image, operation: str, missing: bool) -> retention.Decision:
        """What ``Keep`` says of an image; with ``missing``, as if damaged and lost copies were good."""
        return self.kept.decision(rule, image, operation, self.judge.now, missing=missing, words=self.everything)

    def _next_chain(self) -> frozenset[str]:
        """Images that the next incremental is built on."""
        if self._chain is None:
            self._chain = frozenset(self._find_chain())
        return self._chain

    def _find_chain(self) -> Iterator[str]:
        name = self.history.series.policy
        policy = self.judge.wanted.policies.get(name)
        lifecycle = self.judge.wanted.lifecycles.get(policy.spec.lifecycle) if policy is not None else None
        if policy is None or lifecycle is None or self.judge.wanted.is_orphaned("BackupPolicy", name):
            return
        landing = next(one.storage for one in lifecycle.spec.operations if one.type == "Backup")
        for type in {one.type for one in policy.spec.schedules} - {"Full"}:
            members, wrong = self.judge.units.members(landing), self.judge.book.wrong
            base = self.history.base(members, full=type == "Cumulative", beside=wrong)
            if base is not None:
                yield from self.history.chain(*base)

    # -- what holds it although the rule lets it go --------------------------------------------------------------------

    def held(
        self,
        image: observed.Image,
        copy: observed.Copy,
        operation: str,
        rule: kinds.Retention | None,
        decision: retention.Decision,
    ) -> tuple[Held | None, observed.Release | None]:
        """The promise that holds a copy; and the approval without which one would."""
        if copy.state == "Lost":
            return None, None
        client = self.history.series.client
        ended = self.judge.promises.released(client, image, operation) if copy.imported else None
        came = copy.imported and ended is None
        if decision.code in ("Replaced", "Partial", "Drained"):
            # No retention ever promised to keep these.
            return (Held(image.lifecycle, operation, None, rule, None) if came else None), None
        holding: list[tuple[kinds.Retention, dt.datetime | None]] = []
        for promise, released in self.judge.promises.made(client, image, operation):
            if isinstance(promise, kinds.Keep):
                kept = self._kept_by(promise, image, operation, copy.state in sieves.MISSING)
            else:
                plain = retention.Candidate(image.id, image.time, image.sequence)
                kept = retention.single(promise, plain, self.judge.now)
            if kept.keeps and released is not None:
                ended = released
            elif kept.keeps:
                holding.append((promise, kept.at))
        if not came and not holding:
            return None, ended
        # The longest promise counts; one without an end date is longer than any other.
        longest, until = max(holding, key=lambda one: one[1] or _LAST, default=(None, None))
        every = tuple(promise for promise, _ in holding)
        return Held(image.lifecycle, operation, None if came else longest, rule, until, every), None

    def _stays(
        self, image: observed.Image, copy: observed.Copy, operation: str, decision: retention.Decision
    ) -> Verdict | None:
        at = decision.at
        passed = decision.code == "ExpireAfterCopy" or (at is not None and at <= self.judge.now)
        owes = self.debts.owing(image, operation) if passed else ()
        if owes and decision.code in ("Fixed", "ExpireAfterCopy"):
            return Verdict(image, copy, "Waiting", "OwesCopy", decision.message, at, owes=owes)
        if decision.code in ("Fixed", "Partial") and at is not None and not passed:
            ends = [at]
            client = self.history.series.client
            for promise in self.judge.promises.standing(client, image, operation):
                end = retention.end(promise, image.time) if isinstance(promise, kinds.Fixed) else _LAST
                ends.append(end or _LAST)
            came = copy.imported and self.judge.promises.released(client, image, operation) is None
            free = nevers.forbids(self.judge, self.history, self.debts, image, copy, self.leaving) is None
            if self.until is not None and max(ends) <= self.until and free and not came:
                return Verdict(image, copy, "Planned", decision.code, decision.message, max(ends))
        if not self.everything:
            return None
        reason = self.judge.register.keeps(self.history.series.client, image)
        if reason is not None and not any(c.number != copy.number for c in self.history.good(image)):
            # Whatever the rule says, this one stays: it is the last that can be read.
            return Verdict(image, copy, "Kept", reason.code, f"kept: {reason.message}")
        message = decision.message
        if decision.code == "Fixed" and not passed:
            at, words = self.judge.promises.outlasting(self.history.series.client, image, operation, at)
            message += words
        message += f"; its image is {reason.message}" if reason is not None else ""
        return Verdict(image, copy, "Kept", decision.code, message, at)

    def _keep(self, image: observed.Image, copy: observed.Copy, code: str, text: str) -> Verdict | None:
        return Verdict(image, copy, "Kept", code, f"kept: {text}") if self.everything else None

    def _release(
        self,
        image: observed.Image,
        copy: observed.Copy,
        operation: str,
        decision: retention.Decision,
        order: observed.Ruling | None = None,
    ) -> Verdict | None:
        first = self.used.get((image.id, copy.number))
        if first is not None:
            message = f"kept: {first} needs it first"
            return Verdict(image, copy, "Waiting", "InUse", message, None, used_by=first)
        reason = nevers.forbids(self.judge, self.history, self.debts, image, copy, self.leaving)
        if reason is None:
            self.leaving.add((image.id, copy.number))
            # What moved has its successor, so that it needs no grace.
            grace = departures.grace(self.judge, copy, order) if decision.code != "Drained" else None
            needing = self.history.dependents(image, copy.unit)
            # What can be taken back with them need not wait until the copies built on it are gone.
            after = tuple((one.id, c.number) for one, c in needing if grace is None or c.until is None)
            state, code = ("Waiting", "AfterDependents") if after else ("Due", decision.code)
            return Verdict(image, copy, state, code, decision.message, decision.at, after=after, grace=grace)
        message = f"kept: {reason.message}"
        if reason.code in ("Base", "DoubtfulTime") and order is None:
            return self._keep(image, copy, reason.code, reason.message)
        if reason.code == "OwesCopy":
            owes = self.debts.owing(image, operation)
            return Verdict(image, copy, "Waiting", reason.code, message, decision.at, owes=owes)
        if reason.code == "Immutable":
            locked = nevers.locked_until(self.judge.wanted, copy)
            return Verdict(image, copy, "Waiting", reason.code, message, locked)
        state = "Waiting" if reason.code == "Busy" else "Blocked"
        return Verdict(image, copy, state, reason.code, message, decision.at)


_LAST: Final = dt.datetime.max.replace(tzinfo=times.UTC)
