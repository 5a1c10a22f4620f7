"""``holdfast explain``: why a copy stays, why a machine was not backed up, what comes next, in words."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import textwrap
from typing import Annotated

import typer

from reconciler.api.documents import shapes
from reconciler.base import errors
from reconciler.catalog import histories, images, inventories
from reconciler.cli import options, outputs, settings, views
from reconciler.planning import evictions, explanations
from reconciler.reports import tables


class Kind(enum.StrEnum):
    """What ``explain`` knows."""

    IMAGE = "image"
    CLIENT = "client"
    POLICY = "policy"
    UNIT = "unit"
    VCENTER = "vcenter"


class SentenceItem(shapes.Shape):
    """One statement."""

    about: str
    state: str
    code: str
    message: str
    at: shapes.Time | None
    release: str


class Explanation(shapes.Document):
    """``explain``: statements about one object, the most telling ones first."""

    kind: str = "Explanation"
    of: str
    name: str
    now: shapes.Time
    sentences: tuple[SentenceItem, ...]


def explain(
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help="image, client, policy, unit or vcenter.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name or id.")],
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """Why it is as it is, until when, and what would change it."""

    def read(view: views.View) -> Explanation:
        found = _EXPLAINERS[kind](view, name)
        items = tuple(SentenceItem(**{f.name: getattr(one, f.name) for f in dataclasses.fields(one)}) for one in found)
        return Explanation(of=kind.value, name=name, now=view.now, sentences=items)

    outputs.emit(views.look(settings.of_state(state=state, catalog=catalog), read), output, _text)
    return 0


def _image(view: views.View, name: str) -> tuple[explanations.Sentence, ...]:
    rows = images.list_images(view.db, image_id=name)
    if not rows:
        raise errors.NotFound(f"there is no image {name}", hint="holdfast get images lists them")
    series = histories.one_series(view.db, rows[0].client_id, rows[0].policy)
    broken = any(explanations.broken(one) for one in series.images if one.id == name)
    plan = view.plan() if broken or evictions.managed(view.wanted, view.seen) else None
    return explanations.image(view.wanted, view.seen, series, name, view.now, plan)


def _client(view: views.View, name: str) -> tuple[explanations.Sentence, ...]:
    client = inventories.find_client(view.db, name)
    found = [one for one in view.seen.series if one.client == client.id]
    plan = view.plan()
    return explanations.client(view.wanted, view.seen, plan, client.slug, found, view.now)


def _policy(view: views.View, name: str) -> tuple[explanations.Sentence, ...]:
    _require(name, "policy", view.wanted.policies)
    return explanations.policy(view.wanted, view.seen, view.plan(), name, view.now)


def _unit(view: views.View, name: str) -> tuple[explanations.Sentence, ...]:
    _require(name, "unit", view.wanted.units)
    return explanations.unit(view.wanted, view.seen, view.plan(), name)


def _vcenter(view: views.View, name: str) -> tuple[explanations.Sentence, ...]:
    _require(name, "vcenter", view.wanted.vcenters)
    return explanations.vcenter(view.wanted, view.seen, view.plan(), name)


def _require(name: str, what: str, known: object) -> None:
    names = sorted(known) if isinstance(known, dict) else []
    if name not in names:
        raise errors.NotFound(f"there is no {what} {name}", hint=f"there are: {', '.join(names) or 'none'}")


_EXPLAINERS = {Kind.IMAGE: _image, Kind.CLIENT: _client, Kind.POLICY: _policy, Kind.UNIT: _unit, Kind.VCENTER: _vcenter}
_SYMBOLS = {"Due": "+", "Waiting": "»", "Blocked": "!", "Planned": "·", "Expired": "-"}


def _text(document: Explanation) -> str:
    lines = [f"{document.of} {document.name}"]
    for one in document.sentences:
        lines += _wrapped(f"  {_SYMBOLS.get(one.state, ' ')} {one.about}: {one.message}")
        until = _until(one.at, one.release)
        if until:
            lines += _wrapped(f"      {until}")
    if not document.sentences:
        lines.append("  nothing is due, waiting or held")
    return "\n".join(lines)


def _wrapped(line: str) -> list[str]:
    """Words are what this command is for: they are wrapped, not cut."""
    width = tables.terminal()
    return textwrap.wrap(line, width, subsequent_indent=" " * 6, break_on_hyphens=False) if width else [line]


def _until(at: dt.datetime | None, release: str) -> str:
    if at is None:
        return f"released by: {release}" if release else ""
    return f"{tables.moment(at)}: {release}" if release else f"at {tables.moment(at)}"
