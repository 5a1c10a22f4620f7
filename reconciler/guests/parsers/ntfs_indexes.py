"""What an NTFS directory holds, by its own index; from the whole table where the index is damaged.

The blocks of an index are read in the order in which they lie, as far as its bitmap calls them used, not along the
tree: that gives every entry once, needs no collation and knows no cycles.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from reconciler.guests.parsers import ntfs_names, served, stretches, texts
from reconciler.guests.parsers import ntfs_records as records

_NAME = "$I30"
_DOS = 2
_ENTRY = 16
_BELOW, _LAST = 1, 2
#: Bytes of an index and of its bitmap that are believed, and that are read at once.
_MOST, _MOST_BITMAP, _STEP = 32 << 30, 8 << 20, 1 << 20
#: Names that are kept where the table stands in for damaged indexes.
_MOST_NAMES = 3_000_000
#: Blocks from the root of an index to an entry.
_DEEPEST = 32

#: Bytes of a block.
_SIZES = frozenset(512 << shift for shift in range(8))

#: What a damaged index raises.
DAMAGE = (records.Damaged, stretches.Truncated)


class Indexes:
    """The directories of a volume."""

    def __init__(self, table: records.Table) -> None:
        self._table = table
        self._by_parent: dict[int, list[served.Name]] | None = None

    def names(self, number: int, found: list[records.Attribute]) -> list[served.Name]:
        """The entries of a directory with these attributes. Raises ``Damaged``, ``Truncated`` and ``Refused``."""
        names: list[served.Name] = []
        try:
            for block, first, last in self._blocks(found):
                names += _entries(block, first, last)
                if len(names) > _MOST_NAMES:
                    raise served.Refused(f"it holds more than {_MOST_NAMES} names")
        except DAMAGE:
            return self._parents().get(number, [])
        return names

    def look(self, number: int, found: list[records.Attribute], name: str) -> served.Name | None:
        """The entry of one name, None where there is none. Raises ``Damaged`` and ``Truncated``."""
        wanted = texts.units(name)
        if wanted is None:
            return None
        try:
            for block, first, last in self._blocks(found):
                # Most blocks do not hold these bytes at all.
                if wanted in block:
                    for entry in _entries(block, first, last):
                        if entry.text == name:
                            return entry
        except DAMAGE:
            return next((entry for entry in self._parents().get(number, ()) if entry.text == name), None)
        return None

    def _blocks(self, found: list[records.Attribute]) -> Iterator[tuple[bytes | bytearray, int, int]]:
        """The index's root and used blocks, each with where its entries begin and end."""
        own = [one for one in found if one.name == _NAME]
        root = next((one.value for one in own if one.kind == records.INDEX and one.value is not None), None)
        if root is None or len(root) < 32:
            raise records.Damaged("it has no index")
        yield root, *_span(root, 16)
        allocation, bitmap = (_only(own, kind) for kind in (records.ALLOCATION, records.BITMAP))
        size = int.from_bytes(root[8:12], "little")
        if allocation is None:
            return
        if bitmap is None or size not in _SIZES:
            raise records.Damaged("its index has blocks of an unknown size")
        if allocation.size > _MOST or bitmap.size > _MOST_BITMAP:
            raise records.Damaged("its index is too long")
        used = self._table.value(bitmap, _MOST_BITMAP)
        for start in range(0, min(allocation.size // size, 8 * len(used)) * size, _STEP):
            data = self._table.content(allocation.runs, start, min(_STEP, allocation.size - start))
            for at in range(0, len(data) - size + 1, size):
                number = (start + at) // size
                if number >> 3 < len(used) and used[number >> 3] >> (number & 7) & 1:
                    block = data[at : at + size]
                    if block[:4] != b"INDX":
                        raise records.Damaged(f"block {number} of its index is none")
                    mended = records.mend(block)
                    yield mended, *_span(mended, 24)

    def _parents(self) -> dict[int, list[served.Name]]:
        """Every name of the volume by its directory, from the records themselves."""
        if self._by_parent is not None:
            return self._by_parent
        found: dict[int, list[served.Name]] = {}
        count, size = 0, self._table.shape.record
        for first, data in self._table.chunks():
            for at in range(0, len(data) - size + 1, size):
                if data[at : at + 4] != b"FILE" or not data[at + 22] & records.IN_USE:
                    continue
                for name, number, version in self._named(first + at // size, data[at : at + size]):
                    count += 1
                    found.setdefault(name.parent, []).append(served.Name(name.text, number, version))
            if count > _MOST_NAMES:
                raise records.Damaged("its index is damaged, and the volume holds too many files to do without")
        self._by_parent = found
        return found

    def _named(self, number: int, data: bytes) -> Iterator[tuple[ntfs_names.Name, int, int]]:
        """The names in one record, each with the number and the version of the file it belongs to."""
        try:
            record = records.mend(data)
            own = records.base(record)
            found = list(records.attributes(record, self._table.shape.clusters, (records.NAME,)))
            version = int.from_bytes(record[16:18], "little") if not own else 0
            for name in ntfs_names.names(found):
                yield name, own or number, version
        except records.Damaged:
            # Listings tell of damaged records; here they merely have no name.
            return


def _only(own: list[records.Attribute], kind: int) -> records.Attribute | None:
    several = [one for one in own if one.kind == kind]
    resident = [one for one in several if one.value is not None]
    return next(iter(resident or records.streams(several)), None)


def _span(block: bytes | bytearray, head: int) -> tuple[int, int]:
    """Where the entries of a node of the index begin and end; ``head``: where it says so."""
    first, length = struct.unpack_from("<II", block, head)
    if first < 16 or head + length > len(block) or first > length:
        raise records.Damaged("a node of its index is not readable")
    return head + first, head + length


def _entries(block: bytes | bytearray, at: int, end: int) -> list[served.Name]:
    """The names in a node, those for DOS left out. Raises ``Damaged``."""
    found: list[served.Name] = []
    while at + _ENTRY <= end:
        reference, length, key, flags = struct.unpack_from("<QHHH", block, at)
        if flags & _LAST:
            return found
        if length < _ENTRY + key or key < 66 or at + length > end or key < 66 + 2 * block[at + 80]:
            raise records.Damaged("an entry of its index does not fit")
        if block[at + 81] != _DOS:
            text = texts.utf16(bytes(block[at + 82 : at + 82 + 2 * block[at + 80]]))
            found.append(served.Name(text, reference & records.NUMBER, reference >> 48))
        at += length
    raise records.Damaged("a node of its index has no end")


def numbered(table: records.Table, found: list[records.Attribute], name: str, wanted: int) -> bytes | None:
    """What an index in order of 32-bit numbers, such as ``$SII``, holds of one; None where it does not know it.

    ``found``: attributes of the file that holds the index. Raises ``Damaged`` and ``Truncated``.
    """
    own = [one for one in found if one.name == name]
    block: bytes | bytearray | None = next((one.value for one in own if one.kind == records.INDEX), None)
    if block is None or len(block) < 32:
        raise records.Damaged(f"there is no index {name}")
    size, head = int.from_bytes(block[8:12], "little"), 16
    step = table.shape.cluster if table.shape.cluster <= size else 512
    allocation = _only(own, records.ALLOCATION)
    for _ in range(_DEEPEST):
        entry = _towards(block, *_span(block, head), wanted)
        if int.from_bytes(entry[12:14], "little") & _LAST == 0 and entry[16:20] == wanted.to_bytes(4, "little"):
            at, length = struct.unpack_from("<HH", entry)
            return entry[at : at + length]
        if not entry[12] & _BELOW:
            return None
        if allocation is None or size not in _SIZES:
            raise records.Damaged(f"the index {name} has no blocks")
        block = table.content(allocation.runs, int.from_bytes(entry[-8:], "little") * step, size)
        if block[:4] != b"INDX":
            raise records.Damaged(f"a block of the index {name} is none")
        block, head = records.mend(block), 24
    raise records.Damaged(f"the index {name} leads too deep")


def _towards(block: bytes | bytearray, at: int, end: int, wanted: int) -> bytes:
    """The entry of a node that is a number's own, or below which it would be."""
    while at + _ENTRY <= end:
        length, _, flags = struct.unpack_from("<HHH", block, at + 8)
        if at + length > end or length < (_ENTRY if flags & _LAST else 20) + 8 * (flags & _BELOW):
            break
        if flags & _LAST or int.from_bytes(block[at + 16 : at + 20], "little") >= wanted:
            return bytes(block[at : at + length])
        at += length
    raise records.Damaged("a node of an index is not readable")
