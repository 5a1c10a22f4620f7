"""The text that makes a flat file a VMDK."""

from __future__ import annotations

import secrets
from typing import Final

SECTOR: Final = 512
#: The largest number of cylinders that the old geometry can tell.
_CYLINDERS: Final = 65_535


def flat(extent: str, size: int, controller: str, *, vmfs: bool) -> bytes:
    """A descriptor of one flat file.

    ``extent``: its name beside the descriptor; ``size``: bytes, whole sectors; ``controller``: type in the API of what
    the disk hangs on; ``vmfs``: as ESX hosts keep them, else as other programs of VMware's do.
    """
    sectors = size // SECTOR
    heads, per_track = (16, 63) if controller == "VirtualIDEController" else (255, 63)
    cylinders = max(1, min(_CYLINDERS, sectors // (heads * per_track)))
    kind, place = ("vmfs", f'RW {sectors} VMFS "{extent}"') if vmfs else (
        "monolithicFlat", f'RW {sectors} FLAT "{extent}" 0'
    )  # fmt: skip
    lines = (
        "# Disk DescriptorFile",
        "version=1",
        'encoding="UTF-8"',
        f"CID={secrets.token_hex(4)}",
        "parentCID=ffffffff",
        f'createType="{kind}"',
        "",
        "# Extent description",
        place,
        "",
        "# The Disk Data Base",
        "#DDB",
        "",
        f'ddb.adapterType = "{"ide" if heads == 16 else "lsilogic"}"',
        f'ddb.geometry.cylinders = "{cylinders}"',
        f'ddb.geometry.heads = "{heads}"',
        f'ddb.geometry.sectors = "{per_track}"',
        'ddb.virtualHWVersion = "13"',
        "",
    )
    return "\n".join(lines).encode()
