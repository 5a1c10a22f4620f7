"""Where the estate, the state and the catalog are: options first, then ``HOLDFAST_*``, then ``holdfast.toml``.

The result is one frozen value that is passed down; nothing below the command line reads the environment for settings.
"""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, Final

import pydantic
import pydantic_settings

from reconciler.base import errors, quantities

FILE_NAME = "holdfast.toml"
STATE_NAME = ".holdfast"
_DAILY: Final = quantities.Duration.parse("24h")


class Configured(pydantic_settings.BaseSettings):
    """What ``HOLDFAST_*`` and ``holdfast.toml`` may set."""

    model_config = pydantic_settings.SettingsConfigDict(env_prefix="HOLDFAST_", frozen=True, extra="ignore")

    state: Path | None = None
    """Folder of the catalog; a relative one in the file is relative to the file."""
    catalog: str | None = None
    """Catalog elsewhere, such as ``postgresql://...``."""
    notify: pydantic.SecretStr | None = None
    """Apprise URLs, separated by white space; in the file it is the table ``[notify]``."""


class Notify(pydantic.BaseModel):
    """The table ``[notify]`` of ``holdfast.toml``."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    urls: tuple[pydantic.SecretStr, ...] = ()
    """Apprise URLs."""
    urls_file: Path | None = pydantic.Field(default=None, alias="urlsFile")
    """A file of them, one a line; a relative one is relative to ``holdfast.toml``."""
    repeat: str = str(_DAILY)
    """How often a standing alarm is told again."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Ears:
    """Who hears alarms."""

    #: Apprise URLs: secrets, never shown.
    urls: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    #: How often a standing alarm is told again.
    repeat: quantities.Duration = _DAILY
    #: Whether there was a folder to look for ``holdfast.toml`` in, or a variable; without, nobody knows here.
    known: bool = True
    #: What is wrong with the settings of alarms: that must never keep a backup or a restore from running.
    trouble: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a command works on."""

    #: Folder of manifests, None for commands that found only a state.
    estate: Path | None
    #: Folder of the catalog, the lock and local caches.
    state: Path
    #: Path of the catalog file, or a URL.
    catalog: str
    ears: Ears = Ears()

    @property
    def caches(self) -> Path:
        """Folder of what can be made anew, shared by every command on this state."""
        return self.state / "cache"

    @property
    def evidence(self) -> Path:
        """Folder of what drills keep: screens and consoles."""
        return self.state / "evidence"


def of_estate(estate: Path, *, state: Path | None, catalog: str | None) -> Settings:
    """Settings of a command that names its estate. Raises ``UsageError`` if that is no folder."""
    if not estate.is_dir():
        raise errors.UsageError(f"{estate} is not a folder", hint="name the folder that holds the manifests")
    estate = estate.resolve()
    configured, ears = _configured(estate / FILE_NAME)
    chosen = state or configured.state or estate / STATE_NAME
    return _settings(estate, chosen, catalog or configured.catalog, ears)


def of_state(*, state: Path | None, catalog: str | None) -> Settings:
    """Settings of a command without an estate: ``.holdfast`` (or a ``holdfast.toml``) here or in a parent.

    Raises ``UsageError`` where there is neither.
    """
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / FILE_NAME).is_file() or (folder / STATE_NAME).is_dir():
            return of_estate(folder, state=state, catalog=catalog)
    configured, ears = _configured(None)
    chosen = state or configured.state
    if chosen is None:
        raise errors.UsageError(
            f"no {STATE_NAME} folder here or in a parent folder",
            hint="go to the estate, or name the state with --state DIR",
        )
    return _settings(None, chosen, catalog or configured.catalog, ears)


def _settings(estate: Path | None, state: Path, catalog: str | None, ears: Ears) -> Settings:
    state = state.expanduser().absolute()
    return Settings(estate=estate, state=state, catalog=catalog or str(state / "catalog.sqlite"), ears=ears)


def _configured(file: Path | None) -> tuple[Configured, Ears]:
    """The environment over the file. Raises ``UsageError`` for a file that cannot be read."""
    found: dict[str, Any] = {}
    if file is not None and file.is_file():
        try:
            found = tomllib.loads(file.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise errors.UsageError(f"{file}: {error}") from error
        if isinstance(found.get("state"), str):
            found["state"] = file.parent / found["state"]
    table = found.pop("notify", {})
    try:
        environment = Configured()
        configured = Configured(**{**found, **environment.model_dump(exclude_none=True)})
        return configured, _ears(file, table, configured.notify)
    except pydantic.ValidationError as error:
        raise errors.UsageError(f"{file or 'HOLDFAST_*'}: {_first(error)}") from error


def _ears(file: Path | None, table: Any, variable: pydantic.SecretStr | None) -> Ears:
    """The variable's URLs, else the table's and those of its file."""
    try:
        written = Notify.model_validate(table)
        repeat = quantities.Duration.parse(written.repeat)
        if not repeat:
            raise ValueError("repeat: must be longer than nothing, such as 24h")
        urls = [one.get_secret_value() for one in written.urls]
        if variable is None and written.urls_file is not None and file is not None:
            lines = (file.parent / written.urls_file.expanduser()).read_text().splitlines()
            urls += [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    except pydantic.ValidationError as error:
        return _no_ears(f"{file}: {_first(error, 'notify')}")
    except UnicodeDecodeError:
        return _no_ears(f"{file}: notify.urlsFile is no text file; one URL a line")
    except ValueError as error:
        return _no_ears(f"{file}: notify.{error}")
    except OSError as error:
        return _no_ears(f"{file}: notify.urlsFile: {error.filename}: {error.strerror}")
    if variable is not None:
        urls = variable.get_secret_value().split()
    return Ears(urls=tuple(urls), repeat=repeat, known=file is not None or variable is not None)


def _no_ears(trouble: str) -> Ears:
    return Ears(trouble=trouble)


def _first(error: pydantic.ValidationError, *above: str) -> str:
    """The first of a model's troubles, without the value that it was."""
    first = error.errors(include_input=False)[0]
    return f"{'.'.join([*above, *map(str, first['loc'])])}: {first['msg']}"
