"""Restores as desired state: what is to be restored, and where to, once per digest of what is written."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from reconciler.api import models

#: Formats that a disk may be restored to, and the kinds of VMDK.
Format = Literal["raw", "qcow2", "vmdk"]
Subformat = Literal["sparse", "flat", "streamOptimized"]


class RestoreTarget(models.Model):
    """Where a restore writes: exactly one of its fields."""

    folder: models.Text | None = None
    """A folder that takes the disks; made where it is missing, relative to the manifest's folder."""
    device: models.Text | None = None
    """A block device that takes the one disk; what lies there is overwritten."""


class RestoreSpec(models.Model):
    """One restore. A change of anything in it makes it another restore, which is done again."""

    client: models.Text
    """The machine, by name, slug or identity."""
    image: models.Text | None = None
    """The image, by id; the newest good one by default."""
    as_of: models.Moment | None = None
    """The newest good image that is not younger than this."""
    copy_number: Annotated[int | None, pydantic.Field(alias="copy", ge=1)] = None
    """The copy that is read; the best one by default, and the next where that one fails."""
    disks: models.Items[models.Text] = ()
    """Names of disks; all of them by default."""
    target: RestoreTarget
    """Where to."""
    format: Format = "raw"
    """What the disks become."""
    subformat: Subformat | None = None
    """The kind of VMDK; ``sparse`` by default."""
    overwrite: bool = False
    """Whether files of the same names, or what the device holds, may be replaced."""
    read_back: bool = False
    """Whether every byte is read back from the device before a disk gets its name; a sample is by default."""
    reason: models.Text | None = None
    """Why; kept in the audit log."""


class Restore(models.Object):
    """A restore that converges: it is done once, and stays done."""

    kind: Literal["Restore"] = "Restore"
    spec: RestoreSpec
