"""What ``holdfast mount`` serves: NBD exports of the chosen disks, and a folder of disks and files.

``mounting`` chooses the image and waits; here the servers are started, watched and ended, the last one first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from reconciler.api.documents import mounts as documents
from reconciler.base import errors
from reconciler.controller import choices
from reconciler.operations import exports, failovers
from reconciler.operations.mounts import fusing, trees
from reconciler.storage import opening, units

_LOGGER = logging.getLogger(__name__)
#: Bytes of decoded data that a folder of files keeps.
_MEMORY: Final = 256 << 20


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

    def __init__(
        self,
        sizes: Mapping[str, int],
        running: Sequence[exports.Export],
        mounted: fusing.Mount | None,
        *,
        writable: bool,
    ) -> None:
        uris = {name: uri for export in running for name, uri in export.uris.items()}
        self._running, self._mounted = running, mounted
        #: The disks, in the order of the image.
        self.disks = tuple(
            documents.MountedDisk(name=name, uri=uris.get(name), size_bytes=size, writable=writable and name in uris)
            for name, size in sizes.items()
        )

    @property
    def mount_point(self) -> Path | None:
        """The folder of disks and files, None where there is none."""
        return None if self._mounted is None else self._mounted.folder

    def check(self) -> None:
        """Raises ``SourceError`` where a server has ended by itself, or the folder was unmounted by somebody else."""
        if not all(export.alive for export in self._running):
            raise errors.SourceError("the NBD server has ended", hint="mount the image again")
        if self._mounted is not None and not self._mounted.alive:
            raise errors.SourceError(f"{self._mounted.folder} was unmounted", hint="mount the image again")


@contextlib.contextmanager
def serve(
    asked: Asked, choice: choices.Choice, cache: Path | None, told: Callable[[exports.Trouble], None]
) -> Iterator[Served]:
    """Serve until the block ends. ``told`` hears what goes wrong meanwhile.

    Raises what ``exports.serve`` and ``fusing.mount`` raise.
    """
    with contextlib.ExitStack() as stack:
        running = _exports(stack, asked, choice, cache, told)
        sizes = {name: size for export in running for name, size in export.sizes.items()}
        mounted = None
        if asked.at is not None:
            stored = stack.enter_context(contextlib.closing(_opened(choice, cache, told)))
            chosen = [stored.disk(name) for name in asked.names or [record.name for record in stored.label.disks]]
            sizes = sizes or {disk.name: disk.size for disk in chosen}
            tree = stack.enter_context(contextlib.closing(trees.Tree(chosen, _setting(choice))))
            mounted = stack.enter_context(contextlib.closing(fusing.mount(tree, asked.at, f"holdfast:{choice.image}")))
        yield Served(sizes, running, mounted, writable=asked.writable)


def _exports(
    stack: contextlib.ExitStack,
    asked: Asked,
    choice: choices.Choice,
    cache: Path | None,
    told: Callable[[exports.Trouble], None],
) -> list[exports.Export]:
    """The NBD servers. Where a folder is asked for and nbdkit is missing, there are none."""
    if asked.at is not None and not (asked.placed or asked.writable) and (reason := exports.missing()):
        _LOGGER.warning("no NBD server: %s", reason)
        return []
    running = []
    for names in _shares(asked, choice, cache):
        order = exports.Order(
            image=choice.image,
            copies=tuple(exports.Copy(folder=copy.path, cache=cache) for copy in choice.copies),
            disks=names,
            writable=asked.writable,
            socket=asked.socket,
            address=None if asked.port is None else asked.address,
            port=asked.port or 0,
        )
        running.append(stack.enter_context(exports.serve(order, told=told)))
    return running


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


def source(choice: choices.Choice, number: int, cache: Path | None) -> failovers.Source:
    """Copy ``number`` of the choice's, from 0, as something to read at random."""
    copy = choice.copies[number]

    def opened() -> units.StoredImage:
        unit = opening.open_folder(copy.path, cache, memory=_MEMORY // len(choice.copies))
        with contextlib.closing(unit):
            return unit.open(choice.image)

    return failovers.Source(number=copy.number, unit=copy.unit, path=copy.path, open=opened)


def _opened(
    choice: choices.Choice, cache: Path | None, told: Callable[[exports.Trouble], None]
) -> failovers.FailoverImage:
    numbers = {copy.number: number for number, copy in enumerate(choice.copies)}

    def failed(failure: failovers.Failure) -> None:
        error = failure.error
        if not isinstance(error, errors.HoldfastError):
            error = errors.UnitError(str(error))
        told(exports.Trouble(error=error, copy=numbers[failure.source.number]))

    sources = [source(choice, number, cache) for number in range(len(choice.copies))]
    return failovers.FailoverImage(choice.image, sources, failed)


def _setting(choice: choices.Choice) -> trees.Setting:
    return trees.Setting(time=int(choice.time.timestamp()) * 10**9, uid=os.getuid(), gid=os.getgid())
