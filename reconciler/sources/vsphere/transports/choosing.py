"""Which way is taken to a frozen disk: the first that a VCenter names and that leads to exactly these bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from reconciler.api import vcenters
from reconciler.base import disks, errors
from reconciler.sources.vsphere.transports import datastore, ports

_KNOWN: Final[Mapping[str, Callable[[], ports.Transport]]] = {"datastore": datastore.Datastore}


def open(frozen: ports.Frozen, spec: vcenters.VCenterSpec) -> tuple[disks.Disk, str]:
    """The disk, and the transport's name. Raises ``SourceError`` with every transport's reason."""
    reasons: list[str] = []
    for name in spec.transports:
        make = _KNOWN.get(name)
        if make is None:
            reasons.append(f"{name}: not in this version")
            continue
        transport = make()
        refused = transport.refuses(frozen)
        if refused is None:
            try:
                return transport.open(frozen), name
            except errors.SourceError as error:
                refused = str(error)
        reasons.append(f"{name}: {refused}")
    raise errors.SourceError(
        f"{frozen.words}: no transport leads to it: {'; '.join(reasons)}",
        hint="name another transport in the VCenter's transports",
    )
