"""``schemas/`` is what ``hack/schemas`` makes of ``reconciler.api``, for editors old and new."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reconciler.api import registry
from reconciler.api.documents import registry as documents

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "schemas"


def parts(schema: Any) -> Any:
    """Every mapping in a schema."""
    if isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from parts(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from parts(value)


def test_generating_again_changes_nothing() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "hack" / "schemas", "--check"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"run hack/schemas; these differ:\n{done.stderr}"


def test_every_kind_and_document_has_one() -> None:
    found = {path.relative_to(SCHEMAS).as_posix() for path in SCHEMAS.rglob("*.json")}
    expected = {"manifest.json", "plan-v1.json"} | {f"{kind}.json" for kind in registry.KINDS}
    assert found == expected | {f"documents/{name}.json" for name in documents.DOCUMENTS}


@pytest.mark.parametrize("path", sorted(SCHEMAS.rglob("*.json")), ids=lambda path: path.name)
def test_a_schema_holds_together(path: Path) -> None:
    schema = json.loads(path.read_text())
    for part in parts(schema):
        reference = part.get("$ref")
        if isinstance(reference, str):
            assert reference.startswith("#/$defs/") and reference.removeprefix("#/$defs/") in schema["$defs"]
        # Editors that know draft 7 alone read everything else.
        assert not part.keys() & {"prefixItems", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef"}


@pytest.mark.parametrize("kind", registry.KINDS)
def test_a_kind_is_strict_and_explained(kind: str) -> None:
    schema = json.loads((SCHEMAS / f"{kind}.json").read_text())
    assert schema["additionalProperties"] is False and schema["description"]
    assert schema["required"] == ["apiVersion", "kind", "metadata", "spec"]
    assert schema["properties"]["kind"]["const"] == kind
    spec = schema["$defs"][f"{kind}Spec"]
    assert spec["additionalProperties"] is False
    assert any("description" in field for field in spec["properties"].values())
    assert not any("_" in name for part in parts(schema) for name in part.get("properties", {}))


def test_texts_under_fields_are_descriptions() -> None:
    schema = json.loads((SCHEMAS / "manifest.json").read_text())
    fields = schema["$defs"]["StorageUnitSpec"]["properties"]
    assert fields["failureDomain"]["description"] == "What fails together; units without one are a domain each."
    assert schema["$defs"]["Metadata"]["properties"]["name"]["description"] == "Unique among the objects of its kind."
    assert "Directory` keeps" in fields["type"]["description"]
