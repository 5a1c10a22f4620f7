"""What is later than it should be: series whose newest image is too old, and copies that nobody has made yet.

``planner`` asks for each series it walks, ``alarms`` makes somebody hear of the answers. A series is judged by the age
of its newest image that can be read, never by its last failure. A copy counts as owed from its image's time, from the
day its lifecycle got its present form, or from the first opening of its window after that, whichever came last.
"""

from __future__ import annotations

import collections
import datetime as dt
from collections.abc import Iterable
from typing import Final

from reconciler.planning import actions, calendars, desired, histories, nevers, observed

#: How long a copy may be owed before somebody should know.
PATIENCE: Final = dt.timedelta(hours=24)
#: Waits that a window explains.
_CLOSED: Final = "OutsideWindow"


def overdue(
    rules: nevers.Rules, history: histories.History | None, policy: str, slug: str, begun: dt.datetime, now: dt.datetime
) -> actions.Overdue | None:
    """Whether a series' newest image that can be read is older than the objective; None where it is not, or where no
    schedule says how old it may be. ``begun``: from when a series without images counts."""
    objective = rules.objective(policy)
    newest = next(rules.proven(history), None) if history is not None else None
    sound = history.sound[-1] if history is not None and history.sound else None
    since = newest.time if newest is not None else sound.time if sound is not None else begun
    if not objective or now - since <= objective:
        return None
    return actions.Overdue(
        policy=policy,
        client=slug,
        newest=newest.time if newest is not None else None,
        succeeded=sound is not None,
        objective=objective,
        since=since + objective,
    )


def suspended(wanted: desired.Desired, policy: str, now: dt.datetime) -> bool:
    """Whether a policy makes no backups by somebody's recorded wish."""
    known = wanted.policies.get(policy)
    return known is not None and known.spec.suspend is not None and known.spec.suspend.until > now


class Owings:
    """Adds up copies that are owed for too long, over all series of one plan."""

    def __init__(self, wanted: desired.Desired, seen: observed.Observed, now: dt.datetime) -> None:
        self._wanted = wanted
        self._applied = seen.applied
        self._now = now
        self._copies: collections.Counter[tuple[str, str]] = collections.Counter()
        #: Time and id of the oldest image, and what the plan says of its copy.
        self._oldest: dict[tuple[str, str], tuple[dt.datetime, str, actions.Action]] = {}

    def add(self, history: histories.History, made: Iterable[actions.Action]) -> None:
        """Look at the duplications of one series."""
        for action in made:
            if action.type is not actions.Type.DUPLICATE or action.image is None:
                continue
            image = history.by_id(action.image)
            since = self._since(image, action) if image is not None else None
            if image is None or since is None or self._now - since <= PATIENCE:
                continue
            key = (history.series.policy, action.operation or "")
            self._copies[key] += 1
            if key not in self._oldest or (image.time, image.id) < self._oldest[key][:2]:
                self._oldest[key] = (image.time, image.id, action)

    def _since(self, image: observed.Image, action: actions.Action) -> dt.datetime | None:
        """From when the copy could have been made; None while its window has not opened since."""
        applied = self._applied.get(("StorageLifecyclePolicy", image.lifecycle))
        since = max(image.time, applied.since) if applied is not None else image.time
        if action.reason.code != _CLOSED:
            return since
        known = self._wanted.lifecycles.get(image.lifecycle)
        names = [one.window for one in known.spec.operations if one.name == action.operation] if known else []
        window = self._wanted.windows.get(names[0]) if names and names[0] is not None else None
        return calendars.next_opening(window.spec, since) if window is not None else since

    def late(self) -> tuple[actions.Late, ...]:
        """What is owed for too long, by policy and operation."""
        return tuple(
            actions.Late(
                policy=policy,
                operation=operation,
                storage=action.storage or "",
                copies=self._copies[policy, operation],
                oldest=oldest,
                reason=action.reason,
            )
            for (policy, operation), (oldest, _, action) in sorted(self._oldest.items(), key=lambda one: one[0])
        )
