"""Restores as desired state: what is to be restored, and where to, once per digest of what is written."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from reconciler.api import models

#: Formats that a disk may be restored to, and the kinds of VMDK.
Format = Literal["raw", "qcow2", "vmdk"]
Subformat = Literal["sparse", "flat", "streamOptimized"]
#: Names of machines in an inventory have so many letters at most.
MachineName = Annotated[str, pydantic.StringConstraints(min_length=1, max_length=80)]


class MachineTarget(models.Model):
    """A whole machine in a vCenter. What is not said is as it was when the image was made, as far as that is there."""

    vcenter: models.Name
    """Name of the VCenter."""
    name: MachineName | None = None
    """The machine's name; the one it had by default."""
    folder: models.Text | None = None
    """Its folder, by name or path."""
    host: models.Text | None = None
    """Its ESX host, or a cluster."""
    datastore: models.Text | None = None
    """Where its files go."""
    pool: models.Text | None = None
    """Its resource pool, by name or path."""
    identity: Literal["same", "new"] | None = None
    """Whether UUIDs and MAC addresses are kept; ``new`` by default where the original still is."""
    via: Literal["import", "datastore", "vddk"] | None = None
    """How its disks are written; the first way that is possible by default."""
    power_on: bool = False
    """Whether it is switched on once it is proven."""
    replace: bool = False
    """Whether the machine that has the name is switched off and renamed; it is never removed."""


class RestoreTarget(models.Model):
    """Where a restore writes: a folder, a device or a vCenter."""

    folder: models.Text | None = None
    """A folder that takes the disks; made where it is missing, relative to the manifest's folder."""
    staged: bool = False
    """Whether the folder becomes a machine that an ESX host registers: vmx, nvram and flat VMDKs."""
    device: models.Text | None = None
    """A block device that takes the one disk; what lies there is overwritten."""
    vmware: MachineTarget | None = None
    """A vCenter, where the machine is made again."""

    @property
    def place(self) -> str:
        """Where that is, in a word."""
        return f"vsphere:{self.vmware.vcenter}" if self.vmware is not None else self.folder or self.device or ""


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
    salvage: bool = False
    """Whether zeros are written where no copy has a block, and the rest is restored; it fails by default."""
    reason: models.Text | None = None
    """Why; kept in the audit log."""

    @property
    def form(self) -> str:
        """What is made: ``machine``, ``staged``, or the format of disks."""
        return "machine" if self.target.vmware is not None else "staged" if self.target.staged else self.format


class Restore(models.Object):
    """A restore that converges: it is done once, and stays done."""

    kind: Literal["Restore"] = "Restore"
    spec: RestoreSpec
