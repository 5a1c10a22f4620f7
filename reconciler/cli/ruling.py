"""``holdfast hold``, ``expire``, ``retire`` and ``waive``: what somebody decides about one thing, with who and why.

Each records a ruling in the catalog. A living controller takes it up by itself; where none lives the command writes
the catalog's dumps onto the units before it says done, so that the ruling outlives the catalog's disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from reconciler.api.documents import results
from reconciler.base import clocks, errors, quantities
from reconciler.catalog import database, inventories, leases, requests, rulings
from reconciler.cli import options, outputs, sessions, settings
from reconciler.controller import passes, safekeeping
from reconciler.planning import configuration
from reconciler.planning import rulings as register

Reason = Annotated[
    str | None,
    typer.Option(
        "--reason", metavar="TEXT", parser=options.words, help="Why; kept in the audit log and shown in every plan."
    ),
]
By = Annotated[
    str | None,
    typer.Option(
        "--by", metavar="NAME", parser=options.words, help="Who decided it; the user who runs this if left out."
    ),
]
Image = Annotated[str, typer.Argument(metavar="IMAGE", help="An image's id, as get images shows it.")]
Undo = Annotated[bool, typer.Option("--undo", help="Take it back.")]

_Rule = Callable[[database.Database, rulings.Author], rulings.Outcome]


def hold(
    image: Image,
    reason: Reason = None,
    release: Annotated[bool, typer.Option("--release", help="End the hold: the image's rule decides again.")] = False,
    by: By = None,
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """Keep an image whatever its rule says; one that is on its way out comes back as long as it has its grace."""
    rule = rulings.release if release else rulings.hold
    chosen = settings.of_state(state=state, catalog=catalog)
    return _ruled(chosen, lambda db, author: rule(db, image, author), reason, by, output)


def expire(
    image: Image,
    reason: Reason = None,
    undo: Undo = False,
    grace: Annotated[
        str, typer.Option(metavar="DURATION", help="How long it can be taken back once approved; 0s: not at all.")
    ] = "24h",
    by: By = None,
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """Declare an image wrong: once that is approved, it goes although its rule would keep it."""
    try:
        span = quantities.Duration.parse(grace).approximate
    except ValueError as error:
        raise errors.UsageError(f"--grace {grace}: {error}", hint="such as 24h, 7d or 0s") from error

    def rule(db: database.Database, author: rulings.Author) -> rulings.Outcome:
        return (
            rulings.take_back_order(db, image, author)
            if undo
            else rulings.order_expiry(db, image, span or None, author)
        )

    return _ruled(settings.of_state(state=state, catalog=catalog), rule, reason, by, output)


def retire(
    client: Annotated[str, typer.Argument(metavar="CLIENT", help="A machine by slug, id or name.")],
    reason: Reason = None,
    undo: Undo = False,
    by: By = None,
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """Say that a machine is gone for good: its images follow their rules to the last one."""

    def rule(db: database.Database, author: rulings.Author) -> rulings.Outcome:
        found = inventories.find_client(db, client)
        return (rulings.unretire if undo else rulings.retire)(db, found, author)

    return _ruled(settings.of_state(state=state, catalog=catalog), rule, reason, by, output)


def waive(
    copy: Annotated[
        str, typer.Argument(metavar="COPY", help="A copy as get copies shows it: IMAGE#NUMBER or IMAGE/NUMBER.")
    ],
    reason: Reason = None,
    undo: Undo = False,
    by: By = None,
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """Say that a copy need not make its children any more, so that its own rule lets it go without them."""
    place = register.copy_of(copy)
    if place is None:
        raise errors.UsageError(
            f"{copy} names no copy", hint="write IMAGE/NUMBER or IMAGE#NUMBER, as holdfast get copies lists them"
        )
    rule = rulings.unwaive if undo else rulings.waive
    chosen = settings.of_state(state=state, catalog=catalog)
    return _ruled(chosen, lambda db, author: rule(db, *place, author), reason, by, output)


def _ruled(chosen: settings.Settings, rule: _Rule, reason: str | None, by: str | None, output: options.Output) -> int:
    """Record a ruling, and make sure that it is taken up and kept."""
    if reason is None or not reason.strip():
        raise errors.UsageError("a reason is needed", hint="say why with --reason TEXT; it is shown in every plan")
    sessions.start_logging()
    now, actor = clocks.from_environment().now(), sessions.actor()
    with sessions.writing(chosen) as db:
        found = rule(db, rulings.Author(by=by or actor, actor=actor, now=now, reason=reason.strip()))
        holder = leases.holder(chosen.state, db)
        if holder is not None:
            requests.add(db, "Reload", {}, now, actor)
        else:
            _keep(db)
    details = {"changed": found.changed, "takenBack": list(found.taken_back), "controller": holder is not None}
    document = results.Message(done=True, message=found.message, details=details)
    outputs.emit(document, output, lambda shown: shown.message)
    return 0


def _keep(db: database.Database) -> None:
    wanted = configuration.effective(passes.read_tree(None, db).wanted, inventories.applied(db))
    for unit in safekeeping.write_dumps(db, wanted, {}):
        outputs.note(f"holdfast: unit {unit} does not know of this yet; the next pass writes it there")
