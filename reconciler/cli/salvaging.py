"""``restore --salvage``: what ``restoring`` loads once something turned out to be missing.

Separate because telling which files lie there takes the readers of guests, which no other restore of disks needs.
"""

from __future__ import annotations

from reconciler.operations import missingfiles

told = missingfiles.told
