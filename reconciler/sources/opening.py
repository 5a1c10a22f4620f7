"""From a policy's words to its source: the one place that knows which kinds of source there are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reconciler.api import policies, vcenters
from reconciler.base import errors, meters
from reconciler.sources import hooks as commands
from reconciler.sources import machines
from reconciler.sources.diskimages import machines as diskimages


class Sources:
    """The sources of one look at the world: what several policies ask of one vCenter is asked once."""

    def __init__(self, known: Mapping[str, vcenters.VCenter], owner: str = "nobody") -> None:
        """``known``: the VCenters by name; ``owner``: id of the catalog whose snapshots are ours."""
        self._vcenters = known
        self._owner = owner
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
    from reconciler.sources.vsphere import sessions, snapshots

    return snapshots.remove_noted(sessions.of(vcenter), owner, snapshot, meter)
