"""Containers: immutable files of segments, written once, each byte of them covered by a digest.

The bytes are described in ``FORMAT.md``; this module alone knows them. ``encode`` makes records, ``Builder`` grows a
container's footer while its records are written elsewhere, ``read_footer`` proves what a file says of itself,
``decode`` proves one segment, ``prove`` every byte. Nothing here knows locks, indexes or images.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import struct
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import zstandard
from blake3 import blake3

from reconciler.base import disks, errors, files
from reconciler.storage import blocks

VERSION: Final = 1
#: Bytes at which a container is closed.
TARGET_SIZE: Final = 64 << 20
#: No segment is longer than this, so a false length cannot claim all memory.
MAX_RAW: Final = 16 << 20
DATA: Final = 1
META_A: Final = 2
META_B: Final = 3
#: A meta segment is stored once in each of these.
META: Final = (META_A, META_B)
#: File name suffix by kind.
SUFFIXES: Final = {DATA: "data", META_A: "meta-a", META_B: "meta-b"}
KINDS: Final = {suffix: kind for kind, suffix in SUFFIXES.items()}
CONDEMNED: Final = ".condemned"
#: Out of use like a condemned one, and never deleted: nothing in it could be proven, or not all of it be read.
BROKEN: Final = ".broken"
RAW: Final = 0
ZSTD: Final = 1
FINGERPRINT_SIZE: Final = 32

HEADER: Final = struct.Struct("<8sHBxI16s8s24x")
RECORD: Final = struct.Struct("<4sB3xII32s")
ENTRY: Final = struct.Struct("<32sIIIB3x")
TRAILER: Final = struct.Struct("<QIH2x32s32s8s")
HEADER_MAGIC: Final = b"HFPOOL\r\n"
RECORD_MAGIC: Final = b"HFRC"
TRAILER_MAGIC: Final = b"\r\nHFEND\n"
#: What a record costs beside its stored bytes.
OVERHEAD: Final = RECORD.size + ENTRY.size
#: What a container costs beside its records.
FRAME: Final = HEADER.size + TRAILER.size
_PROVE_STEP: Final = 4 << 20
#: The smallest part of a file that a device loses.
_PAGE: Final = 4096

_local = threading.local()
_decompressors: list[zstandard.ZstdDecompressor] = []


class Damaged(Exception):
    """A container or a segment that is not what it says. Callers name the image concerned."""


class Record(NamedTuple):
    """One line of a footer; a tuple, as there are millions of them."""

    fingerprint: bytes
    #: Where the record begins in the file.
    offset: int
    #: Bytes of payload.
    stored: int
    #: Bytes after decoding.
    raw: int
    encoding: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Footer:
    """What a container says of itself, proven."""

    kind: int
    container: int
    #: In file order.
    records: tuple[Record, ...]
    #: Bytes of the whole file.
    size: int
    #: BLAKE3 of header and records.
    content_digest: bytes


def file_name(container: int, kind: int) -> str:
    """The name of a container's file."""
    return f"{container:016x}.{SUFFIXES[kind]}"


def path(folder: Path, container: int, kind: int) -> Path:
    """Where a container lies under the pool's ``containers`` folder."""
    name = file_name(container, kind)
    return folder / name[:2] / name


def parse_name(name: str) -> tuple[int, int] | None:
    """Container and kind from a file name without ``.condemned``, None for any other name."""
    stem, _, suffix = name.partition(".")
    if suffix not in KINDS or len(stem) != 16:
        return None
    try:
        return int(stem, 16), KINDS[suffix]
    except ValueError:
        return None


def header(pool: uuid.UUID, container: int, kind: int) -> bytes:
    """The first bytes of a container."""
    return HEADER.pack(HEADER_MAGIC, VERSION, kind, HEADER.size, pool.bytes, container.to_bytes(8, "little"))


def compress(data: disks.Buffer, level: int | None) -> tuple[int, disks.Buffer]:
    """Encoding and payload of one segment; raw where compression is off (None) or does not shrink it."""
    if level is None:
        return RAW, data
    compressors = _local.__dict__.setdefault("compressors", {})
    compressor = compressors.get(level)
    if compressor is None:
        compressor = compressors[level] = zstandard.ZstdCompressor(level=level)
    packed: bytes = compressor.compress(data)
    return (ZSTD, packed) if len(packed) < len(data) else (RAW, data)


def record_header(fingerprint: bytes, encoding: int, stored: int, raw: int) -> bytes:
    """What stands before a record's payload."""
    return RECORD.pack(RECORD_MAGIC, encoding, stored, raw, fingerprint)


