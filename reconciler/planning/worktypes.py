"""What an action does, and so the job that is made of it: the words in plans, in the catalog and in ``get jobs``.

Separate from ``actions``, which passes them on, because the catalog knows jobs and not plans.
"""

from __future__ import annotations

import enum
from typing import Final

#: Type of a job that serves an image until it is told to end. No plan holds one, and it takes no slot of a unit.
MOUNT: Final = "Mount"
#: The end of the address of a restore by command that writes over the machine itself.
IN_PLACE: Final = "/in-place"


class Type(enum.StrEnum):
    """What an action does."""

    BACKUP = "Backup"
    DUPLICATE = "Duplicate"
    EXPIRE = "Expire"
    RECLAIM = "Reclaim"
    VERIFY = "Verify"
    RESTORE = "Restore"
    REMOVE_SNAPSHOT = "RemoveSnapshot"
