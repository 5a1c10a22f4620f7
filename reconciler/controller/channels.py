"""Channels: where alarms are sent, each one Apprise URL (mail, chat, webhook).

``notifications`` sends through them at the end of a pass, ``holdfast notify test`` to prove them. A URL is a secret: it
is named by its scheme and place alone, and what ``senders`` says of a failure is passed on without any word of the URL.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Iterable
from typing import Final

#: How long a channel has to take a message, in seconds.
PATIENCE: Final = 20.0
_WORD: Final = re.compile(r"[^\W_]{3,}")
_SAID: Final = 200


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Channel:
    """One place that hears alarms."""

    #: Scheme and place in the settings, such as ``mailto#1``.
    name: str
    url: str = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Letter:
    """What is sent."""

    title: str
    body: str
    #: info, success, warning or failure, as Apprise has them.
    tone: str


def channels(urls: Iterable[str]) -> tuple[Channel, ...]:
    """The channels behind URLs, in their order."""
    return tuple(Channel(name=f"{_scheme(url)}#{place}", url=url) for place, url in enumerate(urls, 1))


def _scheme(url: str) -> str:
    """What stands before ``://``, where that is a word; anything else might be the secret itself."""
    scheme, mark, _ = url.partition("://")
    return scheme.lower() if mark and re.fullmatch(r"[A-Za-z][A-Za-z0-9+]{0,19}", scheme) else "unreadable"


def deliver(channel: Channel, letter: Letter) -> str | None:
    """Send, and wait for the answer at most ``PATIENCE``; why the channel did not take it, or None."""
    words = json.dumps({"url": channel.url, **dataclasses.asdict(letter)})
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    command = [sys.executable, "-I", "-m", "reconciler.controller.senders"]
    try:
        # A session of its own: Ctrl-C on the terminal is for the controller, which then waits for the message to go.
        done = subprocess.run(
            command, input=words, env=kept, capture_output=True, text=True, timeout=PATIENCE, start_new_session=True,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"{channel.name} has not answered within {PATIENCE:.0f} s"
    except OSError as error:
        return f"{channel.name}: the sender could not be started: {error.strerror}"
    if done.returncode == 0:
        return None
    # A bug of a plug-in ends in a traceback, whose last line says most.
    said = done.stdout.strip() or done.stderr.strip().rpartition("\n")[2]
    said = _without(said, channel.url)[:_SAID]
    return f"{channel.name} did not take it" + (f": {said}" if said else "")


def _without(text: str, url: str) -> str:
    """``text`` without any word of what follows the URL's scheme, spelled plainly or escaped."""
    scheme, mark, after = url.partition("://")
    rest = after if mark else scheme
    words = {rest, urllib.parse.unquote(rest)}
    words |= {word for whole in tuple(words) for word in _WORD.findall(whole)}
    for word in sorted(words, key=len, reverse=True):
        text = re.sub(re.escape(word), "…", text, flags=re.IGNORECASE) if word else text
    return text
