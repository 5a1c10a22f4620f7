"""The package's sources as syntax trees, for tests that read instead of run."""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "reconciler"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """One file of the package."""

    #: Relative to the repository, such as ``reconciler/base/times.py``.
    name: str
    text: str
    tree: ast.Module

    def at(self, node: ast.AST) -> str:
        """Where a node stands, as ``file:line``."""
        return f"{self.name}:{getattr(node, 'lineno', 1)}"


@functools.cache
def sources() -> tuple[Source, ...]:
    """Every Python file of the package, by name."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text()
        name = path.relative_to(ROOT).as_posix()
        found.append(Source(name=name, text=text, tree=ast.parse(text, name)))
    assert len(found) > 20, "the package was not found"
    return tuple(found)


def imports(tree: ast.AST) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """Each import below ``tree`` with the dotted name it imports (for ``from a import b``: ``a.b``)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node, f"{'.' * node.level}{node.module or ''}.{alias.name}") for alias in node.names)
