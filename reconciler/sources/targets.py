"""Where a restore puts a disk: a file that appears under its name only when it is whole, or a block device.

``operations`` opens one target per disk, writes its data, flushes, reads it back to prove it, and calls ``finish``.
Files are written under a temporary name beside the final one, so a crash leaves nothing that looks like a disk; the
next restore of the same disk of the same image goes on with it, any other one of that name removes it. The kinds of
target are modules of ``diskfiles``.
"""

from __future__ import annotations

import os
import stat
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from reconciler.base import disks, errors, extents, meters
from reconciler.sources.diskfiles import devices, imagefiles, rawfiles, streamfiles, temporaries, written

#: Suffix of each format's files.
SUFFIXES: Final = {"raw": ".img", "qcow2": ".qcow2", "vmdk": ".vmdk"}
#: Kinds of each format that has any, the default first.
SUBFORMATS: Final = {"vmdk": ("sparse", "flat", "streamOptimized")}
#: What a flat VMDK's descriptor cannot say of a name, by code point.
_UNSAID: Final = {letter: f"%{letter:02X}" for letter in (*range(0x20), ord('"'), 0x7F)}


class Target(Protocol):
    """One disk being restored. ``pwrite`` is thread-safe; each byte is written at most once; the rest reads as zero,
    but where ``covers`` says otherwise, and in what is ``held``."""

    @property
    def path(self) -> Path:
        """Its final name."""

    @property
    def notes(self) -> Sequence[str]:
        """What is worth saying, a sentence each."""

    @property
    def covers(self) -> bool:
        """Whether what was there before shows where nothing is written, so that zeros must be put too."""

    @property
    def doubtful(self) -> bool:
        """Whether what is ``held`` may be of any disk, so that comparing is worth a try only."""

    def held(self) -> extents.Extents:
        """Where something lies already that may be this disk's: to be compared before it is written."""

    def pread(self, offset: int, length: int) -> disks.Buffer:
        """What lies there now, in what is ``held``. Raises ``TargetError``."""

    def pwrite(self, offset: int, data: disks.Buffer, *, over: bool = False) -> None:
        """Write ``data`` at ``offset``; ``over``: something lies there already. Raises ``TargetError``."""

    def zero(self, offset: int, length: int) -> None:
        """Make it read as zeros, in what is ``held``. Raises ``TargetError``."""

    def settle(self) -> disks.Disk | None:
        """Make durable what was written so far and give it to read, or None where that must wait for ``flush``.

        Writing may go on meanwhile. Raises ``TargetError`` or ``SourceError``.
        """

    def flush(self) -> None:
        """Make what was written durable under its temporary name; nothing may be written after it. Idempotent."""

    def read_back(self) -> disks.Disk:
        """After ``flush``: what was written, over exactly the disk's size. Raises ``SourceError``."""

    def finish(self) -> None:
        """Give it its final name, durably. Raises ``TargetError`` or ``TargetExists``, leaving nothing behind."""

    def abort(self) -> None:
        """Give up and leave nothing behind; of a device let go. Idempotent; does nothing after ``finish``."""


@runtime_checkable
class Filled(Protocol):
    """A target that takes the whole disk at once instead of writes."""

    def fill(self, disk: disks.Disk, meter: meters.Meter) -> int:
        """Write the disk; the bytes written. The meter counts ``scanned`` and ``sent``. Raises ``TargetError``."""


