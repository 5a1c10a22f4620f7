"""What ``restore`` prints."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from reconciler.api.documents import shapes


class MissingRange(shapes.Shape):
    """Bytes of a disk that no copy could give, and that are zeros in what was written."""

    offset: int
    length: int


class MissingFile(shapes.Shape):
    """A file of which some lies in such a range."""

    disk: str
    path: str
    #: Bytes of it that are missing, in whole blocks of the file system.
    missing_bytes: int


class RestoredDisk(shapes.Shape):
    """One disk of a restore."""

    name: str
    path: str
    size_bytes: int
    written_bytes: int
    #: What an earlier attempt at the same restore had written, proven.
    resumed_bytes: int
    #: What was read back from the device after it was written; ``sizeBytes`` where that is all of it.
    read_back_bytes: int
    #: Of what was written.
    digest: str
    #: Whether it is the image's, byte by byte.
    verified: bool
    #: With ``--salvage``: what no copy could give.
    missing: tuple[MissingRange, ...] = ()


class RestorePhase(shapes.Shape):
    """One phase of the restore of a machine; ``bytes`` are those of the disks that it went through."""

    name: str
    seconds: float
    bytes: int


class RestoreCopy(shapes.Shape):
    """One copy that is read, in the order in which they are; ``reason`` says why it stands there."""

    number: int
    unit: str
    unit_type: str | None
    reason: str


class RestoreResult(shapes.Document):
    """``restore``. For a machine in a vCenter ``target`` is ``vsphere:VCENTER/PATH``.

    ``via``, ``identity`` and ``phases`` are there where a machine is made, in a vCenter or staged.
    """

    kind: Literal["RestoreResult"] = "RestoreResult"
    client: str
    image: str
    image_time: shapes.Time
    # ``copy`` is a method of every pydantic model, so the field has another name inside.
    copy_number: Annotated[int, pydantic.Field(alias="copy")]
    unit: str
    format: str
    subformat: str | None
    target: str
    dry_run: bool
    #: ``Planned``, ``Verified``, or ``Partial`` where something is missing.
    state: str
    wall_seconds: float
    #: By the newest restores from the same unit.
    estimated_seconds: float | None
    #: Bytes of data, without what is known to be zero.
    data_bytes: int | None
    resumed_bytes: int
    #: Of space at the target, at most, and what is there.
    needed_bytes: int | None
    free_bytes: int | None
    copies: tuple[RestoreCopy, ...]
    disks: tuple[RestoredDisk, ...]
    via: str | None = None
    identity: str | None = None
    phases: tuple[RestorePhase, ...] = ()
    #: Whether it was asked for what can be had of damaged copies.
    salvage: bool = False
    #: With ``--salvage``: bytes that no copy could give, and the files that are known to lie there, the first of them.
    missing_bytes: int = 0
    missing_files: tuple[MissingFile, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The JSON form; what only machines, or a salvage, have is left out for others, as their readers know it."""
        found = super().to_json()
        if not self.salvage:
            for key in ("salvage", "missingBytes", "missingFiles"):
                del found[key]
            for disk in found["disks"]:
                del disk["missing"]
        if self.format not in ("machine", "staged"):
            for key in ("via", "identity", "phases"):
                del found[key]
        return found
