"""What was promised to copies by retentions that a revision has replaced since, and which promises an approval ended.

``expiry`` asks for every copy that the rule in force would let go or soon will. Separate so that a promise is named the
same way in the digest of a destructive part, in the release that an approval of it records, and here.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Final

from reconciler.api import lifecycles as kinds
from reconciler.base import digests, times
from reconciler.planning import configuration, desired, lifecycles, observed, retention

#: Rules that promise nothing to the copies made under them.
_PROMISE_NOTHING: Final = (kinds.ExpireAfterCopy, kinds.CapacityManaged)
#: How a release names copies that came back through adoption, whose promise nobody knows.
NONE: Final = "null"
#: In place of a lifecycle, an operation and a client: all of them. One approval ends the waiting of all that came back.
ANY: Final = "*"


def written(rule: kinds.Retention | None) -> str:
    """A promised rule as releases name it: canonical JSON, ``null`` for none."""
    return digests.canonical_json(rule.written()).decode() if rule is not None else NONE


def told(rule: kinds.Retention, until: dt.datetime | None) -> str:
    """A promise in words, such as ``Fixed 30d was promised until 2026-12-23T20:00Z``."""
    end = f" until {times.show_minutes(until)}" if until is not None else ""
    return f"{rule.type} {retention.summary(rule)}".rstrip() + f" was promised{end}"


class Promises:
    """Every promise over one desired state and one observed one, operations by their present names."""

    def __init__(self, wanted: desired.Desired, seen: observed.Observed, book: lifecycles.Book) -> None:
        self._promises: dict[tuple[str, str], list[tuple[observed.Promise, str]]] = {}
        for promise in (*seen.promises, *configuration.promises(wanted, seen.applied)):
            if not isinstance(promise.retention, _PROMISE_NOTHING):
                name = book.operation(promise.lifecycle, promise.operation)
                known = self._promises.setdefault((promise.lifecycle, name), [])
                known.append((promise, written(promise.retention) if seen.releases else ""))
        for known in self._promises.values():
            # Of several that have no end the first is named, and digests cover it: their order must be their own.
            known.sort(key=lambda one: (one[0].up_to, one[1] or written(one[0].retention)))
        #: By lifecycle, operation, promised rule and client: the widest release of each.
        self._releases: dict[tuple[str, str, str, str], observed.Release] = {}
        for release in sorted(seen.releases, key=lambda one: (one.up_to, one.digest)):
            name = book.operation(release.lifecycle, release.operation)
            self._releases[release.lifecycle, name, release.before, release.client] = release

    def made(
        self, client: str, image: observed.Image, operation: str
    ) -> Iterator[tuple[kinds.Retention, observed.Release | None]]:
        """The retentions promised to an operation's copies of an image, each with what has ended it."""
        for promise, before in self._promises.get((image.lifecycle, operation), ()):
            if image.sequence <= promise.up_to:
                yield promise.retention, self.released(client, image, operation, before)

    def standing(self, client: str, image: observed.Image, operation: str) -> Iterator[kinds.Retention]:
        """Those promises that nothing has ended."""
        return (rule for rule, release in self.made(client, image, operation) if release is None)

    def outlasting(
        self, client: str, image: observed.Image, operation: str, at: dt.datetime | None
    ) -> tuple[dt.datetime | None, str]:
        """When the longest standing promise ends, where that is after ``at``, at which the rule in force ends; and a
        clause that says so. None is no end. What Keep promises has no date and is left out."""
        longest, end = None, at
        for rule in self.standing(client, image, operation):
            if end is None or not isinstance(rule, kinds.Fixed | kinds.Forever):
                continue
            later = retention.end(rule, image.time) if isinstance(rule, kinds.Fixed) else None
            if later is None or later > end:
                longest, end = rule, later
        return end, f"; {told(longest, end)}" if longest is not None else ""

    def released(
        self, client: str, image: observed.Image, operation: str, before: str = NONE
    ) -> observed.Release | None:
        """What has ended a promise for an image; by default the waiting of copies that came back."""
        if not self._releases:
            return None
        found = self._releases.get((image.lifecycle, operation, before, client))
        if found is None and before == NONE:
            found = self._releases.get((ANY, ANY, NONE, ANY))
        return found if found is not None and image.sequence <= found.up_to else None
