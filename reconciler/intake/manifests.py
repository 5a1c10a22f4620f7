"""One file to api objects: dispatch on apiVersion and kind, validate with that kind's model, explain every problem.

``estates`` calls ``read`` for each file of the tree. Dispatching here, rather than by a union of all kinds, is what
lets a misspelt kind be an error with a suggestion and never a silently missing object. What cannot become an object may
still have a name; it is remembered, so that references to it are not reported as well.
"""

from __future__ import annotations

import dataclasses

import pydantic

from reconciler.api import models, registry
from reconciler.base import diagnostics
from reconciler.intake import codes, complaints, documents, findings

Key = tuple[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What one file says."""

    objects: tuple[findings.Located, ...]
    #: Kind and name of what was meant to be an object and has errors.
    broken: frozenset[Key]
    diagnostics: tuple[diagnostics.Diagnostic, ...]
    #: Whether the file was read to its end; if not, it may declare more.
    whole: bool


def read(file: str, data: bytes) -> Manifest:
    """The objects of one file; ``file`` is its path in the estate. Never raises for content."""
    reading = documents.read(file, data)
    objects: list[findings.Located] = []
    broken: set[Key] = set()
    problems = list(reading.diagnostics)
    for document in reading.documents:
        outcome = _object(document)
        if isinstance(outcome, findings.Located):
            objects.append(outcome)
            continue
        problems += outcome
        key = _key(document.value)
        if key is not None:
            broken.add(key)
    return Manifest(objects=tuple(objects), broken=frozenset(broken), diagnostics=tuple(problems), whole=reading.whole)


def _object(document: documents.Document) -> findings.Located | list[diagnostics.Diagnostic]:
    """The object in a document, or everything that is wrong with it."""
    value = document.value
    if not isinstance(value, dict):
        message = f"a manifest is a mapping with apiVersion, kind, metadata and spec, not {documents.describe(value)}"
        hint = "a file that is no manifest begins with the comment # holdfast: ignore"
        return [_problem(document, codes.NOT_OBJECT, (), message, hint)]
    problems = _version(document, value)
    kind = value.get("kind")
    model = registry.KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        problems.append(_unknown_kind(document, kind))
        return problems
    try:
        # The version was judged above, with a better sentence than a pattern gives.
        built = model.model_validate({**value, "apiVersion": models.API_VERSION}, by_alias=True, by_name=False)
    except pydantic.ValidationError as error:
        listed = error.errors(include_url=False, include_input=False)
        return problems + complaints.explain(document, model, _label(value), listed)
    if problems or document.flawed:
        return problems
    return findings.Located(object=built, document=document)


def _version(document: documents.Document, value: dict[str, documents.Value]) -> list[diagnostics.Diagnostic]:
    if "apiVersion" not in value:
        hint = f"write apiVersion: {models.API_VERSION}"
        return [_problem(document, codes.UNKNOWN_VERSION, (), "apiVersion is required", hint)]
    version = value["apiVersion"]
    if version == models.API_VERSION:
        return []
    near = findings.did_you_mean(version, (models.API_VERSION,)) if isinstance(version, str) else None
    message = f"the apiVersion is {models.API_VERSION}, not {documents.describe(version)}"
    found = _problem(document, codes.UNKNOWN_VERSION, ("apiVersion",), message, near)
    return [] if _is_flawed(document, found) else [found]


def _unknown_kind(document: documents.Document, kind: documents.Value) -> diagnostics.Diagnostic:
    known = f"known kinds: {', '.join(registry.KINDS)}"
    if not isinstance(kind, str):
        message = "kind is required" if kind is None else f"the kind is a word, not {documents.describe(kind)}"
        return _problem(document, codes.UNKNOWN_KIND, () if kind is None else ("kind",), message, known)
    hint = findings.did_you_mean(kind, registry.KINDS) or known
    return _problem(document, codes.UNKNOWN_KIND, ("kind",), f"unknown kind {kind[:60]!r}", hint)


def _problem(
    document: documents.Document, code: str, path: documents.Path, message: str, hint: str | None
) -> diagnostics.Diagnostic:
    return diagnostics.Diagnostic(
        severity=diagnostics.Severity.ERROR,
        code=code,
        message=message,
        position=document.locate(path),
        object=_label(document.value),
        path=findings.show_path(path) or None,
        hint=hint,
    )


def _is_flawed(document: documents.Document, found: diagnostics.Diagnostic) -> bool:
    return found.position is not None and (found.position.line, found.position.column) in document.flawed


def _key(value: documents.Value) -> Key | None:
    """Kind and name of what was meant to be an object; the kind is empty where it is no word."""
    if not isinstance(value, dict):
        return None
    metadata = value.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    kind = value.get("kind")
    return (kind if isinstance(kind, str) else "", name) if isinstance(name, str) else None


def _label(value: documents.Value) -> str | None:
    key = _key(value)
    return f"{key[0][:80]}/{key[1][:80]}" if key is not None and key[0] else None
