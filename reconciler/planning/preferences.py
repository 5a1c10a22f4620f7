"""Which of several images is restored where nobody names one, and what is said of the others.

``restorations`` plans the restores of the manifests by it, ``controller.choices`` those by command. An image that was
declared wrong comes last, before it those with damaged copies alone, before these those of which a drill failed, and
before these those that a wrong clock made; of two that are as good the newer one is taken. Separate because a command
that restores loads nothing else that decides.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import NamedTuple

from reconciler.base import times
from reconciler.planning import sightings


class Rank(NamedTuple):
    """How good an image is to restore from; the greatest is taken."""

    #: Nobody declared it wrong.
    trusted: bool
    #: It has a copy that nothing bad is known of.
    whole: bool
    #: The last drill of no kind failed.
    proven: bool
    #: Its time can be right (``doubts``): else it may be older than it says.
    dated: bool
    time: dt.datetime
    sequence: int

    @property
    def sound(self) -> bool:
        """Whether no older image that is trusted as much can be better."""
        return self.whole and self.proven and self.dated


def failed(results: Iterable[sightings.Verification]) -> dict[str, sightings.Verification]:
    """The images whose last drill of some kind failed: by image id the last one that says so."""
    last: dict[tuple[str, str], sightings.Verification] = {}
    for one in results:
        key = (one.image, one.kind)
        if one.kind in sightings.DRILLS and (key not in last or _order(one) > _order(last[key])):
            last[key] = one
    bad = sorted((one for one in last.values() if one.state == "Failed"), key=_order)
    return {one.image: one for one in bad}


def _order(result: sightings.Verification) -> tuple[dt.datetime, bool]:
    return result.at, result.state == "Failed"


def passed_over(image: str, time: dt.datetime, failure: sightings.Verification, way: str) -> str:
    """What is said of a newer image that is not taken because a drill failed; ``way``: how to have it all the same."""
    return f"image {image} of {times.show_minutes(time)} is newer: its {_found(failure)}; {way} takes it all the same"


def misdated(image: str, time: dt.datetime, way: str) -> str:
    """What is said of an image that seems newer, made while the clock was wrong; ``way`` as for ``passed_over``."""
    when = times.show_minutes(time)
    return f"image {image} says {when}, which cannot be: the clock was wrong; {way} takes it all the same"


def no_better(image: str, failure: sightings.Verification) -> str:
    """What is said where an image is taken although a drill of it failed."""
    words = "every image that can be restored is damaged or failed a drill"
    return f"{words}; this one is {image}, whose {_found(failure)}"


def known_bad(image: str, failure: sightings.Verification) -> str:
    """What is said of an image that was asked for by name."""
    return f"image {image} was asked for: its {_found(failure)}"


def _found(failure: sightings.Verification) -> str:
    return f"{failure.kind} failed {times.show_minutes(failure.at)} ({failure.message})"
