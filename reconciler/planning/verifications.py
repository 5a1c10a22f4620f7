"""What the last verifications of images say: which images failed, and how recently a series was proven.

Read by ``nevers`` (an image that failed is not the last good one), by ``drills`` (when the next one is due) and by
``conditions`` (``Recoverable``). Copies of an image are bit-identical, so what was found of one of them was found of
the image; where two differ, the later word counts.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from reconciler.api import lifecycles
from reconciler.base import quantities
from reconciler.planning import desired, histories, observed, servicelevels

CONTENT: Final = "Content"
FILES: Final = "Files"
BOOT: Final = "Boot"
KINDS: Final = (CONTENT, FILES, BOOT)


class Asked(NamedTuple):
    """One kind of proof that is asked of a series."""

    #: Content, Files or Boot.
    kind: str
    period: quantities.Duration
    #: The operation whose copies are meant; None where any copy will do.
    operation: str | None
    #: Who asks, such as ``operation dedupe`` or ``ServiceLevel/erp``.
    by: str


def asked(wanted: desired.Desired, policy: str) -> tuple[Asked, ...]:
    """What the lifecycle of a policy and its ServiceLevels ask for."""
    known = wanted.policies.get(policy)
    if known is None:
        return ()
    lifecycle = wanted.lifecycles.get(known.spec.lifecycle)
    found: list[Asked] = []
    for operation in lifecycle.spec.operations if lifecycle is not None else ():
        found += _of(operation.verify, operation.name, f"operation {operation.name}")
    for level in servicelevels.of(wanted, policy):
        found += _of(level.spec.verified, None, f"ServiceLevel/{level.name}")
    if known.spec.source.catalog is not None:
        # It has no volumes to open, and is no machine that could be started.
        found = [one for one in found if one.kind == CONTENT]
    return tuple(found)


def _of(verify: lifecycles.Verify | None, operation: str | None, by: str) -> Iterator[Asked]:
    if verify is None:
        return
    for kind, period in ((CONTENT, verify.content), (FILES, verify.files), (BOOT, verify.boot)):
        if period:
            yield Asked(kind=kind, period=period, operation=operation, by=by)


def failed(found: Mapping[str, tuple[observed.Verification, ...]]) -> frozenset[str]:
    """Ids of the images whose last verification of some kind failed."""
    return frozenset(image for image, results in found.items() if any(_newest(results, kind) for kind in KINDS))


def _newest(results: Iterable[observed.Verification], kind: str) -> bool:
    """Whether the last word of one kind is that it failed."""
    of_kind = [one for one in results if one.kind == kind]
    return bool(of_kind) and max(of_kind, key=lambda one: one.at).state == "Failed"


def last(
    history: histories.History,
    found: Mapping[str, tuple[observed.Verification, ...]],
    kind: str,
    operation: str | None,
) -> observed.Verification | None:
    """The latest result of a kind within a series; with ``operation``, of its copies alone."""
    best: observed.Verification | None = None
    for image in history.images.ids if found else ():
        for one in found.get(image, ()):
            if one.kind != kind or (best is not None and one.at <= best.at):
                continue
            if operation is None or operation_of(history, one) == operation:
                best = one
    return best


def operation_of(history: histories.History, result: observed.Verification) -> str | None:
    """The operation that made the copy a result is about."""
    image = history.by_id(result.image)
    copies = image.copies if image is not None else ()
    return next((copy.operation for copy in copies if copy.number == result.copy), None)


def due(asked: Asked, result: observed.Verification | None, begun: dt.datetime) -> dt.datetime:
    """When the next one is due; ``begun``: from when one that was never made counts."""
    if result is None:
        return begun
    try:
        return asked.period.after(result.at)
    except OverflowError:
        return dt.datetime.max.replace(tzinfo=dt.UTC)
