"""The plan on a terminal: colours where the terminal's owner has nothing against them, 80 columns, every detail on -v."""

from __future__ import annotations

import os
import subprocess

import pytest
from estate_samples import Estate


def on_a_terminal(estate: Estate, *arguments: str, **variables: str) -> str:
    """What ``plan`` writes to a terminal."""
    master, slave = os.openpty()
    command = estate.command.using(**variables)
    process = command.start("plan", *arguments, stdout=slave, stderr=subprocess.DEVNULL)
    os.close(slave)
    found = b""
    while True:
        try:
            piece = os.read(master, 1 << 16)
        except OSError:  # the other end was closed
            break
        if not piece:
            break
        found += piece
    os.close(master)
    assert process.wait(60) == 0
    return found.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [
        ({"NO_COLOR": "", "TERM": "xterm-256color"}, True),
        ({"NO_COLOR": "1", "TERM": "xterm-256color"}, False),
        ({"NO_COLOR": "", "TERM": "dumb"}, False),
    ],
)
def test_colours_are_the_choice_of_the_terminals_owner(
    empty: Estate, variables: dict[str, str], coloured: bool
) -> None:
    text = on_a_terminal(empty, COLUMNS="80", **variables)
    assert ("\x1b[" in text) is coloured
    assert "BackupPolicy/nightly" in text


def test_a_pipe_gets_no_colours_and_a_narrow_terminal_whole_words(empty: Estate) -> None:
    piped = empty.command.using(NO_COLOR="", TERM="xterm", COLUMNS="80").run("plan").stdout
    assert "\x1b" not in piped
    assert all(len(line) <= 80 for line in piped.splitlines())
    assert piped.splitlines()[0].startswith("Plan nothing in force → dir@blake3:")
    assert piped.splitlines()[-1] == "Plan: 4 configuration changes; 1 backup due."
