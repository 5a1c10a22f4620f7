"""Disks through VMware's own library: the machine is made with empty disks, which nbdkit's vddk plugin then writes."""

from __future__ import annotations

from typing import Any

from reconciler.base import disks, errors, meters
from reconciler.sources.vsphere.rebuilding import orders


class Vddk:
    """The way ``vddk``."""

    name = "vddk"

    def __init__(self, order: orders.Order) -> None:
        self._order = order
        self._machine: Any = None

    def refuses(self) -> str | None:
        """Without the plugin."""
        return "not here yet"

    def make(self, meter: meters.Meter) -> Any:
        raise errors.SourceError("no")

    def write(self, disk: disks.Disk, meter: meters.Meter) -> int:
        raise errors.SourceError("no")

    def seal(self, meter: meters.Meter) -> None:
        meter.check()

    def abort(self) -> None:
        """x"""
