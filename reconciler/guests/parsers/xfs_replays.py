"""What the log of XFS makes of its volume: the items of its transactions, laid over the blocks as mounting would.

A snapshot that was not quiesced is a volume after a crash: the newest inodes, directories and maps stand in its log
alone. Names and single files are read through ``replayed``. Nothing is written; whoever looks for free space looks at
the bare volume, which is not clean. Lists of deleted inodes and quotas are left as they are: no reader asks for them.
"""

from __future__ import annotations

import collections
import dataclasses
import struct
from collections.abc import Iterable, Iterator, Sized

from reconciler.guests.parsers import outputs, overlays, stretches, xfs_logs, xfs_shapes

_BASIC = xfs_logs.BASIC
_INODE, _BUFFER, _DQUOT, _QUOTA_OFF, _CREATE = 0x123B, 0x123C, 0x123D, 0x123E, 0x123F
#: Space that is freed, and the trees that tell who owns blocks and how often they are shared: begun and done.
_SPACE = frozenset((0x1236, 0x1237, *range(0x1240, 0x1244), *range(0x124A, 0x1250)))
#: Changes of maps, of extended attributes, and exchanges of content: begun, and done.
_MAP = 0x1244
_BEGUN, _DONE = (_MAP, 0x1246, 0x1248), (0x1245, 0x1247, 0x1249)
#: What becomes of a part of a map: it is set, or cut out; and blocks that were never written.
_SET, _CUT, _UNWRITTEN = 1, 2, 1 << 30
#: Bytes of one such change, and how many are carried out.
_CHANGE, _MOST_CHANGES = 48, 1000
_KNOWN = frozenset((_INODE, _BUFFER, _DQUOT, _QUOTA_OFF, _CREATE, *_SPACE, *_BEGUN, *_DONE))
#: Features of the log: changes of extended attributes.
_KNOWN_FEATURES = 0x1
#: Of a buffer: it holds inodes of which only the lists of deleted ones are meant; it was freed; it holds quotas.
_INODES, _CANCELLED, _QUOTAS = 0x1, 0x2, 0x1C
_GRAIN = 128
_LONGEST_BUFFER = 128
#: The buffers and changes that are remembered.
_MOST_KEPT = 1 << 20
_NEVER = (1 << 64) - 1
#: Where the age and the identity lie in a block, by the magic number at its start.
_AGES = {
    **dict.fromkeys((b"AB3B", b"AB3C", b"IAB3", b"FIB3", b"RMB3", b"R3FC", b"ABTB", b"ABTC", b"IABT"), (24, 32)),
    b"BMA3": (32, 40),
    b"BMAP": (32, 40),
    b"XAGF": (208, 64),
    b"XAFL": (24, 8),
    b"XAGI": (320, 296),
    b"XSLM": (48, 16),
    b"XDB3": (16, 24),
    b"XDD3": (16, 24),
    b"XDF3": (16, 24),
}
#: The same of blocks of hashes and of extended attributes, whose magic number comes later.
_HASHES = frozenset((b"\x3d\xf1", b"\x3d\xff", b"\x3e\xbe", b"\x3b\xee"))
_HASHES_AGE = (24, 32)
_SUPERBLOCK_AGE = (240, 32, 248)
#: The fields of an inode up to its list of deleted ones, and behind its checksum; times as numbers or as two.
_FIELDS = "HHBBHIIIHHQ{times}QQIIHBBIHHI"
_FIELDS_3 = "QQQI12s{time}Q16s"
_OLD, _CORE, _CORE_3 = 96, 100, 176
_BIG_TIME = 0x8
_ROOT, _DEVICE = 0x8, 0x10
_FORK, _ATTRIBUTES, _ATTRIBUTES_ROOT = 0xE, 0x1C0, 0x100
_MOST_FLUSHES = 0xFFFF
#: Bytes of a group of inodes that are read together, for inodes of 256 bytes.
_CLUSTER, _SMALLEST = 8192, 256

Damaged = xfs_shapes.Damaged
_Item = list[bytes | bytearray]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Newest:
    """A volume as mounting it would make it."""

    stretch: stretches.Stretch
    #: What its superblock says then.
    shape: xfs_shapes.Shape
    #: Why it is not, or not all, what a mount would show; empty where it is.
    problem: str = ""


