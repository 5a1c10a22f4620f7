"""What VCenters and the sources of policies say that cannot be meant (HF423 to HF425, HF430); for ``meanings``."""

from __future__ import annotations

from collections.abc import Mapping

from reconciler.api import policies, vcenters
from reconciler.base import quantities
from reconciler.intake import codes, documents, findings


def vcenter(item: findings.Located, spec: vcenters.VCenterSpec, found: findings.Findings) -> None:
    """One VCenter."""
    one_of(
        item, ("spec", "credentialRef"), {"env": spec.credential_ref.env, "folder": spec.credential_ref.folder}, found
    )
    if spec.tls.ca_file is not None and spec.tls.thumbprint is not None:
        message = "a certificate is proven by caFile or by thumbprint, not by both"
        found.error(codes.VCENTER_SETTING, item, ("spec", "tls", "thumbprint"), message, "remove one of them", key=True)
    for index, name in enumerate(spec.transports):
        if name in spec.transports[:index]:
            path = ("spec", "transports", index)
            found.error(codes.DUPLICATE_NAME, item, path, f"{name} stands twice in this list", "remove one of them")
    if quantities.parse_percent(spec.datastore_free_space) >= 100:
        message = f"no datastore has {spec.datastore_free_space} free: no snapshot would ever be made"
        found.error(codes.VCENTER_SETTING, item, ("spec", "datastoreFreeSpace"), message, "such as 10%")
    for field, span in (("maxSnapshotAge", spec.max_snapshot_age), ("idleLogout", spec.idle_logout)):
        if not span:
            message = "the duration must be longer than nothing"
            found.error(codes.ZERO_DURATION, item, ("spec", field), message, "remove it, or say how long")


def policy(item: findings.Located, spec: policies.BackupPolicySpec, found: findings.Findings) -> None:
    """The source of one policy: exactly one, and every entry of a selection says something."""
    source = spec.source
    choices = {"diskImages": source.disk_images, "vmware": source.vmware, "catalog": source.catalog}
    one_of(item, ("spec", "source"), choices, found, code=codes.SOURCE_CHOICE)
    if source.catalog is not None:
        _catalog(item, spec, found)
    if source.vmware is None:
        return
    path: documents.Path = ("spec", "source", "vmware")
    for field, entries in (("include", source.vmware.include), ("exclude", source.vmware.exclude)):
        for index, entry in enumerate(entries):
            if entry == vcenters.MachineMatch():
                hint = 'name: "*" matches every machine' if field == "include" else "remove it"
                message = "an empty entry matches nothing"
                found.error(codes.IMPOSSIBLE_GLOB, item, (*path, field, index), message, hint)
            if entry.folder is not None and entry.folder[0] not in "/*?[":
                message = f"{entry.folder!r} is matched against whole paths, which begin with '/': it matches nothing"
                hint = f"such as /DC0/vm/{entry.folder}, or */{entry.folder}"
                found.error(codes.IMPOSSIBLE_GLOB, item, (*path, field, index, "folder"), message, hint)
    _disks(item, path, source.vmware, found)
    holding = source.vmware.holding_area
    if holding is not None and quantities.parse_size(holding.max_size) < 1 << 20:
        message = f"a holding area of {holding.max_size} takes no machine"
        found.error(codes.SOURCE_CHOICE, item, (*path, "holdingArea", "maxSize"), message, "such as 200GiB")
    distrust = source.vmware.cbt_distrust.full_every
    if distrust is not None and not distrust:
        message = "the duration must be longer than nothing"
        found.error(codes.ZERO_DURATION, item, (*path, "cbtDistrust", "fullEvery"), message, "such as 30d")


def _catalog(item: findings.Located, spec: policies.BackupPolicySpec, found: findings.Findings) -> None:
    """A catalog is one moment of itself: nothing has to be frozen, and nothing in it is a guest's."""
    said = {
        "hooks": (spec.hooks is not None, "the catalog needs no hooks: it is read as of one moment"),
        "freeSpace": (spec.free_space == "Skip", "the catalog has no free space to leave out"),
        "exclude": (bool(spec.exclude), "the catalog holds nothing that could be left out"),
    }
    for field, (given, message) in said.items():
        if given:
            found.error(codes.CATALOG_SETTING, item, ("spec", field), message, f"remove {field}", key=True)


def _disks(item: findings.Located, path: documents.Path, source: vcenters.VMware, found: findings.Findings) -> None:
    """Disks that are named: each once, and not both to be read and to be left out."""
    left_out = [(one.machine, one.disk) for one in source.exclude_disks]
    read = [(one.machine, one.disk) for one in source.rdm]
    for field, entries in (("excludeDisks", left_out), ("rdm", read)):
        for index, (machine, disk) in enumerate(entries):
            if (machine, disk) in entries[:index]:
                message = f"{disk} of {machine} stands twice in this list"
                found.error(codes.DUPLICATE_NAME, item, (*path, field, index), message, "remove one of them")
            elif field == "rdm" and (machine, disk) in left_out:
                message = f"{disk} of {machine} is to be read by its device, and stands in excludeDisks too"
                found.error(codes.MACHINE_DISK, item, (*path, field, index), message, "remove it from one of them")


def one_of(
    item: findings.Located,
    path: documents.Path,
    choices: Mapping[str, object],
    found: findings.Findings,
    *,
    code: str = codes.VCENTER_SETTING,
) -> None:
    given = [name for name, value in choices.items() if value is not None]
    if len(given) != 1:
        many = "both" if len(given) == 2 else "several"
        message = f"exactly one of {', '.join(choices)} is needed; {many if given else 'none'} is given"
        found.error(code, item, path, message, f"write one of {', '.join(choices)}")
