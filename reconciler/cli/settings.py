"""Where the estate, the state and the catalog are: options first, then ``HOLDFAST_*``, then ``holdfast.toml``.

The result is one frozen value that is passed down; nothing below the command line reads the environment for settings.
"""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pydantic
import pydantic_settings

from reconciler.base import errors

FILE_NAME = "holdfast.toml"
STATE_NAME = ".holdfast"


class Configured(pydantic_settings.BaseSettings):
    """What ``HOLDFAST_*`` and ``holdfast.toml`` may set."""

    model_config = pydantic_settings.SettingsConfigDict(env_prefix="HOLDFAST_", frozen=True, extra="ignore")

    state: Path | None = None
    """Folder of the catalog; a relative one in the file is relative to the file."""
    catalog: str | None = None
    """Catalog elsewhere, such as ``postgresql://...``."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a command works on."""

    #: Folder of manifests, None for commands that found only a state.
    estate: Path | None
    #: Folder of the catalog, the lock and local caches.
    state: Path
    #: Path of the catalog file, or a URL.
    catalog: str

    @property
    def caches(self) -> Path:
        """Folder of what can be made anew, shared by every command on this state."""
        return self.state / "cache"


def of_estate(estate: Path, *, state: Path | None, catalog: str | None) -> Settings:
    """Settings of a command that names its estate. Raises ``UsageError`` if that is no folder."""
    if not estate.is_dir():
        raise errors.UsageError(f"{estate} is not a folder", hint="name the folder that holds the manifests")
    estate = estate.resolve()
    configured = _configured(estate / FILE_NAME)
    chosen = state or configured.state or estate / STATE_NAME
    return _settings(estate, chosen, catalog or configured.catalog)


def of_state(*, state: Path | None, catalog: str | None) -> Settings:
    """Settings of a command without an estate: ``.holdfast`` (or a ``holdfast.toml``) here or in a parent.

    Raises ``UsageError`` where there is neither.
    """
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / FILE_NAME).is_file() or (folder / STATE_NAME).is_dir():
            return of_estate(folder, state=state, catalog=catalog)
    configured = _configured(None)
    chosen = state or configured.state
    if chosen is None:
        raise errors.UsageError(
            f"no {STATE_NAME} folder here or in a parent folder",
            hint="go to the estate, or name the state with --state DIR",
        )
    return _settings(None, chosen, catalog or configured.catalog)


def _settings(estate: Path | None, state: Path, catalog: str | None) -> Settings:
    state = state.expanduser().absolute()
    return Settings(estate=estate, state=state, catalog=catalog or str(state / "catalog.sqlite"))


def _configured(file: Path | None) -> Configured:
    """The environment over the file. Raises ``UsageError`` for a file that cannot be read."""
    found: dict[str, Any] = {}
    if file is not None and file.is_file():
        try:
            found = tomllib.loads(file.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise errors.UsageError(f"{file}: {error}") from error
        if isinstance(found.get("state"), str):
            found["state"] = file.parent / found["state"]
    try:
        environment = Configured()
        return Configured(**{**found, **environment.model_dump(exclude_none=True)})
    except pydantic.ValidationError as error:
        raise errors.UsageError(f"{file or 'HOLDFAST_*'}: {error.errors()[0]['msg']}") from error
