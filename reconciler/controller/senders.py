"""The process that speaks to one channel: reads a letter from standard input, sends it, ends. The door to Apprise.

``channels`` starts it as ``python -m reconciler.controller.senders``, so that a server that never answers can be ended
with the process that waits for it, and what a plug-in leaves behind goes with it. The URL comes through a pipe, never
on the command line. Exit 0: the channel took the letter; 1: standard output says why not, for ``channels`` to purge.
"""

from __future__ import annotations

import json
import logging
import sys

import apprise


class _Listener(logging.Handler):
    """What Apprise and the libraries below it say."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.lines.append(record.getMessage())


def main() -> int:
    """Send the letter on standard input."""
    letter = json.load(sys.stdin)
    heard = _Listener()
    logging.getLogger().addHandler(heard)
    target = apprise.Apprise(asset=apprise.AppriseAsset(app_id="Holdfast", app_desc="Holdfast", app_url=""))
    if not target.add(letter["url"]):
        sys.stdout.write("Apprise does not know such a URL")
        return 1
    tone, plain = apprise.NotifyType(letter["tone"]), apprise.NotifyFormat.TEXT
    if target.notify(title=letter["title"], body=letter["body"], notify_type=tone, body_format=plain):
        return 0
    sys.stdout.write("; ".join(heard.lines))
    return 1


if __name__ == "__main__":
    sys.exit(main())
