"""How the schema came to be: one file per step under ``versions``, run by Alembic when an older catalog is opened.

``REVISIONS`` names the steps in order, so that opening a catalog that is up to date needs no Alembic at all (importing
it takes longer than most commands run). A test holds the list against the files, and the last step against ``tables``.
"""

from __future__ import annotations

from typing import Final

#: Every revision in order; the last one is what this version reads and writes.
REVISIONS: Final = ("0001", "0002", "0003", "0004", "0005", "0006")
HEAD: Final = REVISIONS[-1]
