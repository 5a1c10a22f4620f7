"""The catalog as one compact file, written onto every storage unit after a pass that changed something.

``contents`` under zstd. ``load_dump`` fills a fresh catalog with it, id included, so that the units' owner is back.
A unit keeps the newest two under ``catalog/``; each is complete, or was never given its name.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
import zstandard

from reconciler.base import crashes, errors, files
from reconciler.catalog import contents, database, tables

_FOLDER: Final = "catalog"
_NAME: Final = re.compile(r"dump-(\d{8,})\.jsonl\.zst\Z")
_KEPT: Final = 2
_LEVEL: Final = 3
#: How a compressed dump begins.
MAGIC: Final = zstandard.FRAME_HEADER


def mark(db: database.Database) -> int:
    """A number that grows with every change worth a dump."""
    with db.reading() as connection:
        return contents.mark(connection)


def is_current(root: Path, catalog: str, mark: int) -> bool:
    """Whether the unit's newest dump shows this catalog at this mark, and no unfinished one lies beside it."""
    known = list_dumps(root)
    if not known or any(_unfinished(root)):
        return False
    try:
        found = read_head(known[-1])
    except (OSError, errors.HoldfastError):
        # Unreadable is not current: the next dump replaces it.
        return False
    return found.catalog == catalog and found.mark == mark


def read_head(path: Path) -> contents.Head:
    """What a dump's first line says. Raises ``OSError``, ``CatalogError`` or ``FormatTooNew``."""
    try:
        with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as packed:
            line = io.TextIOWrapper(packed, encoding="utf-8", newline="\n").readline()
    except (ValueError, zstandard.ZstdError) as error:
        raise contents.damaged(error) from error
    return contents.head(next(contents.parsed([line] if line else []), None))


def dump(db: database.Database) -> bytes:
    """One moment of the catalog, compressed. The whole result is held in memory: about 50 bytes an image."""
    target = io.BytesIO()
    packer = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    with packer.stream_writer(target, closefd=False) as stream, db.reading() as connection:
        for part in contents.written(connection, db.id):
            stream.write(b"".join(part.lines))
    return target.getvalue()


def load_dump(db: database.Database, data: bytes) -> int:
    """Fill a fresh catalog with a dump, all of it or nothing; the number of rows.

    Raises ``FormatTooNew``, and ``CatalogError`` for a damaged dump or a catalog that holds something already.
    """
    with db.writing() as connection:
        for table in (tables.IMAGES, tables.OBJECTS, tables.CLIENTS, tables.JOBS):
            if connection.scalar(sa.select(sa.func.count()).select_from(table)):
                raise errors.CatalogError(
                    f"{db.location}: this catalog is in use", hint="load a dump into a new one: move this one aside"
                )
        count = contents.load(connection, lines(data))
    db.forget_id()
    return count


def lines(data: bytes) -> Iterator[Any]:
    """The lines of a dump, parsed. Raises ``CatalogError`` where it is damaged."""
    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)) as packed:
            yield from contents.parsed(io.TextIOWrapper(packed, encoding="utf-8", newline="\n"))
    except (zstandard.ZstdError, ValueError) as error:
        raise contents.damaged(error) from error


def write_dump(root: Path, data: bytes) -> Path:
    """Put a dump onto the unit at ``root``, durably, and drop all but the newest two; its path. Raises ``OSError``."""
    folder = root / _FOLDER
    if not folder.exists():
        folder.mkdir(exist_ok=True)
        files.sync_folder(root)
    for left in _unfinished(root):
        left.unlink(missing_ok=True)
    known = list_dumps(root)
    number = _number(known[-1]) + 1 if known else 1
    target = folder / f"dump-{number:08d}.jsonl.zst"
    temporary = files.temporary_name(target)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    crashes.passing("dump.written")
    temporary.replace(target)
    files.sync_folder(folder)
    for old in known[: len(known) + 1 - _KEPT]:
        old.unlink(missing_ok=True)
    return target


def list_dumps(root: Path) -> tuple[Path, ...]:
    """The complete dumps on a unit, newest last."""
    folder = root / _FOLDER
    found = [path for path in folder.iterdir() if _NAME.match(path.name)] if folder.is_dir() else []
    return tuple(sorted(found, key=_number))


def _unfinished(root: Path) -> Iterator[Path]:
    """What a crash left of dumps; of a machine named ``catalog`` images being written may lie in the folder too."""
    return (root / _FOLDER).glob(f"{files.TEMPORARY_PREFIX}dump-*")


def _number(path: Path) -> int:
    found = _NAME.match(path.name)
    return int(found[1]) if found else 0
