"""What ``mount`` prints."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from reconciler.api.documents import shapes


class MountedDisk(shapes.Shape):
    """One disk that is served; ``uri`` where NBD clients find it, null where it lies in the mount point alone."""

    name: str
    uri: str | None
    size_bytes: int
    writable: bool


class MountResult(shapes.Document):
    """``mount``, once what it serves can be used. ``mountPoint`` is the folder of files, null where there is none."""

    kind: Literal["MountResult"] = "MountResult"
    client: str
    image: str
    image_time: shapes.Time
    copy_number: Annotated[int, pydantic.Field(alias="copy")]
    unit: str
    disks: tuple[MountedDisk, ...]
    mount_point: str | None
