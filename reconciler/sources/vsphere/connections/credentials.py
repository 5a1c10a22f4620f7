"""User and password of a VCenter, read when somebody logs in and kept nowhere."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from reconciler.api import vcenters
from reconciler.base import errors


class NoCredential(errors.SourceError):
    """The user or the password is not where the manifest says."""

    retryable = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Login:
    """Who logs in; the password is never shown."""

    username: str
    password: str = dataclasses.field(repr=False)


def read(name: str, reference: vcenters.Credential) -> Login:
    """The credential that VCenter ``name`` refers to. Raises ``NoCredential``."""
    if reference.env is not None:
        return Login(
            username=_variable(name, f"{reference.env}_USERNAME"), password=_variable(name, f"{reference.env}_PASSWORD")
        )
    folder = Path(reference.folder or "")
    return Login(username=_file(name, folder / "username"), password=_file(name, folder / "password"))


def _variable(name: str, variable: str) -> str:
    found = os.environ.get(variable, "")
    if not found:
        raise NoCredential(f"VCenter {name}: {variable} is not set", hint="set it where holdfast runs")
    return found


def _file(name: str, path: Path) -> str:
    try:
        found = path.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise NoCredential(f"VCenter {name}: {path} cannot be read: {error}", hint="one line of text") from error
    if not found:
        raise NoCredential(f"VCenter {name}: {path} is empty", hint="one line of text")
    return found
