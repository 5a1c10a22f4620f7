"""YAML by the core schema of 1.2, every problem at its line and column, and no text that hangs or crashes."""

from __future__ import annotations

import time
from pathlib import Path

import _ruamel_yaml
import intake_samples
import pytest

from reconciler.intake import codes, documents, events

#: Far above what is needed, far below what a reader that backtracks or recurses would take.
SECONDS = 20


def read(text: str | bytes) -> documents.Reading:
    return documents.read("file.yaml", text.encode() if isinstance(text, str) else text)


def value(text: str) -> documents.Value:
    reading = read(text)
    assert reading.diagnostics == () and reading.whole
    (document,) = reading.documents
    return document.value


def places(reading: documents.Reading) -> list[tuple[int, int, str]]:
    return [(one.position.line, one.position.column, one.code) for one in reading.diagnostics if one.position]


def test_the_compiled_parser_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(text: str) -> None:
        raise AssertionError(f"the parser in Python was asked to read {text!r}")

    monkeypatch.setattr(events, "portable", forbidden)
    assert value("a: {b: [c]}") == {"a": {"b": ["c"]}}
    assert events.cyaml.CParser is _ruamel_yaml.CParser


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("yes", "yes"),
        ("on", "on"),
        ("No", "No"),
        ("22:00", "22:00"),
        ("1:30:00", "1:30:00"),
        ("2026-12-01", "2026-12-01"),
        ("1.2.3", "1.2.3"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("true", True),
        ("FALSE", False),
        ("tRue", "tRue"),
        ("~", None),
        ("null", None),
        ("", None),
        ("17", 17),
        ("-4", -4),
        ("+4", 4),
        ("030", 30),
        ("0o17", 15),
        ("0x1F", 31),
        ("'17'", "17"),
        ('"null"', "null"),
        ("!!str 17", "17"),
        ("!!int 17", 17),
        ("! 17", "17"),
        ("|\n  1.5\n", "1.5\n"),
        ("-", [None]),
        (".", "."),
        ("e3", "e3"),
        ("0x", "0x"),
    ],
)
def test_scalars_are_those_of_the_core_schema(text: str, expected: object) -> None:
    found = value(f"a: {text}\n") if text != "-" else value("a:\n  -\n")
    assert found == {"a": expected} and type(found["a"]) is type(expected)  # type: ignore[index, call-overload]


@pytest.mark.parametrize("text", ["{until: 2026-12-01T00:00:00Z}", "{a: b:c, d: [e:f, 'g:h']}"])
def test_text_that_only_yaml_1_2_allows_is_read(text: str) -> None:
    with pytest.raises(events.Refused):
        list(events.compiled(text))
    assert read(text).documents and read(text).diagnostics == ()


def test_positions_are_the_same_from_both_parsers() -> None:
    text = "a: {b: 1, x: , y: [], 'c': [x, &n y]}\n"
    text += "d:\n  - e: *n\n    f:\n    g: |\n      text\n  -\n  - h:\n# end\n---\n- é: ü\n"
    plain = read(text).documents
    forced = read(text + "--- {a: b:c}\n").documents[:2]
    assert [(one.value, one.line, one.column, list(one.marks.values())) for one in plain] == [
        (one.value, one.line, one.column, list(one.marks.values())) for one in forced
    ]


def test_keys_and_values_know_where_they_stand() -> None:
    (document,) = read("# c\na:\n  - b: é\n    c: 2\n").documents
    assert document.locate(()).line == 2
    for path, key, line, column in (
        (("a",), True, 2, 1),
        (("a",), False, 3, 3),
        (("a", 0), False, 3, 5),
        (("a", 0, "c"), True, 4, 5),
        (("a", 0, "c"), False, 4, 8),
        (("a", 0, "missing", "x"), False, 3, 5),
        (("a", 7), False, 3, 3),
    ):
        where = document.locate(path, key=key)
        assert (where.line, where.column) == (line, column), path


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "---\n---\n# x\n---\n", "null\n"])
def test_nothing_is_no_object_and_no_problem(text: str) -> None:
    assert read(text) == documents.Reading(documents=(), diagnostics=(), whole=True)


