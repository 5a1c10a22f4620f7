"""Restored files as a tar archive, written from front to back with constant memory: POSIX pax, for GNU tar and Python.

``filerestores`` tells it what to write. Names, owners and times of any size are pax records, extended attributes and
access control lists ``SCHILY.xattr.*``, also those by which NTFS-3G knows descriptors and attributes of Windows, holes
the sparse format 1.0 of GNU; an alternate data stream is a file ``NAME:STREAM`` beside its own. Written here and not by
``tarfile``, which knows neither sparse files nor binary values.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO, Final

from reconciler.base import errors
from reconciler.guests import nodes
from reconciler.operations import filecontents, filenames, ntfstargets

_BLOCK: Final = 512
_RECORD: Final = 10_240
#: Files of at most so many bytes are read before their header is written, so that an unreadable one leaves nothing.
_AT_ONCE: Final = 4 << 20
#: Bytes of holes that are worth a map, and the least gap between two extents that is one: a block of most targets.
_HOLES, _GAP = 64 << 10, 4 << 10
_FILE, _LINK, _SYMLINK, _FOLDER = b"0", b"1", b"2", b"5"
_SPECIAL: Final = {stat.S_IFCHR: b"3", stat.S_IFBLK: b"4", stat.S_IFIFO: b"6"}


class TarSink:
    """Implements ``filecontents.Sink``. The stream is the caller's to close."""

    def __init__(self, stream: BinaryIO, report: filecontents.Report) -> None:
        self._stream = stream
        self._report = report
        self._names: list[str] = []
        self._length = 0

    def directory(self, name: str, node: nodes.Node, path: str) -> None:
        """As ``filecontents.Sink`` says. A folder above what was picked has no entry."""
        self._names.append(filenames.plain(name))
        if node is not filecontents.PLAIN:
            self._member(b"/".join(map(_raw, self._names)) + b"/", _FOLDER, node, path)

    def leave(self) -> None:
        """As ``filecontents.Sink`` says."""
        self._names.pop()

    def file(self, name: str, node: nodes.Node, content: filecontents.Content, path: str) -> None:
        """As ``filecontents.Sink`` says, but for a large file whose end turns out to be unreadable: that is zeros."""
        spans = list(_spans(content))
        held = sum(length for _, length in spans)
        sparse = content.size - held >= _HOLES
        if not sparse:
            spans, held = [(0, content.size)] if content.size else [], content.size
        pieces = (data for start, length in spans for _, data in content.pieces(start, length))
        if held <= _AT_ONCE:
            pieces = (data for data in list(pieces))
        else:
            # What cannot be read at all has no entry.
            first = next(pieces)
            pieces = (data for some in ([first], pieces) for data in some)
        where = self._path(name)
        if sparse:
            self._sparse(where, node, path, content.size, spans, held)
        else:
            self._member(where, _FILE, node, path, size=held)
        self._fill(pieces, held)

    def _sparse(
        self,
        where: bytes,
        node: nodes.Node,
        path: str,
        size: int,
        spans: list[tuple[int, int]],
        held: int,
    ) -> None:
        """The header and the map of a file with holes."""
        if not spans or sum(spans[-1]) < size:
            spans = [*spans, (size, 0)]
        text = b"".join(b"%d\n" % number for number in (len(spans), *(one for span in spans for one in span)))
        text += bytes(-len(text) % _BLOCK)
        about = {
            b"GNU.sparse.major": b"1",
            b"GNU.sparse.minor": b"0",
            b"GNU.sparse.name": where,
            b"GNU.sparse.realsize": b"%d" % size,
        }
        above, slash, last = where.rpartition(b"/")
        shown = above + slash + b"GNUSparseFile.0/" + last
        self._member(shown, _FILE, node, path, size=len(text) + held, more=about)
        self._write(text)

    def _fill(self, pieces: Iterator[bytes], held: int) -> None:
        """The data behind a header, then zeros up to a whole block, or up to what the header says."""
        done = 0
        try:
            for data in pieces:
                self._write(data)
                done += len(data)
        except errors.Cancelled:
            raise
        except errors.HoldfastError as error:
            for start in range(done, held, filecontents.PIECE):
                self._write(bytes(min(filecontents.PIECE, held - start)))
            self._write(bytes(-held % _BLOCK))
            raise errors.GuestUnreadable(
                f"it is in the archive with zeros behind its first {done} stored bytes: {error.message}"
            ) from error
        self._write(bytes(-held % _BLOCK))

    def stream(self, name: str, stream: str, node: nodes.Node, content: filecontents.Content, path: str) -> None:
        """As ``filecontents.Sink`` says: a file beside."""
        above = self._names
        try:
            if not name:
                self._names, name = above[:-1], above[-1]
            self.file(f"{name}:{stream}", filecontents.beside(node), content, path)
        finally:
            self._names = above
        self._report.lose("alternate data streams are files of their own beside theirs, named NAME:STREAM", path)

    def link(self, name: str, first: tuple[str, ...], node: nodes.Node, path: str) -> bool:
        """As ``filecontents.Sink`` says."""
        plain = dataclasses.replace(node, xattrs=(), flags=(), created=0)
        self._member(self._path(name), _LINK, plain, path, link=b"/".join(_raw(filenames.plain(one)) for one in first))
        return True

    def symlink(self, name: str, node: nodes.Node, path: str) -> None:
        """As ``filecontents.Sink`` says."""
        if node.target is None or node.problem:
            raise errors.GuestUnreadable(f"where the link leads cannot be read: {node.problem}")
        self._member(self._path(name), _SYMLINK, node, path, link=_raw(node.target))

    def special(self, name: str, node: nodes.Node, path: str) -> bool:
        """As ``filecontents.Sink`` says."""
        kind = _SPECIAL.get(node.format)
        if kind is None:
            self._report.lose("sockets and files of a kind that tar does not know were left out", path)
            return False
        self._member(self._path(name), kind, node, path)
        return True

    def finish(self) -> None:
        """The end of the archive."""
        self._write(bytes(2 * _BLOCK))
        self._write(bytes(-self._length % _RECORD))
        self._stream.flush()

    def _path(self, name: str) -> bytes:
        return b"/".join(_raw(one) for one in (*self._names, filenames.plain(name)))

    def _member(
        self,
        name: bytes,
        kind: bytes,
        node: nodes.Node,
        path: str,
        *,
        size: int = 0,
        link: bytes = b"",
        more: dict[bytes, bytes] | None = None,
    ) -> None:
        """The header of one entry, with pax records for what an old header has no room for."""
        self._tell(node, path)
        mode = stat.S_IMODE(node.mode) if node.mode is not None else 0o755 if kind == _FOLDER else 0o644
        uid, gid = node.uid or 0, node.gid or 0
        seconds, fraction = divmod(node.modified, 10**9)
        records = dict(more or {})
        if len(name) > 100 or not name.isascii():
            records[b"path"] = name
        if len(link) > 100 or not link.isascii():
            records[b"linkpath"] = link
        for key, number, most in ((b"size", size, 0o77777777777), (b"uid", uid, 0o7777777), (b"gid", gid, 0o7777777)):
            if number > most:
                records[key] = b"%d" % number
        if fraction or not 0 <= seconds <= 0o77777777777:
            records[b"mtime"] = _moment(node.modified)
        if node.accessed:
            records[b"atime"] = _moment(node.accessed)
        # One time alone would have the others forgotten; a link that tar has made becomes a file by them.
        left = {ntfstargets.LINK, ntfstargets.CREATED}
        if ntfstargets.LINK in dict(node.xattrs):
            left.add(ntfstargets.ATTRIBUTES)
        for attribute, value in node.xattrs:
            if attribute in left:
                continue
            records[b"SCHILY.xattr." + _raw(attribute).replace(b"%", b"%25").replace(b"=", b"%3D")] = value
        if records:
            body = b"".join(_record(key, value) for key, value in records.items())
            self._write(_header(b"PaxHeaders/" + name[-80:].lstrip(b"/"), b"x", len(body), 0o644, 0, 0, 0, b"", None))
            self._write(body + bytes(-len(body) % _BLOCK))
        self._write(_header(name, kind, size, mode, uid, gid, seconds, link, node.device))

    def _tell(self, node: nodes.Node, path: str) -> None:
        known = dict(node.xattrs)
        kept = ntfstargets.ATTRIBUTES in known
        if ntfstargets.cut(node) and ntfstargets.TIMES not in known:
            self._report.lose("times after the year 2262 are not read, and not kept", path)
        if node.created and node.mode is None and ntfstargets.TIMES not in known:
            self._report.lose("times of creation were not kept, which tar has no place for", path)
        for flag in node.flags:
            if flag in ("immutable", "append") or (flag in ("hidden", "system", "readonly") and not kept):
                self._report.lose(f"the attribute {flag} was not kept, which tar has no place for", path)

    def _write(self, data: bytes) -> None:
        try:
            self._stream.write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise errors.TargetError(f"the archive cannot be written: {error.strerror}") from error
        self._length += len(data)


