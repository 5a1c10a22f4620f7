"""The entry point: run a command, turn what went wrong into a message on stderr and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

import typer

from reconciler.base import errors
from reconciler.cli import commands, entries

#: Control characters, but for those that lay out a message, as ``\xNN``.
_UNSEEN: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    code = run(sys.argv[1:])
    entries.interrupts_end()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away; Python would complain once more while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the exit code of contracts as documented in ``--help``."""
    # A thread that hashed or packed a block waits this long for its turn to go on; the default is 5 ms.
    sys.setswitchinterval(0.0005)
    try:
        application = commands.application(arguments)
        entries.interrupts_raise()
        result = application(args=list(arguments), prog_name="holdfast", standalone_mode=False)
    except errors.ConfigurationError as error:
        for found in error.diagnostics:
            complain(str(found), label="")
        complain(str(error))
        return error.exit_code
    except errors.HoldfastError as error:
        complain(str(error))
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        complain("interrupted")
        return 130
    except typer.TyperException as error:
        message = error.format_message()
        if message.startswith("Usage:"):
            # Nothing but a group's name was given: this is the help, and needs no hint where the help is.
            complain(message, label="")
        else:
            complain(f"{message} (holdfast --help lists the commands and options)")
        return 64
    except BrokenPipeError:
        return 1
    except OSError as error:
        complain(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        return 1
    return result if isinstance(result, int) else 0


def complain(message: str, *, label: str = "holdfast: ") -> None:
    """One message on stderr. It may hold names that a guest chose; none of them tells a terminal what to do."""
    sys.stderr.write(f"{label}{message.translate(_UNSEEN)}\n")
