"""Who a storage unit is: ``unit.json`` in its root, written once at first use.

A path that lacks it, where the catalog knows the unit, is Offline: never empty, never new. A unit owned by another
catalog opens read-only until it is adopted.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from pathlib import Path
from typing import Final

from reconciler.base import crashes, errors, files

FILE_NAME: Final = "unit.json"
FORMAT_VERSION: Final = 1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What ``unit.json`` says."""

    #: UUID of the unit.
    id: str
    #: ``Directory`` or ``DedupePool``.
    type: str
    #: Version of the on-disk format of the whole unit.
    format_version: int
    #: UUID of the catalog that owns the unit.
    owner: str
    #: Parameters fixed at creation, such as a pool's segment size.
    parameters: dict[str, str | int]


def read(root: Path, name: str) -> Identity:
    """The identity under ``root``. Raises ``UnitOffline`` where there is none, ``FormatTooNew``, or ``UnitError``."""
    path = root / FILE_NAME
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise errors.UnitOffline(
            f"storage unit {name}: {path} does not exist", hint="mount the unit's file system, or correct its path"
        ) from error
    except OSError as error:
        raise errors.UnitOffline(
            f"storage unit {name}: {path}: {error.strerror}", hint="check the mount and its permissions"
        ) from error
    try:
        data = json.loads(text)
        version = int(data["formatVersion"])
        if version > FORMAT_VERSION:
            raise errors.FormatTooNew(
                f"storage unit {name}: format {version} is newer than this Holdfast reads ({FORMAT_VERSION})",
                hint="upgrade Holdfast",
            )
        return Identity(
            id=str(data["id"]),
            type=str(data["type"]),
            format_version=version,
            owner=str(data["owner"]),
            parameters=dict(data.get("parameters", {})),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.UnitError(f"storage unit {name}: {path} cannot be read as a unit's identity: {error}") from error


def require(root: Path, name: str, id: str) -> None:
    """Raise ``UnitOffline`` unless unit ``id`` is what lies under ``root``: an empty mount point is Offline, not empty.
    Raises what ``read`` raises, too."""
    found = read(root, name).id
    if found != id:
        raise errors.UnitOffline(
            f"storage unit {name}: {root} holds unit {found}, not {id}",
            hint="mount the unit's file system, or correct its path",
        )


def write(root: Path, identity: Identity) -> None:
    """Write ``unit.json`` atomically and durably. Raises ``OSError``."""
    document = {
        "id": identity.id,
        "type": identity.type,
        "formatVersion": identity.format_version,
        "owner": identity.owner,
        "parameters": identity.parameters,
    }
    files.write_atomically(root / FILE_NAME, json.dumps(document, indent=2).encode() + b"\n")
    crashes.passing("unit.identity-written")


def new(kind: str, owner: str, parameters: dict[str, str | int] | None = None) -> Identity:
    """A fresh identity of a unit of type ``kind`` owned by catalog ``owner``."""
    return Identity(
        id=str(uuid.uuid4()), type=kind, format_version=FORMAT_VERSION, owner=owner, parameters=parameters or {}
    )
