"""vCenters: where virtual machines are found, who asks for them, and how their disks are read."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from reconciler.api import models

#: Ways to the bytes of a frozen disk.
Transport = Literal["nbdkit-vddk", "datastore", "export"]
#: Ways that VMware's own disk library knows.
VddkTransport = Literal["san", "hotadd", "nbdssl", "nbd"]
Host = Annotated[str, pydantic.StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.:-]{0,252}[A-Za-z0-9])?$")]
#: SHA-1 or SHA-256 of a certificate, in pairs.
Thumbprint = Annotated[
    str, pydantic.StringConstraints(pattern=r"^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){19}(([:][0-9A-Fa-f]{2}){12})?$")
]


class Tls(models.Model):
    """How the server proves who it is; by default by a certificate that the system trusts."""

    ca_file: models.Text | None = None
    """PEM file of the authority that signed the server's certificate; relative to the manifest's folder."""
    thumbprint: Thumbprint | None = None
    """SHA-1 or SHA-256 of the server's certificate: exactly this one is trusted."""


class Credential(models.Model):
    """Where the user and the password are read from: exactly one place. They never stand in a manifest."""

    env: Annotated[str, pydantic.StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,199}$")] | None = None
    """The variables ``<env>_USERNAME`` and ``<env>_PASSWORD``."""
    folder: models.Text | None = None
    """A folder with the files ``username`` and ``password``; relative to the manifest's folder."""


class Vddk(models.Model):
    """How ``nbdkit`` is started with its vddk plugin."""

    nbdkit: models.Text = "nbdkit"
    """The program; a name is looked up in PATH, a path is relative to the manifest's folder."""
    libdir: models.Text | None = None
    """Where VMware's disk library was unpacked; the plugin's own default otherwise."""
    transports: Annotated[models.Items[VddkTransport], pydantic.Field(min_length=1)] = (
        "san",
        "hotadd",
        "nbdssl",
        "nbd",
    )
    """The library's own ways, in order."""
    compression: Literal["none", "zlib", "fastlz", "skipz"] = "none"
    """What ``nbd`` and ``nbdssl`` compress with."""


class VCenterLimits(models.Model):
    """How much may be asked of the hypervisors at the same time."""

    per_host: Annotated[int, pydantic.Field(ge=1, le=1000)] = 4
    """Machines of one ESX host that are read at the same time."""
    per_datastore: Annotated[int, pydantic.Field(ge=1, le=1000)] = 4
    """Machines of one datastore that are read at the same time."""
    open_snapshots: Annotated[int, pydantic.Field(ge=1, le=10_000)] = 32
    """Snapshots of this vCenter that are open at the same time."""


class VCenterSpec(models.Model):
    """One vCenter Server, or one ESX host."""

    server: Host
    """Host name or address."""
    port: Annotated[int, pydantic.Field(ge=1, le=65535)] = 443
    """Port of its API."""
    tls: Tls = Tls()
    """How it proves who it is."""
    credential_ref: Credential
    """Who logs in; one user for all hosts of this vCenter."""
    transports: Annotated[models.Items[Transport], pydantic.Field(min_length=1)] = ("datastore",)
    """Ways to the bytes of a frozen disk, the preferred first. ``export`` keeps a machine from being started or moved
    while it is read."""
    vddk: Vddk = Vddk()
    """Settings of ``nbdkit-vddk``."""
    limits: VCenterLimits = VCenterLimits()
    """How much may be asked at the same time."""
    datastore_free_space: models.Percent = "10%"
    """No snapshot is made on a datastore with less free; one that is being read is given up below half of it."""
    max_snapshot_age: models.Duration = pydantic.Field(default_factory=lambda: models._duration("12h"))
    """A snapshot of ours that is older is given up, whatever reads it."""
    idle_logout: models.Duration = pydantic.Field(default_factory=lambda: models._duration("15m"))
    """How long a session may lie unused."""


class VCenter(models.Object):
    """A vCenter Server whose virtual machines policies may protect."""

    kind: Literal["VCenter"] = "VCenter"
    spec: VCenterSpec


class MachineMatch(models.Model):
    """One entry of a selection: everything that it names must hold. Names are globs that mind case."""

    name: models.Text | None = None
    """Glob over the machine's name."""
    folder: models.Text | None = None
    """Glob over the path of its folder, such as ``/DC0/vm/gold``; what lies below a folder belongs to it."""
    datacenter: models.Text | None = None
    """Glob over the name of its datacenter."""
    cluster: models.Text | None = None
    """Glob over the name of its cluster."""
    host: models.Text | None = None
    """Glob over the name of its ESX host."""
    datastore: models.Text | None = None
    """Glob over the names of its datastores; one that matches is enough."""
    resource_pool: models.Text | None = None
    """Glob over the name of its resource pool."""
    tag: models.Text | None = None
    """``category/name`` of a tag; globs are allowed, a word without a slash is a tag of any category."""
    attributes: dict[str, models.Text] = pydantic.Field(default_factory=dict)
    """Custom attributes by name, with a glob over the value."""
    power_state: Literal["On", "Off", "Suspended"] | None = None
    """Whether the machine runs."""


class MachineDisk(models.Model):
    """One disk of one machine."""

    machine: models.Text
    """Glob over the machine's name."""
    disk: models.Text
    """Label of the disk, such as ``Hard disk 2``; a glob."""


class RawDevice(MachineDisk):
    """A raw device mapping that is read by its device on the media server."""

    device: models.Text
    """Path of the device, such as ``/dev/disk/by-id/wwn-0x5000``."""
    mapping_file: bool = True
    """Whether a restore makes the disk a raw device mapping again; else it becomes an ordinary disk."""


class HoldingArea(models.Model):
    """A local folder that snapshots are copied to at full speed, so that they can be removed before they are stored."""

    path: models.Text
    """The folder; relative to the manifest's folder. It must exist."""
    max_size: models.Size
    """What all machines together may occupy in it; a machine waits until its space is free."""


class CbtDistrust(models.Model):
    """How far the vCenter's word on changed blocks is checked."""

    share: models.Percent = "0%"
    """The share of the blocks called unchanged that are read and compared all the same."""
    full_every: models.Duration | None = None
    """After this time a disk is read as a whole, whatever is said of it."""


class VMware(models.Model):
    """Virtual machines of a vCenter, read off-host from a snapshot."""

    vcenter: models.Name
    """A VCenter."""
    include: Annotated[models.Items[MachineMatch], pydantic.Field(min_length=1)]
    """What is protected: keys in one entry AND, entries OR."""
    exclude: models.Items[MachineMatch] = ()
    """What is not, although included."""
    quiesce: Literal["Try", "Require", "Never"] = "Try"
    """Whether the guest's file systems are asked to hold still for the snapshot; the outcome stands on the image."""
    exclude_disks: models.Items[MachineDisk] = ()
    """Disks that images leave out. Other disks that cannot be read make an image Partial."""
    rdm: models.Items[RawDevice] = ()
    """Raw devices that are read by their path here."""
    holding_area: HoldingArea | None = None
    """Where snapshots are copied to first."""
    cbt_distrust: CbtDistrust = CbtDistrust()
    """How far the word on changed blocks is checked."""
    change_tracking: Literal["Enable", "AsIs"] = "Enable"
    """``Enable`` switches changed block tracking on where the machine can have it; ``AsIs`` never reconfigures."""
    consolidate: bool = False
    """Whether disks that the vCenter says need consolidation are consolidated after a backup."""
