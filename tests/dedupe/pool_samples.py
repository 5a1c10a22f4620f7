"""What the tests of the pool share: pools, labels, disks, and writing and reading them in one call."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

from blake3 import blake3

from reconciler.base import disks, errors, extents, meters
from reconciler.storage import identities, units
from reconciler.storage.dedupe import containers, pools

MIB = 1 << 20
OWNER = "11111111-1111-4111-8111-111111111111"
TIME = dt.datetime(2026, 11, 23, 21, 0, tzinfo=dt.UTC)


def noise(size: int, seed: int) -> bytes:
    """Bytes that nothing compresses."""
    return random.Random(seed).randbytes(size)


def patch(data: bytes, offset: int, new: bytes) -> bytes:
    """``data`` with ``new`` at ``offset``."""
    return data[:offset] + new + data[offset + len(new) :]


def label(image: str, *, parent: str | None = None) -> units.ImageLabel:
    """A plain label."""
    return units.ImageLabel(
        id=image,
        client_id="uuid-1",
        client_name="oblVM1",
        client_slug="oblvm1",
        source="diskimages:/srv/guests/oblVM1",
        policy="obl-gold",
        schedule="nightly",
        lifecycle="gold",
        operation="dedupe",
        copy=1,
        type="Incremental" if parent else "Full",
        state="Complete",
        time=TIME,
        sequence=1,
        slot=TIME,
        revision="main@sha1:" + "a" * 40,
        parent=parent,
        changes="FullRead",
        consistency="Offline",
    )


def create(root: Path, *, segment_size: int = 128 << 10) -> None:
    """An empty pool with its identity."""
    root.mkdir()
    identity = identities.new("DedupePool", OWNER)
    pools.create(root, identity, segment_size=segment_size)
    identities.write(root, identity)


def open_pool(
    root: Path, *, owner: str | None = OWNER, container_size: int = 4 * MIB, cache: Path | None = None
) -> pools.DedupePool:
    """The pool under ``root``, with containers small enough for a test to fill several."""
    identity = identities.read(root, "pool")
    return pools.DedupePool("pool", root, identity, owner, cache, container_size=container_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """What storing one image came to."""

    commit: units.Commit
    reading: meters.Reading
    written: units.WrittenDisk


def store(
    pool: pools.DedupePool,
    image: str,
    data: bytes | disks.Disk,
    *,
    parent: str | None = None,
    changed: extents.Extents | None = None,
    attached: Mapping[str, Iterable[bytes]] | None = None,
) -> Stored:
    """Write and commit an image of one disk, ``d``, and its attachments."""
    source = disks.MemoryDisk("d", data) if isinstance(data, bytes) else data
    meter = meters.Meter()
    writer = pool.begin(label(image, parent=parent), ["d"])
    try:
        written = writer.write(source, meter=meter, parent=parent, changed=changed)
        for name, pages in (attached or {}).items():
            writer.attach(name, pages, parent=parent)
        commit = writer.commit(label(image, parent=parent))
    except BaseException:
        writer.abort()
        raise
    return Stored(commit=commit, reading=meter.reading(), written=written)


def store_again(pool: pools.DedupePool, image: str, data: bytes) -> Stored:
    """``store`` at the second attempt: the first one finds that what it relied on is gone."""
    with contextlib.suppress(errors.UnitError):
        return store(pool, image, data)
    return store(pool, image, data)


def fingerprint(data: bytes, key: bytes) -> bytes:
    """What a pool with this key calls a segment."""
    return bytes(blake3(data, key=key).digest())


def load(pool: pools.DedupePool, image: str) -> bytes:
    """All bytes of an image's disk ``d``."""
    opened = pool.open(image)
    try:
        disk = opened.disk("d")
        step = 3 * MIB + 5
        return b"".join(bytes(disk.pread(at, min(step, disk.size - at))) for at in range(0, disk.size, step))
    finally:
        opened.close()


def load_attached(pool: pools.DedupePool, image: str) -> dict[str, list[bytes]]:
    """All pages of all attachments of an image."""
    opened = pool.open(image)
    try:
        found = [opened.attachment(name) for name in opened.attachments()]
        return {one.name: [one.read(number) for number in range(len(one.pages))] for one in found}
    finally:
        opened.close()


def container_files(root: Path, kind: str = "") -> list[Path]:
    """Every container of a kind (``data``, ``meta-a``, ``meta-b``), all kinds by default."""
    suffixes = [kind] if kind else ["data", "meta-a", "meta-b"]
    return sorted(path for suffix in suffixes for path in root.glob(f"containers/*/*.{suffix}"))


def locate(pool: pools.DedupePool, data: bytes, kind: int = containers.DATA) -> tuple[Path, containers.Record]:
    """Where a segment lies."""
    header = pool._opened().header
    wanted = fingerprint(data, header.key)
    for path in container_files(pool.root, containers.SUFFIXES[kind]):
        for record in containers.read_footer(path, header.id).records:
            if record.fingerprint == wanted:
                return path, record
    raise AssertionError("the segment is in no container")


def flip(path: Path, record: containers.Record) -> None:
    """Change one bit of a record's payload."""
    with path.open("r+b") as file:
        file.seek(record.offset + containers.RECORD.size + record.stored // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 16]))


def container_bytes(root: Path) -> int:
    """Bytes of everything in the folder of containers, whatever its name."""
    return sum(path.stat().st_size for path in root.glob("containers/*/*"))


def leftovers(root: Path) -> list[str]:
    """Files that only an unfinished act leaves."""
    paths = [*root.rglob(".tmp-*"), *root.rglob("*.condemned"), *root.glob("writers/*")]
    return sorted(str(path.relative_to(root)) for path in paths)