class Builder:
    """The footer of a container in the making: hashes what is appended and notes where each record lies."""

    def __init__(self, pool: uuid.UUID, container: int, kind: int) -> None:
        self._header = header(pool, container, kind)
        self._content = blake3(self._header)
        self._entries: list[bytes] = []
        self.fingerprints: list[bytes] = []
        self.locations: list[tuple[int, int]] = []
        #: Bytes of header and records so far.
        self.size = len(self._header)

    @property
    def header(self) -> bytes:
        """The first bytes of the file."""
        return self._header

    def add(self, records: list[tuple[bytes, int, disks.Buffer, int]]) -> bytes:
        """The bytes to write next for records (fingerprint, encoding, payload, raw length), noted as written."""
        parts: list[disks.Buffer] = []
        for fingerprint, encoding, payload, raw in records:
            stored = len(payload)
            parts += (record_header(fingerprint, encoding, stored, raw), payload)
            self._entries.append(ENTRY.pack(fingerprint, self.size, stored, raw, encoding))
            self.fingerprints.append(fingerprint)
            self.locations.append((self.size, RECORD.size + stored))
            self.size += RECORD.size + stored
        joined = b"".join(parts)
        self._content.update(joined)
        return joined

    def end(self) -> bytes:
        """Footer and trailer."""
        footer = b"".join(self._entries)
        return footer + _trailer(self._header, footer, self.size, len(self._entries), self._content.digest())


def parse_footer(builder: Builder, end: bytes) -> Footer:
    """What ``read_footer`` would find in a container that was just written."""
    _, _, kind, _, _, container = HEADER.unpack(builder.header)
    count = len(builder.fingerprints)
    content = TRAILER.unpack(end[-TRAILER.size :])[3]
    return Footer(
        kind=kind,
        container=int.from_bytes(container, "little"),
        records=tuple(map(Record._make, ENTRY.iter_unpack(end[: count * ENTRY.size]))),
        size=builder.size + len(end),
        content_digest=content,
    )


def _trailer(head: bytes, footer: bytes, offset: int, count: int, content: bytes) -> bytes:
    unproven = TRAILER.pack(offset, count, VERSION, content, b"", b"")
    digest = blake3(head + footer + unproven[: TRAILER.size - 40]).digest()
    return TRAILER.pack(offset, count, VERSION, content, digest, TRAILER_MAGIC)


def pread(handle: int, length: int, offset: int) -> bytes:
    """``os.pread`` that ends before a part which the device lost, so that what lies there is cut off."""
    try:
        return os.pread(handle, length, offset)
    except OSError as error:
        if not blocks.is_damage(error):
            raise
        return b""


@contextlib.contextmanager
def opened(file: Path) -> Iterator[io.FileIO]:
    """The file. Raises ``Damaged`` where the device lost the way to it, and ``OSError``."""
    try:
        handle = file.open("rb", buffering=0)
    except OSError as error:
        if not blocks.is_damage(error):
            raise
        raise Damaged(f"{file}: {error.strerror}") from error
    with handle:
        yield handle


def read_footer(file: Path, pool: uuid.UUID) -> Footer:
    """The proven footer of a container. Raises ``Damaged``, ``FormatTooNew``, or ``OSError``."""
    with opened(file) as handle:
        size = os.fstat(handle.fileno()).st_size
        if size < FRAME:
            raise Damaged(f"{file}: {size} bytes are too few for a container")
        head = pread(handle.fileno(), HEADER.size, 0)
        tail = pread(handle.fileno(), TRAILER.size, size - TRAILER.size)
        kind, container = _check_header(head, file, pool)
        if len(tail) != TRAILER.size:
            raise Damaged(f"{file}: its end cannot be read")
        offset, count, version, content, digest, magic = TRAILER.unpack(tail)
        if magic != TRAILER_MAGIC:
            raise Damaged(f"{file}: its end is missing")
        if version > VERSION:
            raise errors.FormatTooNew(
                f"{file}: container format {version} is newer than {VERSION}", hint="upgrade Holdfast"
            )
        if offset < HEADER.size or offset + count * ENTRY.size + TRAILER.size != size:
            raise Damaged(f"{file}: its footer does not fit its size")
        footer = pread(handle.fileno(), count * ENTRY.size, offset)
    if blake3(head + footer + tail[: TRAILER.size - 40]).digest() != digest:
        raise Damaged(f"{file}: its footer contradicts its digest")
    records = tuple(map(Record._make, ENTRY.iter_unpack(footer)))
    return Footer(kind=kind, container=container, records=records, size=size, content_digest=content)


