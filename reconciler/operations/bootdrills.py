"""Boot drill: the machine of an image is started from copy-on-write exports of one copy, and what it showed is kept.

Nothing it writes reaches the unit, it has no network, and it is gone when the verdict is there. Its console and its
last screen lie in the state's evidence folder until the copy has no result any more.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from reconciler.api import drilling
from reconciler.base import errors, files, quantities
from reconciler.catalog import inventories
from reconciler.catalog import verifications as records
from reconciler.jobs import engines
from reconciler.operations import bootguesses, bootorders, boots, exports, sites, verifications
from reconciler.storage import units

_SUFFIXES: Final = (".png", ".txt")
_JUDGES: Final[Mapping[str, bootorders.Judge]] = {"Serial": "serial", "Agent": "agent", "Either": "either"}
_FIRMWARES: Final[Mapping[str, bootorders.Firmware]] = {"BIOS": "bios", "UEFI": "uefi"}


def drill(site: sites.Site, order: verifications.VerifyOrder, context: engines.JobContext) -> engines.Outcome:
    """Start it and keep the verdict.

    Raises ``VerificationFailed``; ``EmulatorFailed``, ``SourceError`` or ``UnitError`` where nothing was learned;
    ``Cancelled``.
    """
    try:
        return _drill(site, order, context)
    except (errors.ImageDamaged, errors.ImageMissing) as error:
        return verifications.broken(site, order, context, error)


def _drill(site: sites.Site, order: verifications.VerifyOrder, context: engines.JobContext) -> engines.Outcome:
    unit = site.units.get(order.unit)
    with contextlib.ExitStack() as stack:
        stored = stack.enter_context(contextlib.closing(unit.open(order.image)))
        guess = _guess(stored, order.ways.boot)
        path = Path(inventories.known_units(site.db)[order.unit].path)
        troubles: list[exports.Trouble] = []
        drives = []
        served_by: list[exports.Export] = []
        for name in guess.disks:
            wanted = exports.Order(
                image=order.image,
                copies=(exports.Copy(folder=path, cache=site.caches),),
                disks=(name,),
                writable=True,
            )
            export = exports.serve(wanted, told=troubles.append)
            served_by.append(stack.enter_context(export))
            sector = next(record.sector for record in stored.label.disks if record.name == name)
            drives.append(bootorders.Drive(name=name, where=export.uri, sector=sector))
        context.log(
            f"starting {stored.label.client_name} with {guess.order.firmware} and {guess.order.bus}: {guess.why}"
        )
        result = boots.boot(drives, guess.order, context.meter)
        served = all(export.alive for export in served_by)
    for trouble in troubles:
        context.log(str(trouble.error))
    if not result.passed:
        _blame(troubles, result, served=served)
    kept = _keep(site, stored.label, order, result)
    details = {
        "seconds": round(result.seconds, 3), "accelerator": result.accelerator, "firmware": guess.order.firmware,
        "bus": guess.order.bus, "console": result.console[-2000:], "screenshot": kept, "diskErrors": result.disk_errors,
    }  # fmt: skip
    finding = verifications.Finding(passed=result.passed, message=result.message, details=details)
    return verifications.keep(site, order, context, finding)


def _blame(troubles: Sequence[exports.Trouble], result: boots.BootResult, *, served: bool) -> None:
    """Raise what says more than what the guest made of it: the copy is damaged, or could not be read to it."""
    found = [one.error for one in troubles]
    found.sort(key=lambda one: not isinstance(one, errors.ImageDamaged | errors.ImageMissing))
    if found:
        raise found[0]
    if result.disk_errors or not served:
        raise errors.EmulatorFailed(
            f"the machine's disks could not be read or written: {result.message}",
            hint="check the unit, and the space for what the machine writes (TMPDIR)",
        )


def _guess(stored: units.StoredImage, ways: drilling.BootDrill) -> bootguesses.Guess:
    """How to start it: what the policy says, and for the rest what the image looks like."""
    heads = {}
    for record in stored.label.disks:
        with contextlib.closing(stored.disk(record.name)) as disk:
            heads[record.name] = bytes(disk.pread(0, min(bootguesses.HEAD, record.size)))
    wanted = bootorders.BootOrder(
        seconds=ways.within.approximate.total_seconds(),
        judge=_JUDGES[ways.judge],
        pattern=ways.pattern or bootorders.UP,
    )
    found = bootguesses.guess(stored.label, heads, wanted)
    order = found.order
    memory = quantities.parse_size(ways.memory) >> 20 if ways.memory is not None else order.memory
    firmware = _FIRMWARES.get(ways.firmware, order.firmware)
    return dataclasses.replace(
        found,
        order=dataclasses.replace(
            order,
            firmware=firmware,
            bus=bootguesses.readable(firmware, order.bus) if ways.bus == "Auto" else ways.bus,
            memory=memory,
            processors=ways.processors or order.processors,
        ),
    )


def _keep(
    site: sites.Site, label: units.ImageLabel, order: verifications.VerifyOrder, result: boots.BootResult
) -> str | None:
    """Put screen and console into the evidence folder; the screen's path, None where there is none."""
    if site.evidence is None:
        return None
    folder = site.evidence / label.client_slug
    stem = f"{label.id}-{order.copy}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _forget(site, folder, label, stem)
        files.write_atomically(folder / f"{stem}.txt", result.console.encode(errors="replace"), mode=0o600)
        if result.screenshot is None:
            return None
        screen = folder / f"{stem}.png"
        files.write_atomically(screen, result.screenshot, mode=0o600)
        return str(screen)
    except OSError as error:
        raise errors.CatalogError(f"{folder}: {error.strerror}", hint="check the state folder and its space") from error


def _forget(site: sites.Site, folder: Path, label: units.ImageLabel, stem: str) -> None:
    """Remove what is about copies that have no result any more, and what an earlier drill left of this one."""
    known = {f"{one.image}-{one.copy}" for one in records.list_verifications(site.db, client_id=label.client_id)} - {
        stem
    }
    for path in folder.iterdir():
        if path.suffix in _SUFFIXES and path.stem not in known:
            path.unlink(missing_ok=True)
