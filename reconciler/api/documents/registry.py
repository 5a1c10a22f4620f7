"""Every document a command may print, by kind; ``schemas/documents`` is generated from it."""

from __future__ import annotations

from typing import Final

from reconciler.api.documents import (
    comparisons,
    files,
    lists,
    mounts,
    plans,
    pools,
    probes,
    restores,
    results,
    saved,
    shapes,
)

DOCUMENTS: Final[dict[str, type[shapes.Document]]] = {
    "Plan": plans.Plan,
    "SavedPlan": saved.SavedPlan,
    "PlanComparison": comparisons.PlanComparison,
    "ImageList": lists.ImageList,
    "CopyList": lists.CopyList,
    "JobList": lists.JobList,
    "ClientList": lists.ClientList,
    "UnitList": lists.UnitList,
    "PolicyList": lists.PolicyList,
    "AuditList": lists.AuditList,
    "VerificationList": lists.VerificationList,
    "RestoreList": lists.RestoreList,
    "ValidationResult": results.ValidationResult,
    "ProbeResult": probes.ProbeResult,
    "RestoreResult": restores.RestoreResult,
    "MountResult": mounts.MountResult,
    "FileList": files.FileList,
    "FileFindings": files.FileFindings,
    "FileVersions": files.FileVersions,
    "FileRestoreResult": files.FileRestoreResult,
    "PoolStats": pools.PoolStats,
    "CollectPreview": pools.CollectPreview,
    "ScrubResult": pools.ScrubResult,
    "CatalogRebuildResult": results.CatalogRebuildResult,
    "ApplyResult": results.ApplyResult,
    "NotifyResult": results.NotifyResult,
    "Version": results.Version,
    "Result": results.Message,
}
