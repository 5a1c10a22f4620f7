"""What people ruled, as decisions ask for it: is this image held, was it ordered to go, is its client retired.

``Register`` holds legal holds and the rulings of one observed state; ``nevers`` and ``expiry`` ask it for each image,
so an empty one must cost nothing. ``drift`` lists what stands, with who, when and why, in every plan.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from typing import Final

from reconciler.api import policies
from reconciler.base import digests, times
from reconciler.planning import actions, desired, holds, observed


class Register:
    """Everything that was ruled and stands."""

    def __init__(self, wanted: desired.Desired, seen: observed.Observed) -> None:
        self.holds = holds.standing(wanted, seen)
        self.rulings = seen.rulings
        self._by_client: dict[str, list[observed.Hold]] = {}
        self._by_image: dict[str, list[observed.Hold]] = {}
        for hold in self.holds:
            for client in hold.clients:
                self._by_client.setdefault(client, []).append(hold)
            for image in hold.images:
                self._by_image.setdefault(image, []).append(hold)
        self._kept = {one.object: one for one in seen.rulings if one.kind == "Hold"}
        self._ordered = {one.object: one for one in seen.rulings if one.kind == "Expire"}
        self._retired = {one.object: one for one in seen.rulings if one.kind == "Retire"}
        self.waived = frozenset(place for one in seen.rulings if one.kind == "Waive" and (place := copy_of(one.object)))
        self._back = matched(wanted, seen).keys() & self._retired.keys() if self._retired else frozenset()

    def legal(self, client: str, image: observed.Image) -> observed.Hold | None:
        """The legal hold that keeps an image of a client, if one does."""
        if self._by_image and image.id in self._by_image:
            return self._by_image[image.id][0]
        if self._by_client and client in self._by_client:
            return next((hold for hold in self._by_client[client] if holds.covers(hold, image.time)), None)
        return None

    def keeps(self, client: str, image: observed.Image) -> actions.Reason | None:
        """Why an image must keep a good copy whatever its rule says, or None."""
        hold = self.legal(client, image)
        if hold is not None:
            return actions.Reason(code="LegalHold", message=f"under LegalHold {hold.name}: {hold.reason}")
        ruling = self._kept.get(image.id) if self._kept else None
        return actions.Reason(code="Held", message=f"held {_by(ruling)}") if ruling is not None else None

    def release(self, client: str, image: observed.Image) -> str:
        """What would end that."""
        hold = self.legal(client, image)
        if hold is not None:
            return f"released: {{by, at, reason}} in the manifest of LegalHold {hold.name}"
        return f"holdfast hold {image.id} --release"

    def ordered(self, image_id: str) -> observed.Ruling | None:
        """The order that an image goes, though its rule would keep it."""
        return self._ordered.get(image_id) if self._ordered else None

    def orders(self) -> frozenset[str]:
        """Ids of all images that were ordered to go."""
        return frozenset(self._ordered)

    def all_retired(self) -> frozenset[str]:
        """Ids of the clients that need no copy any more."""
        return frozenset(self._retired) - self._back

    def retired(self, client: str) -> bool:
        """Whether a client needs no copy any more; never one that a policy matches again."""
        return client in self._retired and client not in self._back

    def drift(self, wanted: desired.Desired, seen: observed.Observed) -> Iterator[actions.Drift]:
        """What stands, one line each: who, when, why."""
        for hold in self.holds:
            yield _hold_drift(hold, wanted, seen)
        for one in self.rulings:
            told = _TOLD[one.kind]
            object = f"{told.prefix}/{one.object}"
            message = f"{told.words} {_by(one)}"
            if one.kind == "Retire":
                object = f"{told.prefix}/{_slug(seen, one.object)}"
                if one.object in self._back:
                    names = ", ".join(matched(wanted, seen)[one.object])
                    message += f"; {names} matches it again, so its images are protected as any other's"
            yield actions.Drift(code=told.code, object=object, message=message)


def named(order: observed.Ruling) -> str:
    """How the digest of a destructive part, and the release that an approval records, name an order: canonical JSON."""
    said = {"order": order.object, "at": times.show(order.at), "by": order.by, "reason": order.reason}
    return digests.canonical_json(said).decode()


def copy_of(object: str) -> tuple[str, int] | None:
    """Image id and number of ``IMAGE/NUMBER`` (or ``IMAGE:NUMBER``, ``IMAGE#NUMBER``), None for anything else."""
    head, _, number = object.replace(":", "/").replace("#", "/").rpartition("/")
    return (head, int(number)) if head and number.isascii() and number.isdigit() else None


def matched(wanted: desired.Desired, seen: observed.Observed) -> dict[str, list[str]]:
    """By client id: the policies in force whose selection matched the machine when it was last looked at."""
    found: dict[str, list[str]] = {}
    for name, policy in sorted(wanted.policies.items()):
        if not wanted.is_orphaned("BackupPolicy", name):
            for machine in _machines(policy, seen):
                found.setdefault(machine.id, []).append(name)
    return found


def _machines(policy: policies.BackupPolicy, seen: observed.Observed) -> Iterable[observed.Machine]:
    for name in (policy.name, *policy.spec.previous_names):
        if name in seen.inventories:
            return seen.inventories[name].machines
    return ()


class _Told:
    """How one kind of ruling is told."""

    def __init__(self, code: str, prefix: str, words: str) -> None:
        self.code, self.prefix, self.words = code, prefix, words


_TOLD: Final = {
    "Hold": _Told("Held", "image", "held"),
    "Expire": _Told("ExpireOrdered", "image", "ordered to expire"),
    "Retire": _Told("Retired", "Client", "retired"),
    "Waive": _Told("Waived", "copy", "need not make its children: waived"),
}


def _hold_drift(hold: observed.Hold, wanted: desired.Desired, seen: observed.Observed) -> actions.Drift:
    parts = []
    if hold.clients:
        parts.append(f"images of {', '.join(sorted(_slug(seen, one) for one in hold.clients))}{_window(hold)}")
    if hold.images:
        parts.append(f"image {', '.join(sorted(hold.images))}")
    message = f"{' and '.join(parts) or 'nothing yet'} held{_applied(hold)}: {hold.reason}"
    if hold.name not in wanted.legal_holds or wanted.is_orphaned("LegalHold", hold.name):
        message += "; its manifest is gone and it stands on: only released in its manifest ends it"
    return actions.Drift(code="Held", object=f"LegalHold/{hold.name}", message=message)


def _applied(hold: observed.Hold) -> str:
    return f" by {hold.by} since {times.show_minutes(hold.at)}" if hold.at is not None else " once it is in force"


def _window(hold: observed.Hold) -> str:
    since = f" from {times.show_minutes(hold.since)}" if hold.since is not None else ""
    return since + (f" to {times.show_minutes(hold.until)}" if hold.until is not None else "")


def _slug(seen: observed.Observed, client: str) -> str:
    return seen.clients[client].slug if client in seen.clients else client


def _by(ruling: observed.Ruling) -> str:
    return f"by {ruling.by} on {times.show_minutes(ruling.at)}: {ruling.reason}"


def until(now: dt.datetime, grace: dt.timedelta) -> dt.datetime:
    """When a grace that begins now ends; as late as can be said where it is longer than that."""
    try:
        return now + grace
    except OverflowError:
        return dt.datetime.max.replace(tzinfo=times.UTC)
