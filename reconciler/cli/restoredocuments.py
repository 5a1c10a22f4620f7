"""What ``holdfast restore`` prints: the plan of a dry run, and what a restore came to, as a document and in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from reconciler.api.documents import restores as documents
from reconciler.base import quantities, times
from reconciler.controller import choices
from reconciler.operations import restoreworks

#: Missing ranges of a disk, and files, that the text names.
_SHOWN: Final = 20


def document(
    choice: choices.Choice,
    outcome: restoreworks.Outcome,
    *,
    seconds: float = 0.0,
    notes: Sequence[str] = (),
    rate: float | None = None,
    dry_run: bool,
    salvage: bool = False,
) -> documents.RestoreResult:
    """What is printed. ``seconds``: how long it took; ``rate``: bytes of data a second, by earlier restores."""
    expected = None if rate is None or outcome.bytes is None else round(outcome.bytes / rate, 1)
    return documents.RestoreResult(
        client=choice.client.slug,
        image=choice.image,
        image_time=choice.time,
        copy_number=choice.copy,
        unit=choice.unit,
        format=outcome.format,
        subformat=outcome.subformat,
        target=outcome.target,
        dry_run=dry_run,
        state="Planned" if dry_run else "Partial" if outcome.missing else "Verified",
        wall_seconds=round(seconds, 3),
        estimated_seconds=expected,
        data_bytes=outcome.bytes,
        resumed_bytes=sum(disk.resumed_bytes for disk in outcome.disks),
        needed_bytes=outcome.needed,
        free_bytes=outcome.free,
        copies=tuple(
            documents.RestoreCopy(number=one.number, unit=one.unit, unit_type=one.type, reason=one.why)
            for one in choice.copies
        ),
        disks=outcome.disks,
        via=outcome.via,
        identity=outcome.identity,
        phases=outcome.phases,
        salvage=salvage,
        missing_bytes=outcome.missing,
        missing_files=outcome.missing_files,
        notes=(*choice.notes, *outcome.notes, *notes),
    )


def _proof(disk: documents.RestoredDisk) -> str:
    if disk.missing:
        lost = quantities.show_size(sum(one.length for one in disk.missing))
        return f"{lost} are on no copy and are zeros, every other block proven"
    if disk.read_back_bytes == disk.size_bytes:
        return "every block proven and read back"
    return f"every block proven, {quantities.show_size(disk.read_back_bytes)} read back"


def text(document: documents.RestoreResult) -> str:
    """The same in words."""
    verb = "would restore" if document.dry_run else "restored"
    lines = [
        f"{verb} {document.image} (copy {document.copy_number} on {document.unit}, {times.show(document.image_time)})"
    ]
    if document.via is not None:
        lines.append(f"  {document.target}  by {document.via}, {document.identity} identity")
    for disk in document.disks:
        proof = _proof(disk) if disk.verified or disk.missing else "not written"
        shown = disk.name if document.via is not None else disk.path
        lines.append(f"  {shown}  {quantities.show_size(disk.size_bytes)}  {proof}")
        lines.extend(f"    missing: {one.length} bytes at {one.offset}" for one in disk.missing[:_SHOWN])
        if len(disk.missing) > _SHOWN:
            lines.append(f"    and {len(disk.missing) - _SHOWN} ranges more; -o json lists all")
    if document.dry_run:
        lines += _plan(document)
    lines.extend(f"  lacks {one.missing_bytes} bytes: {one.path}" for one in document.missing_files[:_SHOWN])
    if len(document.missing_files) > _SHOWN:
        lines.append(f"  and {len(document.missing_files) - _SHOWN} files more; -o json lists them")
    if document.resumed_bytes:
        lines.append(f"  {quantities.show_size(document.resumed_bytes)} were there already, by an earlier attempt")
    lines.extend(f"  {_phase(one)}" for one in document.phases)
    lines.extend(f"  note: {note}" for note in document.notes)
    if not document.dry_run and document.wall_seconds:
        total = sum(disk.size_bytes for disk in document.disks)
        rate = quantities.show_size(int(total / document.wall_seconds))
        lines.append(f"{quantities.show_size(total)} in {quantities.show_seconds(document.wall_seconds)}, {rate}/s")
    return "\n".join(lines)


def _plan(document: documents.RestoreResult) -> list[str]:
    """From where, how much, how long, and whether there is room."""
    show = quantities.show_size
    lines = [f"  from copy {one.number} on {one.unit}: {one.reason}" for one in document.copies]
    if document.data_bytes is not None:
        expected = document.estimated_seconds
        how_long = "how long is not known yet" if expected is None else f"about {quantities.show_seconds(expected)}"
        lines.append(f"  {show(document.data_bytes)} of data, {how_long}")
    if document.needed_bytes is not None and document.free_bytes is not None:
        lines.append(f"  needs {show(document.needed_bytes)} of the {show(document.free_bytes)} at the target")
    return lines


def _phase(phase: documents.RestorePhase) -> str:
    line = f"{phase.name} {quantities.show_seconds(phase.seconds)}"
    if not phase.bytes or not phase.seconds:
        return line
    return f"{line}, {quantities.show_size(int(phase.bytes / phase.seconds))}/s"