def _raw(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _moment(nanoseconds: int) -> bytes:
    seconds, fraction = divmod(abs(nanoseconds), 10**9)
    return b"%s%d.%09d" % (b"-" if nanoseconds < 0 else b"", seconds, fraction)


def _record(key: bytes, value: bytes) -> bytes:
    """``LENGTH KEY=VALUE`` and a newline; the length counts itself."""
    rest = b" %s=%s\n" % (key, value)
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d%s" % (length, rest)


def _header(
    name: bytes,
    kind: bytes,
    size: int,
    mode: int,
    uid: int,
    gid: int,
    seconds: int,
    link: bytes,
    device: int | None,
) -> bytes:
    """One block in the format of POSIX 1988."""
    major, minor = (os.major(device), os.minor(device)) if device is not None else (0, 0)
    fields = (
        name[:100].ljust(100, b"\0"),
        _octal(mode, 8),
        _octal(uid, 8),
        _octal(gid, 8),
        _octal(size, 12),
        _octal(seconds, 12),
        b" " * 8,
        kind,
        link[:100].ljust(100, b"\0"),
        b"ustar\x0000",
        bytes(64),
        _octal(major, 8),
        _octal(minor, 8),
        bytes(167),
    )
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _octal(number: int, width: int) -> bytes:
    """A number in a field, as large as the field can say; what is larger has a pax record."""
    return b"%0*o\0" % (width - 1, min(max(number, 0), 8 ** (width - 1) - 1))


def _spans(content: filecontents.Content) -> Iterator[tuple[int, int]]:
    """Extents, those with little between them as one."""
    start = end = 0
    for offset, length in content.extents():
        if end > start and offset - end >= _GAP:
            yield start, end - start
            start = offset
        elif end == start:
            start = offset if offset >= _GAP else 0
        end = offset + length
    rest = content.size - end
    if end > start or rest:
        if rest < _GAP:
            end = content.size
        if end > start:
            yield start, end - start