def _check_header(head: bytes, file: Path, pool: uuid.UUID) -> tuple[int, int]:
    if len(head) != HEADER.size:
        raise Damaged(f"{file}: its header is cut off")
    magic, version, kind, length, owner, container = HEADER.unpack(head)
    if magic != HEADER_MAGIC:
        raise Damaged(f"{file}: not a container")
    if version > VERSION:
        raise errors.FormatTooNew(
            f"{file}: container format {version} is newer than {VERSION}", hint="upgrade Holdfast"
        )
    number = int.from_bytes(container, "little")
    if length != HEADER.size or kind not in SUFFIXES or owner != pool.bytes:
        raise Damaged(f"{file}: its header is false, or it belongs to another pool")
    if parse_name(file.name.removesuffix(CONDEMNED)) != (number, kind) and not file.name.startswith(
        files.TEMPORARY_PREFIX
    ):
        raise Damaged(f"{file}: its name and its header differ")
    return kind, number


def decode(record: disks.Buffer, fingerprint: bytes, key: bytes | None, into: memoryview | None = None) -> disks.Buffer:
    """The raw bytes of one record (header and payload), proven by ``fingerprint``. Raises ``Damaged``.

    Without ``key`` only header and length are proven; the bytes are the caller's to prove. ``into``: where they are
    wanted if they have its length; they are put there, and ``into`` itself is returned, where that saves a copy.
    """
    view = memoryview(record)
    if len(view) < RECORD.size:
        raise Damaged("the record is cut off")
    magic, encoding, stored, raw, found = RECORD.unpack_from(view)
    if magic != RECORD_MAGIC or found != fingerprint or stored != len(view) - RECORD.size or raw > MAX_RAW:
        raise Damaged("the record's header is false")
    payload = view[RECORD.size :]
    if encoding == RAW:
        data: disks.Buffer = payload
    elif encoding == ZSTD:
        data = _decompress(payload, raw, None if into is None or len(into) != raw else into)
    else:
        raise Damaged(f"the record has the unknown encoding {encoding}")
    if len(data) != raw or (key is not None and blake3(data, key=key).digest() != fingerprint):
        raise Damaged("the segment contradicts its fingerprint")
    return data


def _decompress(payload: memoryview, raw: int, into: memoryview | None) -> disks.Buffer:
    # Lent out, not bound to threads: a server's threads have no memory of their own from one call to the next.
    try:
        decompressor = _decompressors.pop()
    except IndexError:
        decompressor = zstandard.ZstdDecompressor()
    try:
        if zstandard.frame_content_size(payload) != raw:
            raise Damaged("the segment's frame has a false length")
        if into is None:
            return bytes(decompressor.decompress(payload, max_output_size=raw))
        if decompressor.stream_reader(payload).readinto(into) != raw:
            raise Damaged("the segment's frame is cut off")
        return into
    except zstandard.ZstdError as error:
        raise Damaged(f"the segment cannot be decompressed: {error}") from error
    finally:
        _decompressors.append(decompressor)


def prove(file: Path, pool: uuid.UUID) -> Footer:
    """Prove every byte of a container by its digests. Raises ``Damaged``, ``FormatTooNew`` or ``OSError``."""
    footer = read_footer(file, pool)
    rest = footer.size - TRAILER.size - len(footer.records) * ENTRY.size
    content = blake3()
    with opened(file) as handle:
        position = 0
        while position < rest:
            data = pread(handle.fileno(), min(_PROVE_STEP, rest - position), position)
            if not data:
                raise Damaged(f"{file}: what follows {position} cannot be read")
            content.update(data)
            position += len(data)
    if content.digest() != footer.content_digest:
        raise Damaged(f"{file}: its records contradict their digest")
    return footer


def walk(data: bytes | bytearray, key: bytes) -> Iterator[tuple[bytes, int, bytes, int]]:
    """The records (fingerprint, encoding, payload, raw length) that prove true in a file whose footer does not.

    Nothing else of the file is believed: ``key`` is the pool's, so a record of another pool proves false.
    """
    at = data.find(RECORD_MAGIC)
    while 0 <= at <= len(data) - RECORD.size:
        _, encoding, stored, raw, fingerprint = RECORD.unpack_from(data, at)
        end = at + RECORD.size + stored
        try:
            decode(data[at:end] if stored <= MAX_RAW else b"", fingerprint, key)
        except Damaged:
            end = at + 1
        else:
            yield fingerprint, encoding, bytes(data[at + RECORD.size : end]), raw
        at = data.find(RECORD_MAGIC, end)


def content(file: Path) -> tuple[bytearray, bool]:
    """All bytes of a container, zeros where the device lost them, and whether it lost none.

    Raises ``Damaged`` where the file cannot be opened for that reason, and ``OSError``.
    """
    with opened(file) as handle:
        data = bytearray(os.fstat(handle.fileno()).st_size)
        position, whole = 0, True
        while position < len(data):
            found = pread(handle.fileno(), min(_PROVE_STEP, len(data) - position), position)
            data[position : position + len(found)] = found
            position += len(found)
            if not found:
                whole = False
                position += _PAGE - position % _PAGE
        return data, whole
