"""Finding libnbd's Python binding, which distributions install for their own Python only.

Debian's ``python3-libnbd`` puts ``nbd.py`` and its compiled half among hundreds of other modules. Putting that folder
on ``sys.path`` would let all of them shadow what this environment has installed, so exactly these two are loaded from
it. Separate because everything else treats the binding as a value that may be missing.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

from reconciler.base import errors

#: Where distributions keep modules of their own Python 3.
SYSTEM_FOLDER = "/usr/lib/python3/dist-packages"


def _load(name: str, folders: list[str]) -> Any:
    spec = importlib.machinery.PathFinder.find_spec(name, folders)
    if spec is None or spec.loader is None:
        raise ImportError(f"no module {name} in {', '.join(folders[-1:])}", name=name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, str(Path(spec.origin or "").parent)


@functools.cache
def libnbd() -> Any:
    """The module ``nbd``. Raises ``SourceError`` naming the Debian package when it cannot be loaded."""
    try:
        compiled, folder = _load("libnbdmod", [*sys.path, SYSTEM_FOLDER])
        # nbd.py imports its compiled half by name; the same name in another folder would be another library.
        sys.modules.setdefault("libnbdmod", compiled)
        module, _ = _load("nbd", [folder])
    except ImportError as error:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise errors.SourceError(
            f"qcow2, vmdk, vhdx and nbdkit's disks need libnbd's binding for Python {version}: {error}",
            hint="install the Debian package python3-libnbd, and run Holdfast with the distribution's Python version",
        ) from error
    return module


def missing() -> str | None:
    """Which package is missing to read or write anything but raw disks; None if nothing is."""
    if shutil.which("qemu-nbd") is None or shutil.which("qemu-img") is None:
        return "qcow2, vmdk and vhdx disks need qemu-nbd and qemu-img: install the Debian package qemu-utils"
    try:
        libnbd()
    except errors.SourceError as error:
        return str(error)
    return None
