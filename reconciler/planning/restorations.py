"""Restore actions: each ``Restore`` of the manifests is done once per digest of its spec.

``planner`` shows every series to a ``Desk``, which remembers the best image for each restore that is still to be made,
and asks it for the actions at the end. What was restored stays restored: a manifest that goes, or an image that
expires afterwards, undoes nothing. One that fails is tried again for as long as its manifest stands. One that was
killed goes on from the image that it read, for what it made already is of that one.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import NamedTuple

from reconciler.api import restores
from reconciler.base import digests, times
from reconciler.planning import (
    actions,
    desired,
    doubts,
    histories,
    nevers,
    observed,
    preferences,
    retries,
    sightings,
    worktypes,
)


def digest(item: restores.Restore) -> str:
    """What a restore is done once for: what its spec says, without what is so by default.

    A version that knows a setting more must not make restores again that were made long ago.
    """
    return digests.json_digest(item.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True))


def address(name: str, digest: str) -> str:
    """The address of a restore."""
    return f"restore/{name}@{digest.removeprefix('blake3:')[:12]}"


def named(place: str) -> str:
    """The name of the ``Restore`` that an address is of."""
    return place.removeprefix("restore/").rpartition("@")[0]


def machine(wanted: desired.Desired, place: str) -> restores.MachineTarget | None:
    """The machine that the restore at an address makes in a vCenter; None for other restores, also those by command."""
    item = wanted.restores.get(named(place))
    return item.spec.target.vmware if item is not None and place == address(item.name, digest(item)) else None


def in_place(wanted: desired.Desired, place: str, client: str | None) -> bool:
    """Whether the restore at an address writes over the machine that its image is of: a backup of what is half written
    would be no restore point."""
    if place.endswith(worktypes.IN_PLACE):
        return True
    item = wanted.restores.get(named(place))
    if item is None or client is None or place != address(item.name, digest(item)):
        return False
    target = item.spec.target
    if target.vmware is not None:
        return target.vmware.replace
    return item.spec.overwrite and target.folder is not None and sightings.lies_at(client, target.folder)


class _Candidate(NamedTuple):
    """An image that could be restored, and the copy to begin with."""

    #: An attempt that was killed has read it.
    begun: bool
    rank: preferences.Rank
    image: observed.Image
    source: observed.Copy
    policy: str
    #: Of the last drill of it, if that failed.
    failure: observed.Verification | None

    @property
    def order(self) -> tuple[bool, preferences.Rank]:
        """The greatest is taken."""
        return self.begun, self.rank


class Desk:
    """The restores that are still to be made, and what there is to make them from."""

    def __init__(self, rules: nevers.Rules, wanted: desired.Desired, seen: observed.Observed, now: dt.datetime) -> None:
        self._rules = rules
        self._seen = seen
        self._now = now
        # What is on no copy is on none the next time either.
        done = {(one.name, one.digest): one for one in seen.restores if one.state in ("Verified", "Partial")}
        self._open = {
            name: (item, found)
            for name, item in sorted(wanted.restores.items())
            if not wanted.is_orphaned("Restore", name) and (name, found := digest(item)) not in done
        }
        #: By name: what a changed manifest asks for and was made when it said the same before.
        self.made = {
            name: done[name, found]
            for name, item in sorted(wanted.restores.items())
            if not wanted.is_orphaned("Restore", name)
            and (name, found := digest(item)) in done
            and not _in_force(seen, name, found)
        }
        self._clients = {name: _client(seen, item.spec.client) for name, (item, _) in self._open.items()}
        #: What attempts that were killed have read.
        self._begun = {(one.name, one.digest): one.image for one in seen.restores if one.state == "Running"}
        self._wanted = frozenset(id for id in self._clients.values() if id is not None)
        self._best: dict[str, _Candidate] = {}
        #: By restore: the newest image that could be taken, were it not that a drill of it failed.
        self._failed: dict[str, _Candidate] = {}
        #: By restore: why the newest image that is meant cannot be read, where its unit is the reason.
        self._refused: dict[str, str] = {}

    def look(self, history: histories.History) -> dict[tuple[str, int], str]:
        """Consider the images of one series: copies that restores would read, as (image id, number) -> address."""
        used: dict[tuple[str, int], str] = {}
        for name, (item, found) in self._open.items() if history.series.client in self._wanted else ():
            if self._clients[name] == history.series.client:
                chosen = self._consider(name, item.spec, history, self._begun.get((name, found)))
                if chosen is not None:
                    used[chosen] = address(name, found)
        return used

    def _consider(
        self, name: str, spec: restores.RestoreSpec, history: histories.History, begun: str | None
    ) -> tuple[str, int] | None:
        """The copy of this series that is the best so far, if one is. ``begun``: the image to go on from."""
        found: tuple[str, int] | None = None
        wrong = self._rules.register.orders()
        misdated = doubts.misdated(history.images.stamps, self._now)
        for place in reversed(range(len(history.images))):
            image = history.images[place]
            if spec.image is not None and image.id != spec.image:
                continue
            if spec.image is None and (
                image.state != "Complete" or (spec.as_of is not None and image.time > spec.as_of)
            ):
                continue
            one = self._candidate(
                spec,
                image,
                history,
                trusted=image.id not in wrong,
                dated=place not in misdated,
                begun=image.id == begun,
            )
            if one is None:
                self._refuse(name, image)
                continue
            rank = one.rank
            if name not in self._best or one.order > self._best[name].order:
                self._best[name] = one
                found = (image.id, one.source.number)
            if rank.trusted and not rank.proven and (name not in self._failed or rank > self._failed[name].rank):
                self._failed[name] = one
            if one.begun or (rank.trusted and rank.sound and begun is None):
                break
        return found

    def _refuse(self, name: str, image: observed.Image) -> None:
        for copy in image.copies if name not in self._refused else ():
            why = self._rules.units.refuses_read(copy.unit) if copy.state in observed.READABLE else None
            if why is not None:
                self._refused[name] = f"; image {image.id}: {why.message}"
                return

    def _candidate(
        self,
        spec: restores.RestoreSpec,
        image: observed.Image,
        history: histories.History,
        *,
        trusted: bool,
        dated: bool,
        begun: bool,
    ) -> _Candidate | None:
        """How good an image is to restore from, and the copy to begin with; as ``choices.choose`` has it.

        A damaged copy is better than none: what is whole of it, and of its like, may be all that is needed.
        """
        there = [
            copy
            for copy in image.copies
            if copy.state in observed.READABLE
            and spec.copy_number in (None, copy.number)
            and self._rules.units.refuses_read(copy.unit) is None
        ]
        good = [copy for copy in there if history.readable(image, copy)]
        if not there:
            return None
        best = min(good or there, key=lambda one: (self._rules.units.standalone(one.unit), one.number))
        failure = self._rules.failure(history, image.id)
        rank = preferences.Rank(
            trusted=trusted, whole=bool(good), proven=failure is None, dated=dated, time=image.time,
            sequence=image.sequence,
        )  # fmt: skip
        return _Candidate(begun, rank, image, best, history.series.policy, failure)

    def _doubts(self, name: str, spec: restores.RestoreSpec) -> str:
        """What must be known of the image that is chosen, as the end of a sentence."""
        best, other = self._best[name], self._failed.get(name)
        if spec.image is not None or best.begun:
            return ""
        if best.failure is not None:
            return f"; {preferences.no_better(best.image.id, best.failure)}"
        if other is None or other.failure is None or not other.image.time > best.image.time:
            return ""
        way = f"image: {other.image.id}"
        return f"; {preferences.passed_over(other.image.id, other.image.time, other.failure, way)}"

    def asked(self, slugs: dict[str, str]) -> Iterator[actions.Action]:
        """One Restore for each that is to be made; ``slugs``: by client id."""
        live = {job.address for job in self._seen.jobs}
        for name, (item, found) in self._open.items():
            place = address(name, found)
            attempts = self._seen.attempts.get(place)
            client = self._clients[name]
            chosen = self._best.get(name)
            doubts = self._doubts(name, item.spec) if chosen is not None else None
            state, at, reason = self._state(item, client, doubts, attempts)
            # Those by command have a time in their address.
            earlier = next((one for one in live if one.startswith(f"restore/{name}@") and ":" not in one), None)
            if place in live:
                reason = actions.Reason(code="Running", message="it is running")
                state, at = actions.State.DUE, self._now
            elif earlier is not None and state is actions.State.DUE:
                # What ends last stays: it must not be what nobody asks for any more.
                words = f"{earlier}, which Restore/{name} asked for before, is still running"
                reason = actions.Reason(code="AfterRestore", message=words)
                state, at = actions.State.WAITING, None
            yield actions.Action(
                address=place,
                type=actions.Type.RESTORE,
                state=state,
                at=at,
                reason=reason,
                policy=chosen.policy if chosen else None,
                client=slugs.get(client, item.spec.client) if client else item.spec.client,
                client_id=client,
                image=chosen.image.id if chosen else item.spec.image,
                copy=chosen.source.number if chosen else item.spec.copy_number,
                source_unit=chosen.source.unit if chosen else None,
                bytes=chosen.image.size_bytes if chosen else None,
                digest=found,
                attempt=retries.number(attempts),
            )

    def failing(self) -> Iterator[tuple[str, str]]:
        """The restores that were tried and are not made, by name, with what the last attempt ended with."""
        for name, (_, found) in self._open.items():
            attempts = self._seen.attempts.get(address(name, found))
            if attempts is not None and retries.standing(attempts, None, self._now).failures > 0:
                yield name, attempts.message

    def _state(
        self, item: restores.Restore, client: str | None, doubts: str | None, attempts: observed.Attempts | None
    ) -> tuple[actions.State, dt.datetime | None, actions.Reason]:
        """What becomes of a restore; ``doubts`` of its image, None where there is none."""
        if client is None:
            several = [one.slug for one in self._seen.clients.values() if one.name == item.spec.client]
            words = f"no client is named {item.spec.client}; holdfast get clients lists them"
            if several:
                words = f"{len(several)} clients are named {item.spec.client}: say which: {', '.join(sorted(several))}"
            return actions.State.BLOCKED, None, actions.Reason(code="ClientUnknown", message=words)
        if doubts is None:
            words = _missing(item.spec) + self._refused.get(item.name, "")
            return actions.State.BLOCKED, None, actions.Reason(code="NoImage", message=words)
        resting = retries.resting(attempts, self._now)
        if resting is not None:
            return actions.State.WAITING, *resting
        words = f"Restore/{item.name} asks for it, to {_where(item.spec)}{doubts}"
        return actions.State.DUE, self._now, actions.Reason(code="RestoreAsked", message=words)


def _in_force(seen: observed.Observed, name: str, found: str) -> bool:
    """Whether the manifest said the same when it was applied last."""
    applied = seen.applied.get(("Restore", name))
    return (
        applied is not None
        and not applied.orphaned
        and isinstance(applied.object, restores.Restore)
        and digest(applied.object) == found
    )


def _client(seen: observed.Observed, word: str) -> str | None:
    """The one client that a word means: by slug, identity or, where it is the only one, name."""
    if word in seen.clients:
        return word
    by_slug = [one.id for one in seen.clients.values() if one.slug == word]
    by_name = [one.id for one in seen.clients.values() if one.name == word]
    found = by_slug or by_name
    return found[0] if len(found) == 1 else None


def _where(spec: restores.RestoreSpec) -> str:
    machine = spec.target.vmware
    if machine is None:
        return spec.target.place
    as_what = f" as {machine.name}" if machine.name is not None else ""
    return f"VCenter {machine.vcenter}{as_what}{', in place of the one that is there' if machine.replace else ''}"


def _missing(spec: restores.RestoreSpec) -> str:
    if spec.image is not None:
        which = f"copy {spec.copy_number} of " if spec.copy_number is not None else ""
        return f"{which}image {spec.image} of {spec.client} cannot be read now, or is none of its images"
    when = f" at or before {times.show(spec.as_of)}" if spec.as_of is not None else ""
    return f"{spec.client} has no complete image{when} that can be read now"
