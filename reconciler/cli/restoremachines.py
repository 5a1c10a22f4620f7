"""Restores that make machines, in a vCenter or as a folder: what ``restoring`` loads when it is asked for one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from reconciler.api import vcenters
from reconciler.base import clocks, errors
from reconciler.catalog import configurations, database
from reconciler.cli import sessions, settings
from reconciler.intake import estates
from reconciler.operations import restoremachines, restorestages, restoreworks


def machine(
    name: str,
    chosen: settings.Settings | None,
    *,
    names: Sequence[str],
    wanted: Mapping[str, object],
    power_on: bool,
) -> restoreworks.Work:
    """A machine in the VCenter ``name``; see ``restoremachines.Machine``. Raises as ``vcenter``."""
    return restoremachines.Machine(
        vcenter=vcenter(name, chosen), names=names, wanted=wanted, power_on=power_on,
        now=clocks.from_environment().now(),
    )  # fmt: skip


def staged(
    *, to: Path, names: Sequence[str], force: bool, read_back: bool, units: tuple[Path, ...]
) -> restoreworks.Work:
    """A machine as a folder; see ``restorestages.Staged``."""
    return restorestages.Staged(to=to, names=names, force=force, read_back=read_back, units=units)


def vcenter(name: str, chosen: settings.Settings | None) -> vcenters.VCenter:
    """The VCenter in force, else that of the manifests: it may be newer, or the catalog is lost.

    Without ``chosen`` the manifests of the working folder are asked. Raises ``NotFound`` or ``ConfigurationError``.
    """
    found = None if chosen is None else sessions.read(chosen, lambda db: _in_force(db, name))
    return found or _declared(Path.cwd() if chosen is None else chosen.estate, name)


def _in_force(db: database.Database, name: str) -> vcenters.VCenter | None:
    found = configurations.applied(db).get(("VCenter", name))
    return found.object if found is not None and isinstance(found.object, vcenters.VCenter) else None


def _declared(estate: Path | None, name: str) -> vcenters.VCenter:
    known: tuple[str, ...] = ()
    if estate is not None:
        desired = estates.load(estate).desired
        if desired is None:
            raise errors.ConfigurationError(
                f"the manifests in {estate} have errors, and VCenter {name} is not in force",
                hint="holdfast validate lists them",
            )
        if name in desired.vcenters:
            return desired.vcenters[name]
        known = tuple(sorted(desired.vcenters))
    listed = f"there is {', '.join(known)}" if known else "declare it in the manifests"
    raise errors.NotFound(f"there is no VCenter {name}", hint=listed)
