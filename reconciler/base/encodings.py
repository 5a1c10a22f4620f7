"""Names and words that may not be UTF-8, as the system hands them over: in a form that records and messages hold."""

from __future__ import annotations

import os


def shown(text: str) -> str:
    """The text, with ``\\xNN`` for each byte that is no UTF-8; the same text where all of it is."""
    return os.fsencode(text).decode(errors="backslashreplace")
