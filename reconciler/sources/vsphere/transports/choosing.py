"""Which way is taken to a frozen disk: the first that a VCenter names and that leads to exactly these bytes.

A way that cannot lead there, or that fails before the first byte, makes room for the next, and somebody is told. What
would be wrong on every way (a certificate, a login) is not tried on another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from reconciler.api import vcenters
from reconciler.base import disks, errors
from reconciler.sources.vsphere.connections import certificates, credentials, faults
from reconciler.sources.vsphere.transports import datastore, export, ports, vddk

KNOWN: Final[Mapping[str, Callable[[], ports.Transport]]] = {
    "nbdkit-vddk": vddk.Vddk,
    "datastore": datastore.Datastore,
    "export": export.Export,
}
#: Reasons that the next way shares.
_EVERYWHERE: Final = (certificates.Untrusted, credentials.NoCredential, faults.LoginRefused)


class NoWay(errors.SourceError):
    """No transport leads to the disk; ``retryable`` where one may later."""


def open(
    frozen: ports.Frozen, spec: vcenters.VCenterSpec, say: Callable[[str], None] | None = None
) -> tuple[disks.Disk, str]:
    """The disk, and the name of its transport; ``say`` hears of every way that was given up for it.

    Raises ``SourceError`` with every transport's reason, or ``Cancelled``.
    """
    reasons: list[str] = []
    passing = False
    for name in spec.transports:
        transport = KNOWN[name]()
        refused = transport.refuses(frozen)
        if refused is None:
            try:
                disk = transport.open(frozen)
            except _EVERYWHERE:
                raise
            except errors.SourceError as error:
                refused = str(error)
                passing = passing or error.retryable
            else:
                if reasons and say is not None:
                    say(f"{frozen.words}: read by {name}, because {'; '.join(reasons)}")
                return disk, name
        reasons.append(f"{name}: {refused.removeprefix(f'{frozen.words}: ')}")
    failed = NoWay(f"{frozen.words}: no transport leads to it: {'; '.join(reasons)}", hint=_next_step(spec))
    failed.retryable = passing
    raise failed


def _next_step(spec: vcenters.VCenterSpec) -> str:
    unnamed = [name for name in KNOWN if name not in spec.transports]
    if not unnamed:
        return "every transport was tried: what each one says must change"
    return f"what is said must change, or name {' or '.join(unnamed)} too in the VCenter's transports"
