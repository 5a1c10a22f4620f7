"""Which areas of a disk may differ from an earlier image of it: when the vCenter's word can be asked for, and its sum.

Everything here is pure: facts of the earlier reading and of this one go in, a change id to count from or the reason for
a full read comes out. A change id counts writes to one disk under one tracking. What a revert undid it need not count,
so a disk must still stand on the file that the earlier image was read from.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from reconciler.base import digests, extents, quantities, times
from reconciler.sources import machines

#: Changes are counted in steps of this many bytes, or of a multiple: the last step may end beyond the disk.
_STEP: Final = 64 << 10
_LARGEST_STEP: Final = 1 << 20
#: Blocks are chosen for a test by their place among a hundred.
_HUNDRED: Final = 100


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a reading knows of one disk, kept with its image."""

    #: Bytes.
    size: int
    #: Of the disk's content; empty where the vCenter does not say.
    uuid: str
    #: What changes since are counted from; None without change tracking.
    change_id: str | None
    #: Key of the device, and where it hangs.
    key: int
    slot: str
    #: The frozen file, and those that it stands on.
    chain: tuple[str, ...]
    #: Whether the machine had other snapshots than ours, which it could be reverted to.
    others: bool = False
    #: When the disk was last read as a whole.
    full: dt.datetime | None = None
    #: How many readings since then tested blocks that were called unchanged.
    round: int = 0
    #: How its bytes were read, such as ``datastore``.
    transport: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Since:
    """Areas may be asked for."""

    #: What they are counted from.
    change_id: str
    #: The facts of the image that holds it.
    then: Facts


def remember(facts: Facts) -> str:
    """Facts as a line of JSON."""
    document = {
        "size": facts.size, "uuid": facts.uuid, "changeId": facts.change_id, "key": facts.key, "slot": facts.slot,
        "chain": facts.chain, "others": facts.others, "full": times.show(facts.full) if facts.full else None,
        "round": facts.round, "transport": facts.transport,
    }  # fmt: skip
    return json.dumps(document, separators=(",", ":"))


