"""What an NTFS volume says of itself: its label, whether it is marked dirty, and whether its log was closed.

Used by ``ntfs`` and ``ntfs_nodes``; separate because it needs a handful of the file system's own records alone.
"""

from __future__ import annotations

import struct

from reconciler.guests.parsers import ntfs_records as records

_LOG, _VOLUME = 2, 3
_LOG_HEAD = 64 << 10
_CLOSED, _NO_CLIENT = 0x0002, 0xFFFF
_DIRTY = 0x0001


def label(table: records.Table) -> str:
    """The volume's label, empty where it has none. Raises ``Damaged`` and ``Truncated``."""
    found = table.own(_VOLUME, records.LABEL)
    return found.value.decode("utf-16-le", "replace") if found is not None and found.value else ""


def state(table: records.Table) -> tuple[str, str]:
    """Why its log is not closed, and why the volume as a whole is in doubt; empty where they are well.

    Raises ``Damaged`` and ``Truncated``.
    """
    found = table.own(_VOLUME, records.FACTS)
    value = found.value if found is not None else None
    if value is None or len(value) < 12:
        return "", "its state is not recorded"
    dirty = "it is marked dirty" if int.from_bytes(value[10:12], "little") & _DIRTY else ""
    log = table.own(_LOG, records.DATA)
    return ("its log is missing" if log is None else _log(table.value(log, _LOG_HEAD))), dirty


def _log(head: bytes) -> str:
    """Why the log that starts with ``head`` is not closed; empty where it is, or was emptied."""
    if head and not head.strip(b"\xff"):
        return ""
    newest, closed = -1, False
    page = int.from_bytes(head[16:20], "little") if head[:4] in (b"RSTR", b"CHKD") else 4096
    for at in (0, page):
        if head[at : at + 4] not in (b"RSTR", b"CHKD") or len(head) < at + 512:
            continue
        area = at + int.from_bytes(head[at + 24 : at + 26], "little")
        # Beyond this the end of a sector, which stands elsewhere, would be read as part of the area.
        if area + 16 > at + 510:
            continue
        lsn, _, _, clients, flags = struct.unpack_from("<QHHHH", head, area)
        if lsn > newest:
            newest, closed = lsn, bool(flags & _CLOSED) or clients == _NO_CLIENT
    return "" if closed else "its log is not closed"