def test_several_documents_stand_in_one_file() -> None:
    assert [one.value for one in read("a: 1\n---\n---\nb: 2\n...\n---\nc: 3\n").documents] == [
        {"a": 1},
        {"b": 2},
        {"c": 3},
    ]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a: 1\nb: @@1.5\n", codes.FLOAT),
        ("a: [@@.inf]\n", codes.FLOAT),
        ("a: @@1e3\n", codes.FLOAT),
        ("a: @@-.5\n", codes.FLOAT),
        ("a: @@.NaN\n", codes.FLOAT),
        ("a: @@!!float 1\n", codes.BAD_SCALAR),
        ("a: @@12345678901234567890\n", codes.BAD_SCALAR),
        ("a: 1\nb: 2\n@@a: 3\n", codes.DUPLICATE_KEY),
        ("a: {b: 1, @@b: 2}\n", codes.DUPLICATE_KEY),
        ("a: 1\n'b': 1\n@@b: 3\n", codes.DUPLICATE_KEY),
        ("@@1: a\n", codes.BAD_KEY),
        ("@@true: a\n", codes.BAD_KEY),
        ("@@~: a\n", codes.BAD_KEY),
        ("? @@[a]\n: b\n", codes.BAD_KEY),
        ("? @@{a: b}\n: b\n", codes.BAD_KEY),
        ("a: &x {b: 1}\nc:\n  @@<<: *x\n  d: 1\n", codes.BAD_KEY),
        ("a: @@!secret b\n", codes.BAD_SCALAR),
        ("a: @@!!set {b}\n", codes.BAD_SCALAR),
        ("a: @@!!python/object:os.system b\n", codes.BAD_SCALAR),
        ("a: @@!!int b\n", codes.BAD_SCALAR),
        ('a: @@"\\0"\n', codes.BAD_SCALAR),
        ('a: {b: @@"\\ud800", c: d:e}\n', codes.BAD_SCALAR),
        ("a: @@*b\n", codes.BAD_ALIAS),
        ("a: &b [@@*b]\n", codes.BAD_ALIAS),
        ("a: &b\n  c: {d: @@*b}\n", codes.BAD_ALIAS),
        ("a: &x b\n---\na: @@*x\n", codes.BAD_ALIAS),
        ("a: b@@: c\n", codes.NOT_YAML),
        ("a:\n@@\t- b\n", codes.NOT_YAML),
        ("a: [1, 2@@\n", codes.NOT_YAML),
        ("a: {b: 1@@\n", codes.NOT_YAML),
        ("a: 'b@@\n", codes.NOT_YAML),
        ("a: @@@b\n", codes.NOT_YAML),
        ("a: 1\n b@@: 2\n", codes.NOT_YAML),
        ("a: b@@\0c\n", codes.NOT_TEXT),
        ("a: é@@\x07c\n", codes.NOT_TEXT),
        ("a: 1@@\u2028b: 2\n", codes.NOT_TEXT),
        ("a: 1@@\rb: 2\n", codes.NOT_TEXT),
        ("@@\ufeffa: 1\n", codes.NOT_TEXT),
    ],
)
def test_a_problem_stands_where_it_is(text: str, code: str) -> None:
    before, _, after = text.partition(intake_samples.MARK)
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    assert places(read(before + after)) == [(line, column, code)]


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"a: 1\nb: \xff\n", (2, 4)),
        ("é: ".encode() + b"\xc3", (1, 4)),
        ("a: 1\n".encode("utf-16"), (1, 1)),
        (b"\xed\xa0\x80", (1, 1)),
    ],
)
def test_bytes_that_are_not_utf_8_are_named_with_their_place(data: bytes, place: tuple[int, int]) -> None:
    assert places(read(data)) == [(*place, codes.NOT_TEXT)]


def test_windows_line_ends_are_fine() -> None:
    assert value("a: 1\r\nb:\r\n  - c\r\n") == {"a": 1, "b": ["c"]}


def test_all_problems_of_a_file_are_reported_at_once() -> None:
    text = "a: 1.5\na: 2\n5: x\nb: !x y\n---\nc: *d\n---\ne: [\n"
    assert [code for _, _, code in places(read(text))] == [
        codes.FLOAT, codes.DUPLICATE_KEY, codes.BAD_KEY, codes.BAD_SCALAR, codes.BAD_ALIAS, codes.NOT_YAML,
    ]  # fmt: skip