def replayed(stretch: stretches.Stretch, shape: xfs_shapes.Shape) -> Newest:
    """The volume as mounting it would make it; itself where nothing waits, or the log cannot be read."""
    if not shape.log:
        return Newest(stretch=stretch, shape=shape)
    try:
        if xfs_shapes.log_is_empty(stretch, shape):
            return Newest(stretch=stretch, shape=shape)
        if shape.log_features & ~_KNOWN_FEATURES:
            raise Damaged(f"its log has features {shape.log_features:#x}, which are not known")
        log = xfs_logs.Log(stretch, shape)
        if log.clean:
            return Newest(stretch=stretch, shape=shape)
        log.check()
        newer = overlays.Overlay(stretch)
        replay = _Replay(newer, shape, log)
        replay.run()
        changes, left = replay.unfinished()
        shape = dataclasses.replace(xfs_shapes.shape(newer), changes=changes)
    except (Damaged, stretches.Truncated, outputs.TooMuch) as error:
        # As it is, it is still better than nothing.
        return Newest(stretch=stretch, shape=shape, problem=str(error))
    problem = f"changes of files that its log began and did not end: {left}" if left else ""
    return Newest(stretch=newer, shape=shape, problem=problem)


class _Replay:
    def __init__(self, volume: overlays.Overlay, shape: xfs_shapes.Shape, log: xfs_logs.Log) -> None:
        self._volume = volume
        self._shape = shape
        self._log = log
        #: Buffers that were freed, by place and length: nothing that is older than that may be written to them.
        self._cancelled: collections.Counter[tuple[int, int]] = collections.Counter()
        #: By the place of a buffer, the newest transaction that its block is known to hold.
        self._ages: dict[int, int] = {}
        #: What was begun, by its type and number; the start of it that a change of a map takes.
        self._begun: dict[tuple[int, bytes], bytes] = {}

    def run(self) -> None:
        """Replay the log. Raises ``Damaged``, ``Truncated`` and ``TooMuch``."""
        for transaction in self._log.transactions():
            for item in transaction.items:
                kind = _kind(item)
                if kind not in _KNOWN:
                    raise Damaged(f"its log holds items of type {kind:#x}, which are not known")
                if kind == _BUFFER:
                    flags, length, place = _buffer(item)
                    if flags & _CANCELLED:
                        self._cancelled[place, length] += 1
                        self._bound(self._cancelled)
        for transaction in self._log.transactions():
            for item in _ordered(transaction.items):
                self._apply(item, transaction.sequence)

    def unfinished(self) -> tuple[dict[int, list[xfs_shapes.Change]], int]:
        """The changes of maps that were begun and not ended, by inode; and how many others there are."""
        found: dict[int, list[xfs_shapes.Change]] = {}
        left = 0
        for number, ((kind, _), begun) in enumerate(self._begun.items()):
            change = _change(begun) if kind == _MAP and number < _MOST_CHANGES else None
            if change is None:
                left += 1
            else:
                found.setdefault(change[0], []).append(change[1])
        return found, left

    def _apply(self, item: _Item, sequence: int) -> None:
        kind = _kind(item)
        if kind == _BUFFER:
            self._apply_buffer(item, sequence)
        elif kind == _INODE:
            self._apply_inode(item, sequence)
        elif kind == _CREATE:
            self._create(item)
        elif kind in _BEGUN:
            self._begun[kind, bytes(item[0][8:16])] = bytes(item[0][: _CHANGE + 1])
            self._bound(self._begun)
        elif kind in _DONE:
            self._begun.pop((kind - 1, bytes(item[0][8:16])), None)

    def _apply_buffer(self, item: _Item, sequence: int) -> None:
        flags, length, place = _buffer(item)
        key = place, length
        if flags & _CANCELLED:
            self._cancelled[key] -= 1
            if self._cancelled[key] <= 0:
                del self._cancelled[key]
            return
        if flags & (_INODES | _QUOTAS) or key in self._cancelled:
            return
        if not 0 < length <= _LONGEST_BUFFER or not 0 <= place * _BASIC <= self._volume.size - length * _BASIC:
            raise Damaged("its log changes what lies outside the volume")
        if self._shape.v5 and self._age(place) >= sequence:
            return
        for offset, data in _pieces(item):
            if offset + len(data) > length * _BASIC:
                raise Damaged("a buffer in its log is not readable")
            self._volume.write(place * _BASIC + offset, data)
        # More of the same transactions may follow, and must not be held for older.
        self._ages[place] = sequence - 1
        self._bound(self._ages)

    @staticmethod
    def _bound(kept: Sized) -> None:
        if len(kept) > _MOST_KEPT:
            raise Damaged(f"its log names more than {_MOST_KEPT} blocks")

    def _age(self, place: int) -> int:
        """Up to where in the log a buffer on disk has taken part in; -1 where it does not say."""
        known = self._ages.get(place)
        if known is None:
            known = self._ages[place] = _age(self._volume.exactly(place * _BASIC, _BASIC), self._shape)
        return known

    def _create(self, item: _Item) -> None:
        """Inodes that were made: none of them in use yet."""
        if len(item[0]) < 28:
            raise Damaged("new inodes in its log are not readable")
        group, block, count, size, length = struct.unpack_from(">5I", item[0], 4)
        shape = self._shape
        sound = (
            group < shape.groups
            and size == shape.inode
            and length > 0
            and block > 0
            and block + length <= shape.group_length(group)
            and count == length * shape.block // size
            and count <= 1024
        )
        if not sound:
            raise Damaged("new inodes in its log are not readable")
        start = shape.byte(group, block)
        step = max(_cluster(shape), shape.block)
        for place in range(start, start + length * shape.block, step):
            if (place // _BASIC, step // _BASIC) in self._cancelled:
                return
        first = (group << shape.group_bits | block) << shape.inode_bits
        generation = bytes(item[0][24:28])
        self._volume.write(start, b"".join(_fresh(shape, first + number, generation) for number in range(count)))

    def _apply_inode(self, item: _Item, sequence: int) -> None:
        fields, place, length, offset, device = _inode(item[0])
        if (place, length) in self._cancelled:
            return
        shape = self._shape
        if len(item) < 2 or place <= 0 or not 0 <= offset <= length * _BASIC - shape.inode:
            raise Damaged("an inode in its log is not readable")
        at = place * _BASIC + offset
        before = self._volume.exactly(at, shape.inode)
        if before[:2] != b"IN":
            raise Damaged("an inode in its log has no place on the volume")
        logged = bytes(item[1])
        if self._newer(before, logged, sequence):
            return
        after = bytearray(before)
        _set_core(after, logged, shape, sequence)
        start = _CORE_3 if shape.v5 else _CORE
        attributes = start + 8 * after[82] if after[82] else len(after)
        if attributes > len(after):
            raise Damaged("an inode in its log is not readable")
        if fields & _DEVICE:
            after[start : start + 4] = device[::-1]
        forks = iter(item[2:])
        for wanted, root, first, end in (
            (fields & _FORK, _ROOT, start, attributes),
            (fields & _ATTRIBUTES, _ATTRIBUTES_ROOT, attributes, len(after)),
        ):
            if wanted and len(item) > 2:
                data = next(forks, None)
                if data is None:
                    raise Damaged("an inode in its log is not readable")
                piece = _root(bytes(data), end - first, shape) if wanted & root else bytes(data)
                if len(piece) > end - first:
                    raise Damaged("an inode in its log is too long")
                after[first : first + len(piece)] = piece
        self._volume.write(at, bytes(after))

    def _newer(self, before: bytes, logged: bytes, sequence: int) -> bool:
        """Whether an inode on disk is newer than one in the log."""
        if before[4] >= 3:
            age = int.from_bytes(before[112:120], "big")
            return age not in (0, _NEVER) and age > sequence
        flushes, on_disk = int.from_bytes(logged[30:32], "little"), int.from_bytes(before[30:32], "big")
        wrapped = on_disk == _MOST_FLUSHES and flushes < _MOST_FLUSHES >> 1
        return not self._shape.v5 and flushes < on_disk and not wrapped


def _change(begun: bytes) -> tuple[int, xfs_shapes.Change] | None:
    """The inode and the one change of its map that were begun; None where it is something else."""
    if len(begun) != _CHANGE or int.from_bytes(begun[4:8], "little") != 1:
        return None
    inode, block, first, count, flags = struct.unpack_from("<QQQII", begun, 16)
    if flags & ~_UNWRITTEN not in (_SET, _CUT) or not 0 < first + count < 1 << 50:
        return None
    place = block if flags & ~_UNWRITTEN == _SET else None
    return inode, xfs_shapes.Change(first, count, place, bool(flags & _UNWRITTEN))


def _kind(item: _Item) -> int:
    return int.from_bytes(item[0][:2], "little")


def _ordered(items: Iterable[_Item]) -> Iterator[_Item]:
    """In the order in which they build on each other: buffers and new inodes, inodes and the rest, what was freed."""
    later: list[_Item] = []
    last: list[_Item] = []
    for item in items:
        kind = _kind(item)
        if kind == _BUFFER and _buffer(item)[0] & _CANCELLED:
            last.append(item)
        elif kind in (_BUFFER, _CREATE):
            yield item
        else:
            later.append(item)
    yield from later
    yield from last


def _buffer(item: _Item) -> tuple[int, int, int]:
    """Flags, length and place of a buffer, in basic blocks. Raises ``Damaged``."""
    if len(item[0]) < 20:
        raise Damaged("a buffer in its log is not readable")
    flags, length, place = struct.unpack_from("<HHq", item[0], 4)
    return flags, length, place


def _pieces(item: _Item) -> Iterator[tuple[int, bytes]]:
    """Offsets in a buffer and what was changed there, as the bits of its map tell. Raises ``Damaged``."""
    (words,) = struct.unpack_from("<I", item[0], 16)
    if words > 64 or 20 + 4 * words > len(item[0]):
        raise Damaged("a buffer in its log is not readable")
    bits = int.from_bytes(item[0][20 : 20 + 4 * words], "little")
    at = 0
    for data in item[1:]:
        if not bits >> at:
            raise Damaged("a buffer in its log has more pieces than places")
        at += ((bits >> at) & -(bits >> at)).bit_length() - 1
        run = (~(bits >> at) & (bits >> at) + 1).bit_length() - 1
        # A run that crosses a page is written in two pieces.
        run = min(run, len(data) // _GRAIN)
        if not run:
            raise Damaged("a buffer in its log is not readable")
        yield at * _GRAIN, bytes(data[: run * _GRAIN])
        at += run


def _age(block: bytes, shape: xfs_shapes.Shape) -> int:
    """Up to where in the log a block has taken part in; -1 where it does not say, or belongs to another volume."""
    if block[:4] == b"XFSB":
        at, identity, own = _SUPERBLOCK_AGE
        identity = own if shape.own_uuid != shape.uuid else identity
    elif block[:4] in _AGES:
        at, identity = _AGES[block[:4]]
    elif block[8:10] in _HASHES:
        at, identity = _HASHES_AGE
    else:
        return -1
    age = int.from_bytes(block[at : at + 8], "big")
    if block[identity : identity + 16] != shape.own_uuid or age in (0, _NEVER):
        return -1
    return age


def _cluster(shape: xfs_shapes.Shape) -> int:
    """Bytes of inodes that are read and written together."""
    size = _CLUSTER * shape.inode // _SMALLEST if shape.v5 else _CLUSTER
    return size if shape.alignment * shape.block >= size else _CLUSTER


def _fresh(shape: xfs_shapes.Shape, number: int, generation: bytes) -> bytes:
    """An inode that was never in use."""
    data = bytearray(shape.inode)
    data[:2] = b"IN"
    data[4] = 3 if shape.v5 else 2
    data[92:96] = generation
    data[96:100] = b"\xff" * 4
    if shape.v5:
        data[152:160] = number.to_bytes(8, "big")
        data[160:176] = shape.own_uuid
    return bytes(data)


def _inode(region: bytes | bytearray) -> tuple[int, int, int, int, bytes]:
    """Which fields of an inode were changed, the place and length of its buffer in basic blocks, its offset, a device.

    Raises ``Damaged``. Machines of 32 bits have written it without padding.
    """
    if len(region) not in (52, 56):
        raise Damaged("an inode in its log is not readable")
    (fields,) = struct.unpack_from("<I", region, 4)
    device, place, length, offset = struct.unpack_from("<4s12xqii", region, len(region) - 32)
    return fields, place, length, offset, device


def _set_core(inode: bytearray, logged: bytes, shape: xfs_shapes.Shape, sequence: int) -> None:
    """Set the fields of an inode on disk to those in the log, which has them in the other byte order."""
    if len(logged) < (_CORE_3 if shape.v5 else _OLD) or logged[:2] != b"NI" or (logged[4] == 3) != shape.v5:
        raise Damaged("an inode in its log is none")
    (flags,) = struct.unpack_from("<Q", logged, 120) if shape.v5 else (0,)
    many, one = ("QQQ", "Q") if flags & _BIG_TIME else ("iIiIiI", "iI")
    fields = _FIELDS.format(times=many)
    values = list(struct.unpack_from(f"<{fields}", logged))
    if not shape.v5:
        # The counter of flushes begins anew.
        values[10] = 0
    struct.pack_into(f">{fields}", inode, 0, *values)
    if shape.v5:
        fields = _FIELDS_3.format(time=one)
        values = list(struct.unpack_from(f"<{fields}", logged, 104))
        values[1] = sequence
        struct.pack_into(f">{fields}", inode, 104, *values)


def _root(data: bytes, room: int, shape: xfs_shapes.Shape) -> bytes:
    """The root of a tree of extents as an inode keeps it: in the log it is a block like others. Raises ``Damaged``."""
    head = 72 if shape.v5 else 24
    level, count = struct.unpack_from(">HH", data, 4) if len(data) >= head else (0, 0)
    most, room = (len(data) - head) // 16, (room - 4) // 16
    if not level or not 0 < count <= min(most, room):
        raise Damaged("a tree of extents in its log is not readable")
    found = bytearray(4 + 16 * room)
    struct.pack_into(">HH", found, 0, level, count)
    found[4 : 4 + 8 * count] = data[head : head + 8 * count]
    pointers = head + 8 * most
    found[4 + 8 * room : 4 + 8 * room + 8 * count] = data[pointers : pointers + 8 * count]
    return bytes(found)
