"""Commands answer at once: what people type all day must not wait for libraries it does not need."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from pathlib import Path

import holdfast_command
import pytest
from estate_samples import Estate

#: Seconds of CPU that a command may take: three times what it takes on an idle machine, as tests share theirs.
BUDGETS = {
    ("--help",): 0.35,
    ("version",): 0.35,
    ("validate",): 0.6,
    ("get", "images"): 1.1,
    ("restore", "alpha", "--to", "somewhere", "--dry-run"): 1.3,
    ("plan", "."): 1.8,
}


@pytest.mark.parametrize("arguments", BUDGETS, ids=" ".join)
def test_start_up(converged: Estate, arguments: tuple[str, ...]) -> None:
    command = dataclasses.replace(converged.command, whole=True)
    spent: list[float] = []
    while len(spent) < 4 and min(spent, default=9.0) > BUDGETS[arguments]:
        before = os.times()
        started = time.monotonic()
        command.run(*arguments)
        wall = time.monotonic() - started
        after = os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        # Nothing waits for the network or a timer, so on an idle machine both agree.
        spent.append(min(wall, cpu))
    assert min(spent) <= BUDGETS[arguments], spent


def test_an_interrupt_while_modules_are_loaded_is_quiet(tmp_path: Path) -> None:
    """Ctrl-C at once after Enter; Python tells of each module, so the moment is the same on every machine."""
    command = holdfast_command.Command(folder=tmp_path, variables={"PYTHONPROFILEIMPORTTIME": "1"})
    process = command.start("plan", ".", "-o", "json")
    assert process.stderr is not None
    while "reconciler.base.errors" not in (line := process.stderr.readline()):
        assert line, "it ended before"
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert [line for line in said[1].splitlines() if not line.startswith("import time:")] == []
    assert said[0] == ""


def test_shell_completion_lists_commands_and_options(converged: Estate, tmp_path: Path) -> None:
    def complete(words: str, index: int) -> list[str]:
        shell = converged.command.using(
            _HOLDFAST_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(index), folder=tmp_path
        )
        return shell.run(code=None).stdout.split()

    listed = complete("holdfast ", 1)
    assert {"init", "plan", "apply", "run", "restore", "get", "pool"} <= set(listed)
    assert complete("holdfast rest", 1) == ["restore"]
    assert "--detailed-exitcode" in complete("holdfast plan --det", 2)
    assert list(tmp_path.iterdir()) == []
