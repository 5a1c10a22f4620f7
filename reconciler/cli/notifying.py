"""``holdfast notify test``: prove that alarms reach somebody, before one has to."""

from __future__ import annotations

import enum
import socket
from pathlib import Path
from typing import Annotated

import typer

from reconciler.api.documents import results
from reconciler.base import clocks, errors, times
from reconciler.cli import options, outputs, settings
from reconciler.controller import channels


class Verb(enum.StrEnum):
    """What ``notify`` does."""

    TEST = "test"


def notify(
    verb: Annotated[Verb, typer.Argument(metavar="VERB", help="test: send a message to every channel.")],
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """Send a test message to everyone who hears alarms, and say who took it. Exit 1 where somebody did not."""
    del verb
    try:
        chosen = settings.of_state(state=state, catalog=catalog)
    except errors.UsageError:
        # Before the first apply there is no state yet, and hearing is worth proving all the same.
        chosen = settings.of_estate(Path(), state=state, catalog=catalog)
    if chosen.ears.trouble is not None:
        raise errors.HoldfastError(f"alarms reach nobody: {chosen.ears.trouble}")
    if not chosen.ears.urls:
        raise errors.HoldfastError(
            "nobody hears alarms here",
            hint='set HOLDFAST_NOTIFY, or urls = ["mailto://..."] under [notify] in holdfast.toml',
        )
    when = times.show_minutes(clocks.from_environment().now())
    letter = channels.Letter(
        title="Holdfast: a test",
        body=f"Alarms of {chosen.estate or chosen.state} on {socket.gethostname()} reach you here. Sent {when}.",
        tone="info",
    )
    answers = []
    for channel in channels.channels(chosen.ears.urls):
        trouble = channels.deliver(channel, letter)
        answers.append(results.ChannelAnswer(channel=channel.name, taken=trouble is None, message=trouble))
    outputs.emit(results.NotifyResult(channels=tuple(answers)), output, _text)
    return 0 if all(one.taken for one in answers) else errors.HoldfastError.exit_code


def _text(document: results.NotifyResult) -> str:
    return "\n".join(one.message or f"{one.channel} took it" for one in document.channels)
