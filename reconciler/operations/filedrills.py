"""Files drill: the volumes of one copy are opened, a sample of files is read to the end and held against the index.

The sample is another one each time and spread evenly over a volume. A file that is not there, or is not as the index of
the same image says, fails the drill; so does a volume that held a file system and does not open. What a guest keeps so
that nobody can read it from outside (encrypted, packed by Windows) is counted and told, and fails it only where that
is most of the sample. An image without an index is sampled by walking its folders, and its files need only be readable.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from reconciler.api import drilling
from reconciler.base import disks, errors, quantities
from reconciler.catalog.fileindexes import entries
from reconciler.guests import browsing, nodes, scans
from reconciler.jobs import engines
from reconciler.operations import fileindexing, sites, verifications
from reconciler.storage import units

#: Bytes of a file that are read at once.
_PIECE: Final = 4 << 20
#: Folders that are looked into where there is no index.
_FOLDERS: Final = 2_000
#: Findings that are told in full.
_TOLD: Final = 20
_OPENED: Final = frozenset({"ntfs", "ext", "fat", "exfat", "xfs"})


@dataclasses.dataclass(kw_only=True, slots=True)
class _Tally:
    """What was tried so far, over all disks."""

    volumes: int = 0
    files: int = 0
    bytes: int = 0
    #: What contradicts the index, or does not open.
    wrong: list[str] = dataclasses.field(default_factory=list)
    #: What cannot be read from outside the guest.
    unreadable: list[str] = dataclasses.field(default_factory=list)


def drill(site: sites.Site, order: verifications.VerifyOrder, context: engines.JobContext) -> engines.Outcome:
    """Try it and keep the verdict. Raises ``VerificationFailed``, ``UnitError`` where it cannot be read now,
    ``Cancelled``."""
    tally = _Tally()
    try:
        with contextlib.closing(site.units.get(order.unit).open(order.image)) as stored:
            # The guest of a Live image went on writing between the image and its index: neither proves the other false.
            live = stored.label.consistency == "Live"
            index = None if live else _index(stored, order.ways.files.sample, context)
            for record in stored.label.disks:
                with contextlib.closing(stored.disk(record.name)) as disk:
                    _disk(disk, index, order.ways.files, context, tally)
    except (errors.ImageDamaged, errors.ImageMissing) as error:
        return verifications.broken(site, order, context, error)
    for line in (*tally.wrong[:_TOLD], *tally.unreadable[:_TOLD]):
        context.log(line)
    details = {
        "volumes": tally.volumes, "files": tally.files, "bytes": tally.bytes, "indexed": index is not None,
        "wrong": tally.wrong[:_TOLD], "unreadable": len(tally.unreadable),
    }  # fmt: skip
    passed, message = _verdict(tally, indexed=index is not None)
    return verifications.keep(
        site, order, context, verifications.Finding(passed=passed, message=message, details=details)
    )


def _verdict(tally: _Tally, *, indexed: bool) -> tuple[bool, str]:
    against = " as the index says" if indexed else ""
    read = f"{tally.files} files ({quantities.show_size(tally.bytes)}) of {tally.volumes} volumes read{against}"
    if tally.wrong:
        return False, f"{tally.wrong[0]} ({len(tally.wrong)} findings; {read})"
    if not tally.volumes:
        return False, "no file system was found on any of its disks"
    if tally.unreadable:
        if len(tally.unreadable) > tally.files:
            return False, f"{len(tally.unreadable)} files could not be read, the first: {tally.unreadable[0]} ({read})"
        return True, f"{read}; {len(tally.unreadable)} cannot be read from outside the guest"
    return True, read


class _Sample:
    """So many files of a volume, each with the same chance."""

    def __init__(self, count: int, chance: random.Random) -> None:
        self._count, self._chance = count, chance
        self._seen = 0
        self._chosen: list[tuple[int, entries.Entry]] = []

    def offer(self, entry: entries.Entry) -> None:
        """One more file of the volume."""
        self._seen += 1
        if len(self._chosen) < self._count:
            self._chosen.append((self._seen, entry))
        elif (place := self._chance.randrange(self._seen)) < self._count:
            self._chosen[place] = (self._seen, entry)

    def files(self) -> list[entries.Entry]:
        """Those that were chosen, in the order in which they were offered."""
        return [entry for _, entry in sorted(self._chosen, key=lambda one: one[0])]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Index:
    """What the index of an image says that a drill asks for."""

    #: By disk and number of a volume, its sample.
    samples: Mapping[tuple[str, int], _Sample]
    #: Volumes that had a file system when the image was made, by disk and number.
    volumes: frozenset[tuple[str, int]]


def _index(stored: units.StoredImage, count: int, context: engines.JobContext) -> _Index | None:
    """The index, read once to its end; None where there is none that can be read."""
    samples: dict[tuple[str, int], _Sample] = {}
    try:
        index = fileindexing.index_of(stored)
        if index is None:
            return None
        for entry in index:
            context.meter.check()
            if entry.kind == "file":
                place = entry.disk, entry.volume
                if place not in samples:
                    samples[place] = _Sample(count, _chance(context, *place))
                samples[place].offer(entry)
    except errors.AttachmentDamaged as error:
        context.log(f"sampled without the index of files: {error.message}")
        return None
    had = (
        (disk.name, number)
        for disk in index.head.disks
        for number, one in enumerate(disk.volumes)
        if one.filesystem in _OPENED
    )
    return _Index(samples=samples, volumes=frozenset(had))


def _chance(context: engines.JobContext, disk: str, volume: int) -> random.Random:
    """Another sample each time; which one it was, the job's log and its id tell."""
    return random.Random(f"{context.id}/{disk}/{volume}")


