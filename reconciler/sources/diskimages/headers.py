"""What the first bytes of a qcow2 or vmdk say, above all which other files they point to.

Pure functions over bytes, so that a hostile header meets no tool that would open the files it names. ``formats``
decides what of it may be followed.
"""

from __future__ import annotations

import dataclasses
import re
import struct

from reconciler.base import errors

#: Bytes from the start of a file that hold all that is parsed here (qemu writes headers into the first cluster).
HEAD = 1 << 16
DESCRIPTOR_MAGIC = b"# Disk DescriptorFile"
_QCOW2_DATA_FILE = 1 << 2
_QCOW2_BACKING_FORMAT = 0xE2792ACA
_QCOW2_DATA_FILE_NAME = 0x44415441
_EXTENT = re.compile(r'^RW\s+(\d+)\s+(FLAT|VMFS|SPARSE|VMFSSPARSE|SESPARSE|VMFSRDM|VMFSRAW)\s+"([^"]+)"(?:\s+(\d+))?$')


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """One line of a vmdk descriptor."""

    #: Name of its file, as written.
    name: str
    #: Bytes of the virtual disk that it holds.
    length: int
    #: Bytes that its file must have, 0 where the file keeps a table of its own.
    needed: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class References:
    """Which other files an image needs, by the names written in it."""

    #: Bytes per allocation unit of the file.
    cluster: int
    backing: str | None = None
    backing_format: str | None = None
    #: External data file of a qcow2.
    data_file: str | None = None
    #: Extents of a vmdk descriptor, in the order of the disk.
    extents: tuple[Extent, ...] = ()
    #: Files that belong to the image and are no disks: change tracking of a vmdk.
    companions: tuple[str, ...] = ()


def magic(head: bytes) -> str:
    """``qcow2``, ``vmdk``, ``vhdx``, what is not read (``vhd``, ``vdi``, ``qed``), or ``raw``, by the first bytes."""
    if head.startswith(b"QFI\xfb"):
        return "qcow2"
    if head.startswith((b"KDMV", DESCRIPTOR_MAGIC)):
        return "vmdk"
    if head.startswith(b"vhdxfile"):
        return "vhdx"
    if head.startswith(b"conectix"):
        return "vhd"
    if head[64:68] == b"\x7f\x10\xda\xbe" and head.startswith(b"<<< "):
        return "vdi"
    return "qed" if head.startswith(b"QED\0") else "raw"


def _damaged(what: str) -> errors.SourceError:
    return errors.SourceError(f"the header is damaged: {what}", hint="check the file with qemu-img check")


def qcow2(head: bytes) -> References:
    """References of a qcow2. Raises ``SourceError`` for a header that makes no sense."""
    if len(head) < 72:
        raise _damaged(f"a qcow2 of {len(head)} bytes")
    version, backing_offset, backing_size, cluster_bits = struct.unpack_from(">IQII", head, 4)
    if version not in (2, 3):
        raise _damaged(f"qcow2 version {version} is not known")
    if not 9 <= cluster_bits <= 21:
        raise _damaged(f"clusters of 2^{cluster_bits} bytes")
    if any(head[32:36]):
        raise errors.SourceError(
            "it is encrypted, and its key is not known here",
            hint="keep it decrypted by qemu-img convert, or back it up as it is under a name that ends in .img",
        )
    features, offset = 0, 72
    if version == 3:
        if len(head) < 104:
            raise _damaged(f"a qcow2 of {len(head)} bytes")
        (features,) = struct.unpack_from(">Q", head, 72)
        (offset,) = struct.unpack_from(">I", head, 100)
    found = _qcow2_extensions(head, offset)
    backing = None
    if backing_offset:
        if backing_size > 1023 or backing_offset + backing_size > len(head):
            raise _damaged("the name of its backing file lies outside the header")
        backing = head[backing_offset : backing_offset + backing_size].decode(errors="surrogateescape")
    data_file = None
    if features & _QCOW2_DATA_FILE:
        data_file = found.get(_QCOW2_DATA_FILE_NAME, b"").decode(errors="surrogateescape")
    declared = found.get(_QCOW2_BACKING_FORMAT)
    return References(
        cluster=1 << cluster_bits,
        backing=backing,
        backing_format=declared.decode(errors="replace") if declared else None,
        data_file=data_file,
    )


def _qcow2_extensions(head: bytes, offset: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while offset + 8 <= len(head):
        kind, length = struct.unpack_from(">II", head, offset)
        if kind == 0:
            break
        if offset + 8 + length > len(head):
            raise _damaged("an extension lies outside the header")
        found[kind] = head[offset + 8 : offset + 8 + length]
        offset += 8 + -(-length // 8) * 8
    return found


def vmdk(head: bytes) -> References:
    """References of a vmdk: of a text descriptor, or of the one inside a sparse file. Raises ``SourceError``."""
    if head.startswith(DESCRIPTOR_MAGIC):
        return _descriptor(head, cluster=1 << 16)
    if len(head) < 512:
        raise _damaged(f"a vmdk of {len(head)} bytes")
    capacity, grain, start, length = struct.unpack_from("<QQQQ", head, 12)
    if capacity == 0 or not 1 <= grain <= 1 << 20:
        # Without a capacity of its own, the embedded text would be obeyed like a separate descriptor.
        raise _damaged(f"a capacity of {capacity} sectors in grains of {grain}")
    embedded = head[start * 512 : (start + length) * 512] if start else b""
    inner = _descriptor(embedded, cluster=grain * 512)
    return dataclasses.replace(inner, extents=())


def _descriptor(text: bytes, *, cluster: int) -> References:
    fields: dict[str, str] = {}
    found: list[Extent] = []
    if len(text) >= HEAD:
        raise _damaged(f"a vmdk descriptor of {HEAD} bytes or more")
    # Lines end where the vmdk driver ends them, and what it might read as an extent is understood or refused:
    # a line that only one of the two takes for an extent would let it name any file.
    for line in text.split(b"\0", 1)[0].decode(errors="surrogateescape").split("\n"):
        key, separator, value = line.strip().partition("=")
        extent = _EXTENT.match(line.strip())
        if extent:
            found.append(_extent(extent))
        elif line.split()[:1] in (["RW"], ["RDONLY"], ["NOACCESS"]):
            # Extents that are not written to, or have no file, the driver would leave out and shift what follows.
            raise _damaged(f"the extent {line.strip()!a} is not supported")
        elif separator:
            fields[key.strip().lower()] = value.strip().strip('"')
    parent = fields.get("parentcid", "ffffffff").lower()
    backing = None
    if parent not in ("ffffffff", "0xffffffff"):
        backing = fields.get("parentfilenamehint", "")
    companion = fields.get("changetrackpath")
    return References(
        cluster=cluster,
        backing=backing,
        backing_format="vmdk" if backing is not None else None,
        extents=tuple(found),
        companions=(companion,) if companion else (),
    )


def _extent(match: re.Match[str]) -> Extent:
    sectors, kind, name, offset = match.groups()
    if kind in ("VMFSRDM", "VMFSRAW"):
        raise errors.SourceError(
            "the descriptor maps a raw device", hint="link to the block device itself from the machine's folder"
        )
    length = int(sectors) * 512
    return Extent(name=name, length=length, needed=length + int(offset or 0) * 512 if kind in ("FLAT", "VMFS") else 0)
