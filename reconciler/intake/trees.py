"""The files of an estate: every ``*.yaml`` and ``*.yml`` under a folder, read once.

``estates`` reads the tree, judges the bytes and names their revision, all over the same bytes, so that a file that is
edited meanwhile cannot be judged in one version and stamped in another. Names that begin with a dot are not read. A
file whose first lines are comments and hold ``# holdfast: ignore`` is no manifest. Links are followed, each folder is
entered once. A file that cannot be read is a diagnostic; what a folder that cannot be listed means, ``estates`` says.
"""

from __future__ import annotations

import dataclasses
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from reconciler.base import diagnostics, digests, errors
from reconciler.intake import codes

#: Bytes that a manifest may have.
MAXIMUM_SIZE: Final = 8 << 20

_HEAD: Final = 64 << 10
_IGNORE: Final = re.compile(rb"#\s*holdfast:\s*ignore\b")
#: Controls, line separators, and bytes that are not UTF-8.
_UNSPEAKABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SUFFIXES: Final = (".yaml", ".yml")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """One manifest file."""

    #: Relative to the estate, with forward slashes.
    path: str
    data: bytes
    #: BLAKE3 of ``data``, hexadecimal.
    digest: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """What lies under an estate's folder."""

    #: Absolute, links resolved.
    root: Path
    #: Ordered by path.
    files: tuple[File, ...]
    #: Files that say they are no manifests, ordered by path; not all bytes of large ones.
    ignored: tuple[File, ...]
    diagnostics: tuple[diagnostics.Diagnostic, ...]
    #: Folders that could not be listed, by path, and why.
    closed: tuple[tuple[str, str], ...] = ()


def read_tree(root: Path) -> Tree:
    """Read every manifest file under ``root``. Raises ``UsageError`` if it is no folder that can be listed."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise errors.UsageError(f"{root} {what}", hint="name the folder that holds the manifests")
    place = root.resolve()
    walk = _Walk(place)
    read = ((path, _read(place / path, path)) for path in sorted(walk.paths()))
    tree = gather(place, read)
    return dataclasses.replace(tree, closed=tuple(walk.closed))


def gather(root: Path, found: Iterable[tuple[str, bytes | diagnostics.Diagnostic]]) -> Tree:
    """The tree of files by path: bytes, or why there are none. ``root`` is where relative paths in them begin."""
    files: list[File] = []
    ignored: list[File] = []
    problems: list[diagnostics.Diagnostic] = []
    for path, data in found:
        if isinstance(data, diagnostics.Diagnostic):
            problems.append(data)
        elif _UNSPEAKABLE.search(path):
            problems.append(unreadable(path, "the name holds what is not text", "rename it"))
        elif _says_ignore(data):
            ignored.append(File(path=path, data=data, digest=digests.digest(data).hex()))
        elif len(data) > MAXIMUM_SIZE:
            message = f"the file is larger than {MAXIMUM_SIZE >> 20} MiB"
            hint = "split it, or begin it with the comment # holdfast: ignore"
            problems.append(_problem(codes.TOO_LARGE, path, message, hint))
        else:
            files.append(File(path=path, data=data, digest=digests.digest(data).hex()))
    return Tree(root=root, files=tuple(files), ignored=tuple(ignored), diagnostics=tuple(problems))


def is_manifest(path: str) -> bool:
    """Whether a file at this relative path is read as a manifest, by its name alone."""
    return path.lower().endswith(_SUFFIXES) and not any(part.startswith(".") for part in path.split("/"))


class _Walk:
    """Finds manifest files. Real folders go before linked ones, so that a file is found under its real path."""

    def __init__(self, root: Path) -> None:
        self.closed: list[tuple[str, str]] = []
        self._root = root
        self._entered: set[tuple[int, int]] = set()
        self._links: list[str] = []

    def paths(self) -> Iterator[str]:
        """Paths relative to the root, each once, in no order."""
        waiting = [""]
        while waiting or self._links:
            if not waiting:
                self._links.sort(reverse=True)
                waiting.append(self._links.pop())
            yield from self._folder(waiting.pop(), waiting)

    def _folder(self, folder: str, waiting: list[str]) -> Iterator[str]:
        # There may be thousands: texts take half the time of ``Path``.
        where = os.path.join(self._root, folder)  # noqa: PTH118
        try:
            found = os.stat(where)  # noqa: PTH116
            if (found.st_dev, found.st_ino) in self._entered:
                return
            self._entered.add((found.st_dev, found.st_ino))
            with os.scandir(where) as entries:
                listed = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            if not folder:
                raise errors.UsageError(f"{where}: {error.strerror}", hint="check the permissions") from error
            self.closed.append((folder, error.strerror or str(error)))
            return
        for entry in listed:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if _is_folder(entry):
                (self._links if entry.is_symlink() else waiting).append(path)
            elif is_manifest(path):
                yield path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link into a circle; if it is named like a manifest, opening it says what is wrong.
        return False


def _read(where: Path, path: str) -> bytes | diagnostics.Diagnostic:
    """The file's bytes, one more than it may have of a larger one, or why it cannot be read."""
    try:
        # Not blocking: opening a pipe would wait for its other end.
        handle = os.open(where, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return unreadable(path, "this is not a regular file", "move it out of the estate")
            return file.read(MAXIMUM_SIZE + 1)
    except OSError as error:
        return unreadable(path, f"the file cannot be read: {error.strerror}")


def _says_ignore(data: bytes) -> bool:
    """Whether the comments before the first content say that this is no manifest."""
    for line in data[:_HEAD].split(b"\n"):
        text = line.strip()
        if text.startswith(b"#"):
            if _IGNORE.match(text):
                return True
        elif text and text != b"---":
            return False
    return False


def _printable(path: str) -> str:
    return _UNSPEAKABLE.sub("?", path)


def unreadable(path: str, message: str, hint: str | None = None) -> diagnostics.Diagnostic:
    """The problem of a file, or a folder, that is there and cannot be read."""
    return _problem(codes.UNREADABLE, path, message, hint or "check its permissions and where it points")


def _problem(code: str, path: str, message: str, hint: str) -> diagnostics.Diagnostic:
    return diagnostics.Diagnostic(
        severity=diagnostics.Severity.ERROR,
        code=code,
        message=message,
        position=diagnostics.Position(file=_printable(path), line=1, column=1),
        hint=hint,
    )
