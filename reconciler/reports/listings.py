"""Tables of the list documents."""

from __future__ import annotations

from typing import Final

from reconciler.api.documents import lists
from reconciler.base import quantities
from reconciler.reports import tables

#: What is as it should be of a condition that is no merit.
_GOOD: Final = {"Failing": "False"}


def images(document: lists.ImageList) -> str:
    """``get images``."""
    rows = [
        (i.id, i.type, i.state, tables.moment(i.time), quantities.show_size(i.size_bytes), ",".join(map(str, i.copies)))
        for i in document.items
    ]
    return tables.table(("image", "type", "state", "time", "size", "copies"), rows, right=frozenset({4}), spare=(3,))


def copies(document: lists.CopyList) -> str:
    """``get copies``."""
    rows = [
        (
            f"{c.image}#{c.number}",
            c.unit,
            c.state,
            quantities.show_size(c.stored_bytes),
            tables.moment(c.expires_at),
            c.decision.message if c.decision else "-",
        )
        for c in document.items
    ]
    heads = ("copy", "unit", "state", "stored", "expires", "because")
    return tables.table(heads, rows, right=frozenset({3}), spare=(5, 4))


def jobs(document: lists.JobList) -> str:
    """``get jobs``."""
    rows = []
    for job in document.items:
        rate = job.scanned_bytes / job.wall_seconds if job.wall_seconds else 0
        rows.append(
            (
                job.id,
                job.type,
                job.state,
                job.client or job.image or "-",
                job.unit or "-",
                quantities.show_size(job.scanned_bytes),
                f"{quantities.show_size(int(rate))}/s" if rate else "-",
                job.error.message if job.error else "",
            )
        )
    heads = ("job", "type", "state", "for", "unit", "scanned", "rate", "error")
    return tables.table(heads, rows, right=frozenset({5, 6}), spare=(6, 7, 4))


def clients(document: lists.ClientList) -> str:
    """``get clients``."""
    rows = []
    for client in document.items:
        worst = next((c for c in client.conditions if c.status != _GOOD.get(c.type, "True")), None)
        rows.append(
            (
                client.slug,
                ",".join(client.policies),
                str(client.images),
                tables.moment(client.oldest_image),
                tables.moment(client.newest_image),
                f"{worst.type}: {worst.reason}" if worst else "ok",
            )
        )
    heads = ("client", "policies", "images", "oldest", "newest", "condition")
    return tables.table(heads, rows, right=frozenset({2}), spare=(3, 1))


def units(document: lists.UnitList) -> str:
    """``get units``."""
    rows = [
        (
            u.name,
            u.type,
            u.state,
            quantities.show_size(u.used_bytes) if u.used_bytes is not None else "-",
            quantities.show_size(u.free_bytes) if u.free_bytes is not None else "-",
            str(u.images),
            f"{u.running_jobs}/{u.max_concurrent_jobs}",
        )
        for u in document.items
    ]
    heads = ("unit", "type", "state", "used", "free", "images", "jobs")
    return tables.table(heads, rows, right=frozenset({3, 4, 5, 6}), spare=(1,))


def policies(document: lists.PolicyList) -> str:
    """``get policies``."""
    rows = [
        (
            p.name,
            p.state,
            p.lifecycle,
            str(p.clients),
            str(p.images),
            tables.moment(p.last_success),
            tables.moment(p.next_slot),
        )
        for p in document.items
    ]
    heads = ("policy", "state", "lifecycle", "clients", "images", "last success", "next slot")
    return tables.table(heads, rows, right=frozenset({3, 4}), spare=(2,))


def audit(document: lists.AuditList) -> str:
    """``get audit``."""
    rows = [
        (
            str(a.id),
            tables.moment(a.time),
            a.actor,
            a.event,
            a.object,
            " ".join(f"{k}={v}" for k, v in a.details.items()),
        )
        for a in document.items
    ]
    return tables.table(("id", "time", "actor", "event", "object", "details"), rows, right=frozenset({0}), spare=(2, 5))


def verifications(document: lists.VerificationList) -> str:
    """``get verifications``."""
    rows = [
        (
            f"{v.image}#{v.copy_number}", v.proof, v.state, tables.moment(v.time),
            f"{v.message} (expired since)" if v.expired else v.message,
        )
        for v in document.items
    ]  # fmt: skip
    return tables.table(("copy", "proof", "state", "time", "found"), rows, spare=(4, 3))


def restores(document: lists.RestoreList) -> str:
    """``get restores``."""
    rows = [
        (
            str(r.id), r.name or "-", r.state, f"{r.image}#{r.copy_number}", r.target,
            tables.moment(r.finished_at or r.started_at), r.message or r.reason,
        )
        for r in document.items
    ]  # fmt: skip
    heads = ("id", "name", "state", "from", "to", "time", "because")
    return tables.table(heads, rows, right=frozenset({0}), spare=(6, 5, 4))
