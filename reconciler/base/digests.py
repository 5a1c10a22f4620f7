"""Digests: of a disk block by block, of JSON values, of texts. All BLAKE3.

The digest of a disk is BLAKE3 over the concatenated 32-byte BLAKE3 digests of its 1 MiB blocks (the last one may be
short). So an incremental replaces single entries of the list and still proves the whole disk.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from blake3 import blake3

BLOCK = 1 << 20
DIGEST_SIZE = 32
_PREFIX = "blake3-1m:"


def digest(data: bytes | bytearray | memoryview) -> bytes:
    """BLAKE3 of ``data``, 32 bytes."""
    return blake3(data).digest()


@functools.lru_cache(maxsize=16)
def zero_digest(length: int) -> bytes:
    """BLAKE3 of ``length`` zero bytes."""
    return blake3(bytes(length)).digest()


def block_count(size: int) -> int:
    """How many blocks a disk of ``size`` bytes has."""
    return -(-size // BLOCK)


def block_length(index: int, size: int) -> int:
    """Bytes in block ``index`` of a disk of ``size`` bytes."""
    return min(BLOCK, size - index * BLOCK)


def zero_list(size: int) -> bytearray:
    """The digest list of a disk of zeros."""
    full, rest = divmod(size, BLOCK)
    result = bytearray(zero_digest(BLOCK) * full)
    if rest:
        result += zero_digest(rest)
    return result


def disk_digest(block_digests: bytes | bytearray | memoryview) -> str:
    """The digest of a disk from its list, spelled ``blake3-1m:<hex>``."""
    return _PREFIX + blake3(block_digests).hexdigest()


def canonical_json(value: Any) -> bytes:
    """One spelling for equal JSON values: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def json_digest(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """``blake3:<hex>`` of a JSON value in its canonical spelling."""
    return "blake3:" + blake3(canonical_json(value)).hexdigest()
