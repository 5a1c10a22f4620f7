"""One frozen machine: its disks opened, what is missing of them, and the verdict once they have been read.

``machines`` makes a reading after the before hook ran. A disk that cannot be opened does not stop the others: it is
named in ``missing``, and the image becomes Partial. Nothing a reading opens survives its ``close``.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from reconciler.base import disks, errors
from reconciler.sources import machines
from reconciler.sources.diskimages import changes, converted, formats, freezing, raw


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Opened:
    """One disk that could be opened."""

    disk: disks.Disk
    #: Every file its bytes come from, itself first, as they were at the freeze.
    marks: tuple[freezing.Mark, ...]
    #: The bitmap, why there is none to believe, or None where none was asked for.
    bitmap: changes.Bitmap | machines.Found | None


class MachineReading:
    """A frozen machine. Implements ``machines.Reading``."""

    def __init__(
        self,
        folder: Path,
        paths: Sequence[Path],
        *,
        allow_live: bool,
        hooked: bool,
        bitmap: str | None,
        thaw: Callable[[], None],
    ) -> None:
        """Open ``paths``; ``thaw`` runs at close, once. Raises nothing for a bad disk."""
        self._allow_live = allow_live
        self._hooked = hooked
        self._wanted_bitmap = bitmap
        self._thaw: Callable[[], None] | None = thaw
        self._opened: dict[str, _Opened] = {}
        self._missing: list[machines.Found] = []
        self._warnings: list[machines.Found] = []
        self._writers: dict[Path, str] = {}
        self._closed = False
        try:
            for path in paths:
                self._open(folder, path)
        except BaseException:
            self._close_disks()
            raise

    def _open(self, folder: Path, path: Path) -> None:
        try:
            image = formats.identify(path, folder)
            marks = freezing.mark_settled(image.files)
            writers = freezing.writers(marks)
            self._writers |= writers
            if image.doubt:
                self._warnings.append(machines.Found(code="RawByName", message=image.doubt))
            self._opened[path.name] = self._open_image(path.name, image, marks, being_written=bool(writers))
        except errors.SourceError as error:
            code = "ForeignReference" if isinstance(error, formats.ForeignReference) else "UnreadableDisk"
            # The file at fault may be another one of the disk's chain.
            message = str(error) if path.name in error.message else f"{path.name}: {error}"
            self._missing.append(machines.Found(code=code, message=message))
        except OSError as error:
            self._missing.append(machines.Found(code="UnreadableDisk", message=f"{path}: {error.strerror}"))

    def _open_image(
        self, name: str, image: formats.Image, marks: tuple[freezing.Mark, ...], *, being_written: bool
    ) -> _Opened:
        found: machines.Found | int | None = None
        if self._wanted_bitmap is not None:
            found = changes.usable(image, self._wanted_bitmap)
        reason = found if isinstance(found, machines.Found) else None
        if image.node is None:
            return _Opened(disk=raw.RawDisk(name, image.files[0]), marks=marks, bitmap=reason)
        if not being_written:
            # Metadata that is being written contradicts itself now and then, which says nothing about damage.
            converted.check(image)
        if not isinstance(found, int):
            return _Opened(disk=converted.ConvertedDisk(name, image.node), marks=marks, bitmap=reason)
        disk = converted.ConvertedDisk(name, image.node, bitmap=self._wanted_bitmap)
        try:
            bitmap = changes.Bitmap(name=self._wanted_bitmap or "", granularity=found, dirty=disk.dirty())
        except BaseException:
            disk.close()
            raise
        return _Opened(disk=disk, marks=marks, bitmap=bitmap)

    @property
    def disks(self) -> Sequence[disks.Disk]:
        """The disks that could be opened, by name."""
        return tuple(opened.disk for opened in self._opened.values())

    @property
    def missing(self) -> Sequence[machines.Found]:
        """Disks that could not be opened, and why."""
        return tuple(self._missing)

    def changes(self, disk: str, parent: Mapping[str, str]) -> machines.DiskChanges:
        """What the bitmap says, if it can be believed; else that all must be read, and why."""
        opened = self._opened[disk]
        if opened.bitmap is None:
            return changes.untracked(disk)
        if isinstance(opened.bitmap, machines.Found):
            return changes.unusable(opened.bitmap)
        return changes.since(disk, opened.disk.size, opened.marks[0].key[1], opened.bitmap, parent)

    def finish(self) -> machines.Verdict:
        """Compare every file with what it was at the freeze, and look for writers again."""
        writers = self._writers | freezing.writers(mark for opened in self._opened.values() for mark in opened.marks)
        failed: list[machines.Found] = []
        live: list[machines.Found] = []
        for opened in self._opened.values():
            for mark in opened.marks:
                self._judge(mark, writers.get(mark.path), failed, live)
        if live and not self._allow_live:
            failed += live
        warnings = (*self._warnings, *(live if self._allow_live else ()))
        quiet = "Snapshot" if self._hooked else "Offline"
        return machines.Verdict(failed=tuple(failed), consistency="Live" if live else quiet, warnings=warnings)

    def _judge(
        self, mark: freezing.Mark, writer: str | None, failed: list[machines.Found], live: list[machines.Found]
    ) -> None:
        if writer is not None:
            message = f"{mark.path.name} was held open for writing by {writer} while it was read"
            live.append(machines.Found(code="OpenForWriting", message=message))
        moved = freezing.moved(mark)
        if moved is not None:
            found = machines.Found(code=moved[0], message=moved[1])
            # Bytes that moved are a matter of consistency; a disk that is gone or of another size is another disk.
            (live if found.code == "DiskChanged" else failed).append(found)

    def state(self) -> Mapping[str, str]:
        """One line of JSON per disk, under ``disk:<name>``."""
        return {
            f"disk:{name}": changes.remember(
                opened.disk.size,
                opened.marks[0].key[1],
                opened.bitmap if isinstance(opened.bitmap, changes.Bitmap) else None,
            )
            for name, opened in self._opened.items()
        }

    def configuration(self) -> None:
        """A folder of disks says nothing of the machine around them."""

    def _close_disks(self) -> None:
        disks.close_all(self.disks)

    def close(self) -> None:
        """Close the disks, then thaw. Idempotent. Raises ``HookFailed``."""
        thaw, self._thaw = self._thaw, None
        with contextlib.ExitStack() as stack:
            if thaw is not None:
                stack.callback(thaw)
            self._close_disks()
