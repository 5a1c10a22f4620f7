"""``holdfast approve``: consent by hand to what a plan holds back."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Final

import typer

from reconciler.api.documents import results
from reconciler.base import clocks, errors, quantities, times
from reconciler.catalog import approvals, database, leases
from reconciler.cli import options, outputs, planning, sessions, settings
from reconciler.controller import handovers
from reconciler.planning import actions, observed

#: More copies than any catalog holds: asks how many a digest stands for.
_ANY: Final = 1 << 62


def approve(
    digest: Annotated[str, typer.Argument(metavar="DIGEST", help="What plan prints with what it holds back.")],
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", parser=options.words, help="Why; kept in the audit log.")
    ],
    copies: Annotated[
        int | None, typer.Option("--copies", min=0, help="How many copies may go at most; as many as now by default.")
    ] = None,
    until: Annotated[
        str, typer.Option("--until", metavar="TIME|DURATION", help="Until when it may be made use of.")
    ] = "24h",
    by: Annotated[
        str | None, typer.Option("--by", metavar="NAME", parser=options.words, help="Who consents; you by default.")
    ] = None,
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """Let the destructive part with this digest go, or a change that a guard holds. The rest stays held."""
    sessions.start_logging()
    chosen = settings.of_state(state=state, catalog=catalog)
    clock = clocks.from_environment()
    if not reason.strip():
        raise errors.UsageError("--reason is empty", hint="say why; it is kept in the audit log")
    wished = observed.Approval(
        digest=digest.strip(),
        copies=_ANY if copies is None else copies,
        by=by or sessions.actor(),
        until=moment(until, clock.now()),
        reason=reason,
    )
    with sessions.writing(chosen) as db:
        question = _question(chosen, clock, wished)
        given = observed.Approval(
            digest=wished.digest,
            copies=question.copies if copies is None else copies,
            by=wished.by,
            until=wished.until,
            reason=wished.reason,
        )
        approvals.record(db, given, clock.now(), sessions.actor())
        return _carry_out(chosen, db, clock, given, question, output)


def moment(text: str, now: dt.datetime) -> dt.datetime:
    """A time, or a duration from now. Raises ``UsageError`` for neither, and for what has passed."""
    try:
        found = times.parse(text)
    except ValueError:
        try:
            found = quantities.Duration.parse(text).after(now)
        except (ValueError, OverflowError) as error:
            raise errors.UsageError(
                f"--until: {text!r} is neither a time nor a duration", hint="such as 24h, or 2026-12-01T00:00:00Z"
            ) from error
    if found <= now:
        raise errors.UsageError(f"--until: {times.show(found)} has passed", hint="such as 24h")
    return found


def _question(chosen: settings.Settings, clock: clocks.Clock, wished: observed.Approval) -> actions.Question:
    """What the approval answers, in the tree or in what is in force. Raises ``HoldfastError`` naming what waits."""
    anything = observed.Approval(
        digest=wished.digest, copies=_ANY, by=wished.by, until=wished.until, reason=wished.reason
    )
    waiting: dict[str, actions.Question] = {}
    in_force = settings.Settings(estate=None, state=chosen.state, catalog=chosen.catalog)
    for place in [chosen, in_force] if chosen.estate is not None else [in_force]:
        plan, _ = planning.compute(place, clock, None, given=(anything,))
        for one in plan.questions:
            if one.digest == wished.digest:
                if one.copies > wished.copies:
                    raise errors.HoldfastError(
                        f"{one.copies} copies would go, more than --copies {wished.copies}; nothing was approved",
                        hint="plan lists them; leave --copies out to approve as many as there are now",
                    )
                return one
            if not one.approved:
                waiting.setdefault(one.digest, one)
    listed = "; ".join(f"{one.digest} ({one.message})" for one in waiting.values())
    raise errors.HoldfastError(
        f"nothing that waits for an approval has the digest {wished.digest}",
        hint=f"waiting: {listed}" if waiting else "nothing waits for an approval; holdfast plan shows what is held",
    )


def _carry_out(
    chosen: settings.Settings,
    db: database.Database,
    clock: clocks.Clock,
    given: observed.Approval,
    question: actions.Question,
    output: options.Output,
) -> int:
    """Hand over to a living controller and watch it; else say what carries the approval out."""
    details: dict[str, Any] = {
        "digest": given.digest,
        "what": question.what,
        "copies": given.copies,
        "by": given.by,
        "until": times.show(given.until),
    }
    said = f"approved until {times.show_minutes(given.until)}: {question.message}"
    holder = leases.holder(chosen.state, db)
    if holder is None:
        message = f"{said}; holdfast apply carries it out"
        outputs.emit(results.Message(done=True, message=message, details=details), output, _text)
        return 0
    answer = handovers.hand_over(db, holder, chosen.state, None, clock, sessions.actor(), outputs.note)
    code = int(answer["exitCode"])
    done = "carried out" if code == 0 else f"the pass that followed ended with {code}: holdfast status says why"
    document = results.Message(
        done=code == 0, message=f"{said}; {done}", details={**details, "result": answer["result"]}
    )
    outputs.emit(document, output, _text)
    return code


def _text(document: results.Message) -> str:
    return document.message
