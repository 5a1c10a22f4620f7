"""What the conformance suite stores: labels, disks in memory that note how they are read, and their true digests."""

from __future__ import annotations

import dataclasses
import datetime as dt
import random
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from blake3 import blake3

from reconciler.base import disks, extents, meters
from reconciler.storage import identities, units

MIB = 1 << 20
OWNER = "11111111-1111-4111-8111-111111111111"
FOREIGNER = "22222222-2222-4222-8222-222222222222"
TIME = dt.datetime(2026, 11, 23, 21, 0, tzinfo=dt.UTC)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factory:
    """One type of unit under the suite."""

    name: str
    #: Makes an empty unit under a root that exists and returns its identity.
    create: Callable[[Path], identities.Identity]
    #: Opens it for a catalog: root, identity, owner.
    open: Callable[[Path, identities.Identity, str | None], units.StorageUnit]
    #: Crash points passed while an image of two disks is written, each with the passage to die at.
    write_points: tuple[str, ...]
    #: Crash points passed while an attachment is put in another one's place.
    reattach_points: tuple[str, ...]
    #: Crash points passed while an image is deleted.
    delete_points: tuple[str, ...]
    #: Bytes of a file system on which a small image fits and one of this size does not.
    full_size: int
    #: Whether abort and delete leave the root as it was, path by path; else only its space has to come back.
    exact: bool


class SampleDisk(disks.MemoryDisk):
    """A disk in memory that notes every read, and calls ``before`` with the count of reads so far before each."""

    def __init__(
        self,
        name: str,
        data: bytes,
        *,
        data_extents: Iterable[extents.Extent] | None = None,
        before: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(name, data, data_extents=data_extents)
        self.reads: list[extents.Extent] = []
        self._before = before
        self._lock = threading.Lock()

    def pread(self, offset: int, length: int) -> disks.Buffer:
        if self._before is not None:
            self._before(len(self.reads))
        with self._lock:
            self.reads.append((offset, length))
        return super().pread(offset, length)


def noise(size: int, seed: int) -> bytes:
    """Bytes that nothing compresses."""
    return random.Random(seed).randbytes(size)


def patch(data: bytes, offset: int, new: bytes) -> bytes:
    """``data`` with ``new`` at ``offset``."""
    return data[:offset] + new + data[offset + len(new) :]


def label(
    image: str = "img-1", *, slug: str = "oblvm1", parent: str | None = None, state: str = "Complete"
) -> units.ImageLabel:
    """A label with something in every field."""
    return units.ImageLabel(
        id=image,
        client_id=f"uuid-of-{slug}",
        client_name=f"{slug.upper()} Ñ",
        client_slug=slug,
        source=f"diskimages:/srv/guests/{slug}",
        policy="obl-gold",
        schedule="nightly",
        lifecycle="gold",
        operation="backup",
        copy=1,
        type="Full" if parent is None else "Incremental",
        state=state,
        time=TIME.replace(microsecond=123456),
        sequence=7,
        slot=TIME,
        revision="main@sha1:" + "a" * 40,
        parent=parent,
        changes="FullRead",
        consistency="Offline",
        warnings=({"code": "NoLayout", "message": "cut by offset: “%s”"},),
        owed={"operations": [{"name": "copy", "retention": {"days": 7}, "window": None}]},
    )


def block_list(data: bytes) -> bytes:
    """The digest list of a disk, the slow and obvious way."""
    return b"".join(blake3(data[at : at + MIB]).digest() for at in range(0, len(data), MIB))


def digest(data: bytes) -> str:
    """The digest of a disk, the slow and obvious way."""
    return "blake3-1m:" + blake3(block_list(data)).hexdigest()


def different(old: bytes, new: bytes) -> extents.Extents:
    """The blocks that differ between two disks of one size."""
    return extents.normalise(
        (at, min(MIB, len(new) - at)) for at in range(0, len(new), MIB) if old[at : at + MIB] != new[at : at + MIB]
    )


def store(
    unit: units.StorageUnit,
    image: units.ImageLabel,
    contents: Collection[disks.Disk] | dict[str, bytes],
    *,
    parent: str | None = None,
    changed: extents.Extents | None = None,
    attached: Mapping[str, Iterable[bytes]] | None = None,
) -> tuple[units.Commit, dict[str, units.WrittenDisk]]:
    """Write and commit one image with its attachments; the commit, and what each disk's writing came to."""
    sources = (
        [SampleDisk(name, data) for name, data in contents.items()] if isinstance(contents, dict) else list(contents)
    )
    writer = unit.begin(image, [disk.name for disk in sources])
    try:
        written = {
            disk.name: writer.write(disk, meter=meters.Meter(), parent=parent, changed=changed) for disk in sources
        }
        for name, pages in (attached or {}).items():
            writer.attach(name, pages, parent=parent)
        return writer.commit(image), written
    except BaseException:
        writer.abort()
        raise


def load(unit: units.StorageUnit, image: str, disk: str) -> bytes:
    """All bytes of one stored disk, read in pieces that fit no block."""
    opened = unit.open(image)
    try:
        found = opened.disk(disk)
        step = 700_001
        return b"".join(bytes(found.pread(at, min(step, found.size - at))) for at in range(0, found.size, step))
    finally:
        opened.close()


def load_attached(unit: units.StorageUnit, image: str) -> dict[str, list[bytes]]:
    """All attachments of a stored image, read from their last page to their first; what they say of them is true."""
    opened = unit.open(image)
    try:
        result = {}
        for name in opened.attachments():
            found = opened.attachment(name)
            pages = [found.read(number) for number in reversed(range(len(found.pages)))][::-1]
            assert [(page.digest, page.size) for page in found.pages] == [
                (blake3(page).digest(), len(page)) for page in pages
            ]
            assert found.name == name
            result[name] = pages
        return result
    finally:
        opened.close()


def held(unit: units.StorageUnit) -> dict[str, units.Held]:
    """What the unit lists, by image id."""
    return {entry.label.id: entry for entry in unit.list()}


def tree(root: Path) -> set[str]:
    """Every path under ``root``."""
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def flip(root: Path, content: bytes) -> None:
    """Change one byte of ``content`` wherever a file under ``root`` holds it as it is."""
    found = False
    for path in (path for path in root.rglob("*") if path.is_file()):
        data = path.read_bytes()
        position = data.find(content)
        while position >= 0:
            found = True
            with path.open("r+b") as file:
                file.seek(position)
                file.write(bytes([data[position] ^ 0x40]))
            position = data.find(content, position + 1)
    assert found, "the unit does not hold the content as it is"


def label_file(root: Path, image: str) -> Path:
    """The sealed document of an image, wherever this type of unit keeps it."""
    (found,) = (
        path
        for path in root.rglob("*.json")
        if '"label"' in (text := path.read_text(encoding="utf-8")) and f'"id": "{image}"' in text
    )
    return found
