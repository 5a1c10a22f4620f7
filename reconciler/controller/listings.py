"""The catalog's rows as list documents: what ``get images``, ``jobs``, ``audit``, ``verifications`` and
``restores`` show. No planner, no unit."""

from __future__ import annotations

from reconciler.api.documents import lists, shapes
from reconciler.catalog import audits, database, jobs, listings, restores, verifications


def image_list(db: database.Database, *, client_id: str | None = None, policy: str | None = None) -> lists.ImageList:
    """``get images``."""
    rows = listings.list_images(db, client_id=client_id, policy=policy)
    return lists.ImageList(items=tuple(image_item(row) for row in sorted(rows, key=lambda row: row.id)))


def image_item(row: listings.ImageRow) -> lists.ImageItem:
    """One image."""
    return lists.ImageItem(
        id=row.id,
        client=row.client,
        client_id=row.client_id,
        policy=row.policy,
        schedule=row.schedule,
        lifecycle=row.lifecycle,
        type=row.type,
        state=row.state,
        time=row.time,
        sequence=row.sequence,
        revision=row.revision,
        parent=row.parent,
        changes=row.changes,
        consistency=row.consistency,
        size_bytes=row.size_bytes,
        disks=tuple(lists.ImageDisk(name=d.name, size_bytes=d.size, digest=d.digest) for d in row.disks),
        warnings=tuple(shapes.CodeMessage(code=w["code"], message=w["message"]) for w in row.warnings),
        copies=row.copies,
    )


def job_list(db: database.Database, *, state: str | None = None, client_id: str | None = None) -> lists.JobList:
    """``get jobs``."""
    rows = jobs.list_jobs(db, state=state, client_id=client_id)
    return lists.JobList(items=tuple(job_item(row) for row in sorted(rows, key=lambda row: row.id)))


def job_item(row: jobs.JobRow) -> lists.JobItem:
    """One job."""
    reading = row.reading
    return lists.JobItem(
        id=row.id,
        address=row.address,
        type=row.type,
        state=row.state,
        attempt=row.attempt,
        client=row.client,
        policy=row.policy,
        image=row.image,
        copy_number=row.copy,
        unit=row.unit,
        source_unit=row.source_unit,
        started_at=row.started_at,
        finished_at=row.finished_at,
        wall_seconds=row.wall_seconds,
        scanned_bytes=reading.scanned,
        non_zero_bytes=reading.non_zero,
        sent_bytes=reading.sent,
        stored_bytes=reading.stored,
        cache_hit_ratio=round(reading.hits / reading.lookups, 4) if reading.lookups else None,
        streams=reading.streams,
        error=shapes.CodeMessage(code=row.error_code, message=row.error_message or "") if row.error_code else None,
    )


def audit_list(db: database.Database, limit: int | None) -> lists.AuditList:
    """``get audit``."""
    return lists.AuditList(
        items=tuple(
            lists.AuditItem(
                id=entry.number,
                time=entry.at,
                actor=entry.actor,
                event=entry.event,
                object=entry.object,
                details=dict(entry.details),
            )
            for entry in sorted(audits.entries(db, limit), key=lambda entry: entry.number)
        )
    )


def verification_list(db: database.Database, *, client_id: str | None = None) -> lists.VerificationList:
    """``get verifications``."""
    rows = verifications.list_verifications(db, client_id=client_id)
    return lists.VerificationList(
        items=tuple(
            lists.VerificationItem(
                image=row.image,
                copy_number=row.copy,
                client_id=row.client_id,
                policy=row.policy,
                proof=row.kind,
                state=row.state,
                time=row.at,
                message=row.message,
                details=dict(row.details),
                job=row.job,
                expired=row.expired,
            )
            for row in sorted(rows, key=lambda row: (row.image, row.copy, row.kind))
        )
    )


def restore_list(db: database.Database, *, client_id: str | None = None) -> lists.RestoreList:
    """``get restores``."""
    return lists.RestoreList(
        items=tuple(
            lists.RestoreItem(
                id=row.number,
                name=row.name,
                digest=row.digest,
                state=row.state,
                client_id=row.client_id,
                image=row.image,
                copy_number=row.copy,
                unit=row.unit,
                target=row.target,
                format=row.format,
                by=row.by,
                reason=row.reason,
                job=row.job,
                started_at=row.started_at,
                finished_at=row.finished_at,
                message=row.message,
                disks=tuple(dict(disk) for disk in row.disks),
            )
            for row in restores.list_restores(db)
            if client_id is None or row.client_id == client_id
        )
    )
