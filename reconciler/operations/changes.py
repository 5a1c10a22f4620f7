"""Where an image may differ from its parent: what the source says, and whatever only one of the two hides.

Asked by ``backups`` for each disk that it stores, and by ``phases`` before a machine is let go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from reconciler.base import disks, extents, masks
from reconciler.sources import machines


def asked(
    reading: machines.Reading,
    state: Mapping[str, str],
    log: Callable[[str], None],
    disk: disks.Disk,
    hidden: extents.Extents,
) -> machines.DiskChanges:
    """What the source says, widened; its reason goes to the log. ``hidden``: what the image leaves out."""
    told = reading.changes(disk.name, state)
    log(f"{disk.name}: {told.reason.code}: {told.reason.message}")
    return widened(told, state, disk, hidden)


def widened(
    told: machines.DiskChanges, state: Mapping[str, str], disk: disks.Disk, hidden: extents.Extents
) -> machines.DiskChanges:
    """``told`` with the ranges that only one of image and parent hides.

    A range that the parent hid holds zeros there, though the guest need not have written it since it took it into use.
    """
    if told.changed is None:
        return told
    before = masks.unpack(state.get(hidden_key(disk.name), masks.pack(())))
    shown = [*extents.subtract(before, hidden), *extents.subtract(hidden, before)]
    tested = extents.subtract(told.tested, extents.normalise(shown))
    return dataclasses.replace(told, changed=extents.normalise([*told.changed, *shown]), tested=tested)


def hidden_key(disk: str) -> str:
    """Under which an image's source state says what it leaves out of a disk."""
    return f"hidden:{disk}"
