"""The rules of the house: who may import whom, what pure code may not touch, how long a file may grow."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from source_trees import PACKAGE, ROOT, imports, sources

#: The files that load modules when they are called: ``--help`` needs no SQLAlchemy, a folder of disks no pyVmomi.
LATE_LOADERS = ("reconciler/cli/commands.py", "reconciler/cli/entries.py", "reconciler/sources/opening.py")
LONGEST_FILE = 450
LONGEST_FUNCTION = 70
VAGUE = {"utils", "util", "helpers", "helper", "manager", "managers", "common", "misc"}
_LINT = "import sys; from importlinter import cli; sys.exit(cli.lint_imports(no_cache=True, no_logo=True))"


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the import contracts of the tree in ``folder``."""
    return subprocess.run(
        [sys.executable, "-c", _LINT], cwd=folder, text=True, capture_output=True, timeout=120, check=False
    )


def test_the_import_contracts_are_kept() -> None:
    found = lint_imports(ROOT)
    assert found.returncode == 0, found.stdout + found.stderr


#: File, what it must not import, and the words that say so.
BREACHES = (
    ("base/times.py", "from reconciler.api import models", "reconciler.base.times -> reconciler.api.models"),
    ("storage/units.py", "from reconciler.sources import machines", "reconciler.storage.units -> reconciler.sources.machines"),
    ("controller/late.py", "from reconciler.reports import tables", "reconciler.controller.late -> reconciler.reports.tables"),
    ("jobs/engines.py", "from reconciler.operations import sites", "reconciler.jobs.engines -> reconciler.operations.sites"),
    ("planning/actions.py", "import os", "reconciler.planning.actions -> os"),
    ("planning/actions.py", "from reconciler.base import files", "reconciler.planning.actions -> reconciler.base.files"),
    ("api/models.py", "import threading", "reconciler.api.models -> threading"),
    ("base/quantities.py", "import random", "reconciler.base.quantities -> random"),
    ("storage/units.py", "import sqlalchemy", "reconciler.storage.units -> sqlalchemy"),
    ("controller/late.py", "from pyVmomi import vim", "reconciler.controller.late -> pyVmomi"),
    ("planning/expiry.py", "import cronsim", "reconciler.planning.expiry -> cronsim"),
    ("base/extents.py", "from reconciler.base import layouts", ".layouts -> .extents"),
)  # fmt: skip


