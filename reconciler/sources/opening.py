"""From a policy's words to its source: the one place that knows which kinds of source there are."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reconciler.api import policies, vcenters
from reconciler.base import errors, meters
from reconciler.catalog import database
from reconciler.sources import catalogs, machines, machinetargets
from reconciler.sources import hooks as commands
from reconciler.sources.diskimages import machines as diskimages
from reconciler.sources.vsphere.blueprints import blueprints


class Sources:
    """The sources of one look at the world: what several policies ask of one vCenter is asked once."""

    def __init__(
        self, known: Mapping[str, vcenters.VCenter], owner: str = "nobody", catalog: database.Database | None = None
    ) -> None:
        """``known``: the VCenters by name; ``owner``: id of the catalog whose snapshots are ours; ``catalog``: itself,
        where it may have to be read."""
        self._vcenters = known
        self._owner = owner
        self._catalog = catalog
        self._looks: Any = None

    def of(self, policy: policies.BackupPolicy) -> machines.Source:
        """The source that a policy declares. Its paths are absolute already. Raises ``SourceError``."""
        spec = policy.spec.source
        hooks = policy.spec.hooks
        commanded = None
        if hooks is not None:
            commanded = commands.Hooks(before=hooks.before, after=hooks.after, timeout=hooks.timeout.seconds)
        if spec.disk_images is not None:
            return diskimages.DiskImages(
                path=Path(spec.disk_images.path),
                machines=spec.disk_images.machines,
                disks=spec.disk_images.disks,
                hooks=commanded,
                allow_live=spec.disk_images.consistency == "Live",
                changed_blocks_bitmap=spec.disk_images.changed_blocks.bitmap
                if spec.disk_images.changed_blocks
                else None,
            )
        if spec.vmware is not None:
            return self._virtual(policy.name, spec.vmware, commanded)
        if spec.catalog is not None:
            return catalogs.Catalog(self._owner, self._catalog)
        raise errors.SourceError(f"policy {policy.name} declares no source that this version can read")

    def _virtual(self, policy: str, wanted: vcenters.VMware, commanded: commands.Hooks | None) -> machines.Source:
        # Loaded here, because an estate without a VCenter has no need of pyVmomi.
        from reconciler.sources.vsphere import machines as virtual

        vcenter = self._vcenters.get(wanted.vcenter)
        if vcenter is None:
            raise errors.SourceError(
                f"policy {policy} names VCenter {wanted.vcenter}, which is not declared", hint="declare it"
            )
        if self._looks is None:
            self._looks = virtual.Looks()
        return virtual.VMware(wanted=wanted, vcenter=vcenter, looks=self._looks, owner=self._owner, hooks=commanded)


def remove_snapshot(vcenter: vcenters.VCenter, owner: str, snapshot: machines.Snapshot, meter: meters.Meter) -> bool:
    """Remove a snapshot of ours by its id; False where it is not there any more, or never was.

    ``owner``: id of the catalog whose mark it bears. Raises ``SourceError`` or ``Cancelled``.
    """
    from reconciler.sources.vsphere.connections import sessions
    from reconciler.sources.vsphere.reading import snapshots

    return snapshots.remove_noted(sessions.of(vcenter), owner, snapshot, meter)


def machine_target(
    vcenter: vcenters.VCenter, configuration: str | None, wanted: machinetargets.Wanted, now: dt.datetime
) -> machinetargets.MachineTarget:
    """Where a machine would be made again; nothing is changed yet. ``configuration``: what its image says of it.

    Raises ``NotFound``, ``TargetExists``, ``UsageError``, ``TargetError``, ``SourceError`` or ``FormatTooNew``.
    """
    # Loaded here for the same reason.
    from reconciler.sources.vsphere.connections import sessions
    from reconciler.sources.vsphere.rebuilding import building

    return building.plan(sessions.of(vcenter), machine_blueprint(configuration, wanted.image), wanted, now)


def machine_blueprint(configuration: str | None, image: str) -> blueprints.Blueprint:
    """What an image says of its machine. Raises ``UsageError`` where it says nothing, ``Damaged``, ``FormatTooNew``."""
    if configuration is None:
        raise errors.UsageError(
            f"image {image} holds disks and no machine: it was no virtual machine of a vCenter",
            hint="--to DIR restores its disks",
        )
    return blueprints.parse(configuration, f"image {image}")
