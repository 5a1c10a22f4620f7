"""Which folders a Directory unit has: clients, their images, and what crashes left between them.

``unit`` asks here where an image lies and what there is to list or sweep. Separate from it since nothing here knows
what is in an image. Names that Holdfast would not have given are passed over, so a stray folder hurts nobody.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from reconciler.base import files
from reconciler.storage import identities, labels
from reconciler.storage.directory import formats

#: Made by mkfs in the root of ext file systems; never a client.
_FOREIGN = frozenset({"lost+found"})
#: Images that are looked for one by one.
_FEW = 8


class Places:
    """The folders under the root of unit ``name``, which must carry the identity ``unit_id``."""

    def __init__(self, *, name: str, root: Path, unit_id: str) -> None:
        self._name = name
        self._root = root
        self._unit_id = unit_id
        #: Where an image was last seen; checked before use.
        self._seen: dict[str, Path] = {}

    def require_online(self) -> None:
        """Raise ``UnitOffline`` unless the root still is the unit."""
        identities.require(self._root, self._name, self._unit_id)

    def images(self) -> Iterator[Path]:
        """Every folder that has the place and the name of a committed image. Raises ``UnitError``."""
        self.require_online()
        for client in self._clients():
            for folder in self._entries(client):
                if labels.is_safe(folder.name):
                    yield folder

    def find(self, image_id: str) -> Path | None:
        """The folder of a committed image, if there is one. Raises ``UnitError``."""
        if not labels.is_safe(image_id):
            return None
        known = self._seen.get(image_id)
        if known is not None and known.is_dir():
            return known
        for client in self._clients():
            if (client / image_id).is_dir():
                self._seen[image_id] = client / image_id
                return client / image_id
        return None

    def of(self, image_ids: Collection[str]) -> Iterator[Path]:
        """The folders of those of many images that are here. Raises ``UnitError``."""
        if len(image_ids) > _FEW:
            # Looking for each of them would ask every client's folder as often.
            yield from (folder for folder in self.images() if folder.name in image_ids)
            return
        for image in image_ids:
            folder = self.find(image)
            if folder is not None:
                yield folder

    def make(self, folder: Path) -> None:
        """Make ``folder`` and, durably, the client's folder around it. Raises ``OSError``."""
        existed = folder.parent.is_dir()
        folder.parent.mkdir(mode=formats.FOLDER_MODE, exist_ok=True)
        if not existed:
            files.sync_folder(self._root)
        folder.mkdir(mode=formats.FOLDER_MODE)

    def drop_empty(self, client: Path) -> None:
        """Remove a client's folder that holds nothing any more. Raises ``UnitError``."""
        with files.unit_errors(self._name):
            try:
                client.rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    raise

    def remove_leftovers(self, wanted: Callable[[str], bool], prefix: str = ".") -> int:
        """Remove unfinished and deleted folders whose image id is ``wanted``; the bytes freed. Raises ``UnitError``."""
        freed = 0
        for client in self._clients():
            leftovers = [entry for entry in self._entries(client) if entry.name.startswith(prefix)]
            for entry in leftovers:
                image_id = formats.leftover_of(entry.name)
                if image_id is not None and wanted(image_id):
                    with files.unit_errors(self._name):
                        freed += remove_folder(entry)
            self.drop_empty(client)
        return freed

    def _clients(self) -> list[Path]:
        with files.unit_errors(self._name), os.scandir(self._root) as entries:
            return sorted(
                self._root / entry.name
                for entry in entries
                if labels.is_safe(entry.name) and entry.name not in _FOREIGN and entry.is_dir(follow_symlinks=False)
            )

    def _entries(self, client: Path) -> list[Path]:
        with files.unit_errors(self._name):
            try:
                with os.scandir(client) as entries:
                    return sorted(client / entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
            except FileNotFoundError:
                return []  # its last image was deleted since the root was read


def remove_folder(folder: Path) -> int:
    """Remove a folder and what is in it, tolerating others who remove it too; the bytes freed. Raises ``OSError``."""
    freed = 0
    for parent, folders, names in os.walk(folder, topdown=False):
        for name in names:
            freed += _remove_file(Path(parent, name))
        for name in folders:
            _remove_empty(Path(parent, name))
    _remove_empty(folder)
    return freed


def allocated(folder: Path) -> int:
    """Bytes that ``remove_folder`` would free. Raises ``OSError``."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += _own(Path(parent, name).lstat())
    return total


def _own(found: os.stat_result) -> int:
    return found.st_blocks * 512 if found.st_nlink == 1 else 0


def _remove_file(path: Path) -> int:
    try:
        found = path.lstat()
        path.unlink()
    except FileNotFoundError:
        return 0
    return _own(found)


def _remove_empty(path: Path) -> None:
    try:
        if path.is_symlink():
            path.unlink()
        else:
            path.rmdir()
    except FileNotFoundError:
        return
