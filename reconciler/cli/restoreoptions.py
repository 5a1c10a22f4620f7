"""The options of ``holdfast restore``, by what they speak of: the image (as ``mount`` too), the folder, the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reconciler.cli import options

Client = Annotated[str, typer.Argument(metavar="CLIENT|IMAGE", help="A client; with --unit an image's id.")]
Image = Annotated[
    str | None,
    typer.Option("--image", metavar="ID", help="This image, not the newest (for a restore: that failed no drill)."),
]
AsOf = Annotated[str | None, typer.Option("--as-of", metavar="TIME", help="The newest image at or before TIME.")]
Copy = Annotated[
    int | None,
    typer.Option("--copy", metavar="N", help="This copy alone; by default every good one, the fastest first."),
]
Disk = Annotated[list[str] | None, typer.Option("--disk", metavar="NAME", help="Only this disk; may be repeated.")]
Unit = Annotated[
    Path | None,
    typer.Option("--unit", metavar="PATH", parser=options.path, help="Restore from this unit's folder alone."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be restored; write nothing.")]
Reason = Annotated[
    str | None, typer.Option("--reason", metavar="TEXT", parser=options.words, help="Why, for the audit log.")
]

To = Annotated[
    Path | None,
    typer.Option(
        "--to",
        metavar="DIR|DEVICE",
        parser=options.path,
        help="Folder for the disks, made if need be, or a device for one.",
    ),
]
Form = Annotated[str, typer.Option("--format", help="raw, qcow2 or vmdk.")]
Subformat = Annotated[
    str | None, typer.Option("--subformat", help="With vmdk: sparse (the default), flat or streamOptimized.")
]
Staged = Annotated[bool, typer.Option("--staged", help="With --to: vmx, nvram and VMDKs that ESX registers.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite disks that are there already, or a device.")]
Salvage = Annotated[
    bool,
    typer.Option(
        "--salvage", help="With --to: where no copy has a block write zeros, list what is missing, and exit 3."
    ),
]
ReadBack = Annotated[
    bool,
    typer.Option(
        "--read-back", help="Read every byte back from the device before a disk gets its name, not one block of 16."
    ),
]

VCenter = Annotated[
    str | None, typer.Option("--vcenter", metavar="NAME", help="Make the machine again in this VCenter.")
]
Name = Annotated[str | None, typer.Option("--name", help="Its name; the old one by default.")]
Folder = Annotated[str | None, typer.Option("--folder", help="Its folder, by name or path.")]
Host = Annotated[str | None, typer.Option("--host", help="Its ESX host, or a cluster.")]
Datastore = Annotated[str | None, typer.Option("--datastore", help="Where its files go.")]
Pool = Annotated[str | None, typer.Option("--pool", help="Its resource pool, by name or path.")]
Identity = Annotated[
    str | None, typer.Option("--identity", help="same or new; new by default where the original still is.")
]
Via = Annotated[str | None, typer.Option("--via", help="How disks are written: import, datastore or vddk.")]
PowerOn = Annotated[bool, typer.Option("--power-on", help="Switch it on once it is proven.")]
Replace = Annotated[bool, typer.Option("--replace", help="Then switch off and rename the machine that has the name.")]
