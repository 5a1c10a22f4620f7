"""What ServiceLevels ask of a series, and what it falls short of.

``nevers`` takes its objective from here, ``drills`` the kinds of proof that are promised, ``planner`` and
``conditions`` what is missed. A ServiceLevel is about every series of the policies that its selector means; where
several are, the strictest counts. One whose manifest is gone asks nothing any more.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from reconciler.api import policies, servicelevels
from reconciler.base import times
from reconciler.planning import actions, desired, histories, observed, placements


def of(wanted: desired.Desired, policy: str) -> tuple[servicelevels.ServiceLevel, ...]:
    """The ServiceLevels of a policy, by name."""
    known = wanted.policies.get(policy)
    if known is None:
        return ()
    return tuple(
        level
        for name, level in sorted(wanted.service_levels.items())
        if not wanted.is_orphaned("ServiceLevel", name) and meant(level, known)
    )


def meant(level: servicelevels.ServiceLevel, policy: policies.BackupPolicy) -> bool:
    """Whether a ServiceLevel is about a policy."""
    labels = policy.metadata.labels
    return all(labels.get(key) == value for key, value in level.spec.selector.match_labels.items())


def objective(wanted: desired.Desired, policy: str) -> dt.timedelta | None:
    """How old the newest complete image may be; None where nobody promised anything."""
    asked = [level.spec.rpo.approximate for level in of(wanted, policy) if level.spec.rpo]
    return min(asked, default=None)


def shortfalls(
    wanted: desired.Desired, units: placements.Units, history: histories.History, now: dt.datetime
) -> Iterator[tuple[str, actions.Reason]]:
    """ServiceLevels whose copies or failure domains the series lacks, by name, with the reason."""
    for level in of(wanted, history.series.policy):
        spec = level.spec
        if spec.copies is None and spec.failure_domains is None:
            continue
        image = _judged(history, spec.copy_within.before(now))
        if image is None:
            continue
        good = history.good(image)
        domains = {units.domain(copy.unit) for copy in good}
        when = times.show_minutes(image.time)
        if spec.copies is not None and len(good) < spec.copies:
            words = f"the image of {when} has {len(good)} of {spec.copies} good copies after {spec.copy_within}"
            yield level.name, actions.Reason(code="TooFewCopies", message=words)
        elif spec.failure_domains is not None and len(domains) < spec.failure_domains:
            words = f"the copies of the image of {when} lie in {len(domains)} of {spec.failure_domains} failure domains"
            yield level.name, actions.Reason(code="TooFewDomains", message=words)


def _judged(history: histories.History, before: dt.datetime) -> observed.Image | None:
    """The newest complete image that has had its time, whether any copy of it can be read or not."""
    for place in reversed(history.sound.places):
        image = history.images[place]
        if image.time <= before and any(copy.state != "Expired" for copy in image.copies):
            return image
    return None
