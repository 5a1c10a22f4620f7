"""Which files are read, which are not, and that nothing on the way can stop or hang the reading."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import intake_samples
import pytest

from reconciler.base import errors
from reconciler.intake import codes, estates, trees


def write(root: Path, *paths: str, text: str = "{}\n") -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def paths(root: Path) -> list[str]:
    tree = trees.read_tree(root)
    assert tree.diagnostics == ()
    return [file.path for file in tree.files]


def test_yaml_files_are_read_from_all_folders_in_order(tmp_path: Path) -> None:
    write(tmp_path, "b.yaml", "a/z.yml", "a/b/c.yaml", "UPPER.YAML", "x.yaml/y.yml")
    write(tmp_path, "holdfast.toml", "README.md", "a.json", "a.yaml.orig", "yaml")
    assert paths(tmp_path) == ["UPPER.YAML", "a/b/c.yaml", "a/z.yml", "b.yaml", "x.yaml/y.yml"]


def test_names_with_a_dot_in_front_are_not_read(tmp_path: Path) -> None:
    write(tmp_path, ".hidden.yaml", ".holdfast/a.yaml", "a/.git/b.yaml", "seen.yaml")
    assert paths(tmp_path) == ["seen.yaml"]


@pytest.mark.parametrize(
    "head", ["# holdfast: ignore\n", "#holdfast:ignore\n", "\n---\n# a chart\n#  holdfast: ignore it\n"]
)
def test_a_file_may_say_that_it_is_no_manifest(tmp_path: Path, head: str) -> None:
    write(tmp_path, "chart.yaml", text=head + "{{ .Values }}: [\n")
    tree = trees.read_tree(tmp_path)
    assert tree.files == () and [file.path for file in tree.ignored] == ["chart.yaml"]
    assert [one.code for one in estates.load(tmp_path).diagnostics] == [codes.NO_MANIFESTS]


@pytest.mark.parametrize("head", ["a: b\n# holdfast: ignore\n", "# holdfast: ignored\n", "# not holdfast: ignore\n"])
def test_only_a_leading_comment_says_so(tmp_path: Path, head: str) -> None:
    write(tmp_path, "a.yaml", text=head)
    assert paths(tmp_path) == ["a.yaml"]


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    estate, elsewhere = tmp_path / "estate", tmp_path / "elsewhere"
    write(estate, "real/a.yaml")
    write(elsewhere, "b.yaml")
    (estate / "again").symlink_to("real")
    (estate / "real" / "up").symlink_to("..")
    (estate / "self").symlink_to("self")
    (estate / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(estate)
    (estate / "one.yaml").symlink_to(elsewhere / "b.yaml")
    assert paths(estate) == ["linked/b.yaml", "one.yaml", "real/a.yaml"]


def test_folders_that_hide_behind_a_link_are_read_as_mounted_configuration_is(tmp_path: Path) -> None:
    write(tmp_path, "..2026/a.yaml", "..2026/sub/b.yaml")
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    (tmp_path / "sub").symlink_to("..data/sub")
    assert paths(tmp_path) == ["a.yaml", "sub/b.yaml"]


def test_what_cannot_be_read_is_an_error_and_the_rest_is_read(tmp_path: Path) -> None:
    write(tmp_path, "good.yaml", text=intake_samples.GOOD)
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "dangling.yaml").symlink_to("nowhere")
    (tmp_path / "circle.yml").symlink_to("circle.yml")
    (tmp_path / os.fsdecode(b"\xff.yaml")).write_text("{}")
    loaded = estates.load(tmp_path)
    assert loaded.objects == 7 and loaded.desired is None
    assert [(one.position.file, one.code) for one in loaded.diagnostics if one.position] == [
        ("?.yaml", codes.UNREADABLE),
        ("circle.yml", codes.UNREADABLE),
        ("dangling.yaml", codes.UNREADABLE),
        ("pipe.yaml", codes.UNREADABLE),
    ]


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user can reach; ``tmp_path`` is closed to others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def test_files_without_permission_are_named(public_folder: Path) -> None:
    write(public_folder, "open.yaml", "locked.yaml", "closed/a.yaml")
    (public_folder / "locked.yaml").chmod(0)
    (public_folder / "closed").chmod(0)
    was = os.geteuid()
    try:
        if was == 0:
            os.seteuid(65534)  # permissions do not bind root
        tree = trees.read_tree(public_folder)
    finally:
        os.seteuid(was)
        (public_folder / "closed").chmod(0o755)
    assert [file.path for file in tree.files] == ["open.yaml"]
    assert [one.position.file for one in tree.diagnostics if one.position] == ["locked.yaml"]
    assert tree.closed == (("closed", "Permission denied"),)


def test_a_folder_that_cannot_be_listed_is_an_error_unless_it_holds_data(tmp_path: Path) -> None:
    unit = "apiVersion: holdfast/v1alpha1\nkind: StorageUnit\nmetadata: {name: fast}\n"
    write(tmp_path, "unit.yaml", text=unit + "spec: {type: Directory, path: ./storage/fast}\n")
    tree = trees.read_tree(tmp_path)
    for folder, severity in (("storage/fast/vm", "Warning"), ("storage/faster", "Error"), ("rules", "Error")):
        loaded = estates.judge(dataclasses.replace(tree, closed=((folder, "Input/output error"),)))
        assert [(one.code, one.severity.value) for one in loaded.diagnostics] == [(codes.UNREADABLE, severity)]
        assert (loaded.desired is None) == (severity == "Error")


def test_a_file_beyond_the_limit_is_refused_unless_it_is_no_manifest(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", text="# holdfast: ignore\n" + "x" * trees.MAXIMUM_SIZE)
    write(tmp_path, "b.yaml", text="#" + "x" * trees.MAXIMUM_SIZE)
    tree = trees.read_tree(tmp_path)
    assert tree.files == () and [one.code for one in tree.diagnostics] == [codes.TOO_LARGE]
    assert "b.yaml:1:1: error HF109" in str(tree.diagnostics[0]) and "8 MiB" in str(tree.diagnostics[0])


def test_a_file_at_the_limit_is_read(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", text="#" * trees.MAXIMUM_SIZE)
    assert paths(tmp_path) == ["a.yaml"]


@pytest.mark.parametrize("name", ["missing", "file.yaml"])
def test_an_estate_is_a_folder(tmp_path: Path, name: str) -> None:
    write(tmp_path, "file.yaml")
    with pytest.raises(errors.UsageError) as caught:
        estates.load(tmp_path / name)
    assert caught.value.exit_code == 64 and name in caught.value.message


def test_an_empty_folder_warns(tmp_path: Path) -> None:
    loaded = estates.load(tmp_path)
    assert loaded.desired is not None and loaded.objects == 0
    assert [one.code for one in loaded.diagnostics] == [codes.NO_MANIFESTS]
