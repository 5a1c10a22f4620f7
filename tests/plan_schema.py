"""Whether a Plan is one that ``schemas/plan-v1.json`` describes."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema

SCHEMA = Path(__file__).parents[1] / "schemas" / "plan-v1.json"


@functools.cache
def _validator() -> Any:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def require_valid(plan: Any) -> None:
    """Fail with every place where a Plan document contradicts the schema."""
    wrong = [f"{error.json_path}: {error.message[:200]}" for error in _validator().iter_errors(plan)]
    assert not wrong, "\n".join(wrong)
