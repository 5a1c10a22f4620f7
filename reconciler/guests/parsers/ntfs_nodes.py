"""NTFS for a browser: files by the number of their record, directories by their index, streams by name."""

from __future__ import annotations

import collections
import stat
from collections.abc import Iterator
from typing import NamedTuple

from reconciler.guests import scans
from reconciler.guests.parsers import (
    ntfs_descriptors,
    ntfs_indexes,
    ntfs_links,
    ntfs_names,
    ntfs_packing,
    ntfs_states,
    outputs,
    served,
    stretches,
)
from reconciler.guests.parsers import ntfs_records as records

#: Files whose attributes are kept.
_KEPT = 256
_WANTED = frozenset(
    {
        records.STANDARD,
        records.LIST,
        records.NAME,
        records.SECURITY,
        records.DATA,
        records.INDEX,
        records.BITMAP,
        records.REPARSE,
        records.EXTENDED,
    }
)
_DOS_FLAGS = ((0x1, "readonly"), (0x2, "hidden"), (0x4, "system"), (0x20, "archive"), (0x4000, "encrypted"))
_HIBERNATED = "hiberfil.sys"


class _File(NamedTuple):
    version: int
    directory: bool
    #: All attributes, and of those with clusters the whole of each.
    found: list[records.Attribute]


