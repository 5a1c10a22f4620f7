"""``holdfast retention preview``: what a rule keeps of a list of times, and by which of its words."""

from __future__ import annotations

import datetime as dt
import enum
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import pydantic
import typer

from reconciler.api import lifecycles
from reconciler.base import clocks, errors, quantities, times
from reconciler.catalog import inventories
from reconciler.cli import options, settings, views
from reconciler.planning import observed, retention
from reconciler.reports import tables

#: Times that ``--every`` makes at most.
_MOST: Final = 1_000_000
_FLAGS: Final = {"true": True, "false": False}


class Verb(enum.StrEnum):
    """What ``retention`` does."""

    PREVIEW = "preview"


def preview(
    verb: Annotated[Verb, typer.Argument(metavar="VERB", help="preview.")],
    keep: Annotated[
        str | None, typer.Option(metavar="RULES", help="Such as daily=7,weekly=4,within=5d,keepOldest=true.")
    ] = None,
    fixed: Annotated[str | None, typer.Option(metavar="PERIOD", help="Such as 30d.")] = None,
    zone: Annotated[str, typer.Option("--time-zone", metavar="ZONE", help="Where days and weeks begin.")] = "UTC",
    file: Annotated[
        str | None, typer.Option("--times", metavar="FILE", help="One RFC 3339 time a line; - for standard input.")
    ] = None,
    every: Annotated[str | None, typer.Option(metavar="DURATION", help="Times so far apart, the last one now.")] = None,
    count: Annotated[int, typer.Option(min=1, max=_MOST, help="How many times --every makes.")] = 400,
    client: Annotated[str | None, typer.Option(metavar="NAME", help="The images of a client in the catalog.")] = None,
    policy: Annotated[str | None, typer.Option(metavar="NAME", help="With --client: those of one policy.")] = None,
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """Which images a Keep or Fixed rule keeps, and why, without touching any."""
    del verb
    rule = _rule(keep, fixed, zone)
    now = clocks.from_environment().now()
    given = [name for name, value in (("--times", file), ("--every", every), ("--client", client)) if value is not None]
    if len(given) != 1:
        raise errors.UsageError("say whose times: --times FILE, --every DURATION or --client NAME, and one of them")
    if policy is not None and client is None:
        raise errors.UsageError("--policy goes with --client")
    if client is not None:
        groups = _of_client(settings.of_state(state=state, catalog=catalog), client, policy)
    else:
        moments = _of_file(file) if file is not None else _generated(every or "", count, now.replace(microsecond=0))
        groups = [[retention.Candidate(str(number), moment, number) for number, moment in enumerate(moments)]]
    items = list(itertools.chain.from_iterable(_judged(rule, group, now) for group in groups))
    if output is options.Output.JSON:
        sys.stdout.write(json.dumps(items, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(_text(items) + "\n")
    return 0


def _rule(keep: str | None, fixed: str | None, zone: str) -> lifecycles.Retention:
    if (keep is None) == (fixed is None):
        raise errors.UsageError("say one rule: --keep daily=7,weekly=4 or --fixed 30d")
    written: dict[str, Any] = {"type": "Fixed", "period": fixed}
    if keep is not None:
        written = {"type": "Keep", "timeZone": zone, **dict(_word(part) for part in keep.split(","))}
    try:
        return (lifecycles.Fixed if keep is None else lifecycles.Keep).model_validate(written)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(one) for one in first["loc"]) or "the rule"
        raise errors.UsageError(
            f"{where}: {first['msg']}", hint="the words are those of retention in a lifecycle"
        ) from error


def _word(part: str) -> tuple[str, object]:
    name, mark, value = (one.strip() for one in part.partition("="))
    if not mark or not name or not value:
        raise errors.UsageError(f"--keep: {part!r} is no rule", hint="write daily=7,weekly=4,within=5d")
    return name, int(value) if value.isdecimal() else _FLAGS.get(value, value)


def _of_file(file: str) -> Iterator[dt.datetime]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.UsageError(f"--times {file}: {error}") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield times.parse(line.strip())
            except ValueError as error:
                raise errors.UsageError(f"{file}:{number}:1: {error}") from error


def _generated(every: str, count: int, now: dt.datetime) -> Iterator[dt.datetime]:
    try:
        step = quantities.Duration.parse(every)
        if not step:
            raise ValueError("--every must be longer than nothing")
        for number in range(count):
            yield quantities.Duration(step.months * number, step.seconds * number).before(now)
    except (ValueError, OverflowError) as error:
        raise errors.UsageError(f"--every {every}: {error}") from error


def _of_client(chosen: settings.Settings, name: str, policy: str | None) -> list[list[retention.Candidate]]:
    """The complete images of a client, one list per series."""

    def read(view: views.View) -> list[list[retention.Candidate]]:
        client = inventories.find_client(view.db, name)
        found = [
            one for one in view.seen.series if one.client == client.id and (policy is None or one.policy == policy)
        ]
        return [[_candidate(image) for image in series.images if image.state == "Complete"] for series in found]

    return views.look(chosen, read)


def _candidate(image: observed.Image) -> retention.Candidate:
    return retention.Candidate(image.id, image.time, image.sequence, full=image.type == "Full")


def _judged(
    rule: lifecycles.Retention, candidates: Sequence[retention.Candidate], now: dt.datetime
) -> Iterator[dict[str, Any]]:
    decisions = retention.keep(rule, candidates, now)
    for one in candidates:
        decision = decisions[one.id]
        rules = [match.rule for match in decision.matches] or ([decision.code] if decision.keeps else [])
        yield {"time": times.show(one.time), "keep": decision.keeps, "rules": rules, "message": decision.message}


def _text(items: Sequence[dict[str, Any]]) -> str:
    kept = sum(one["keep"] for one in items)
    rows = [(one["time"], "keep" if one["keep"] else "expire", one["message"].partition(": ")[2]) for one in items]
    table = tables.table(("time", "", "rule"), rows)
    return f"{table}\n{kept} of {tables.count(len(items), 'image')} kept"
