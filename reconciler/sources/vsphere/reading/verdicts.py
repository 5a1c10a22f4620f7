"""Whether a machine is still the one that was frozen: its snapshot there, nothing reverted, its disks the same."""

from __future__ import annotations

import time
from typing import Any, Final

from reconciler.base import errors
from reconciler.sources.vsphere.connections import faults, properties
from reconciler.sources.vsphere.inventory import devices
from reconciler.sources.vsphere.reading import scenes, snapshots

#: Pauses before a vCenter that is away is asked again, in seconds: hours of reading hang on its word.
_PAUSES: Final = (1.0, 3.0, 10.0)


class SnapshotGone(errors.SourceChanged):
    """Somebody removed the snapshot that the machine is read from."""


class Reverted(errors.SourceChanged):
    """The machine was reverted to a snapshot while it was read."""


class DisksChanged(errors.SourceChanged):
    """Disks were added, removed, resized or replaced while the machine was read."""


def compare(scene: scenes.Scene) -> None:
    """Ask for the snapshot by our id, and for the live disks. Raises ``SourceChanged``, or another ``SourceError``
    where nobody can tell."""
    for pause in (*_PAUSES, None):
        try:
            tree, shown = _asked(scene)
            break
        except (faults.VSphereFault, errors.SourceChanged):
            raise
        except errors.SourceError as error:
            if pause is None:
                raise
            scene.asked.log(f"{error}; asking again in {pause:g} s")
            scene.asked.meter.check()
            time.sleep(pause)
    _snapshot(scene, tree)
    live = {disk.key: disk for disk in devices.disks(shown)}
    chains = scenes.chains(shown)
    for key, frozen in scene.frozen.items():
        before, now = scene.live.get(key, frozen), live.get(key)
        if now is None:
            raise _changed(scene, f"{before.label} was removed")
        if now.size != frozen.size:
            raise _changed(scene, f"{before.label} went from {frozen.size} to {now.size} bytes")
        if now.uuid != before.uuid:
            raise _changed(scene, f"{before.label} was replaced by another disk")
        if before.file not in chains.get(key, ()):
            # A disk that is written on goes on from where it was; only a revert leaves its file.
            raise Reverted(
                f"VM {scene.name}: {before.label} does not go on from {before.file} any more: reverted, or moved",
                hint="the image is discarded; the next one reads the machine as it is now",
            )
    for key in live.keys() - scene.frozen.keys():
        raise _changed(scene, f"{live[key].label} was added")


def _asked(scene: scenes.Scene) -> tuple[snapshots.Tree, list[Any]]:
    """The snapshots and the devices now. Raises ``SourceError``."""
    doing = f"VM {scene.name}: verdict"
    try:
        tree = snapshots.tree(scene.session, scene.machine.reference, doing)
        return tree, scenes.devices_of(scene.session, scene.machine.object, doing)
    except faults.Vanished as error:
        raise SnapshotGone(
            f"VM {scene.name}: the machine vanished while it was read: {error.message}", hint="the image is discarded"
        ) from error


def powered_on(scene: scenes.Scene) -> bool:
    """Whether the machine runs now. Raises ``SourceError``."""
    path = "runtime.powerState"
    shown = properties.of(scene.session, scene.machine.object, (path,), f"VM {scene.name}: verdict")
    return bool(shown.get(path) != "poweredOff")


def _snapshot(scene: scenes.Scene, tree: snapshots.Tree) -> None:
    node = tree.ours(scene.noted.id, scene.asked.owner)
    if node is None or node.reference != scene.taken.reference:
        raise SnapshotGone(
            f"VM {scene.name}: snapshot {scene.taken.reference} is gone: somebody removed it while it was read",
            hint="the image is discarded; leave snapshots named holdfast-... alone while backups run",
        )
    if node.reference not in tree.path(tree.current):
        raise Reverted(
            f"VM {scene.name}: the machine was reverted to {tree.current or 'an earlier state'} while it was read",
            hint="the image is discarded; the next one reads the machine as it is now",
        )


def _changed(scene: scenes.Scene, what: str) -> DisksChanged:
    return DisksChanged(f"VM {scene.name}: {what} while it was read", hint="the image is discarded; it is tried again")
