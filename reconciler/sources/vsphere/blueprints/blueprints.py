"""A virtual machine on paper: what is needed beside its disks to make it again, as a value and as JSON in the label.

``configurations`` captures it with every image, ``rebuilding`` makes a machine of it, or a folder. The format has a
version: readers ignore what they do not know within it, and refuse a newer one.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from typing import Annotated, Any, Final, Literal

import pydantic
from pydantic import alias_generators

from reconciler.base import errors

KIND: Final = "VirtualMachine"
#: Raised when readers of the former one would make a wrong machine.
VERSION: Final = 1
#: Bytes that a packed file may have when it is unpacked: no label brings more into memory.
_MOST: Final = 64 << 20

_Many = pydantic.Strict(False)


class Damaged(errors.UnitError):
    """What an image says of its machine cannot be read."""

    retryable = False


class _Shape(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="ignore",
        strict=True,
        alias_generator=alias_generators.to_camel,
        validate_by_alias=True,
        validate_by_name=True,
    )


class Controller(_Shape):
    """What disks hang on."""

    #: The device's key in the captured machine.
    key: int
    #: Name of its type in the API, such as ``ParaVirtualSCSIController``.
    type: str
    bus: int
    #: ``noSharing``, ``virtualSharing`` or ``physicalSharing``; empty where it has no such thing.
    sharing: str = ""


class Disk(_Shape):
    """One disk."""

    #: Its name in images, such as ``Hard disk 1``.
    label: str
    #: Key of its controller, and its place there.
    controller: int
    unit: int
    #: Such as ``scsi0:1``.
    slot: str
    #: Bytes.
    size: int
    #: ``Flat``, ``Sparse``, ``SeSparse``, ``RawVirtual``, ``RawPhysical`` or ``Other``.
    kind: str
    mode: str
    thin: bool
    #: Empty where the vCenter did not say.
    uuid: str = ""
    #: ``[datastore] folder/disk.vmdk`` as it was frozen.
    file: str = ""
    shared: bool = False
    #: Raw devices: the LUN's name.
    lun: str | None = None
    #: Raw devices: whether the policy wants the mapping made again.
    mapping_file: bool = False


class Nic(_Shape):
    """One network card."""

    label: str
    type: str
    #: Name of the network or port group; empty where nobody could tell.
    network: str
    mac: str = ""
    #: ``generated``, ``assigned`` or ``manual``.
    address_type: str = "generated"
    start_connected: bool = True


class Removable(_Shape):
    """A CD or floppy drive; it comes back empty."""

    kind: Literal["VirtualCdrom", "VirtualFloppy"]
    #: Key of its controller, and its place there.
    controller: int
    unit: int


class Boot(_Shape):
    """How it starts."""

    #: Milliseconds.
    delay: int = 0
    enter_setup: bool = False
    retry: bool = False
    #: Milliseconds.
    retry_delay: int = 10_000
    secure: bool = False


class Shares(_Shape):
    """What of a resource it may have; limit -1 is none."""

    reservation: int = 0
    limit: int = -1
    level: str = "normal"
    shares: int = 0


class Place(_Shape):
    """Where it lived. Paths begin with a slash and name every folder, such as ``/DC0/vm/gold``."""

    vcenter: str
    datacenter: str = ""
    folder: str = ""
    pool: str = ""
    host: str = ""
    #: Name of its cluster, or of its host where that stands alone.
    compute: str = ""
    #: ``[datastore] folder/name.vmx``
    vmx: str = ""


class Packed(_Shape):
    """A small file."""

    name: str
    #: Bytes before it was packed.
    size: int
    #: zlib, in base64.
    data: str

    @classmethod
    def of(cls, name: str, content: bytes) -> Packed:
        """Pack ``content``."""
        return cls(name=name, size=len(content), data=base64.b64encode(zlib.compress(content, 9)).decode())

    def content(self) -> bytes:
        """The file. Raises ``Damaged``."""
        try:
            unpacker = zlib.decompressobj()
            found = unpacker.decompress(base64.b64decode(self.data, validate=True), min(self.size, _MOST) + 1)
        except (binascii.Error, zlib.error, ValueError) as error:
            raise Damaged(f"{self.name} in the image's configuration cannot be unpacked: {error}") from error
        if len(found) != self.size or not unpacker.eof:
            raise Damaged(f"{self.name} in the image's configuration has not the {self.size} bytes that it is said to")
        return found


class Blueprint(_Shape):
    """One machine as it was frozen."""

    kind: Literal["VirtualMachine"] = "VirtualMachine"
    format_version: int = VERSION
    name: str
    instance_uuid: str
    bios_uuid: str
    guest_id: str
    #: Such as ``vmx-14``.
    version: str
    firmware: str = "bios"
    cpus: int
    cores_per_socket: int = 1
    memory_mib: int
    cpu_hot_add: bool = False
    memory_hot_add: bool = False
    cpu_shares: Shares = Shares()
    memory_shares: Shares = Shares()
    change_tracking: bool = False
    boot: Boot = Boot()
    annotation: str = ""
    extra: dict[str, str] = pydantic.Field(default_factory=dict)
    controllers: Annotated[tuple[Controller, ...], _Many] = ()
    disks: Annotated[tuple[Disk, ...], _Many] = ()
    nics: Annotated[tuple[Nic, ...], _Many] = ()
    removables: Annotated[tuple[Removable, ...], _Many] = ()
    #: Labels of devices that a restore does not make, such as a vTPM.
    unmade: Annotated[tuple[str, ...], _Many] = ()
    place: Place
    #: Custom attributes that are set, by name.
    attributes: dict[str, str] = pydantic.Field(default_factory=dict)
    #: ``category/name`` each.
    tags: Annotated[tuple[str, ...], _Many] = ()
    vmx: Packed | None = None
    nvram: Packed | None = None
    #: What could not be captured, a sentence each.
    notes: Annotated[tuple[str, ...], _Many] = ()

    def write(self) -> str:
        """The JSON text that goes into the image's label."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), separators=(",", ":"), ensure_ascii=False)

    def disk(self, label: str) -> Disk | None:
        """The disk with this label."""
        return next((one for one in self.disks if one.label == label), None)


def parse(text: str, whose: str) -> Blueprint:
    """What ``write`` wrote. ``whose``: the image, for messages. Raises ``FormatTooNew`` or ``Damaged``."""
    try:
        document: Any = json.loads(text)
    except ValueError as error:
        raise _damaged(whose, str(error)) from error
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise _damaged(whose, f"it is no {KIND}")
    version = document.get("formatVersion")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise _damaged(whose, f"{version!r} is no version of it")
    if version > VERSION:
        raise errors.FormatTooNew(
            f"the configuration of the machine in {whose} has version {version}, this Holdfast reads {VERSION}",
            hint="upgrade Holdfast; --to restores the disks alone",
        )
    try:
        return Blueprint.model_validate(document)
    except pydantic.ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise _damaged(whose, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error


def _damaged(whose: str, why: str) -> Damaged:
    return Damaged(
        f"the configuration of the machine in {whose} cannot be read: {why}", hint="--to restores the disks alone"
    )
