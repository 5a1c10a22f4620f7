"""Labels of images whose machines are to be started."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from reconciler.storage import units

TIME = dt.datetime(2026, 11, 23, 21, 0, tzinfo=dt.UTC)


def label(*disks: Path | str, configuration: str | None = None, sector: int = 512) -> units.ImageLabel:
    """An image of these disks, by their names."""
    return units.ImageLabel(
        id="img-1",
        client_id="uuid",
        client_name="oblVM1",
        client_slug="oblvm1",
        source="diskimages:/srv/guests/oblVM1",
        policy="gold",
        schedule="nightly",
        lifecycle="gold",
        operation="backup",
        copy=1,
        type="Full",
        state="Complete",
        time=TIME,
        sequence=1,
        slot=TIME,
        revision="main@sha1:" + "a" * 40,
        parent=None,
        changes="FullRead",
        consistency="Offline",
        configuration=configuration,
        disks=tuple(
            units.DiskRecord(
                name=Path(one).name, size=1 << 30, sector=sector, digest="blake3-1m:" + "0" * 64, blake3=None
            )
            for one in disks
        ),
    )
