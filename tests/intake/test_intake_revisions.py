"""A revision names exactly what was read: a commit only if it holds these very bytes, else the digest of the folder."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import intake_samples
import pytest

from reconciler.intake import estates

COMMIT = re.compile(r"main@sha1:[0-9a-f]{40}\Z")
FOLDER = re.compile(r"dir@blake3:[0-9a-f]{64}\Z")


def git(root: Path, *words: str) -> str:
    """Run git without this machine's settings."""
    quiet = {
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "HOME": str(root),
        "PATH": os.environ["PATH"],
    }
    who = ["-c", "user.name=Anna", "-c", "user.email=anna@example.test", "-c", "init.defaultBranch=main"]
    done = subprocess.run(
        ["git", *who, *words], cwd=root, env=quiet, check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose folder ``manifests`` holds a good estate, committed."""
    (tmp_path / "manifests" / "more").mkdir(parents=True)
    (tmp_path / "manifests" / "good.yaml").write_text(intake_samples.GOOD)
    (tmp_path / "manifests" / "more" / "chart.yaml").write_text("# holdfast: ignore\n")
    (tmp_path / "other.yaml").write_text("not: a manifest\n")
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def commit(root: Path) -> str:
    git(root, "add", "--all")
    git(root, "commit", "-q", "--allow-empty", "-m", "estate")
    return git(root, "rev-parse", "HEAD")


def revision(root: Path) -> str:
    return estates.load(root).revision


def test_a_clean_work_tree_is_named_by_branch_and_commit(repository: Path) -> None:
    head = git(repository, "rev-parse", "HEAD")
    loaded = estates.load(repository / "manifests")
    assert loaded.revision == f"main@sha1:{head}"
    assert loaded.desired is not None and loaded.desired.revision == loaded.revision


def test_the_root_of_the_repository_may_be_the_estate(repository: Path) -> None:
    assert COMMIT.match(revision(repository))


def test_a_branch_with_a_slash_and_a_detached_commit_are_named(repository: Path) -> None:
    head = git(repository, "rev-parse", "HEAD")
    git(repository, "checkout", "-q", "-b", "feature/pools")
    assert revision(repository / "manifests") == f"feature/pools@sha1:{head}"
    git(repository, "checkout", "-q", "--detach")
    assert revision(repository / "manifests") == f"HEAD@sha1:{head}"


def change(root: Path, what: str) -> None:
    estate = root / "manifests"
    good = estate / "good.yaml"
    match what:
        case "edited":
            good.write_text(intake_samples.GOOD + "# edited\n")
        case "edited with the old size and time":
            before = good.stat()
            good.write_text(intake_samples.GOOD.replace("room-1", "room-3"))
            os.utime(good, ns=(before.st_atime_ns, before.st_mtime_ns))
        case "staged":
            good.write_text(intake_samples.GOOD + "# staged\n")
            git(root, "add", "--all")
        case "added":
            (estate / "new.yaml").write_text("# nothing yet\n")
        case "ignored by git":
            (root / ".gitignore").write_text("new.yaml\n")
            (estate / "new.yaml").write_text("# nothing yet\n")
        case "removed":
            good.unlink()
        case "renamed":
            good.rename(estate / "better.yaml")
        case "turned into no manifest":
            good.write_text("# holdfast: ignore\n" + intake_samples.GOOD)
        case "hidden by skip-worktree":
            git(root, "update-index", "--skip-worktree", "manifests/good.yaml")
            good.write_text(intake_samples.GOOD + "# hidden\n")
        case "other line ends":
            good.write_bytes(intake_samples.GOOD.replace("\n", "\r\n").encode())


@pytest.mark.parametrize(
    "what",
    [
        "edited",
        "edited with the old size and time",
        "staged",
        "added",
        "ignored by git",
        "removed",
        "renamed",
        "turned into no manifest",
        "hidden by skip-worktree",
        "other line ends",
    ],
)
def test_anything_that_is_not_in_the_commit_makes_it_a_folder(repository: Path, what: str) -> None:
    change(repository, what)
    assert FOLDER.match(revision(repository / "manifests"))


def test_files_that_are_no_manifests_do_not_matter(repository: Path) -> None:
    (repository / "manifests" / "notes.txt").write_text("x")
    (repository / "manifests" / ".holdfast").mkdir()
    (repository / "manifests" / ".holdfast" / "x.yaml").write_text("x")
    (repository / "other.yaml").write_text("edited: true\n")
    assert COMMIT.match(revision(repository / "manifests"))


def test_committing_gives_the_new_commit(repository: Path) -> None:
    change(repository, "edited")
    head = commit(repository)
    assert revision(repository / "manifests") == f"main@sha1:{head}"


def test_without_a_commit_it_is_a_folder(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "good.yaml").write_text(intake_samples.GOOD)
    assert FOLDER.match(revision(tmp_path))


def test_linked_files_make_it_a_folder(repository: Path) -> None:
    (repository / "manifests" / "linked.yaml").symlink_to("../other.yaml")
    commit(repository)
    assert FOLDER.match(revision(repository / "manifests"))


def test_variables_of_another_repository_are_not_obeyed(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = revision(repository / "manifests")
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    monkeypatch.setenv("GIT_WORK_TREE", "/nonexistent")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nonexistent")
    assert revision(repository / "manifests") == expected and COMMIT.match(expected)


def test_without_git_it_is_a_folder(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    assert FOLDER.match(revision(repository / "manifests"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a repository to somebody else")
def test_a_repository_of_somebody_else_is_a_folder(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(repository))
    os.chown(repository, 65534, 65534)
    os.chown(repository / ".git", 65534, 65534)
    assert FOLDER.match(revision(repository / "manifests"))


def test_asking_writes_nothing(repository: Path) -> None:
    def state() -> dict[str, int]:
        return {str(path): path.lstat().st_mtime_ns for path in repository.rglob("*")}

    before = state()
    revision(repository / "manifests")
    assert state() == before


def test_the_digest_covers_names_and_contents_and_nothing_else(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        (root / "sub").mkdir(parents=True)
        (root / "sub" / "good.yaml").write_text(intake_samples.GOOD)
        (root / "empty.yml").write_text("")
    (two / "README").write_text("x")
    (two / ".x.yaml").write_text("x")
    (two / "chart.yaml").write_text("# holdfast: ignore\n")
    first = revision(one)
    assert FOLDER.match(first) and first == revision(two)
    (two / "empty.yml").rename(two / "empty.yaml")
    assert revision(two) != first
    (two / "empty.yaml").rename(two / "empty.yml")
    assert revision(two) == first
    (two / "empty.yml").write_text("# x\n")
    assert revision(two) != first
