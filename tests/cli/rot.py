"""Damage of stored bytes at places that a test names: a disk's block, a page of the index of files, a label."""

from __future__ import annotations

import contextlib
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import estate_samples
from estate_samples import MIB, Estate

from reconciler.storage import identities
from reconciler.storage.dedupe import attachments, containers, manifests, recipes, stores

#: The one disk of ``guest``.
DISK = "system.img"


def guest(estate: Estate, name: str = "alpha", *, files: int = 8) -> bytes:
    """A machine of one ext4 disk of 12 MiB, with files of random bytes; the disk's content."""
    tree = estate.folder.parent / f"{name}-tree"
    (tree / "docs").mkdir(parents=True)
    for number in range(files):
        content = subprocess.run(
            ["openssl", "rand", str(MIB // 2)], capture_output=True, check=True, stdin=subprocess.DEVNULL
        ).stdout
        (tree / "docs" / f"file-{number}.bin").write_bytes(content)
    disk = estate.folder / "machines" / name / DISK
    disk.parent.mkdir(parents=True, exist_ok=True)
    with disk.open("wb") as file:
        file.truncate(12 * MIB)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, disk], check=True, capture_output=True)
    return disk.read_bytes()


def spoil(path: Path, offset: int) -> None:
    """Change one byte."""
    with path.open("r+b") as file:
        file.seek(offset)
        (before,) = file.read(1)
        file.seek(offset)
        file.write(bytes([before ^ 1]))


def folder_of(estate: Estate, image: str) -> Path:
    """The folder of an image on the Directory unit."""
    (found,) = (estate.folder / "storage" / "fast").glob(f"*/{image}")
    return found


def spoil_file(estate: Estate, image: str, pattern: str, offset: int) -> None:
    """Damage a file of an image on the Directory unit."""
    (path,) = folder_of(estate, image).glob(pattern)
    spoil(path, offset)


@contextlib.contextmanager
def _store(estate: Estate) -> Iterator[stores.Store]:
    root = estate.folder / "storage" / "pool"
    store = stores.share(stores.Settings(root=root, name="pool", writable=False, cache=None))
    try:
        store.follow(thorough=True)
        yield store
    finally:
        stores.release(store)


def _manifest(estate: Estate, image: str) -> manifests.Manifest:
    root = estate.folder / "storage" / "pool"
    return manifests.read(root / "manifests", image, uuid.UUID(identities.read(root, "pool").id), "pool")


def _spoil_segment(store: stores.Store, kind: int, fingerprint: bytes) -> None:
    (found,) = store.locate(kind, [fingerprint])
    assert found is not None
    path = containers.path(store.folder, found.container, kind)
    spoil(path, found.offset + containers.RECORD.size + (found.length - containers.RECORD.size) // 2)


def spoil_pool_block(estate: Estate, image: str, offset: int) -> None:
    """Damage the segment of an image in the pool that holds a byte of its disk."""
    (disk,) = _manifest(estate, image).disks
    with _store(estate) as store:
        span = recipes.decode_span(store.fetch_meta(disk.spans[0]), recipes.span_length(0, disk.size))
        pieces = recipes.decode_page(store.fetch_meta(span.pages[offset // recipes.PAGE]), 0)
        within = offset % recipes.PAGE
        piece = next(one for one in pieces if one.offset <= within < one.offset + one.length)
        _spoil_segment(store, containers.DATA, piece.fingerprint)


def spoil_pool_index(estate: Estate, image: str, *, listing: bool = False) -> None:
    """Damage the last page of the index of an image in the pool, or the list of its pages in both its places."""
    (attached,) = _manifest(estate, image).attachments
    with _store(estate) as store:
        if listing:
            for kind in (containers.META_A, containers.META_B):
                _spoil_segment(store, kind, attached.listing)
            return
        _spoil_segment(
            store, containers.DATA, attachments.decode_list(store.fetch_meta(attached.listing))[-1].fingerprint
        )


def states(estate: Estate) -> dict[str, str]:
    """State by unit, of an estate with one image."""
    return {one["unit"]: one["state"] for one in estate.get("copies")}


def build(folder: Path, **words: str) -> tuple[Estate, bytes, str]:
    """An estate with one machine of files, backed up onto both units; its disk and its image."""
    estate = estate_samples.build(folder, **{"duplicate": "yes", "retention": "{type: Forever}", **words})
    disk = guest(estate)
    estate.apply()
    (image,) = estate.get("images")
    return estate, disk, image["id"]