def _disk(
    disk: disks.Disk,
    index: _Index | None,
    ways: drilling.FilesDrill,
    context: engines.JobContext,
    tally: _Tally,
) -> None:
    with browsing.browse(disk, meter=context.meter.aside()) as browser:
        known = {number for number, one in enumerate(browser.volumes) if one.filesystem in _OPENED}
        if index is not None:
            known |= {number for name, number in index.volumes if name == disk.name}
        for number in sorted(known):
            context.meter.check()
            volume = browser.volumes[number] if number < len(browser.volumes) else None
            words = f"{disk.name}, volume {number}{_label(volume)}"
            try:
                root = browser.root(number)
            except (errors.GuestUnreadable, errors.NotFound) as error:
                tally.wrong.append(f"{words} does not open: {error}")
                continue
            tally.volumes += 1
            if index is None:
                chosen = _walked(browser, root, disk.name, ways.sample, _chance(context, disk.name, number))
            else:
                sample = index.samples.get((disk.name, number))
                chosen = sample.files() if sample is not None else []
            _files(browser, chosen, ways, context, tally, words)


def _label(volume: scans.Volume | None) -> str:
    return f" ({volume.label})" if volume is not None and volume.label else ""


def _walked(
    browser: browsing.Browser, root: nodes.Node, disk: str, count: int, chance: random.Random
) -> list[entries.Entry]:
    """Files of a volume that a bounded walk meets."""
    found: list[entries.Entry] = []
    waiting = [("", root)]
    for _ in range(_FOLDERS):
        if not waiting:
            break
        path, folder = waiting.pop(chance.randrange(len(waiting)))
        with contextlib.suppress(errors.GuestUnreadable):
            for name, node in browser.children(folder):
                place = f"{path}/{name}" if path else name
                if node.kind == "directory":
                    waiting.append((place, node))
                elif node.kind == "file":
                    found.append(_entry(disk, place, node))
        if len(found) >= 10 * count:
            break
    return chance.sample(found, min(count, len(found)))


def _entry(disk: str, path: str, node: nodes.Node) -> entries.Entry:
    return entries.Entry(
        disk, node.volume, path, "", node.kind, node.size, node.inode, node.links, node.created, node.modified,
        node.changed, (),
    )  # fmt: skip


def _files(
    browser: browsing.Browser,
    chosen: Iterable[entries.Entry],
    ways: drilling.FilesDrill,
    context: engines.JobContext,
    tally: _Tally,
    words: str,
) -> None:
    most = quantities.parse_size(ways.most_bytes)
    read = 0
    for entry in chosen:
        context.meter.check()
        if read and read + entry.size > most:
            continue
        place = f"{words}: {entry.path}"
        try:
            node = browser.find(entry.volume, entry.path)
            wrong = _differs(entry, node)
            if wrong:
                tally.wrong.append(f"{place} {wrong}")
                continue
            size = _read(browser, node, context)
        except errors.NotFound:
            tally.wrong.append(f"{place} is not there")
            continue
        except errors.GuestUnreadable as error:
            tally.unreadable.append(f"{place} cannot be read: {error}")
            continue
        if size != node.size:
            tally.wrong.append(f"{place} ends after {size} of {node.size} bytes")
            continue
        tally.files += 1
        tally.bytes += size
        read += size


def _differs(entry: entries.Entry, node: nodes.Node) -> str:
    for what, said, found in (
        ("kind", entry.kind, node.kind),
        ("size", entry.size, node.size),
        ("time of modification", entry.modified, node.modified),
        ("number", entry.inode, node.inode),
    ):
        if said != found:
            return f"has {what} {found}, the index says {said}"
    return ""


def _read(browser: browsing.Browser, node: nodes.Node, context: engines.JobContext) -> int:
    """Every byte that was ever written of a file, proven by the copy's digests; how far it reaches."""
    for offset, length in _pieces(browser.extents(node)):
        context.meter.check()
        data = browser.read(node, offset, length)
        if len(data) != length:
            return offset + len(data)
        context.meter.add(scanned=length)
    return node.size


def _pieces(found: Iterable[nodes.Extent]) -> Iterator[tuple[int, int]]:
    for extent in found:
        for start in range(extent.offset, extent.offset + extent.length, _PIECE):
            yield start, min(_PIECE, extent.offset + extent.length - start)
