"""What is decided about one copy, as values: made by ``expiry`` and ``departures``, read by plans and explanations."""

from __future__ import annotations

import datetime as dt
from typing import NamedTuple

from reconciler.api import lifecycles as kinds
from reconciler.planning import observed


class Held(NamedTuple):
    """Why a brake holds a copy: the cause that the destructive part's digest covers."""

    lifecycle: str
    operation: str
    #: The promised rule, or None for a copy that came back through adoption.
    before: kinds.Retention | None
    after: kinds.Retention | None
    #: When the promise ends, None where that cannot be said.
    until: dt.datetime | None
    #: Every promise that holds it: an approval ends them all.
    holding: tuple[kinds.Retention, ...] = ()
    #: The order to let its image go, where that is the cause.
    order: observed.Ruling | None = None


class Verdict(NamedTuple):
    """What becomes of one copy."""

    image: observed.Image
    copy: observed.Copy
    #: Kept, Due, Waiting, Blocked or Planned.
    state: str
    code: str
    message: str
    #: When it left or leaves its rule, or until when it waits.
    at: dt.datetime | None = None
    #: Copies that must go first, as (image id, copy number).
    after: tuple[tuple[str, int], ...] = ()
    #: Children of this copy that must be made first.
    owes: tuple[str, ...] = ()
    #: Address of an action of the same plan that reads it or builds on it.
    used_by: str | None = None
    held: Held | None = None
    #: How long it can be taken back once it is decided that it goes.
    grace: dt.timedelta | None = None
