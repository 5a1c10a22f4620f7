"""What ``holdfast files`` prints: folders, finds, histories, and what became of a restore of files.

Moments are RFC 3339 with nine digits of fraction, as file systems keep them. In names and paths ``\\xNN`` stands for a
byte that is no text or would move a terminal's cursor; paths may be given back that way.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Annotated, Literal

import pydantic

from reconciler.api.documents import shapes

#: What a file is.
FileType = Literal["File", "Directory", "Symlink", "Other"]
#: How its bytes are kept.
FileFlag = Literal["Sparse", "Compressed", "Encrypted"]

_TYPES: dict[str, FileType] = {"file": "File", "directory": "Directory", "symlink": "Symlink"}
_FLAGS: dict[str, FileFlag] = {"sparse": "Sparse", "compressed": "Compressed", "encrypted": "Encrypted"}
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def type_of(kind: str) -> FileType:
    """What an index or a browser calls a file's kind, as documents do."""
    return _TYPES.get(kind, "Other")


def flags_of(flags: Iterable[str]) -> tuple[FileFlag, ...]:
    """The same for its flags."""
    return tuple(_FLAGS[flag] for flag in flags if flag in _FLAGS)


def moment(nanoseconds: int) -> str | None:
    """RFC 3339 UTC with nine digits; None for 0, which is unknown, and beyond the years that have a spelling."""
    if not nanoseconds:
        return None
    seconds, fraction = divmod(nanoseconds, 10**9)
    try:
        # Without the offset from UTC. There may be very many of them: formatting by pattern takes three times as long.
        return f"{(_EPOCH + dt.timedelta(seconds=seconds)).isoformat()[:19]}.{fraction:09d}Z"
    except OverflowError:
        return None


class FileStream(shapes.Shape):
    """An alternate data stream."""

    name: str
    size_bytes: int


class FileItem(shapes.Shape):
    """One file. ``mode``, ``uid``, ``gid`` and ``target`` are null where the index alone was asked."""

    name: str
    path: str
    type: FileType
    size_bytes: int
    modified: str | None
    created: str | None
    changed: str | None
    links: int
    inode: int
    flags: tuple[FileFlag, ...]
    streams: tuple[FileStream, ...]
    mode: str | None
    uid: int | None
    gid: int | None
    target: str | None
    problem: str | None


class FileVolume(shapes.Shape):
    """One file system of an image."""

    path: str
    disk: str
    number: int
    filesystem: str
    label: str
    size_bytes: int


class FileList(shapes.Document):
    """``files ls``. ``source``: ``Index``, or ``Image`` where its disks were read; ``path`` is null for the volumes."""

    kind: Literal["FileList"] = "FileList"
    client: str
    image: str
    image_time: shapes.Time
    source: Literal["Index", "Image"]
    path: str | None
    volumes: tuple[FileVolume, ...]
    items: tuple[FileItem, ...]
    notes: tuple[str, ...]


class FoundFile(shapes.Shape):
    """One path of one client; what is said of the file is said of its newest version."""

    client: str
    path: str
    stream: str | None
    type: FileType
    size_bytes: int
    modified: str | None
    versions: int
    images: tuple[str, ...]


class FileFindings(shapes.Document):
    """``files find``. ``truncated``: there are more; ``notSearched``: images without an index."""

    kind: Literal["FileFindings"] = "FileFindings"
    items: tuple[FoundFile, ...]
    truncated: bool
    not_searched: tuple[str, ...]

    def to_text(self) -> str:
        """The same text, made in a tenth of the time: there may be very many files."""
        return self.model_dump_json(indent=2, by_alias=True)


class FileVersion(shapes.Shape):
    """One state of a file. ``good``: an image that holds it has a good copy."""

    type: FileType
    size_bytes: int
    modified: str | None
    changed: str | None
    first_image: str
    first_time: shapes.Time
    last_image: str
    last_time: shapes.Time
    images: tuple[str, ...]
    good: bool


class FileVersions(shapes.Document):
    """``files versions``, oldest first."""

    kind: Literal["FileVersions"] = "FileVersions"
    client: str
    path: str
    versions: tuple[FileVersion, ...]
    not_searched: tuple[str, ...]


class FileFailure(shapes.Shape):
    """One file that was not restored, or not whole."""

    path: str
    code: str
    message: str


class FileName(shapes.Shape):
    """A name that the target could not hold, and the one it got."""

    path: str
    name: str


class FileRestoreResult(shapes.Document):
    """``files get``. ``state``: ``Restored``, or ``Partial`` where some ``failed``; ``failures`` are the first 1000.

    ``notes`` say what was not kept of files that were restored.
    """

    kind: Literal["FileRestoreResult"] = "FileRestoreResult"
    client: str
    image: str
    image_time: shapes.Time
    # ``copy`` is a method of every pydantic model, so the field has another name inside.
    copy_number: Annotated[int, pydantic.Field(alias="copy")]
    unit: str
    format: Literal["files", "tar"]
    target: str
    state: Literal["Restored", "Partial"]
    files: int
    directories: int
    symlinks: int
    links: int
    specials: int
    streams: int
    bytes: int
    wall_seconds: float
    failed: int
    failures: tuple[FileFailure, ...]
    renamed: tuple[FileName, ...]
    notes: tuple[str, ...]
