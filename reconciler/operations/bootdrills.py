"""Boot drill: the machine of an image is started from copy-on-write exports of one copy, and what it showed is kept.

Nothing it writes reaches the unit, it has no network, and it is gone when the verdict is there. Its console and its
last screen lie in the state's evidence folder until the copy has no result any more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterable
from pathlib import Path

from reconciler.api import drilling
from reconciler.base import errors, files, quantities
from reconciler.catalog import inventories
from reconciler.catalog import verifications as records
from reconciler.jobs import engines
from reconciler.operations import bootguesses, bootorders, boots, exports, sites, verifications
from reconciler.storage import units

_SUFFIXES = (".png", ".txt")


def drill(site: sites.Site, order: verifications.VerifyOrder, context: engines.JobContext) -> engines.Outcome:
    """Start it and keep the verdict. Raises ``VerificationFailed``, ``EmulatorFailed`` or ``ExportFailed`` where nothing
    was learned, ``UnitError``, ``Cancelled``."""
    unit = site.units.get(order.unit)
    with contextlib.ExitStack() as stack:
        stored = stack.enter_context(contextlib.closing(unit.open(order.image)))
        started = _order(stored, order.ways.boot)
        path = Path(inventories.known_units(site.db)[order.unit].path)
        troubles: list[exports.Trouble] = []
        drives = []
        for name in started.names:
            export = exports.serve(
                exports.Order(
                    copies=(exports.Copy(folder=path, image=order.image, cache=site.caches),),
                    disks=(name,),
                    writable=True,
                ),
                troubles.append,
            )
            stack.enter_context(export)
            sector = next(record.sector for record in stored.label.disks if record.name == name)
            drives.append(bootorders.Drive(name=name, where=export.uri, sector=sector))
        context.log(f"starting {stored.label.client_name} ({started.order.firmware}, {started.order.bus})")
        result = boots.boot(drives, started.order, context.meter)
    for trouble in troubles:
        context.log(f"{trouble.code}: {trouble.message}")
    if troubles and not result.passed:
        # A disk that could not be read to it says more than what the guest made of it.
        raise errors.ImageDamaged(f"{order.image} on {order.unit}: {troubles[0].message}")
    kept = _keep(site, stored.label, order, result)
    details = {
        "seconds": round(result.seconds, 3), "accelerator": result.accelerator, "firmware": started.order.firmware,
        "bus": started.order.bus, "console": result.console[-2000:], "screenshot": kept,
    }  # fmt: skip
    message = f"{result.message}, after {quantities.show_seconds(result.seconds)}"
    finding = verifications.Finding(passed=result.passed, message=message, details=details)
    return verifications.keep(site, order, context, finding)
