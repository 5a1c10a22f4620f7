"""What the shipped text may not say: it speaks of Holdfast, never of where or how it was made."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from source_trees import ROOT

#: Shipped to users, whole trees and single files.
SHIPPED = ("reconciler", "schemas", "manifests", "README.md", "CHANGELOG.md", "pyproject.toml")

FORBIDDEN = {
    "a lab": r"(?<!hack/vsphere-)\blabs?\b",
    "a package registry": r"pypi\.org|pythonhosted|registry\.npmjs|proxy\.golang|artifactory|index[-_]url|extra-index",
    "a path of somebody's machine": r"(?<![\w.])/(?:root|work|home/\w+|Users/\w+|tmp/\w+|builds)/",
    "a private address": r"\b(?:10\.\d+|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d+\.\d+\b",
    "a private name": r"\b[\w-]+\.(?:corp|internal|lan)\b",
    "unfinished work": r"\b(?:TODO|FIXME|XXX|HACK)\b|NotImplementedError",
    "a tracker": r"\b(?:issue|ticket|PR|pull request) ?#?\d+\b|\blater issues?\b",
    "a machine that writes": r"(?i)\b(?:chatgpt|claude|copilot|openai|anthropic|llm|as an ai)\b",
}


def shipped() -> Iterator[Path]:
    """Every text file that users get."""
    for name in SHIPPED:
        place = ROOT / name
        paths = sorted(place.rglob("*")) if place.is_dir() else [place]
        yield from (path for path in paths if path.is_file() and "__pycache__" not in path.parts)


@pytest.mark.parametrize("what", FORBIDDEN)
def test_shipped_text_does_not_mention(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in shipped()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


#: What the product would know if it knew what it is tested against.
PEER = re.compile(
    r"vcsim|govmomi|simulator|vsphere[_-]labs?|nbdkit_vddk|\bstand-ins?\b|['\"]/lab/|\b8989\b|HOLDFAST_LAB", re.I
)


def test_the_product_does_not_know_what_it_is_tested_against() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted((ROOT / "reconciler").rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if PEER.search(line)
    ]
    assert found == []
    assert PEER.search("x = 'hack/vsphere_labs.py'") and PEER.search("GET '/lab/state'")


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("a lab", "as in the lab"),
        ("a package registry", "pip install --index-url https://x/simple"),
        ("a path of somebody's machine", "see /home/anna/holdfast/x"),
        ("a path of somebody's machine", "`/root/x`"),
        ("a private address", "10.1.2.3"),
        ("a private name", "server: vc.corp"),
        ("unfinished work", "# TODO later"),
        ("a tracker", "fixed in issue 12"),
        ("a machine that writes", "written by ChatGPT"),
    ],
)
def test_the_pattern_finds(what: str, line: str) -> None:
    assert re.search(FORBIDDEN[what], line)