def recall(text: str) -> Facts:
    """Facts from a line of JSON. Raises ``ValueError``."""
    try:
        then: dict[str, Any] = json.loads(text)
        change_id = then["changeId"]
        return Facts(
            size=int(then["size"]),
            uuid=str(then["uuid"]),
            change_id=None if change_id is None else str(change_id),
            key=int(then["key"]),
            slot=str(then["slot"]),
            chain=tuple(str(one) for one in then["chain"]),
            others=bool(then["others"]),
            full=times.parse(then["full"]) if then["full"] else None,
            round=int(then["round"]),
            transport=str(then["transport"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not facts of a disk: {error!r}") from error


def no(code: str, message: str) -> machines.DiskChanges:
    """The whole disk must be read."""
    return machines.DiskChanges(changed=None, reason=machines.Found(code=code, message=message))


def since(
    label: str,
    now: Facts,
    parent: Mapping[str, str],
    *,
    full_every: quantities.Duration | None = None,
    at: dt.datetime,
) -> Since | machines.Found:
    """What to count from since the image whose source state is ``parent``, or why the disk is read as a whole."""
    text = parent.get(f"disk:{label}")
    if text is None:
        return _found("FirstRun", f"the parent holds no facts of {label}")
    try:
        then = recall(text)
    except ValueError:
        return _found("ParentUnknown", f"the parent recorded nothing usable about {label}")
    other = _other(label, now, then)
    if other is not None:
        return other
    if full_every is not None and (then.full is None or full_every.after(then.full) <= at):
        when = times.show(then.full) if then.full else "nobody knows when"
        return _found("FullEvery", f"{label} was last read as a whole at {when}; cbtDistrust.fullEvery: {full_every}")
    return _tracked(label, now, then)


def _other(label: str, now: Facts, then: Facts) -> machines.Found | None:
    """Whether it is another disk than then."""
    if then.uuid != now.uuid:
        return _found("DiskReplaced", f"{label} is disk {now.uuid or 'without a uuid'}, the parent's was {then.uuid}")
    if then.size != now.size:
        return _found("DiskResized", f"{label} had {then.size} bytes in the parent and has {now.size} now")
    if then.key != now.key and then.slot != now.slot:
        return _found("DiskMoved", f"{label} hung at {then.slot or then.key} and hangs at {now.slot or now.key} now")
    if not then.chain or not now.chain or then.chain[0] in now.chain:
        return None
    if then.others or now.others:
        return _found(
            "Reverted",
            f"{label} does not stand on {then.chain[0]} any more, which the parent was read from: the machine was "
            "reverted, or snapshots were removed",
        )
    return _found("DiskMoved", f"{label} was {then.chain[0]} and is {now.chain[0]} now")


def _tracked(label: str, now: Facts, then: Facts) -> Since | machines.Found:
    if now.change_id is None:
        return _found("TrackingOff", f"changes of {label} are not tracked")
    if then.change_id is None:
        return _found("TrackingNew", f"changes of {label} were not tracked yet when the parent was read")
    (known, before), (uuid, count) = _parts(then.change_id), _parts(now.change_id)
    if known != uuid:
        return _found(
            "ChangeIdReset", f"change tracking of {label} began anew: {then.change_id} became {now.change_id}"
        )
    if before is not None and count is not None and count <= before:
        return _found("Reverted", f"change tracking of {label} went back from {then.change_id} to {now.change_id}")
    return Since(change_id=then.change_id, then=then)


def _parts(change_id: str) -> tuple[str, int | None]:
    """The tracking and its count, of ``UUID/NUMBER``."""
    uuid, _, count = change_id.rpartition("/")
    return (uuid or change_id, int(count) if uuid and count.isascii() and count.isdigit() else None)


def _found(code: str, message: str) -> machines.Found:
    return machines.Found(code=code, message=message)


# -- answers --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer: the region of the disk that it speaks of, and the changed areas in it. All in bytes."""

    start: int
    length: int
    areas: extents.Extents


class Odd(Exception):
    """Answers that contradict themselves or the disk; nothing of them is believed."""


def collect(ask: Callable[[int], Answer], size: int) -> extents.Extents:
    """All areas of a disk of ``size`` bytes. ``ask`` answers from an offset on, as far as it likes.

    Raises ``Odd``, and whatever ``ask`` raises.
    """
    found: list[extents.Extent] = []
    offset = 0
    while offset < size:
        answer = ask(offset)
        end = answer.start + answer.length
        if answer.start > offset or end <= offset:
            raise Odd(f"asked from byte {offset}, it spoke of {answer.length} bytes from {answer.start}")
        if _beyond(end, size):
            raise Odd(f"it spoke of byte {end} of a disk of {size}")
        for start, length in answer.areas:
            if start < 0 or length < 0 or start > size or _beyond(start + length, size):
                raise Odd(f"an area of {length} bytes at {start} lies beyond a disk of {size}")
        found += answer.areas
        # An area that reaches past what the answer speaks of is believed, its end is asked for all the same.
        offset = end
    return extents.clip(found, size)


def _beyond(end: int, size: int) -> bool:
    """Whether ``end`` is past the disk, by more than the rest of a last step."""
    return end > size and (end % _STEP != 0 or end - size >= _LARGEST_STEP)


def tests(disk: str, size: int, changed: extents.Extents, share: int, turn: int) -> extents.Extents:
    """The blocks among those called unchanged that are read in this turn: ``share`` of a hundred.

    Each block has its place among a hundred, which looks random and stays; turns go around them, so that all come
    round. ``disk`` names the disk for all time.
    """
    if share <= 0:
        return ()
    blocks = extents.subtract(((0, size),), extents.align(changed, digests.BLOCK, size))
    wanted = {(turn * share + step) % _HUNDRED for step in range(min(share, _HUNDRED))}
    return extents.normalise(
        (offset, length)
        for offset, length in extents.pieces(blocks, digests.BLOCK)
        if _place(disk, offset // digests.BLOCK) in wanted
    )


def _place(disk: str, block: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{disk} {block}".encode(), digest_size=4).digest(), "big") % _HUNDRED


def samples(key: str, size: int, data: Iterable[extents.Extent], *, places: int, length: int) -> extents.Extents:
    """Where to look whether everything outside ``data`` reads as zero: up to ``places`` ranges of up to ``length``
    bytes: its beginning and end, the surroundings of areas, and places that ``key`` draws."""
    holes = extents.subtract(((0, size),), extents.clip(data, size))
    if not holes:
        return ()
    wanted: list[extents.Extent] = [_first(holes[0], length), _last(holes[-1], length)]
    edges = [edge for hole in holes for edge in (_first(hole, length), _last(hole, length))]
    wanted += _spread(edges, places // 2, key)
    wanted += _drawn(holes, places - len(wanted), length, key)
    return extents.intersect(extents.normalise(wanted), holes)


def _first(hole: extents.Extent, length: int) -> extents.Extent:
    return hole[0], min(length, hole[1])


def _last(hole: extents.Extent, length: int) -> extents.Extent:
    return hole[0] + hole[1] - min(length, hole[1]), min(length, hole[1])


def _spread(edges: list[extents.Extent], count: int, key: str) -> list[extents.Extent]:
    """Some of many edges."""
    if len(edges) <= count:
        return edges
    return [edges[number % len(edges)] for number in _numbers(f"{key} edges", count)]


def _drawn(holes: extents.Extents, count: int, length: int, key: str) -> list[extents.Extent]:
    """Places in holes, each byte of which is as likely as any other."""
    whole = extents.total(holes)
    found: list[extents.Extent] = []
    targets = sorted(number % whole for number in _numbers(f"{key} places", max(count, 0)))
    before = 0
    rest = iter(holes)
    hole = next(rest)
    for target in targets:
        while target >= before + hole[1]:
            before += hole[1]
            hole = next(rest)
        inside = min(target - before, max(hole[1] - length, 0))
        found.append((hole[0] + inside, min(length, hole[1])))
    return found


def _numbers(key: str, count: int) -> list[int]:
    return [
        int.from_bytes(hashlib.blake2b(f"{key} {number}".encode(), digest_size=8).digest(), "big")
        for number in range(count)
    ]
