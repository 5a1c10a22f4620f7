"""Changed areas from a qcow2's persistent dirty bitmap, read and never altered.

A bitmap says what was written since it was made or cleared, and carries no identity. So it is believed only where the
parent's reading saw a bitmap of that name recording already, on the same file of the same size, and everything
that was dirty then is dirty still: a bitmap that was cleared or made anew since would lack it. Internal snapshots and
backing files change content without marking it, so with either nothing is believed. Any doubt means a full read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from reconciler.base import errors, extents
from reconciler.sources import machines
from reconciler.sources.diskimages import converted, formats
from reconciler.sources.nbd import qemu

#: How many dirty areas of the parent are remembered to recognise the bitmap by.
_REMEMBERED = 1024


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Bitmap:
    """What is known of the bitmap of one disk now."""

    name: str
    #: Bytes that one bit stands for.
    granularity: int
    #: Areas it marks as written.
    dirty: extents.Extents


def _no(code: str, message: str) -> machines.DiskChanges:
    return machines.DiskChanges(changed=None, reason=machines.Found(code=code, message=message))


def usable(image: formats.Image, name: str) -> machines.Found | int:
    """The granularity of the bitmap, or why it cannot be believed. Raises ``SourceError`` if nobody can tell."""
    disk = image.files[0].name
    if image.format != "qcow2":
        return machines.Found(code="BitmapMissing", message=f"{disk} is {image.format}; only qcow2 has bitmaps")
    done = converted.tool(["info", "--output=json", qemu.block_node(image.layers[0].node)])
    if done.returncode:
        raise errors.SourceError(f"{image.files[0]}: {done.stderr.strip()[-300:]}")
    info: dict[str, Any] = json.loads(done.stdout)
    if len(image.files) > 1 or info.get("snapshots"):
        what = "a backing or data file" if len(image.files) > 1 else "internal snapshots"
        return machines.Found(code="BitmapUnusable", message=f"{disk} has {what}, whose changes no bitmap shows")
    bitmaps = info.get("format-specific", {}).get("data", {}).get("bitmaps", [])
    for found in bitmaps:
        if found["name"] != name:
            continue
        if "in-use" in found["flags"]:
            return machines.Found(code="BitmapUnusable", message=f"bitmap {name} of {disk} is in use or was not saved")
        if "auto" not in found["flags"]:
            return machines.Found(code="BitmapUnusable", message=f"bitmap {name} of {disk} is disabled")
        return int(found["granularity"])
    return machines.Found(code="BitmapMissing", message=f"{disk} has no bitmap {name}")


def remember(size: int, inode: int, bitmap: Bitmap | None) -> str:
    """What the next incremental needs to know of one disk, as a line of JSON."""
    known = None
    if bitmap is not None:
        known = {"name": bitmap.name, "granularity": bitmap.granularity, "dirty": bitmap.dirty[:_REMEMBERED]}
    return json.dumps({"size": size, "inode": inode, "bitmap": known}, separators=(",", ":"))


def since(disk: str, size: int, inode: int, bitmap: Bitmap, parent: Mapping[str, str]) -> machines.DiskChanges:
    """What the bitmap says about changes since the image whose state ``parent`` is."""
    try:
        then = json.loads(parent[f"disk:{disk}"])
        known = then["bitmap"]
        if then["size"] != size:
            return _no("DiskResized", f"{disk} had {then['size']} bytes in the parent and has {size} now")
        if then["inode"] != inode:
            return _no("DiskReplaced", f"{disk} is another file than in the parent")
        if known is None:
            return _no("BitmapNew", f"the parent was read before bitmap {bitmap.name} of {disk} could be believed")
        if (known["name"], known["granularity"]) != (bitmap.name, bitmap.granularity):
            return _no("BitmapReplaced", f"bitmap {bitmap.name} of {disk} is another one than in the parent")
        before = tuple((int(offset), int(length)) for offset, length in known["dirty"])
    except (KeyError, TypeError, ValueError):
        return _no("ParentUnknown", f"the parent recorded nothing usable about {disk}")
    if extents.total(extents.intersect(before, bitmap.dirty)) != extents.total(before):
        return _no("BitmapReplaced", f"bitmap {bitmap.name} of {disk} was cleared or made anew since the parent")
    reason = machines.Found(code="Bitmap", message=f"written areas of {disk} since the parent, by bitmap {bitmap.name}")
    return machines.DiskChanges(changed=bitmap.dirty, reason=reason)


def untracked(disk: str) -> machines.DiskChanges:
    """The answer for a disk whose changes nobody records; times of a file prove nothing about its bytes."""
    return _no("FullRead", f"nothing records the changes of {disk}, so all of it is read")


def unusable(found: machines.Found) -> machines.DiskChanges:
    """The answer for a bitmap that ``usable`` refused."""
    return machines.DiskChanges(changed=None, reason=found)
