"""Swap volumes of Linux: a header page, then pages that mean nothing to a restored machine."""

from __future__ import annotations

import struct

from reconciler.guests.parsers import outputs, stretches

_MAGIC = b"SWAPSPACE2"
#: Bytes a page may have.
_PAGES = (4096, 8192, 16_384, 65_536)
#: Offset of version and last page in the header page, and of the label.
_HEAD = 1024
_LABEL = 1052


def page(stretch: stretches.Stretch) -> int:
    """Bytes per page of the swap volume in ``stretch``, 0 where it is none."""
    for size in _PAGES:
        if stretch.read(size - len(_MAGIC), len(_MAGIC)) == _MAGIC:
            return size
    return 0


def parse(stretch: stretches.Stretch, output: outputs.Output) -> outputs.Facts:
    """Hand over all pages but the header's. A hibernated machine keeps its image here: then none is."""
    facts, last = _head(stretch)
    if output.want_space:
        output.swap(facts.cluster, min(last * facts.cluster, stretch.size - facts.cluster))
    return facts


def facts(stretch: stretches.Stretch) -> outputs.Facts:
    """What its header says. Raises ``Truncated``."""
    return _head(stretch)[0]


def _head(stretch: stretches.Stretch) -> tuple[outputs.Facts, int]:
    """What the header says, and the number of the last page."""
    size = page(stretch)
    version, last = struct.unpack("<II", stretch.exactly(_HEAD, 8))
    if version != 1 or not last:
        raise stretches.Truncated("the swap header is of another version")
    label = stretch.exactly(_LABEL, 16).split(b"\x00", 1)[0].decode("utf-8", "replace")
    return outputs.Facts(filesystem="swap", label=label, clean=True, reason="", cluster=size), last