def test_what_stands_before_a_syntax_error_is_still_read() -> None:
    reading = read("a: 1\n---\nb: [\n")
    assert [one.value for one in reading.documents] == [{"a": 1}] and not reading.whole


def test_aliases_stand_for_what_they_name() -> None:
    assert value("a: &x {b: [1]}\nc: *x\nd: &y 5\ne: *y\n") == {"a": {"b": [1]}, "c": {"b": [1]}, "d": 5, "e": 5}


def laughs(levels: int, width: int) -> str:
    first = "x0: &x0 [" + ", ".join(["ha"] * width) + "]\n"
    rest = (f"x{n}: &x{n} [" + ", ".join([f"*x{n - 1}"] * width) + "]\n" for n in range(1, levels))
    return first + "".join(rest)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[" * 50_000, codes.TOO_DEEP),
        ("[\n" * 50_000, codes.TOO_DEEP),
        ("{a: " * 50_000, codes.TOO_DEEP),
        ("- " * 50_000 + "x", codes.TOO_DEEP),
        ("? " * 50_000, codes.TOO_DEEP),
        ("a: {b: c:d}\n" + "[" * 50_000, codes.NOT_YAML),
        ("{a: b:c, d: " + "[" * 50_000, codes.TOO_DEEP),
        (laughs(30, 10), codes.BAD_ALIAS),
        ("a: {b: c:d}\n" + laughs(30, 10), codes.BAD_ALIAS),
        ("a: &a [" + "*a, " * 50_000, codes.BAD_ALIAS),
        ("a: 1\n" * 100_000, codes.DUPLICATE_KEY),
        ("!x " * 50_000, codes.NOT_YAML),
        ("&x " * 50_000, codes.NOT_YAML),
        ("'" * 99_999, codes.NOT_YAML),
        ("a: {b: c:d, " + "e, " * 60_000, codes.DUPLICATE_KEY),
        ('{a: b:c, d: "' + "x\n" * 60_000, codes.NOT_YAML),
        ("%" * 100_000, codes.NOT_YAML),
    ],
)
def test_hostile_text_ends_soon(text: str, code: str) -> None:
    began = time.monotonic()
    reading = read(text)
    assert time.monotonic() - began < SECONDS
    assert code in [found for _, _, found in places(reading)]


def test_nesting_up_to_the_limit_is_read() -> None:
    deepest = "[" * documents.MAXIMUM_DEPTH + "]" * documents.MAXIMUM_DEPTH
    assert read(deepest).diagnostics == ()
    assert places(read(f"[{deepest}]")) == [(1, documents.MAXIMUM_DEPTH + 1, codes.TOO_DEEP)]


def test_nesting_through_aliases_counts() -> None:
    half = "[" * 40 + "]" * 40
    assert [code for _, _, code in places(read(f"a: &a {half}\nb: {'[' * 30}*a{']' * 30}\n"))] == [codes.TOO_DEEP]


def test_a_hundred_thousand_keys_are_read() -> None:
    began = time.monotonic()
    found = value("".join(f"k{number}: v\n" for number in range(100_000)))
    assert isinstance(found, dict) and len(found) == 100_000
    assert time.monotonic() - began < SECONDS


def test_a_flood_of_problems_is_cut_and_says_so() -> None:
    reading = read("a: 1\n" * 1000)
    assert len(reading.diagnostics) == documents.MAXIMUM_PROBLEMS + 1
    assert "more problems" in reading.diagnostics[-1].message and not reading.whole


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a:\n\t- b\n", "a tab where YAML wants spaces"),
        ("a: b: c\n", "quote the text or check the indentation"),
        ("a: [1,\n", "not closed"),
        ("a: [1\n", "it began at line 1, column 4"),
        ("a: `b`\n", "put it in quotes"),
        ("a: 'b\n", "ends within a quoted text"),
        ("<<: {a: b}\n", "write the fields out"),
        ("a: 1.5\n", "no floats"),
    ],
)
def test_messages_say_what_to_do(text: str, said: str) -> None:
    assert said in str(read(text).diagnostics[0])


def test_a_syntax_error_is_told_with_file_line_and_column(tmp_path: Path) -> None:
    loaded = intake_samples.load(tmp_path, file="a: [1\n")
    assert str(loaded.diagnostics[0]).startswith("file.yaml:1:6: error HF102: ")
