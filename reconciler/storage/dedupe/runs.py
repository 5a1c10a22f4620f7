"""Many segments of one container in few reads: those that lie close together are read at once.

Called by ``stores`` when it knows where the segments lie. Separate from it, since nothing here knows a pool, its index
or its locks: there is one file, and the places in it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from reconciler.base import disks
from reconciler.storage.dedupe import containers

#: A segment that is wanted: container, offset and length of its record, fingerprint.
Located = tuple[int, int, int, bytes]
#: Segments further apart than this are read in two reads.
_GAP: Final = 64 << 10
#: Bytes read at once.
_RUN: Final = 4 << 20


def read(
    path: Path, wanted: Iterable[Located], key: bytes | None, places: Mapping[bytes, memoryview]
) -> Iterator[tuple[bytes, disks.Buffer]]:
    """Segments of the container ``path``, by fingerprint; ``wanted`` ascends. ``key`` proves them, ``places`` are where
    some shall stand: see ``containers.decode``. Raises ``containers.Damaged``, ``OSError``."""
    with _opened(path) as handle:
        runs = list(_split(wanted))
        for run in runs:
            # All are asked for before the first is waited for: the device may take them in its own order.
            os.posix_fadvise(handle, run[0][1], _length(run), os.POSIX_FADV_WILLNEED)
        for run in runs:
            start = run[0][1]
            data = memoryview(containers.pread(handle, _length(run), start))
            for _, offset, length, fingerprint in run:
                try:
                    record = data[offset - start : offset - start + length]
                    if len(record) != length:
                        # The device lost a part before it, which may be none of what is wanted.
                        record = memoryview(containers.pread(handle, length, offset))
                    yield fingerprint, containers.decode(record, fingerprint, key, places.get(fingerprint))
                except containers.Damaged as error:
                    raise containers.Damaged(f"container {path.name} at {offset}: {error}") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    with containers.opened(path) as file:
        # What is wanted is known to the byte: reading ahead by guess would read what nobody asks for.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        yield file.fileno()


def _length(run: list[Located]) -> int:
    return run[-1][1] + run[-1][2] - run[0][1]


def _split(wanted: Iterable[Located]) -> Iterator[list[Located]]:
    """Segments, ascending, by what is read at once."""
    run: list[Located] = []
    for item in wanted:
        if run:
            _, offset, length, _ = run[-1]
            if item[1] > offset + length + _GAP or item[1] + item[2] - run[0][1] > _RUN:
                yield run
                run = []
        run.append(item)
    if run:
        yield run
