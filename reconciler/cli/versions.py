"""``holdfast version``."""

from __future__ import annotations

import json
import platform
import sys

from reconciler import __version__
from reconciler.base import crashes
from reconciler.cli import options


def version(output: options.Format = options.Output.TEXT) -> int:
    """Print the version; with -o json also the named crash points that tests may use."""
    if output is options.Output.JSON:
        # Written by hand: the document models would triple the start-up time of the smallest command.
        document = {
            "apiVersion": "holdfast/v1alpha1",
            "kind": "Version",
            "version": __version__,
            "python": platform.python_version(),
            "crashPoints": list(crashes.POINTS),
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        sys.stdout.write(f"holdfast {__version__}\n")
    return 0
