"""Legal holds: which clients and images a manifest's words mean, and which holds stand.

A word is resolved once, when it first matches something, and what it matched stays held: a later rename, a narrower
manifest or none at all changes nothing, a wider one adds. Only ``released`` ends a hold. ``standing`` is what plans
reckon with, holds of manifests not in force yet included; the catalog calls ``resolve`` in the transaction that puts
them in force, with facts of its own. Pure.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import fnmatch
from collections.abc import Iterable, Iterator, Mapping

from reconciler.api import exceptions
from reconciler.base import diagnostics
from reconciler.planning import configuration, desired, observed

#: The problem of a word that matches nothing.
UNMATCHED = "HF493"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the words of a hold may mean."""

    #: Client id -> its name and slug.
    clients: Mapping[str, tuple[str, str]]
    #: Policy -> ids of the clients that have images of it; at least of the policies asked for.
    owners: Mapping[str, frozenset[str]]
    #: Ids of images that there are, at least of those asked for.
    images: frozenset[str]


def words(spec: exceptions.LegalHoldSpec) -> frozenset[str]:
    """Everything that the manifest names: ``clients/NAME``, ``policies/NAME``, ``images/ID``."""
    return frozenset(
        [
            *(f"clients/{one}" for one in spec.clients),
            *(f"policies/{one}" for one in spec.policies),
            *(f"images/{one}" for one in spec.images),
        ]
    )


def resolve(hold: exceptions.LegalHold, before: observed.Hold | None, facts: Facts) -> observed.Hold:
    """The hold with what its words mean now added to what they meant ``before``; nothing is taken away."""
    spec = hold.spec
    clients, images, done = set[str](), set[str](), set[str]()
    for word in words(spec) - (before.words if before is not None else frozenset()):
        kind, _, name = word.partition("/")
        if kind == "images":
            found = {name} & facts.images
            images |= found
        else:
            found = set(_clients(name, facts)) if kind == "clients" else set(facts.owners.get(name, ()))
            clients |= found
        if found:
            done.add(word)
    if before is None:
        return observed.Hold(
            name=hold.name, clients=frozenset(clients), images=frozenset(images), since=spec.from_, until=spec.to,
            reason=spec.reason, words=frozenset(done),
        )  # fmt: skip
    return dataclasses.replace(
        before,
        clients=before.clients | clients,
        images=before.images | images,
        since=None if before.since is None or spec.from_ is None else min(before.since, spec.from_),
        until=None if before.until is None or spec.to is None else max(before.until, spec.to),
        reason=spec.reason,
        words=before.words | done,
    )


def _clients(name: str, facts: Facts) -> Iterator[str]:
    for id, named in facts.clients.items():
        if any(one == name or fnmatch.fnmatchcase(one, name) for one in (id, *named)):
            yield id


def standing(wanted: desired.Desired, seen: observed.Observed) -> tuple[observed.Hold, ...]:
    """Every hold that stands once the manifests are in force, by name."""
    result = {hold.name: hold for hold in seen.holds}
    open_words: dict[str, exceptions.LegalHold] = {}
    for name, hold in wanted.legal_holds.items():
        if wanted.is_orphaned("LegalHold", name):
            continue
        if hold.spec.released is not None:
            result.pop(name, None)
        elif changes(hold, result.get(name)):
            open_words[name] = hold
    if open_words:
        facts = _facts(wanted, seen, open_words.values(), result)
        result.update({name: resolve(hold, result.get(name), facts) for name, hold in open_words.items()})
    return tuple(result[name] for name in sorted(result))


def changes(hold: exceptions.LegalHold, before: observed.Hold | None) -> bool:
    """Whether resolving the hold anew may come to something else than what is recorded of it."""
    if before is None or words(hold.spec) - before.words or hold.spec.reason != before.reason:
        return True
    spec = hold.spec
    earlier = before.since is not None and (spec.from_ is None or spec.from_ < before.since)
    return earlier or (before.until is not None and (spec.to is None or spec.to > before.until))


def _facts(
    wanted: desired.Desired,
    seen: observed.Observed,
    asked: Iterable[exceptions.LegalHold],
    recorded: Mapping[str, observed.Hold],
) -> Facts:
    open_words = set[str]()
    for hold in asked:
        before = recorded.get(hold.name)
        open_words |= words(hold.spec) - (before.words if before is not None else frozenset())
    known = {one.id: (one.name, one.slug) for one in seen.clients.values()}
    for inventory in seen.inventories.values():
        known.update({one.id: (one.name, "") for one in inventory.machines if one.id not in known})
    owners: dict[str, set[str]] = {}
    images = set[str]()
    if any(not word.startswith("clients/") for word in open_words):
        # A walk over everything, which only a hold pays that names policies or images and is not in force yet.
        for series in configuration.renames(wanted).follow(seen.series):
            owners.setdefault(series.policy, set()).add(series.client)
            images.update(one.id for one in series.images if f"images/{one.id}" in open_words)
    return Facts(clients=known, owners={name: frozenset(ids) for name, ids in owners.items()}, images=frozenset(images))


def problems(wanted: desired.Desired, standing: Iterable[observed.Hold]) -> Iterator[diagnostics.Diagnostic]:
    """Words of manifests that match nothing: what else they name is held all the same."""
    held = {hold.name: hold for hold in standing}
    for name, hold in sorted(wanted.legal_holds.items()):
        if hold.spec.released is not None or wanted.is_orphaned("LegalHold", name):
            continue
        for word in sorted(words(hold.spec) - (held[name].words if name in held else frozenset())):
            kind, _, wrong = word.partition("/")
            yield diagnostics.Diagnostic(
                severity=diagnostics.Severity.ERROR,
                code=UNMATCHED,
                message=f"{kind}: {wrong} matches nothing that the catalog knows; the rest of the hold stands",
                object=f"LegalHold/{name}",
                hint="correct the name; holdfast get clients and holdfast get images list them",
            )


def covers(hold: observed.Hold, at: dt.datetime) -> bool:
    """Whether an image of this time is held, if its client is."""
    return (hold.since is None or at >= hold.since) and (hold.until is None or at < hold.until)
