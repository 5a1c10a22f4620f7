"""The pool's list of damage: records that are false, and segments that are lost.

A record on the list is in no index, whoever builds it, so nobody finds the segment there again and the next writer
that has its bytes stores it anew. A lost segment is one that an image needs and no container holds; listing it lets
collections go on. Scrubs and collections write the list; ``stores`` obeys it. Losing the list costs nothing but the
next scrub, since every read proves what it read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from reconciler.base import crashes, errors, files
from reconciler.storage import labels
from reconciler.storage.dedupe import containers

NAME: Final = "damage.json"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Record:
    """A record that is not what its container's footer says."""

    container: int
    kind: int
    #: Position in the container's footer, from 0.
    number: int
    fingerprint: bytes


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Damages:
    """The list."""

    records: frozenset[Record] = frozenset()
    #: Fingerprints of data segments that no container held when somebody looked.
    lost: frozenset[bytes] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.records or self.lost)

    def numbers(self, container: int) -> frozenset[int]:
        """The false records of a container, by their numbers."""
        return frozenset(record.number for record in self.records if record.container == container)

    def containers(self) -> dict[int, int]:
        """The containers that hold false records, and their kinds."""
        return {record.container: record.kind for record in self.records}


def read(root: Path) -> Damages:
    """The list of the pool under ``root``, empty where there is none.

    Raises ``ImageDamaged`` where it is not what was written, ``FormatTooNew``, ``OSError``.
    """
    path = root / NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Damages()
    document = labels.unseal(data, str(path))
    try:
        records = [_record(*row) for row in document["records"]]
        return Damages(records=frozenset(records), lost=frozenset(map(bytes.fromhex, document["lost"])))
    except (KeyError, TypeError, ValueError) as error:
        raise errors.ImageDamaged(f"{path}: not a list of damage: {error}", hint="delete it and scrub") from error


def _record(name: str, number: int, fingerprint: str) -> Record:
    parsed = containers.parse_name(name)
    if parsed is None:
        raise ValueError(f"{name} is no container")
    return Record(container=parsed[0], kind=parsed[1], number=int(number), fingerprint=bytes.fromhex(fingerprint))


def write(root: Path, found: Damages) -> None:
    """Replace the list, durably; the pool's lock is held. Raises ``OSError``."""
    rows = [
        [containers.file_name(record.container, record.kind), record.number, record.fingerprint.hex()]
        for record in sorted(found.records)
    ]
    document = {"kind": "PoolDamage", "records": rows, "lost": sorted(one.hex() for one in found.lost)}
    files.write_atomically(root / NAME, labels.seal(document))
    crashes.passing("pool.damage-listed")


def without_containers(found: Damages, gone: Iterable[int]) -> Damages:
    """The list once some containers are gone for good."""
    left = set(gone)
    return dataclasses.replace(found, records=frozenset(r for r in found.records if r.container not in left))
