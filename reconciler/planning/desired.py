"""Desired state: one revision of the estate, resolved, as values. Made by ``intake``, and by the catalog for what is
orphaned; read by every decision."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from reconciler.api import exceptions, lifecycles, models, policies, restores, servicelevels, storage, vcenters

Key = tuple[str, str]
_Kind = TypeVar("_Kind", bound=models.Object)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Desired:
    """The objects of one revision by kind and name; all paths in them are absolute."""

    #: ``main@sha1:<40 hex>`` or ``dir@blake3:<hex>``.
    revision: str
    units: Mapping[str, storage.StorageUnit] = dataclasses.field(default_factory=dict)
    groups: Mapping[str, storage.StorageUnitGroup] = dataclasses.field(default_factory=dict)
    media_servers: Mapping[str, storage.MediaServer] = dataclasses.field(default_factory=dict)
    vcenters: Mapping[str, vcenters.VCenter] = dataclasses.field(default_factory=dict)
    windows: Mapping[str, policies.BackupWindow] = dataclasses.field(default_factory=dict)
    lifecycles: Mapping[str, lifecycles.StorageLifecyclePolicy] = dataclasses.field(default_factory=dict)
    policies: Mapping[str, policies.BackupPolicy] = dataclasses.field(default_factory=dict)
    service_levels: Mapping[str, servicelevels.ServiceLevel] = dataclasses.field(default_factory=dict)
    restores: Mapping[str, restores.Restore] = dataclasses.field(default_factory=dict)
    legal_holds: Mapping[str, exceptions.LegalHold] = dataclasses.field(default_factory=dict)
    approvals: Mapping[str, exceptions.Approval] = dataclasses.field(default_factory=dict)
    #: ``(kind, name)`` of objects that only the catalog still holds: no new work begins from them.
    orphaned: frozenset[Key] = frozenset()
    #: Digests of guarded changes that somebody consents to now; see ``approvals.consenting``.
    consents: frozenset[str] = frozenset()

    def objects(self) -> Iterator[models.Object]:
        """Every object, orphaned ones included, ordered by kind and name."""
        for group in (
            self.units, self.groups, self.media_servers, self.vcenters, self.windows, self.lifecycles,
            self.policies, self.service_levels, self.restores, self.legal_holds, self.approvals,
        ):  # fmt: skip
            for name in sorted(group):
                yield group[name]

    def is_orphaned(self, kind: str, name: str) -> bool:
        """Whether only the catalog still holds the object."""
        return (kind, name) in self.orphaned


def _of(kinds: Mapping[str, Mapping[str, models.Object]], kind: type[_Kind]) -> dict[str, _Kind]:
    return {name: item for name, item in kinds.get(kind.__name__, {}).items() if isinstance(item, kind)}


def gather(
    revision: str,
    objects: Iterable[models.Object],
    *,
    orphaned: Iterable[models.Object] = (),
    consents: frozenset[str] = frozenset(),
) -> Desired:
    """Sort objects by kind. Later objects of one key win over earlier ones; ``orphaned`` never win over ``objects``."""
    kinds: dict[str, dict[str, models.Object]] = {}
    left: set[Key] = set()
    for item in orphaned:
        kinds.setdefault(item.kind, {})[item.name] = item
        left.add(item.key)
    for item in objects:
        kinds.setdefault(item.kind, {})[item.name] = item
        left.discard(item.key)

    return Desired(
        revision=revision,
        units=_of(kinds, storage.StorageUnit),
        groups=_of(kinds, storage.StorageUnitGroup),
        media_servers=_of(kinds, storage.MediaServer),
        vcenters=_of(kinds, vcenters.VCenter),
        windows=_of(kinds, policies.BackupWindow),
        lifecycles=_of(kinds, lifecycles.StorageLifecyclePolicy),
        policies=_of(kinds, policies.BackupPolicy),
        service_levels=_of(kinds, servicelevels.ServiceLevel),
        restores=_of(kinds, restores.Restore),
        legal_holds=_of(kinds, exceptions.LegalHold),
        approvals=_of(kinds, exceptions.Approval),
        orphaned=frozenset(left),
        consents=consents,
    )
