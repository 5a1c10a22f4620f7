"""The Approval of a plan's destructive part, ready to paste: under the part in the plan's text and in the comment.

One function, so that the two pages cannot differ. The name and the reason are left to whoever consents.
"""

from __future__ import annotations

import datetime as dt
from typing import Final

from reconciler.api.documents import plans

#: How long a pull request may take until its approval has run out.
_LASTS: Final = dt.timedelta(days=7)


def manifest(document: plans.Plan) -> tuple[str, ...]:
    """The lines of the manifest; none where nothing waits for an approval."""
    held = document.destruction
    if held.digest is None or held.approved:
        return ()
    until = (document.now + _LASTS).replace(minute=0, second=0, microsecond=0)
    return (
        "apiVersion: holdfast/v1alpha1",
        "kind: Approval",
        f"metadata: {{name: destroy-{held.digest.partition(':')[2][:8]}}}",
        "spec:",
        # On a line of its own, so that 80 columns hold it.
        "  destruction:",
        f"    {held.digest}",
        f"  copies: {held.copies}",
        "  by: your name",
        f'  until: "{until:%Y-%m-%dT%H:%M:%SZ}"',
        "  reason: why these copies may go",
    )