def restored_names(names: Sequence[str], format: str, subformat: str | None = None) -> dict[str, str]:
    """File names for the disks of one machine: each without its last suffix, with that of ``format``.

    Disks that would collide (``a.img`` and ``a.qcow2``) keep their whole name before the new suffix (``a.img.img`` and
    ``a.qcow2.img``), and a number where that collides too. What would leave the folder or hide the file is
    percent-encoded: a slash, and a dot at the start. Of a flat VMDK this is the descriptor, and what no descriptor can
    say of its extent is encoded too: quotes and control characters.
    """
    suffix, unsaid = SUFFIXES[format], _UNSAID if subformat == "flat" else {}
    stems = {name: Path(name).stem if "/" not in name else name.rpartition(".")[0] or name for name in names}
    short = {name: _safe(stem).translate(unsaid) for name, stem in stems.items()}
    long = {name: _safe(name).translate(unsaid) for name in names}
    chosen = dict(short)
    while colliding := [name for name in chosen if _collides(name, chosen, subformat) and chosen[name] != long[name]]:
        chosen |= {name: long[name] for name in colliding}
    for number, name in enumerate(names):
        while _collides(name, chosen, subformat):
            chosen[name] = f"{long[name]}~{number}"
    return {name: base + suffix for name, base in chosen.items()}


def _collides(name: str, chosen: dict[str, str], subformat: str | None) -> bool:
    """Whether a disk's files would be those of another one."""
    others = {file for other, base in chosen.items() if other != name for file in _files(base, subformat)}
    return not others.isdisjoint(_files(chosen[name], subformat))


def _files(base: str, subformat: str | None) -> set[str]:
    folded = base.casefold()
    return {folded, f"{folded}-flat"} if subformat == "flat" else {folded}


def _safe(name: str) -> str:
    quoted = name.replace("/", urllib.parse.quote("/", safe="")).replace("\0", "%00")
    return "%2E" + quoted[1:] if quoted.startswith(".") else quoted or "%"


def files_of(path: Path, subformat: str | None) -> tuple[Path, ...]:
    """The files of a restored disk."""
    return (path, rawfiles.extent_of(path)) if subformat == "flat" else (path,)


def taken(path: Path, subformat: str | None, identity: str | None) -> Path | None:
    """The file in the way of a disk restored to ``path``; what a dead restore of the same disk left is none."""
    for file in files_of(path, subformat):
        if os.path.lexists(file) and not temporaries.half_named(file, identity):
            return file
    return None


def reusable(path: Path, subformat: str | None) -> int:
    """Bytes of space that dead restores of the same name left, and that a new one takes over or frees."""
    return sum(temporaries.reusable(file) for file in files_of(path, subformat))


def open_target(
    format: str,
    path: Path,
    size: int,
    *,
    subformat: str | None = None,
    force: bool = False,
    identity: str | None = None,
) -> Target:
    """Begin to write a disk of ``size`` bytes to ``path``, or go on with what a dead restore of ``identity`` left.

    ``raw`` has exactly ``size`` bytes; the others count in sectors, so their virtual size is rounded up to 512 bytes
    with zeros. Raises ``TargetExists`` unless ``force``, ``TargetError``, or ``SourceError`` where qemu is missing.
    """
    blocking = None if force else taken(path, subformat, identity)
    if blocking is not None:
        raise temporaries.exists(blocking)
    for file in files_of(path, subformat):
        _require_nameable(file)
    if format == "raw":
        return rawfiles.RawFile(path, size, force=force, identity=identity)
    if subformat == "flat":
        return rawfiles.FlatVmdk(path, size, force=force, identity=identity)
    if subformat == "streamOptimized":
        return streamfiles.StreamFile(path, size, force=force, identity=identity)
    return imagefiles.ImageFile(format, path, size, force=force, identity=identity)


def _require_nameable(path: Path) -> None:
    """Raises ``TargetError`` where no file can get this name: it would be known only when all is written."""
    with temporaries.translated(path):
        try:
            there = path.lstat()
        except FileNotFoundError:
            return
    if stat.S_ISDIR(there.st_mode):
        raise errors.TargetError(f"{path} is a folder", hint="move it away, or restore to another folder")


def open_device(path: Path, size: int) -> Target:
    """Begin to write a disk of ``size`` bytes onto a block device. Raises ``TargetError`` or ``NotFound``."""
    return devices.Device(path, size)


is_device = devices.is_device
check_device = devices.check
read_back = written.read_back
