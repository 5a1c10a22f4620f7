"""Image labels as JSON, sealed so that a reader knows whether it holds what was written.

Every unit type stores one small document per image that holds its label beside what the unit needs to find the bytes.
``seal`` and ``unseal`` are that document's envelope: the version of the format and a digest over the rest, so that a
newer format and a damaged file are told apart. ``to_json`` and ``from_json`` are the label within it. ``complete``
is the duty that ``commit`` has on every unit: the label may have learned things since ``begin``, but not its identity.
Here rather than in a unit, since an image carries the same label wherever it lies.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from reconciler.base import digests, errors, times
from reconciler.storage import units

#: Version of the sealed documents, label included. A larger one was written by a newer Holdfast.
FORMAT_VERSION: Final = 1

_SAFE = re.compile(r"[A-Za-z0-9_@+=,:~-][A-Za-z0-9_.@+=,:~-]{0,199}\Z")
_SPECIAL: Final = frozenset({
    "time", "slot", "client_id", "client_name", "client_slug", "warnings", "owed", "disks", "source_state",
    "configuration",
})  # fmt: skip
_PLAIN: Final = tuple(field.name for field in dataclasses.fields(units.ImageLabel) if field.name not in _SPECIAL)
_NUMBERS: Final = frozenset({"copy", "sequence"})


def seal(document: Mapping[str, Any], *, version: int = FORMAT_VERSION) -> bytes:
    """``document`` with its ``formatVersion`` and a ``seal`` over all the rest, as indented JSON in UTF-8."""
    body = {"formatVersion": version, **document}
    sealed = {**body, "seal": digests.json_digest(body)}
    return json.dumps(sealed, indent=2, ensure_ascii=False).encode() + b"\n"


def unseal(data: bytes, where: str, *, newest: int = FORMAT_VERSION) -> dict[str, Any]:
    """The document that ``seal`` wrote, proven; ``where`` names it in errors.

    Raises ``FormatTooNew`` for a version above ``newest``, ``ImageDamaged`` for anything that was not written so.
    """
    try:
        document = json.loads(data)
        version = int(document["formatVersion"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(where, error) from error
    if version > newest:
        raise errors.FormatTooNew(
            f"{where}: format {version} is newer than this Holdfast reads ({newest})", hint="upgrade Holdfast"
        )
    found = document.pop("seal", None)
    if found != digests.json_digest(document):
        raise _damaged(where, "its seal does not match its contents")
    return dict(document)


def to_json(label: units.ImageLabel) -> dict[str, Any]:
    """The label as JSON values: camelCase keys, RFC 3339 times, unknown is null."""
    document: dict[str, Any] = {
        "client": {"id": label.client_id, "name": label.client_name, "slug": label.client_slug},
        "time": times.show(label.time),
        "slot": times.show(label.slot),
        "warnings": [dict(warning) for warning in label.warnings],
        "owed": dict(label.owed),
        "disks": [record_to_json(record) for record in label.disks],
        "sourceState": dict(label.source_state),
        "configuration": label.configuration,
    }
    document |= {name: getattr(label, name) for name in _PLAIN}
    return document


def from_json(document: Any, where: str) -> units.ImageLabel:
    """The label that ``to_json`` wrote; unknown keys are ignored. Raises ``ImageDamaged`` naming ``where``."""
    try:
        client = document["client"]
        plain = {name: _plain(name, document[name]) for name in _PLAIN}
        return units.ImageLabel(
            client_id=str(client["id"]),
            client_name=str(client["name"]),
            client_slug=str(client["slug"]),
            time=times.parse(document["time"]),
            slot=times.parse(document["slot"]),
            warnings=tuple(
                {str(key): str(value) for key, value in warning.items()} for warning in document["warnings"]
            ),
            owed=dict(document["owed"]),
            disks=tuple(record_from_json(record) for record in document["disks"]),
            # Labels of earlier versions have neither.
            source_state={str(key): str(value) for key, value in document.get("sourceState", {}).items()},
            configuration=_text(document.get("configuration")),
            **plain,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(where, error) from error


def record_to_json(record: units.DiskRecord) -> dict[str, Any]:
    """One disk's record as JSON values."""
    return {
        "name": record.name,
        "sizeBytes": record.size,
        "sectorBytes": record.sector,
        "digest": record.digest,
        "blake3": record.blake3,
    }


def record_from_json(document: Any) -> units.DiskRecord:
    """The record that ``record_to_json`` wrote. Raises ``ValueError``, ``KeyError`` or ``TypeError``."""
    whole = document["blake3"]
    return units.DiskRecord(
        name=str(document["name"]),
        size=int(document["sizeBytes"]),
        sector=int(document["sectorBytes"]),
        digest=str(document["digest"]),
        blake3=None if whole is None else str(whole),
    )


def require_safe(label: units.ImageLabel, unit: str) -> None:
    """Refuse a label whose id or client slug could not be a file name. Raises ``UnitError``."""
    for word, name in (("image id", label.id), ("client slug", label.client_slug)):
        if not is_safe(name):
            raise errors.UnitError(
                f"storage unit {unit}: {word} {name!r} cannot be a file name",
                hint="letters, digits and _ . @ + = , : ~ - are allowed, 200 at most, no dot in front",
            )


def is_safe(name: str) -> bool:
    """Whether an image id or a client slug may be used as a file name as it stands."""
    return bool(_SAFE.match(name))


def complete(
    begun: units.ImageLabel, final: units.ImageLabel, disk_names: Sequence[str], records: Mapping[str, units.DiskRecord]
) -> units.ImageLabel:
    """The label to commit: ``final`` with the records of the disks written, in the order named at ``begin``.

    Raises ``UnitError`` where ``final`` is another image or client than ``begun``, or where a disk named at ``begin``
    was not written although the image says it is ``Complete``. A ``Partial`` image holds the disks that were written.
    """
    for field in ("id", "client_id", "client_slug"):
        before, after = getattr(begun, field), getattr(final, field)
        if before != after:
            word = field.replace("_", " ")
            raise errors.UnitError(f"image {begun.id}: {word} changed from {before} to {after} while it was written")
    missing = [name for name in disk_names if name not in records]
    if missing and final.state == "Complete":
        raise errors.UnitError(
            f"image {begun.id}: cannot be Complete without {', '.join(missing)}",
            hint="write every disk, or commit it as Partial",
        )
    return dataclasses.replace(final, disks=tuple(records[name] for name in disk_names if name in records))


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _plain(name: str, value: Any) -> Any:
    if name in _NUMBERS:
        return int(value)
    return None if value is None and name == "parent" else str(value)


def _damaged(where: str, cause: object) -> errors.ImageDamaged:
    return errors.ImageDamaged(
        f"{where}: cannot be read as an image's label: {cause}", hint="use another copy of the image"
    )


def require_proven(unit: str, found: Sequence[units.Damage]) -> None:
    """Raise ``UnitError`` where an image that is to take another one's place was not read back as it was written."""
    if found:
        first = found[0]
        raise errors.UnitError(
            f"storage unit {unit}: the new copy of {first.image} did not read back as written: {first.part} at"
            f" {first.offset}: {first.message}",
            hint="check the device under the unit; what was there before is there still",
        )