def broken(folder: Path, *breaches: tuple[str, str]) -> str:
    """What the contracts say of a copy of the tree with more lines in some files."""
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(PACKAGE, folder / "reconciler", ignore=shutil.ignore_patterns("__pycache__"))
    for file, line in breaches:
        path = folder / "reconciler" / file
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as out:
            out.write(f"\n{line}\n")
    found = lint_imports(folder)
    assert found.returncode == 1, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def caught(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the contracts say of a tree with all ``BREACHES``, and a circle closed."""
    breaches = [(file, line) for file, line, _ in BREACHES]
    return broken(
        tmp_path_factory.mktemp("broken"), *breaches, ("base/layouts.py", "from reconciler.base import extents")
    )


@pytest.mark.parametrize("said", [said for _, _, said in BREACHES])
def test_a_contract_catches(caught: str, said: str) -> None:
    """Contracts that cannot fail prove nothing."""
    assert said in caught


def test_a_package_without_a_place_is_caught(tmp_path: Path) -> None:
    assert "attic" in broken(tmp_path, ("attic/__init__.py", "import json"))


def test_reconciler_is_imported_at_the_top_of_files_only() -> None:
    """No import inside functions, none under ``TYPE_CHECKING``: both hide a cycle."""
    late = []
    for source in sources():
        top = {id(node) for node in source.tree.body}
        for node, name in imports(source.tree):
            if id(node) not in top and name.lstrip(".").startswith("reconciler") and source.name not in LATE_LOADERS:
                late.append(f"{source.at(node)}: {name}")
            if name == "typing.TYPE_CHECKING" or name.startswith("."):
                late.append(f"{source.at(node)}: {name}")
    assert late == []


def test_nothing_else_loads_reconciler_by_name() -> None:
    found = [
        source.at(node)
        for source in sources()
        if source.name not in LATE_LOADERS
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__")
    ]
    assert found == []


def test_modules_are_imported_rather_than_names() -> None:
    """Call sites across packages then read ``retention.keep(...)``."""
    names = []
    for source in sources():
        for node, name in imports(source.tree):
            across = name.split(".")[1:2] != source.name.split("/")[1:2]
            if isinstance(node, ast.ImportFrom) and name.startswith("reconciler.") and across:
                place = ROOT.joinpath(*name.split("."))
                if not place.is_dir() and not place.with_suffix(".py").exists():
                    names.append(f"{source.at(node)}: {name}")
    assert [name for name in names if not name.endswith("reconciler.__version__")] == []


def test_pure_code_asks_neither_the_clock_nor_chance_nor_the_disk() -> None:
    forbidden = {"open", "input", "print", "exec", "eval", "breakpoint"}
    clocks = {"now", "utcnow", "today", "time", "monotonic", "perf_counter", "time_ns"}
    found = []
    for source in sources():
        if not source.name.startswith(("reconciler/planning/", "reconciler/api/")):
            continue
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Call):
                continue
            called = node.func
            if isinstance(called, ast.Name) and called.id in forbidden:
                found.append(f"{source.at(node)}: {called.id}(")
            if isinstance(called, ast.Attribute) and called.attr in clocks:
                owner = ast.unparse(called.value)
                if owner.rpartition(".")[2] in ("datetime", "date", "time", "dt"):
                    found.append(f"{source.at(node)}: {owner}.{called.attr}(")
    assert found == []


def test_files_are_read_in_one_sitting() -> None:
    long = [(source.name, lines) for source in sources() if (lines := len(source.text.splitlines())) > LONGEST_FILE]
    assert long == []


def test_functions_fit_a_screen() -> None:
    long = []
    for source in sources():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    long.append(f"{source.at(node)}: {node.name} has {lines} lines")
    assert long == []


def test_no_exception_is_swallowed_silently() -> None:
    silent = []
    for source in sources():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ExceptHandler) and all(
                isinstance(line, ast.Pass) or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
                for line in node.body
            ):
                silent.append(source.at(node))
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
                broad = [ast.unparse(a) for a in node.args if ast.unparse(a) in ("Exception", "BaseException")]
                silent += [f"{source.at(node)}: suppress({name})" for name in broad]
    assert silent == []


def test_modules_are_named_after_concepts() -> None:
    vague = [source.name for source in sources() if VAGUE & set(source.name.removesuffix(".py").split("/"))]
    assert vague == []


def test_every_module_says_what_it_is_for() -> None:
    assert [source.name for source in sources() if not (ast.get_docstring(source.tree) or "").strip()] == []


def test_an_estate_without_a_vcenter_has_no_need_of_pyvmomi() -> None:
    """The commands that plan and act load it only where a policy names one."""
    code = (
        "import sys; from reconciler.cli import applying, planning; from reconciler.sources import opening; "
        "sys.exit(any(name.split('.')[0] in ('pyVmomi', 'pyVim') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    ("commands", "needless"),
    [
        (("filefinding", "filelisting", "showing"), ("reconciler.storage", "reconciler.jobs")),
        (("filegetting", "mounting", "restoring"), ("reconciler.sources.vsphere", "reconciler.intake")),
    ],
    ids=["looking", "reading"],
)
def test_a_command_loads_no_more_than_it_needs(commands: tuple[str, ...], needless: tuple[str, ...]) -> None:
    """Most of what a short command takes is loading: none of these plans, writes images or draws bars."""
    none = ("rich", "ruamel", "reconciler.api.policies", "reconciler.catalog.images", "reconciler.planning.actions")
    code = (
        f"import sys; from reconciler.cli import {', '.join(commands)}; "
        f"print(*(name for name in {(*none, *needless)!r} if name in sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, timeout=60, check=True
    )
    assert found.stdout.strip() == ""
