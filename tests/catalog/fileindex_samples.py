"""Attachments in memory, and small trees of entries from Hypothesis and from seeds."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable

from hypothesis import strategies as st

from reconciler.base import digests
from reconciler.catalog.fileindexes import entries, indexes

NAMES = ("a", "b", "B", "log", "Ünï", "x.log", "x.LOG", "caf\udce9", "\ud800", "100%", "[ab]*?", "new\nline")


@dataclasses.dataclass(frozen=True)
class Page:
    digest: bytes
    size: int


class Memory:
    """An attachment that lies in memory; counts what is read of it."""

    def __init__(self, pages: Iterable[bytes]) -> None:
        self.data = list(pages)
        self.pages = [Page(digests.digest(page), len(page)) for page in self.data]
        self.read_pages = 0

    def read(self, number: int) -> bytes:
        self.read_pages += 1
        return self.data[number]


def entry(
    path: str, *, disk: str = "d0", volume: int = 0, stream: str = "", kind: str = "file", size: int = 1
) -> entries.Entry:
    return entries.Entry(disk, volume, path, stream, kind, size, 7, 1, 10, 20, 30, ())


@st.composite
def rows(draw: st.DrawFn) -> list[entries.Entry]:
    """Any entries, in order."""
    number = st.integers(0, (1 << 62) - 1)
    moment = st.integers(-(1 << 62), 1 << 62)
    one = st.builds(
        entries.Entry,
        st.sampled_from(("d0", "disk 1", "δ")),
        st.integers(0, 3),
        st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map("/".join),
        st.sampled_from(("", "", "s", "a/b", "Zone.Identifier")),
        st.sampled_from(entries.KINDS),
        number,
        number,
        number,
        moment,
        moment,
        moment,
        st.sets(st.sampled_from(entries.FLAGS)).map(lambda some: tuple(f for f in entries.FLAGS if f in some)),
    )
    return indexes.ordered(draw(st.lists(one, max_size=30)))


def tree(seed: int, count: int) -> list[entries.Entry]:
    """A tree like those of real machines: ``count`` entries in order, their times and sizes from ``seed``."""
    rng = random.Random(seed)
    folders, found, inode = [""], [], 64
    while len(found) < count:
        above = rng.choice(folders)
        name = f"{rng.choice(_WORDS)}{rng.randrange(16**4):x}"
        path = f"{above}/{name}" if above and above.count("/") < 8 else name
        moment = 1_700_000_000 * 10**9 + rng.randrange(10**15) * 100
        folders.append(path)
        found.append(entries.Entry("disk0", 0, path, "", "directory", 0, inode, 1, moment, moment, moment, ()))
        for _ in range(rng.randrange(1, 20)):
            inode += 1
            made = moment + rng.randrange(10**9) * 100
            name = f"{rng.choice(_WORDS)}-{rng.randrange(16**6):x}{rng.choice(_ENDINGS)}"
            size = int(rng.lognormvariate(9, 3))
            found.append(
                entries.Entry("disk0", 0, f"{path}/{name}", "", "file", size, inode, 1, moment, made, made, ())
            )
        inode += 1
    return indexes.ordered(found[:count])


def changed(rows: list[entries.Entry], seed: int, part: float) -> list[entries.Entry]:
    """The tree a day later: of the part that changed, four in five were written to, and some made or removed."""
    rng = random.Random(seed)
    found = list(rows)
    for number in rng.sample(range(len(rows)), max(1, int(len(rows) * part))):
        row, now = found[number], 1_710_000_000 * 10**9 + seed * 86_400 * 10**9 + rng.randrange(10**9) * 100
        kind = rng.randrange(10)
        if kind < 8 or row.kind != "file":
            found[number] = row._replace(size=row.size + rng.randrange(4096), modified=now, changed=now)
        elif kind == 8:
            found[number] = row._replace(path=f"{row.path}.{rng.randrange(16**4):x}", changed=now)
        else:
            made = (
                f"{row.folder}/new-{rng.randrange(16**6):x}.tmp" if row.folder else f"new-{rng.randrange(16**6):x}.tmp"
            )
            found.append(row._replace(path=made, inode=row.inode + 1_000_000, created=now, modified=now, changed=now))
    return indexes.ordered(found)


_WORDS = ("index", "main", "util", "config", "data", "log", "readme", "test", "lib", "core", "image", "style")
_ENDINGS = (".py", ".txt", ".dll", ".so", ".h", ".c", ".json", ".log", ".png", ".xml")
