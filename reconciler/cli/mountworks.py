"""What ``holdfast mount`` serves: NBD exports of the chosen disks, and a folder of disks and files.

``mounting`` chooses the image and waits; here the servers are started, watched and ended, the last one first.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from reconciler.api.documents import results
from reconciler.base import errors
from reconciler.controller import choices
from reconciler.operations import exports


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The command line."""

    names: tuple[str, ...]
    writable: bool
    socket: Path | None
    port: int | None
    address: str
    at: Path | None

    def check(self) -> None:
        """Raises ``UsageError`` for words that contradict each other."""
        if self.socket is not None and self.port is not None:
            raise errors.UsageError("--socket and --port contradict each other", hint="choose one")
        if self.port is not None and not 0 <= self.port < 65536:
            raise errors.UsageError(f"--port {self.port}: a port is below 65536")

    @property
    def placed(self) -> bool:
        """Whether it is said where the NBD server listens."""
        return self.socket is not None or self.port is not None


class Served:
    """What is served."""

    def __init__(self, running: list[exports.Export], *, writable: bool) -> None:
        self._running = running
        self._writable = writable
        #: The folder of disks and files, None where there is none.
        self.mount_point: Path | None = None

    @property
    def disks(self) -> tuple[results.MountedDisk, ...]:
        """The disks, in the order of the image."""
        return tuple(
            results.MountedDisk(name=name, uri=uri, size_bytes=export.sizes[name], writable=self._writable)
            for export in self._running
            for name, uri in export.uris.items()
        )

    def check(self) -> None:
        """Raises ``SourceError`` where a server has ended by itself."""
        if not all(export.alive for export in self._running):
            raise errors.SourceError("the NBD server has ended", hint="mount the image again")


@contextlib.contextmanager
def serve(
    asked: Asked, choice: choices.Choice, cache: Path | None, told: Callable[[exports.Trouble], None]
) -> Iterator[Served]:
    """Serve until the block ends. ``told`` hears what goes wrong meanwhile. Raises what ``exports.serve`` raises."""
    copies = tuple(exports.Copy(folder=copy.path, cache=cache) for copy in choice.copies)
    with contextlib.ExitStack() as stack:
        orders = [
            exports.Order(
                image=choice.image,
                copies=copies,
                disks=names,
                writable=asked.writable,
                socket=asked.socket,
                address=None if asked.port is None else asked.address,
                port=asked.port or 0,
            )
            for names in _shares(asked, choice, cache)
        ]
        running = [stack.enter_context(exports.serve(order, told=told)) for order in orders]
        yield Served(running, writable=asked.writable)


def _shares(asked: Asked, choice: choices.Choice, cache: Path | None) -> list[tuple[str, ...]]:
    """The disks of each server: what is written to one must not appear on another."""
    if not asked.writable:
        return [asked.names]
    names = asked.names
    if not names:
        with contextlib.closing(choice.open(cache, lambda _failure: None)) as stored:
            names = tuple(record.name for record in stored.label.disks)
    if len(names) > 1 and asked.placed:
        raise errors.UsageError(
            "--socket and --port serve one writable disk", hint=f"name it with --disk: {', '.join(names)}"
        )
    return [(name,) for name in names]
