"""A folder of manifests to desired state, or to everything that is wrong with it.

The entrance of this package: ``validate``, ``plan``, ``apply`` and the loop call ``load``. Bad content is never an
exception; only a root that is no folder is. Desired state is there only if nothing is an error, so half an estate can
never be taken for a whole one.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from reconciler.api import models, policies, restores, storage, vcenters
from reconciler.base import diagnostics
from reconciler.intake import codes, combinations, commits, findings, manifests, meanings, references, revisions, trees
from reconciler.planning import desired


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """What a folder of manifests says."""

    #: None if there are errors.
    desired: desired.Desired | None
    #: Ordered by place.
    diagnostics: tuple[diagnostics.Diagnostic, ...]
    #: ``main@sha1:<40 hex>`` or ``dir@blake3:<hex>``.
    revision: str
    #: How many objects could be read.
    objects: int


def load(root: Path, now: dt.datetime | None = None) -> Loaded:
    """Read and check the estate under ``root``. Raises ``UsageError`` if it is no folder.

    With ``now``, what has run out is told too; a plan tells that by itself.
    """
    return judge(trees.read_tree(root), now)


def load_revision(root: Path, name: str) -> Loaded:
    """Read and check the estate under ``root`` as a revision of its git repository has it, beside the work tree.

    Raises ``UsageError`` where there is no such revision.
    """
    tree, revision = commits.read_tree(root, name)
    return judge(tree, revision=revision)


def judge(tree: trees.Tree, now: dt.datetime | None = None, *, revision: str | None = None) -> Loaded:
    """Check what a tree holds. The order of its files does not matter. Without ``revision`` the name is found out."""
    problems = list(tree.diagnostics)
    objects: list[findings.Located] = []
    broken: set[manifests.Key] = set()
    unread: list[bytes] = []
    for file in sorted(tree.files, key=lambda file: file.path):
        manifest = manifests.read(file.path, file.data)
        problems += manifest.diagnostics
        broken |= manifest.broken
        if not manifest.whole:
            unread.append(file.data)
        folder = os.path.dirname(os.path.join(tree.root, file.path))  # noqa: PTH118, PTH120  ten times faster
        objects += (dataclasses.replace(item, object=_placed(item.object, folder)) for item in manifest.objects)
    problems += _check(objects, references.Names(objects, broken, unread), now)
    problems += _closed(tree, objects)
    if not tree.files and not problems:
        problems.append(_nothing(tree))
    problems.sort(key=_place)
    revision = revision or revisions.name(tree)
    wrong = any(found.severity is diagnostics.Severity.ERROR for found in problems)
    return Loaded(
        desired=None if wrong else desired.gather(revision, (item.object for item in objects)),
        diagnostics=tuple(problems),
        revision=revision,
        objects=len(objects),
    )


def _closed(tree: trees.Tree, objects: Sequence[findings.Located]) -> Iterable[diagnostics.Diagnostic]:
    """What is said of folders that could not be listed. Where a manifest says that data lies there, such as a unit on a
    disk that died, it is no error: the unit is offline, and all else goes on."""
    data = [path for item in objects for path in _data(item.object)]
    for folder, why in tree.closed:
        found = trees.unreadable(folder, f"the folder cannot be read: {why}")
        place = os.path.join(tree.root, folder)  # noqa: PTH118  a text in, a text out
        if any(place == path or place.startswith(path.rstrip("/") + "/") for path in data):
            found = dataclasses.replace(found, severity=diagnostics.Severity.WARNING)
        yield found


def _data(item: models.Object) -> Iterable[str]:
    """Folders of an object, as placed, that hold data and no manifests."""
    match item:
        case storage.StorageUnit(spec=unit):
            yield unit.path
        case policies.BackupPolicy(spec=policy) if policy.source.disk_images is not None:
            yield policy.source.disk_images.path


def _check(
    objects: Sequence[findings.Located], names: references.Names, now: dt.datetime | None
) -> Iterable[diagnostics.Diagnostic]:
    found = findings.Findings()
    references.check(objects, names, found)
    for item in objects:
        meanings.check(item, found, now)
    combinations.check(objects, found)
    return found.found


def _placed(item: models.Object, folder: str) -> models.Object:
    """The object with its paths made absolute; relative ones begin at the manifest's folder."""
    match item:
        case storage.StorageUnit(spec=unit):
            return item.model_copy(update={"spec": unit.model_copy(update={"path": _absolute(unit.path, folder)})})
        case policies.BackupPolicy(spec=policy):
            source = _placed_source(policy.source, folder)
            return item.model_copy(update={"spec": policy.model_copy(update={"source": source})})
        case vcenters.VCenter(spec=center):
            return item.model_copy(update={"spec": _placed_vcenter(center, folder)})
        case restores.Restore(spec=restore):
            places = {
                field: None if path is None else _absolute(path, folder)
                for field, path in (("folder", restore.target.folder), ("device", restore.target.device))
            }
            target = restore.target.model_copy(update=places)
            return item.model_copy(update={"spec": restore.model_copy(update={"target": target})})
    return item


def _placed_source(source: policies.Source, folder: str) -> policies.Source:
    changes: dict[str, object] = {}
    if source.disk_images is not None:
        path = _absolute(source.disk_images.path, folder)
        changes["disk_images"] = source.disk_images.model_copy(update={"path": path})
    if source.vmware is not None:
        virtual = source.vmware
        rdm = tuple(one.model_copy(update={"device": _absolute(one.device, folder)}) for one in virtual.rdm)
        holding = virtual.holding_area
        if holding is not None:
            holding = holding.model_copy(update={"path": _absolute(holding.path, folder)})
        changes["vmware"] = virtual.model_copy(update={"rdm": rdm, "holding_area": holding})
    return source.model_copy(update=changes)


def _placed_vcenter(spec: vcenters.VCenterSpec, folder: str) -> vcenters.VCenterSpec:
    def placed(path: str | None) -> str | None:
        return None if path is None else _absolute(path, folder)

    program = spec.vddk.nbdkit
    vddk = {"nbdkit": _absolute(program, folder) if "/" in program else program, "libdir": placed(spec.vddk.libdir)}
    return spec.model_copy(
        update={
            "tls": spec.tls.model_copy(update={"ca_file": placed(spec.tls.ca_file)}),
            "credential_ref": spec.credential_ref.model_copy(update={"folder": placed(spec.credential_ref.folder)}),
            "vddk": spec.vddk.model_copy(update=vddk),
        }
    )


def _absolute(path: str, folder: str) -> str:
    # Two leading slashes mean something of their own to POSIX, and the same as one to every user.
    return os.path.normpath(os.path.join(folder, path)).replace("//", "/")  # noqa: PTH118  a text in, a text out


def _nothing(tree: trees.Tree) -> diagnostics.Diagnostic:
    return diagnostics.Diagnostic(
        severity=diagnostics.Severity.WARNING,
        code=codes.NO_MANIFESTS,
        message=f"no manifests under {tree.root}",
        hint="manifests end in .yaml or .yml, and their names do not begin with a dot",
    )


def _place(found: diagnostics.Diagnostic) -> tuple[str, int, int, str, str]:
    place = found.position
    where = (place.file, place.line, place.column) if place is not None else ("", 0, 0)
    return (*where, found.code, found.message)
