"""What a server of disks does inside nbdkit: open the image, hand out proven bytes, say what went wrong.

``nbdplugins`` is the thin script around it that nbdkit calls; ``exports`` is at the other end of the channel. Separate
from the script because that can be imported by nbdkit alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from reconciler.base import disks, errors, extents
from reconciler.operations import failovers
from reconciler.storage import opening, units

#: What a client is told of zeros, in NBD's words: a hole (1) that reads as zero (2).
ZEROS: Final = 3
#: For ``prctl``: PR_SET_PDEATHSIG.
_SET_DEATH_SIGNAL: Final = 1
#: Messages about errors that are told at most.
_MANY: Final = 1000


class Server:
    """The image that is served."""

    def __init__(self, channel: int) -> None:
        self._channel = socket.socket(fileno=channel)
        self._file = self._channel.makefile("rb")
        self._lock = threading.Lock()
        self._ending = threading.Lock()
        self._told: set[str] = set()
        self._image: units.StoredImage | None = None
        self._only: failovers.Source | None = None
        self._order: dict[str, Any] = json.loads(self._file.readline())
        self.disks: dict[str, Served] = {}

    def open(self) -> None:
        """Open the image and its disks."""
        order = self._order
        sources = [self._source(number, copy) for number, copy in enumerate(order["copies"])]
        if len(sources) == 1:
            self._only = sources[0]
            self._image = self._only.open()
        else:
            self._image = failovers.FailoverImage(order["image"], sources, self._passed)
        names = order["disks"] or [record.name for record in self._image.label.disks]
        self.disks = {name: Served(self._image.disk(name)) for name in names}

    def _source(self, number: int, copy: dict[str, Any]) -> failovers.Source:
        """One copy; its number is its position in the order."""
        folder, cache = Path(copy["folder"]), Path(copy["cache"]) if copy["cache"] else None
        # What a pool's image keeps in whole blocks comes on top of its segments.
        memory = self._order["memory"] * 4 // 5 // len(self._order["copies"])

        def opened() -> units.StoredImage:
            with contextlib.closing(opening.open_folder(folder, cache, memory=memory)) as unit:
                return unit.open(self._order["image"])

        return failovers.Source(number=number, unit=str(folder), path=folder, open=opened)

    def _passed(self, failure: failovers.Failure) -> None:
        self._tell(failure.error, failure.source.number)

    def ready(self) -> None:
        """Tell the starter, and end with it."""
        # From here on nbdkit has no words that are not told over the channel.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        # nbdkit would end with the thread that started it. The channel ends with the whole process, and is enough.
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, 0)
        threading.Thread(target=self._end_with_starter, name="starter", daemon=True).start()
        gc.freeze()
        self.say(sizes={name: served.disk.size for name, served in self.disks.items()})

    def say(self, **words: Any) -> None:
        """One line to the starter, who may be gone."""
        with self._lock, contextlib.suppress(OSError):
            self._channel.sendall(json.dumps(words).encode() + b"\n")

    def trouble(self, error: Exception) -> None:
        """Tell once what a client is told as an error."""
        if self._only is not None:
            error = failovers.worded(self._only, error)
        if str(error) not in self._told and len(self._told) < _MANY:
            self._told.add(str(error))
            self._tell(error, None)

    def _tell(self, error: Exception, copy: int | None) -> None:
        message, code, hint = str(error), type(error).__name__, None
        if isinstance(error, errors.HoldfastError):
            message, code, hint = error.message, error.code, error.hint
        self.say(code=code, message=message, hint=hint, copy=copy)

    def close(self) -> None:
        """Release the image, with what it holds in temporary folders; and all else, where the starter is gone."""
        with self._ending:
            image, self._image = self._image, None
            if image is not None:
                for served in self.disks.values():
                    served.disk.close()
                image.close()
            if self._orphaned():
                self._vanish()

    def _orphaned(self) -> bool:
        try:
            return not self._channel.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _end_with_starter(self) -> None:
        with contextlib.suppress(OSError):
            self._file.read()
        # Readers may be in the middle of it, and nobody is left to care.
        insisting = threading.Timer(5.0, self._vanish)
        insisting.daemon = True
        insisting.start()
        with contextlib.suppress(errors.HoldfastError, OSError):
            self.close()
        self._vanish()

    def _vanish(self) -> None:
        for path in map(Path, self._order["removed"]):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        os.kill(os.getpid(), signal.SIGKILL)


class Served:
    """One disk, and where it holds data."""

    def __init__(self, disk: disks.Disk) -> None:
        self.disk = disk
        self._data = disk.extents()
        self._starts = [offset for offset, _ in self._data]

    def extents(self, offset: int, length: int) -> Iterable[tuple[int, int, int]]:
        """What lies in a range: offset, length and kind, without gaps."""
        position = offset
        for start, size in extents.within(self._data, self._starts, offset, length):
            if start > position:
                yield position, start - position, ZEROS
            yield start, size, 0
            position = start + size
        if position < offset + length:
            yield position, offset + length - position, ZEROS
