"""Running the installed ``holdfast`` command as a process of its own, as a user does.

``import holdfast_command`` works from every test; the fixture ``holdfast`` in ``conftest.py`` is a ready ``Command``.
``start`` begins the installed script. So does ``run`` of a ``whole`` command and of one that crashes; any other ``run``
is a fork of a process that has loaded the commands (``holdfast_forks``), because loading takes longer than most answers.
The tests of faults and of vCenters have whole ones.
With ``TESTS_START=whole`` in the environment every process is the installed script.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import holdfast_forks

ROOT = Path(__file__).parents[1]
_INSTALLED = Path(sys.executable).with_name("holdfast")
#: The installed script, or the same entry point from the source tree where nothing is installed.
PROGRAM = (
    [str(_INSTALLED)]
    if _INSTALLED.exists()
    else [sys.executable, "-c", "from reconciler.cli.entries import main; main()"]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A way to run ``holdfast``: a folder to stand in and variables to add."""

    #: Working folder.
    folder: Path
    #: Added to an environment without any ``HOLDFAST_`` variable.
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    #: Whether every process is the installed script from its first instruction on.
    whole: bool = os.environ.get("TESTS_START") == "whole" or len(PROGRAM) > 1

    def using(self, *, folder: Path | None = None, **variables: str) -> Command:
        """The same with another folder, or with more variables."""
        return Command(folder=folder or self.folder, variables={**self.variables, **variables}, whole=self.whole)

    def at(self, clock: str) -> Command:
        """The same under a test clock: a time, or ``@FILE``."""
        return self.using(HOLDFAST_TEST="1", HOLDFAST_CLOCK=clock)

    def crashing(self, point: str) -> Command:
        """The same, killing itself at a named point (``POINT`` or ``POINT:N``)."""
        return self.using(HOLDFAST_TEST="1", HOLDFAST_CRASH=point)

    def environment(self) -> dict[str, str]:
        """What the process will see."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        if len(PROGRAM) > 1:
            kept["PYTHONPATH"] = str(ROOT)
        return {**kept, "NO_COLOR": "1", "COLUMNS": "200", **self.variables}

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
        """Begin a command and return the process; the caller ends it."""
        return subprocess.Popen(
            [*PROGRAM, *map(str, arguments)],
            cwd=self.folder,
            env=self.environment(),
            text=True,
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )

    def run(
        self, *arguments: str | Path, code: int | None = 0, text: str | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end. Fails with its stderr unless it exits with ``code`` (None: any). ``text`` is its
        stdin."""
        if self.whole or not holdfast_forks.fits(self.variables, text):
            found = subprocess.run(
                [*PROGRAM, *map(str, arguments)],
                cwd=self.folder,
                env=self.environment(),
                text=True,
                capture_output=True,
                timeout=timeout,
                check=False,
                **({"stdin": subprocess.DEVNULL} if text is None else {"input": text}),
            )
        else:
            found = holdfast_forks.run(
                PROGRAM[0],
                [str(word) for word in arguments],
                folder=self.folder,
                environment=self.environment(),
                text=text,
                timeout=timeout,
            )
        said = f"holdfast {' '.join(map(str, arguments))}: exit {found.returncode}\n{found.stdout}\n{found.stderr}"
        assert code is None or found.returncode == code, said
        return found

    def json(self, *arguments: str | Path, code: int | None = 0, timeout: float = 120) -> Any:
        """Run a command with ``-o json``; its document. A Plan must be one that its schema describes."""
        document = json.loads(self.run(*arguments, "-o", "json", code=code, timeout=timeout).stdout)
        if isinstance(document, dict) and document.get("kind") == "Plan":
            # Only here: those who start no plan need no validator.
            import plan_schema

            plan_schema.require_valid(document)
        return document
