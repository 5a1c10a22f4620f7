"""The script that nbdkit's Python plugin runs: it serves the disks of one stored image.

``exports`` starts it. nbdkit looks up the functions below by name; their handles are disks. ``channel=N`` names the
inherited socket over which the order comes, and over which ``exports`` hears that the server is ready, or why not, and
what clients are told as errors. Nothing of Holdfast imports this module: what it does is in ``servings``.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any, Final

import nbdkit

from reconciler.base import errors
from reconciler.operations import servings

API_VERSION: Final = 2

#: The one server of this process, from ``config`` on.
_servers: list[servings.Server] = []


def config(key: str, value: str) -> None:
    """``channel=N`` is the only word."""
    if key != "channel":
        raise ValueError(f"unknown parameter {key}")
    _servers.append(servings.Server(int(value)))


def config_complete() -> None:
    """Open what is to be served; the starter hears why that is impossible."""
    try:
        _servers[0].open()
    except errors.HoldfastError as error:
        _servers[0].say(code=error.code, message=error.message, hint=error.hint)
        raise


def thread_model() -> int:
    """Reads run side by side: most of their time is spent where Python's lock is not held."""
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def after_fork() -> None:
    """Clients may connect."""
    _servers[0].ready()


def cleanup() -> None:
    """nbdkit ends."""
    _servers[0].close()


def list_exports(_readonly: bool, _is_tls: bool) -> Sequence[tuple[str, str]]:
    """The disks by name."""
    return [(name, f"{served.disk.size} bytes") for name, served in _servers[0].disks.items()]


def default_export(_readonly: bool, _is_tls: bool) -> str:
    """The first disk."""
    return next(iter(_servers[0].disks))


def open(_readonly: bool) -> servings.Served:
    """The disk that a client names, the first one where it names none."""
    name = nbdkit.export_name() or next(iter(_servers[0].disks))
    try:
        return _servers[0].disks[name]
    except KeyError:
        nbdkit.set_error(errno.ENOENT)
        raise


def get_size(served: servings.Served) -> int:
    """Bytes."""
    return served.disk.size


def block_size(_served: servings.Served) -> tuple[int, int, int]:
    """Any byte may be asked for; whole segments are cheapest."""
    return 1, 128 << 10, 32 << 20


def can_multi_conn(_served: servings.Served) -> bool:
    """What is read never changes."""
    return True


def can_extents(_served: servings.Served) -> bool:
    """Where data is, is known."""
    return True


def extents(served: servings.Served, count: int, offset: int, _flags: int) -> Sequence[tuple[int, int, int]]:
    """Where data is and where zeros are."""
    return list(served.extents(offset, count))


def pread(served: servings.Served, buffer: Any, offset: int, _flags: int) -> None:
    """Bytes that are proven, or an error: never wrong ones."""
    try:
        buffer[:] = served.disk.pread(offset, len(buffer))
    except (errors.HoldfastError, OSError, ValueError) as error:
        nbdkit.set_error(errno.EIO)
        _servers[0].trouble(error)
        raise
