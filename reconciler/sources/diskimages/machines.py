"""The source ``diskImages``: every matching sub-folder is a machine, every matching file in it a disk.

``sources.opening`` builds it from a policy. A machine is known by the real path of its folder. Files that a vmdk
descriptor or a snapshot draws in are part of that disk and no disks of their own. Names that begin with a dot are never
looked at.
"""

from __future__ import annotations

import fnmatch
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from reconciler.base import encodings, errors
from reconciler.sources import hooks, machines
from reconciler.sources.diskimages import formats, readings
from reconciler.sources.nbd import bindings

_PREFIX = "diskimages:"
#: Endings of files that somebody may take for a disk, whether this version can read it or not.
_DISK_LIKE = frozenset({".img", ".raw", ".qcow", ".qcow2", ".vdi", ".vhd", ".vhdx", ".vmdk"})


def _identity(folder: Path, above: Path) -> str:
    """The identity of the machine in ``folder``: its real path. ``above``: that of what it is in, so that a look at
    thousands of machines need not follow every step to each of them."""
    return f"{_PREFIX}{folder.resolve() if folder.is_symlink() else above / folder.name}"


class DiskImages:
    """Machines as folders below ``path``. Implements ``machines.Source``."""

    def __init__(
        self,
        *,
        path: Path,
        machines: str,
        disks: Sequence[str],
        hooks: hooks.Hooks | None = None,
        allow_live: bool = False,
        changed_blocks_bitmap: str | None = None,
    ) -> None:
        """``machines`` is a glob over folder names, ``disks`` globs over file names; both mind case."""
        self._path = path
        self._machines = machines
        self._globs = tuple(disks)
        self._hooks = hooks
        self._allow_live = allow_live
        self._bitmap = changed_blocks_bitmap

    def _folders(self) -> list[Path]:
        """Matching sub-folders by name. Raises ``OSError`` when the path cannot be listed."""
        found = [entry for entry in self._path.iterdir() if _visible(entry, (self._machines,)) and entry.is_dir()]
        return sorted(found, key=lambda folder: folder.name)

    def _disks(self, folder: Path) -> list[Path]:
        """Disks of one machine by name. Raises ``OSError`` when the folder cannot be listed."""
        return self._sort(folder)[0]

    def _sort(self, folder: Path) -> tuple[list[Path], tuple[str, ...]]:
        """Disks of one machine by name, and names of what looks like one and is none. Raises ``OSError``.

        An inventory asks this of every machine at each look, so that each file is touched once.
        """
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        taken = [entry for entry in entries if _visible(entry, self._globs)]
        matching = [entry for entry in taken if _is_disk(entry)]
        parts = frozenset[str]().union(*(formats.belonging(path) for path in matching))
        disks = sorted((path for path in matching if path.name not in parts), key=lambda path: path.name)
        if len(taken) == len(entries):
            return disks, ()
        known = parts.union(entry.name for entry in taken)
        rest = [entry for entry in entries if entry.name not in known and _is_disk(entry) and _disk_like(entry)]
        # A vmdk descriptor is only words: where all that it names is taken, nothing is left out with it.
        left = [path.name for path in rest if not formats.pieces(path) or formats.pieces(path) - known]
        return disks, tuple(sorted(encodings.shown(name) for name in left))

    def inventory(self) -> machines.Inventory:
        """The machines that match now; ``unreachable`` when the path cannot be listed."""
        try:
            folders = self._folders()
        except OSError as error:
            message = f"{self._path}: {error.strerror}; check that it is mounted and readable"
            return machines.Inventory(
                machines=(), unreachable=machines.Found(code="SourceUnreachable", message=message)
            )
        above = self._path.resolve()
        found: list[machines.Machine] = []
        nameless: list[machines.Found] = []
        for folder in folders:
            identity = _identity(folder, above)
            if _is_text(identity + folder.name):
                found.append(self._look(folder, identity))
            else:
                nameless.append(_nameless(folder))
        return machines.Inventory(machines=tuple(found), notes=tuple(nameless))

    def _look(self, folder: Path, identity: str) -> machines.Machine:
        names: tuple[str, ...] = ()
        problem: machines.Found | None = None
        left_out: tuple[str, ...] = ()
        try:
            disks, left_out = self._sort(folder)
            names = tuple(path.name for path in disks if _is_text(path.name))
            if len(names) < len(disks):
                problem = next(_nameless(path) for path in disks if not _is_text(path.name))
            elif not disks:
                wanted = ", ".join(self._globs)
                problem = machines.Found(code="NoDisks", message=f"no file in {folder} matches {wanted}")
            elif any(_needs_tools(path) for path in disks):
                lacking = bindings.missing()
                problem = machines.Found(code="MissingPackage", message=lacking) if lacking else None
        except OSError as error:
            problem = machines.Found(code="UnreadableFolder", message=f"{folder}: {error.strerror}")
        return machines.Machine(
            id=identity, name=folder.name, source=identity, disks=names, problem=problem, left_out=left_out
        )

    def freeze(self, machine_id: str, asked: machines.Asked = machines.ALONE) -> machines.Reading:  # noqa: ARG002  the port's
        """Run the before hook, then open every disk. Raises ``SourceError`` or ``HookFailed``, after the after hook."""
        folder = self._find(machine_id)
        disks = self._list(folder)
        thaw = self._thaw(folder, disks)
        try:
            if self._hooks and self._hooks.before:
                hooks.run("before", self._hooks.before, self._hooks.timeout, machine=folder.name, disks=disks)
                disks = self._list(folder)
            return readings.MachineReading(
                folder,
                disks,
                allow_live=self._allow_live,
                hooked=bool(self._hooks and self._hooks.before),
                bitmap=self._bitmap,
                thaw=thaw,
            )
        except BaseException as error:
            try:
                thaw()
            except errors.HookFailed as second:
                error.add_note(str(second))
            raise

    def _thaw(self, folder: Path, disks: Sequence[Path]) -> Callable[[], None]:
        def run() -> None:
            if self._hooks and self._hooks.after:
                hooks.run("after", self._hooks.after, self._hooks.timeout, machine=folder.name, disks=disks)

        return run

    def _find(self, wanted: str) -> Path:
        try:
            above = self._path.resolve()
            for folder in self._folders():
                if _identity(folder, above) == wanted:
                    return folder
        except OSError as error:
            raise errors.SourceError(f"{self._path}: {error.strerror}", hint="check that it is mounted") from error
        raise errors.SourceError(
            f"{wanted.removeprefix(_PREFIX)}: no such machine below {self._path}",
            hint="was its folder moved or renamed?",
        )

    def _list(self, folder: Path) -> list[Path]:
        try:
            disks = self._disks(folder)
        except OSError as error:
            raise errors.SourceError(f"{folder}: {error.strerror}", hint="check the folder's permissions") from error
        if not disks:
            raise errors.SourceError(f"no file in {folder} matches {', '.join(self._globs)}")
        for path in disks:
            if not _is_text(path.name):
                raise errors.SourceError(_nameless(path).message)
        return disks


def _is_text(name: str) -> bool:
    """Whether a name is UTF-8, as the catalog and an image's label must have it."""
    return encodings.shown(name) == name


def _nameless(path: Path) -> machines.Found:
    return machines.Found(code="NameNotText", message=f"{encodings.shown(str(path))}: its name is not UTF-8; rename it")


def _visible(entry: Path, globs: Sequence[str]) -> bool:
    return not entry.name.startswith(".") and any(fnmatch.fnmatchcase(entry.name, glob) for glob in globs)


def _disk_like(entry: Path) -> bool:
    return entry.suffix.lower() in _DISK_LIKE or entry.is_block_device()


def _is_disk(entry: Path) -> bool:
    try:
        mode = entry.stat().st_mode
    except OSError:
        # A link that leads nowhere promises a disk: opening it fails, and says why.
        return entry.is_symlink()
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def _needs_tools(path: Path) -> bool:
    try:
        return formats.kind(path) != "raw"
    except errors.SourceError:
        # Not readable as what its name says: the reading tells why, and needs no tool for that.
        return False
