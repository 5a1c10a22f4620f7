"""From a policy's words to its source: the one place that knows which kinds of source there are."""

from __future__ import annotations

from pathlib import Path

from reconciler.api import policies
from reconciler.sources import machines
from reconciler.sources.diskimages import hooks as commands
from reconciler.sources.diskimages import machines as diskimages


def open_source(policy: policies.BackupPolicy) -> machines.Source:
    """The source that a policy declares. Its paths are absolute already."""
    spec = policy.spec.source.disk_images
    hooks = policy.spec.hooks
    return diskimages.DiskImages(
        path=Path(spec.path),
        machines=spec.machines,
        disks=spec.disks,
        hooks=commands.Hooks(before=hooks.before, after=hooks.after, timeout=hooks.timeout.seconds) if hooks else None,
        allow_live=spec.consistency == "Live",
        changed_blocks_bitmap=spec.changed_blocks.bitmap if spec.changed_blocks else None,
    )
