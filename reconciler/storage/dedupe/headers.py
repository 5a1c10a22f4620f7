"""The pool header: segment size, compression and the key of all fingerprints. Written once, twice.

``create`` makes an empty pool, before ``unit.json`` declares the folder a unit; repeating it after a crash goes on.
A pool whose header is lost cannot prove a segment any more, hence the second copy.
"""

from __future__ import annotations

import dataclasses
import secrets
import uuid
from pathlib import Path
from typing import Any, Final

from reconciler.base import errors, files
from reconciler.storage import identities, labels

POOL_FORMAT: Final = 1
NAMES: Final = ("pool.json", "pool-copy.json")
DEFAULT_SEGMENT_SIZE: Final = 128 << 10
MIN_SEGMENT_SIZE: Final = 4 << 10
MAX_SEGMENT_SIZE: Final = 1 << 20
FOLDERS: Final = ("manifests", "containers", "writers")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What a pool is, for ever."""

    #: The unit's UUID.
    id: uuid.UUID
    #: Bytes, a power of two.
    segment_size: int
    #: zstd level, None where segments are stored as they are.
    level: int | None
    #: Keys every fingerprint.
    key: bytes = dataclasses.field(repr=False)


def create(
    root: Path,
    identity: identities.Identity,
    *,
    segment_size: int = DEFAULT_SEGMENT_SIZE,
    algorithm: str = "zstd",
    level: int = 3,
) -> None:
    """Make the folders and the header of an empty pool under ``root``, durably; a header of the same pool is kept.

    Raises ``UnitError`` for parameters no pool can have, or where another pool's header lies there with images.
    """
    if not MIN_SEGMENT_SIZE <= segment_size <= MAX_SEGMENT_SIZE or segment_size & (segment_size - 1):
        raise errors.UnitError(
            f"{root}: segment size {segment_size} is impossible",
            hint="a power of two from 4KiB to 1MiB; the default is 128KiB",
        )
    if algorithm not in ("zstd", "none") or not 1 <= level <= 19:
        raise errors.UnitError(
            f"{root}: compression {algorithm} level {level} is unknown", hint="zstd with level 1 to 19, or none"
        )
    with files.unit_errors(str(root)):
        for name in FOLDERS:
            (root / name).mkdir(exist_ok=True)
        existing = _existing(root)
        occupied = any(any((root / name).iterdir()) for name in FOLDERS)
        if existing is not None and existing.id != uuid.UUID(identity.id) and occupied:
            raise errors.UnitError(f"{root}: another pool ({existing.id}) lies here", hint="choose another folder")
        if existing is not None and existing.id == uuid.UUID(identity.id):
            return
        document = {
            "kind": "DedupePool",
            "poolFormat": POOL_FORMAT,
            "id": identity.id,
            "segmentSize": segment_size,
            "compression": {"algorithm": algorithm, "level": level},
            "fingerprintKey": secrets.token_hex(32),
            "features": [],
        }
        for name in reversed(NAMES):
            files.write_atomically(root / name, labels.seal(document))


def _existing(root: Path) -> Header | None:
    try:
        return read(root, str(root))
    except errors.UnitOffline:
        return None


def read(root: Path, name: str) -> Header:
    """The header under ``root``; ``name`` names the unit in errors.

    Raises ``UnitOffline`` where there is none, ``FormatTooNew``, or ``UnitError`` where both copies are damaged.
    """
    problem: errors.UnitError | None = None
    for file in (root / copy for copy in NAMES):
        try:
            return _parse(labels.unseal(file.read_bytes(), f"storage unit {name}: {file}"), name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, errors.ImageDamaged, KeyError, TypeError, ValueError) as error:
            problem = errors.UnitError(
                f"storage unit {name}: {file} cannot be read: {error}", hint=f"restore one of {', '.join(NAMES)}"
            )
    raise problem or errors.UnitOffline(
        f"storage unit {name}: {root} holds no pool header", hint="mount the unit's file system"
    )


def _parse(document: dict[str, Any], name: str) -> Header:
    if document["poolFormat"] > POOL_FORMAT or document["features"]:
        raise errors.FormatTooNew(
            f"storage unit {name}: pool format {document['poolFormat']} with features {document['features']} is newer"
            f" than this Holdfast reads ({POOL_FORMAT})",
            hint="upgrade Holdfast",
        )
    compression = document["compression"]
    if compression["algorithm"] not in ("zstd", "none"):
        raise errors.FormatTooNew(
            f"storage unit {name}: unknown compression {compression['algorithm']}", hint="upgrade Holdfast"
        )
    return Header(
        id=uuid.UUID(document["id"]),
        segment_size=int(document["segmentSize"]),
        level=int(compression["level"]) if compression["algorithm"] == "zstd" else None,
        key=bytes.fromhex(document["fingerprintKey"]),
    )
