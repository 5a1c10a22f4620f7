"""Manifests: one small sealed document per image. Its rename into place is the image's commit.

It holds the image's label and, per disk, the fingerprints of the recipe's spans; all else is found from those.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from reconciler.base import errors, files
from reconciler.storage import attachments, labels, units
from reconciler.storage.dedupe import containers, recipes

SUFFIX: Final = ".json"
#: Version of a manifest that names attachments. Who does not know them must not collect beside it: what it could not
#: follow would look dead. One without any keeps the version that every Holdfast reads.
ATTACHED_VERSION: Final = 2


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DiskRecipe:
    """Where the bytes of one disk are."""

    name: str
    #: Bytes.
    size: int
    #: Bytes of disk that segments cover.
    non_zero: int
    #: Fingerprint of each span, ``recipes.NOTHING`` for zeros.
    spans: tuple[bytes, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AttachmentRecipe:
    """Where the pages of one attachment are."""

    name: str
    #: A count.
    pages: int
    #: Bytes of all pages.
    size: int
    #: Fingerprint of the meta segment that lists them.
    listing: bytes


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """One committed image."""

    pool: uuid.UUID
    label: units.ImageLabel
    #: Bytes that this image alone added to the pool.
    stored: int
    #: In the label's order.
    disks: tuple[DiskRecipe, ...]
    attachments: tuple[AttachmentRecipe, ...] = ()


def path(folder: Path, image: str) -> Path:
    """Where an image's manifest lies in the ``manifests`` folder."""
    return folder / (image + SUFFIX)


def names(folder: Path) -> Iterator[str]:
    """The image ids for which a manifest is in place. Raises ``OSError``."""
    for entry in folder.iterdir():
        if entry.name.endswith(SUFFIX) and not entry.name.startswith("."):
            yield entry.name.removesuffix(SUFFIX)


def encode(manifest: Manifest) -> bytes:
    """The file's bytes."""
    document: dict[str, Any] = {
        "kind": "PoolImage",
        "pool": str(manifest.pool),
        "label": labels.to_json(manifest.label),
        "storedBytes": manifest.stored,
        "disks": [
            {
                "name": disk.name,
                "sizeBytes": disk.size,
                "pageBytes": recipes.PAGE,
                "spanBytes": recipes.SPAN,
                "nonZeroBytes": disk.non_zero,
                "spans": b"".join(disk.spans).hex(),
            }
            for disk in manifest.disks
        ],
    }
    if not manifest.attachments:
        return labels.seal(document)
    document["attachments"] = [
        {"name": one.name, "pages": one.pages, "sizeBytes": one.size, "list": one.listing.hex()}
        for one in manifest.attachments
    ]
    return labels.seal(document, version=ATTACHED_VERSION)


def decode(data: bytes, image: str, pool: uuid.UUID) -> Manifest:
    """The manifest of ``image``. Raises ``ImageDamaged`` or ``FormatTooNew``."""
    where = f"image {image}"
    document = labels.unseal(data, where, newest=ATTACHED_VERSION)
    label = labels.from_json(document.get("label"), where)
    try:
        if document["kind"] != "PoolImage" or uuid.UUID(document["pool"]) != pool or label.id != image:
            raise ValueError("it belongs to another image or pool")
        disks = tuple(_disk(disk, where) for disk in document["disks"])
        if [(disk.name, disk.size) for disk in disks] != [(disk.name, disk.size) for disk in label.disks]:
            raise ValueError("its label and its recipes name other disks")
        attached = tuple(_attachment(one) for one in document.get("attachments", ()))
        return Manifest(pool=pool, label=label, stored=int(document["storedBytes"]), disks=disks, attachments=attached)
    except (KeyError, TypeError, ValueError) as error:
        raise errors.ImageDamaged(
            f"{where}: its manifest is false: {error}", hint="use another copy of the image"
        ) from error


def _disk(document: dict[str, Any], where: str) -> DiskRecipe:
    if document["pageBytes"] != recipes.PAGE or document["spanBytes"] != recipes.SPAN:
        raise errors.FormatTooNew(f"{where}: its recipe has pages of another size", hint="upgrade Holdfast")
    size, spans = int(document["sizeBytes"]), bytes.fromhex(document["spans"])
    step = containers.FINGERPRINT_SIZE
    if len(spans) != recipes.span_count(size) * step:
        raise ValueError(f"disk {document['name']} has a recipe of another length")
    return DiskRecipe(
        name=str(document["name"]),
        size=size,
        non_zero=int(document["nonZeroBytes"]),
        spans=tuple(spans[at : at + step] for at in range(0, len(spans), step)),
    )


def _attachment(document: dict[str, Any]) -> AttachmentRecipe:
    name, listed = str(document["name"]), bytes.fromhex(document["list"])
    if not attachments.is_name(name) or len(listed) != containers.FINGERPRINT_SIZE:
        raise ValueError(f"{name!r} is no attachment")
    return AttachmentRecipe(name=name, pages=int(document["pages"]), size=int(document["sizeBytes"]), listing=listed)


def read(folder: Path, image: str, pool: uuid.UUID, unit: str) -> Manifest:
    """The manifest of a committed image. Raises ``UnitError`` kinds or ``FormatTooNew``."""
    if not labels.is_safe(image):
        raise errors.ImageMissing(f"storage unit {unit} holds no image {image!r}")
    try:
        data = path(folder, image).read_bytes()
    except FileNotFoundError as error:
        if not folder.is_dir():
            raise errors.UnitOffline(
                f"storage unit {unit}: {folder} does not exist", hint="mount the unit's file system"
            ) from error
        raise errors.ImageMissing(f"storage unit {unit} holds no image {image}") from error
    except OSError as error:
        with files.unit_errors(unit):
            raise error
    return decode(data, image, pool)
