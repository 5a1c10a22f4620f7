"""Labels as sealed JSON: what goes in comes out, and nothing else is taken for a label."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json

import pytest
import unit_samples as samples
from hypothesis import given
from hypothesis import strategies as st

from reconciler.base import errors
from reconciler.storage import labels, units

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_TIMES = st.datetimes(min_value=dt.datetime(1970, 1, 1), max_value=dt.datetime(2200, 1, 1), timezones=st.just(dt.UTC))
_RECORDS = st.builds(
    units.DiskRecord,
    name=_TEXT,
    size=st.integers(0, 1 << 62),
    sector=st.sampled_from([512, 4096]),
    digest=_TEXT,
    blake3=st.one_of(st.none(), _TEXT),
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
)
_LABELS = st.builds(
    units.ImageLabel,
    **dict.fromkeys((field.name for field in dataclasses.fields(units.ImageLabel)), _TEXT)
    | {
        "copy": st.integers(1, 9),
        "sequence": st.integers(0, 1 << 62),
        "time": _TIMES,
        "slot": _TIMES,
        "parent": st.one_of(st.none(), _TEXT),
        "warnings": st.lists(st.dictionaries(_TEXT, _TEXT, max_size=2), max_size=2).map(tuple),
        "owed": st.dictionaries(_TEXT, _JSON, max_size=2),
        "source_state": st.dictionaries(_TEXT, _TEXT, max_size=2),
        "configuration": st.one_of(st.none(), _TEXT),
        "disks": st.lists(_RECORDS, max_size=2).map(tuple),
    },
)


@given(_LABELS)
def test_a_label_comes_back_from_its_json(label: units.ImageLabel) -> None:
    sealed = labels.seal({"label": labels.to_json(label)})
    assert labels.from_json(labels.unseal(sealed, "x")["label"], "x") == label


def test_a_label_reads_as_documents_do() -> None:
    document = labels.to_json(samples.label())
    assert document["time"] == "2026-11-23T21:00:00.123456Z"
    assert document["slot"] == "2026-11-23T21:00:00Z"
    assert document["client"] == {"id": "uuid-of-oblvm1", "name": "OBLVM1 Ñ", "slug": "oblvm1"}
    assert document["parent"] is None
    assert labels.from_json({**document, "aKeyOfTomorrow": 1}, "x") == samples.label()


def test_a_seal_breaks_with_any_change_of_any_value() -> None:
    sealed = labels.seal({"label": labels.to_json(samples.label()), "storedBytes": 5})
    for before, after in (
        (b"obl-gold", b"obl-cold"),
        (b'"storedBytes": 5', b'"storedBytes": 6'),
        (b"blake3:", b"blake2:"),
    ):
        with pytest.raises(errors.ImageDamaged, match="the place"):
            labels.unseal(sealed.replace(before, after), "the place")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe", b'{"formatVersion": "x"}', b'{"formatVersion": 1}']
)
def test_what_is_no_sealed_document_is_damage(data: bytes) -> None:
    with pytest.raises(errors.ImageDamaged, match="the place"):
        labels.unseal(data, "the place")


def test_a_newer_version_is_said_to_be_newer_before_anything_else_is_judged() -> None:
    with pytest.raises(errors.FormatTooNew, match="the place"):
        labels.unseal(json.dumps({"formatVersion": labels.FORMAT_VERSION + 1}).encode(), "the place")


@pytest.mark.parametrize("key", ["client", "time", "copy", "warnings", "disks", "id"])
def test_a_label_without_one_of_its_words_is_damage(key: str) -> None:
    document = labels.to_json(samples.label())
    del document[key]
    with pytest.raises(errors.ImageDamaged):
        labels.from_json(document, "the place")
    with pytest.raises(errors.ImageDamaged):
        labels.from_json({**document, key: 3.5}, "the place") if key in (
            "client",
            "time",
            "warnings",
            "disks",
        ) else labels.from_json(None, "x")


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("oblvm1", True),
        ("2026-11-23T21:00Z_a.b", True),
        ("", False),
        (".a", False),
        ("..", False),
        ("a/b", False),
        ("a\n", False),
        ("a b", False),
        ("é", False),
        ("a" * 201, False),
    ],
)
def test_safe_names_are_file_names_everywhere(name: str, safe: bool) -> None:
    assert labels.is_safe(name) is safe
