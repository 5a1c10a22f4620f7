"""The lists of ``holdfast get`` that need what is in force and what the units say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from reconciler.api.documents import lists
from reconciler.cli import options, outputs, settings, views
from reconciler.cli.showing import Wish
from reconciler.controller import judgements
from reconciler.reports import listings as tables


def emit(what: str, chosen: settings.Settings, wish: Wish, output: options.Output) -> None:
    """Print one list."""
    judge, render = _JUDGED[what]
    outputs.emit(views.look(chosen, lambda view: judge(view, wish)), output, render)


def _copies(view: views.View, wish: Wish) -> lists.CopyList:
    return judgements.copy_list(
        view.db,
        view.decisions(),
        view.seen.units,
        image=wish.image,
        client_id=wish.client_id(view.db),
        unit=wish.unit,
    )


_JUDGED: Final[Mapping[str, tuple[Callable[[views.View, Wish], Any], Callable[[Any], str]]]] = {
    "copies": (_copies, tables.copies),
    "clients": (
        lambda view, _wish: judgements.client_list(view.db, view.wanted, view.seen, view.now),
        tables.clients,
    ),
    "units": (lambda view, _wish: judgements.unit_list(view.db, view.wanted, view.seen), tables.units),
    "policies": (
        lambda view, _wish: judgements.policy_list(view.db, view.wanted, view.seen, view.plan()),
        tables.policies,
    ),
}
