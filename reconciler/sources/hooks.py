"""Commands around a reading: freeze and snapshot before it, thaw after it.

A hook sees in its environment which machine and which disks are meant. It runs in a process group of its own, so that
running out of time ends everything it started. Its output goes to a file: a child left behind keeps nobody waiting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from reconciler.base import errors

_TAIL = 1500
#: Seconds between asking a command to end and ending it.
_MERCY = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """The commands of a policy."""

    #: Program and arguments run before the disks are opened; empty for none.
    before: Sequence[str] | None = ()
    #: Program and arguments run after everything is closed, whatever happened; empty for none.
    after: Sequence[str] | None = ()
    #: Seconds that each of them may take.
    timeout: float = 300.0


def run(which: str, command: Sequence[str], timeout: float, *, machine: str, disks: Sequence[Path | str]) -> None:
    """Run one hook: exit code 0 within ``timeout`` seconds, else ``HookFailed`` with the end of its output.

    ``disks``: their paths here, or their names where they have none.
    """
    environment = {
        **os.environ,
        "HOLDFAST_HOOK": which,
        "HOLDFAST_MACHINE": machine,
        "HOLDFAST_DISKS": "\n".join(str(disk) for disk in disks),
    }
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise errors.HookFailed(
                f"the {which} hook of {machine} cannot be started: {command[0]}: {error.strerror}",
                hint="hooks are run as given, without a shell: check the path and its permissions",
            ) from error
        try:
            code = process.wait(timeout)
            reason = f"ended with {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
        except subprocess.TimeoutExpired:
            code, reason = -1, f"took longer than {timeout:g} s"
        finally:
            if process.poll() is None:
                _end_group(process)
        if code == 0:
            return
        said = _tail(output.fileno())
    raise errors.HookFailed(
        f"the {which} hook of {machine} {reason}: {command[0]}: {said or 'it printed nothing'}",
        hint="run the command by hand with HOLDFAST_MACHINE and HOLDFAST_DISKS set",
    )


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_MERCY)
    # The command may have obeyed while something it started did not.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _tail(handle: int) -> str:
    size = os.fstat(handle).st_size
    return os.pread(handle, _TAIL, max(size - _TAIL, 0)).decode(errors="replace").strip()
