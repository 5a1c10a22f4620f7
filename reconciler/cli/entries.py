"""The first code of the installed command: what an interrupt does while there is no command yet.

Python takes a third of a second to load what a command needs. Ctrl-C in that time would print whichever line of which
module was being loaded; here it ends the process with 130 and no word. ``main`` gives the signal back to Python for as
long as the command itself runs, which has things to put in order. Separate from ``main``, which is not imported at the
top, since its imports are much of that time.
"""

from __future__ import annotations

import importlib
import os
import signal


def main() -> None:
    """Run the command line; what the ``holdfast`` script calls."""
    interrupts_end()
    importlib.import_module("reconciler.cli.main").main()


def interrupts_end() -> None:
    """From now on an interrupt ends the process at once, with 130; one that the caller has ignored stays ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def interrupts_raise() -> None:
    """From now on an interrupt is ``KeyboardInterrupt`` again, if ``interrupts_end`` was called before."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*_: object) -> None:
    os._exit(130)
