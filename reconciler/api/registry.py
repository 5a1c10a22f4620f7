"""The kinds that a manifest may be, by name, and their JSON Schemas."""

from __future__ import annotations

from typing import Any, Final

from reconciler.api import exceptions, lifecycles, models, policies, restores, servicelevels, storage, vcenters

KINDS: Final[dict[str, type[models.Object]]] = {
    "StorageUnit": storage.StorageUnit,
    "StorageUnitGroup": storage.StorageUnitGroup,
    "MediaServer": storage.MediaServer,
    "VCenter": vcenters.VCenter,
    "BackupWindow": policies.BackupWindow,
    "StorageLifecyclePolicy": lifecycles.StorageLifecyclePolicy,
    "BackupPolicy": policies.BackupPolicy,
    "ServiceLevel": servicelevels.ServiceLevel,
    "Restore": restores.Restore,
    "LegalHold": exceptions.LegalHold,
    "Approval": exceptions.Approval,
}


def kind_schema(kind: str) -> dict[str, Any]:
    """The JSON Schema of one kind, with the names users write. Raises ``KeyError``."""
    schema = KINDS[kind].model_json_schema(by_alias=True, mode="validation")
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def manifest_schema() -> dict[str, Any]:
    """One schema that accepts any kind: what a manifest's modeline names."""
    definitions: dict[str, Any] = {}
    choices = []
    for kind in KINDS:
        schema = kind_schema(kind)
        schema.pop("$schema")
        definitions.update(schema.pop("$defs", {}))
        definitions[kind] = schema
        choices.append({"$ref": f"#/$defs/{kind}"})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Holdfast manifest",
        "oneOf": choices,
        "$defs": definitions,
    }
