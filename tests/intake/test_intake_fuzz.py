"""Whatever the bytes are, they end as objects or as diagnostics that point into the file. Never as an exception."""

from __future__ import annotations

import random
import re
from pathlib import Path

import hypothesis
import intake_samples
from hypothesis import strategies as some

from reconciler.base import diagnostics
from reconciler.intake import estates, trees

TOKENS = [
    *intake_samples.GOOD.replace("\n", " \n ").split(" "),
    "[", "]", "{", "}", ":", "- ", "? ", "&a ", "*a", "!x ", "!!int ", "|\n", ">-\n", "---\n", "...\n", "#", '"', "'",
    "\t", "\r\n", "\r", "<<: ", "%YAML 1.1\n", "1.5", "0x", "~", "\\", '"\\ud800"', "\u2028", "\ufeff", "é", "😀",
    "null", "[" * 70, "a:b", "@", "`", "999999999999999999999d", "7d", "-1", "true",
]  # fmt: skip


def judge(data: bytes) -> estates.Loaded:
    file = trees.File(path="file.yaml", data=data, digest="0" * 64)
    return estates.judge(trees.Tree(root=Path("/nonexistent"), files=(file,), ignored=(), diagnostics=()))


def check(data: bytes) -> None:
    loaded = judge(data)
    wrong = [one for one in loaded.diagnostics if one.severity is diagnostics.Severity.ERROR]
    assert (loaded.desired is None) == bool(wrong)
    lines = data.decode(errors="replace").split("\n")
    for one in loaded.diagnostics:
        assert one.position is not None and one.message
        assert 1 <= one.position.line <= len(lines), str(one)
        assert 1 <= one.position.column <= len(lines[one.position.line - 1]) + 1, str(one)
        str(one).encode()
    assert judge(data) == loaded


@hypothesis.given(some.text(max_size=200))
def test_any_text(text: str) -> None:
    check(text.encode(errors="surrogatepass"))


@hypothesis.given(some.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    check(data)


@hypothesis.given(some.lists(some.sampled_from(TOKENS), max_size=40))
def test_any_row_of_words(words: list[str]) -> None:
    check("".join(words).encode())


@hypothesis.settings(max_examples=200)
@hypothesis.given(some.randoms(use_true_random=False), some.integers(1, 6))
def test_good_manifests_with_pieces_changed(chance: random.Random, count: int) -> None:
    text = intake_samples.GOOD
    for _ in range(count):
        at = chance.randrange(len(text) + 1)
        end = min(len(text), at + chance.choice([0, 0, 1, 1, 2, 8, 60]))
        text = text[:at] + chance.choice([*TOKENS, "", text[:1], text[at : at + 40]]) + text[end:]
    check(text.encode())


@hypothesis.settings(max_examples=150)
@hypothesis.given(
    some.recursive(
        some.none() | some.booleans() | some.integers() | some.sampled_from(["7d", "gold", "Fixed", "", "a b", "é"]),
        lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.sampled_from(["name", "type"]), inner),
        max_leaves=8,
    ),
    some.sampled_from(sorted(set(re.findall(r"[A-Za-z]+:", intake_samples.GOOD)))),
)
def test_good_manifests_with_any_value_in_a_field(value: object, key: str) -> None:
    written = repr(value).replace("None", "null").replace("True", "true").replace("False", "false")
    lines = []
    for line in intake_samples.GOOD.split("\n"):
        if key in line and line.count(key) == 1:
            line = line.partition(key)[0] + f"{key} {written}" + ("}" if line.strip().endswith("}") else "")
        lines.append(line)
    check("\n".join(lines).encode())