class Files:
    """The files of one volume; see ``served.FileSystem``."""

    root = ntfs_names.ROOT

    def __init__(self, stretch: stretches.Stretch, limits: scans.Limits) -> None:
        del limits
        self.stretch = stretch
        self._shape = records.shape(stretch)
        self._table = records.Table(stretch, self._shape)
        self._indexes = ntfs_indexes.Indexes(self._table)
        self._descriptors = ntfs_descriptors.Descriptors(self._table)
        self._files: collections.OrderedDict[int, _File] = collections.OrderedDict()

    def facts(self) -> outputs.Facts:
        """Label and state. Raises ``Damaged`` and ``Truncated``."""
        unclean, dirty = ntfs_states.state(self._table)
        reason = dirty or unclean
        if not reason and self._hibernated():
            reason = "a hibernated machine waits on it"
        return outputs.Facts(
            filesystem="ntfs",
            label=ntfs_states.label(self._table),
            clean=not (dirty or unclean),
            reason=reason,
            cluster=self._shape.cluster,
        )

    def _hibernated(self) -> bool:
        try:
            content = self.content(self.look(self.root, _HIBERNATED).number, "")
        except (served.Missing, served.Refused, *ntfs_indexes.DAMAGE):
            return False
        runs = list(content.runs)
        head = content.data or (self._table.content([(0, runs[0][1] // self._shape.cluster, 1)], 0, 4) if runs else b"")
        return head[:4].lower() == b"hibr"

    def _file(self, number: int, version: int = 0) -> _File:
        known = self._files.get(number)
        if known is None:
            known = self._load(number)
            self._files[number] = known
            if len(self._files) > _KEPT:
                self._files.popitem(last=False)
        else:
            self._files.move_to_end(number)
        if version and known.version != version:
            raise served.Missing(f"the file of record {number} is deleted")
        return known

    def _load(self, number: int) -> _File:
        if number < ntfs_names.FIRST and number != self.root:
            raise served.Missing(f"record {number} is the file system's own")
        record = self._table.find(number)
        if record is None:
            raise served.Missing(f"record {number} is not in use")
        if records.base(record):
            raise served.Missing(f"record {number} is part of another file")
        found = self._table.gather(number, record, _WANTED)
        return _File(int.from_bytes(record[16:18], "little"), bool(record[22] & records.DIRECTORY), found)

    def node(self, number: int, version: int = 0) -> served.Node:
        """See ``served.FileSystem``."""
        file = self._file(number, version)
        special = ntfs_links.special(file.found, file.directory, self._table)
        node = served.Node(
            inode=number,
            format=special.format,
            links=max(len(ntfs_names.names(file.found)), 1),
            times=ntfs_names.times(file.found),
            target=special.target,
            device=special.device,
            problem=special.problem,
        )
        flags = {word for bit, word in _DOS_FLAGS if ntfs_links.attributes(file.found) & bit}
        for one in self._streams(file):
            if one.name:
                node.streams.append((one.name, one.size))
                continue
            flags.update(ntfs_names.flags(one.flags))
            if special.format == stat.S_IFREG:
                node.size = one.size
                node.problem = node.problem or _problem(one)
        if special.target is not None:
            node.size = len(special.target.encode("utf-8", "surrogateescape"))
        node.flags = tuple(sorted(flags))
        self._linux(node, file)
        link = special.format not in (stat.S_IFREG, stat.S_IFDIR)
        found = self._descriptors.attributes(file.found, directory=file.directory, link=link)
        served.add_xattrs(node, found, ntfs_indexes.DAMAGE)
        return node

    def _linux(self, node: served.Node, file: _File) -> None:
        """Owner and mode as the Linux subsystem of Windows keeps them."""
        numbers = {
            name: int.from_bytes(value[:4], "little")
            for name, value in ntfs_links.extras(file.found)
            if name.startswith(b"$LX") and len(value) >= 4
        }
        node.uid, node.gid, mode = (numbers.get(name) for name in (b"$LXUID", b"$LXGID", b"$LXMOD"))
        if mode is not None:
            node.mode = node.format | mode & 0o7777

    def _streams(self, file: _File) -> list[records.Attribute]:
        """The whole streams of a file, in order of their names."""
        own = [one for one in file.found if one.kind == records.DATA]
        whole = [*(one for one in own if one.value is not None), *records.streams(own)]
        return sorted(whole, key=lambda one: one.name)

    def names(self, number: int) -> Iterator[served.Name]:
        """See ``served.FileSystem``; the file system's own files are left out."""
        for name in self._indexes.names(number, self._directory(number).found):
            if name.number >= ntfs_names.FIRST:
                yield name

    def look(self, number: int, name: str) -> served.Name:
        """See ``served.FileSystem``."""
        found = self._indexes.look(number, self._directory(number).found, name)
        if found is None or found.number < ntfs_names.FIRST:
            raise served.absent(name)
        return found

    def _directory(self, number: int) -> _File:
        file = self._file(number)
        if not file.directory:
            raise served.Refused("it is no directory")
        return file

    def content(self, number: int, stream: str) -> served.Content:
        """See ``served.FileSystem``."""
        file = self._file(number)
        one = next((one for one in self._streams(file) if one.name == stream), None)
        if not stream:
            special = ntfs_links.special(file.found, file.directory, self._table)
            if special.format != stat.S_IFREG:
                raise served.Refused("it is no file")
            if special.problem:
                raise served.Refused(special.problem)
            if one is None:
                return served.Content(0, [], b"")
        if one is None:
            raise served.Missing(f"it has no stream {stream[:200]!a}")
        return self._bytes(one)

    def _bytes(self, one: records.Attribute) -> served.Content:
        if problem := _problem(one):
            raise served.Refused(problem)
        if one.value is not None:
            return served.Content(one.size, [], one.value)
        if one.end * self._shape.cluster < one.size:
            raise records.Damaged("the end of its content is missing")
        if one.flags & records.COMPRESSED:
            packed = ntfs_packing.Unpacked(one, self._shape.cluster, self._table.content)
            return served.Content(one.size, packed.runs(), unpack=packed.unpack)
        return served.Content(one.size, ntfs_names.runs(one, self._shape.cluster))


def _problem(one: records.Attribute) -> str:
    """Why a stream cannot be read, empty where it can."""
    if one.flags & records.ENCRYPTED:
        return "Windows has encrypted it (EFS)"
    if one.value is None and one.flags & records.COMPRESSED and one.flags & records.COMPRESSED != 1:
        return "it is compressed in an unknown way"
    return ""
