"""An estate as a revision has it is what a checkout of that revision would be, and nothing is checked out."""

from __future__ import annotations

import subprocess
from pathlib import Path

import intake_samples
import pytest
from test_intake_revisions import commit, git

from reconciler.base import errors
from reconciler.intake import estates


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of two commits; the later one, ``main``, has another file and a changed one."""
    estate = tmp_path / "manifests"
    (estate / "more").mkdir(parents=True)
    (estate / "good.yaml").write_text(intake_samples.GOOD)
    (estate / "more" / "chart.yaml").write_text("# holdfast: ignore\n")
    (tmp_path / ".gitignore").write_text(".holdfast\n")
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    git(tmp_path, "tag", "v1")
    git(tmp_path, "branch", "release/1")
    (estate / "good.yaml").write_text(intake_samples.GOOD.replace("gold", "silver"))
    (estate / "more" / "window.yml").write_text(
        "apiVersion: holdfast/v1alpha1\nkind: BackupWindow\nmetadata: {name: dawn}\n"
        "spec: {allow: [{days: [Mon], start: '20:00', duration: 4h}]}\n"
    )
    commit(tmp_path)
    return tmp_path


def files(root: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["v1", "release/1", "main", "HEAD~1", "HEAD"])
def test_a_revision_is_what_its_checkout_would_be(repository: Path, name: str) -> None:
    estate = repository / "manifests"
    before = files(repository)
    loaded = estates.load_revision(estate, name)
    assert files(repository) == before
    sha = git(repository, "rev-parse", name + "^{commit}")
    assert loaded.revision == f"{name}@sha1:{sha}"
    git(repository, "checkout", "-q", "--detach", name)
    there = estates.load(estate)
    assert loaded.desired is not None and there.desired is not None
    assert list(loaded.desired.objects()) == list(there.desired.objects())
    assert [str(one) for one in loaded.diagnostics] == [str(one) for one in there.diagnostics]
    assert loaded.objects == there.objects


def test_a_commit_is_named_by_its_hash_alone(repository: Path) -> None:
    sha = git(repository, "rev-parse", "v1")
    for given in (sha, sha[:12]):
        assert estates.load_revision(repository / "manifests", given).revision == f"HEAD@sha1:{sha}"


def test_what_is_not_committed_is_not_read(repository: Path) -> None:
    estate = repository / "manifests"
    whole = estates.load_revision(estate, "HEAD")
    (estate / "good.yaml").write_text("broken: [")
    (estate / "new.yaml").write_text("kind: Nothing\n")
    assert estates.load(estate).desired is None
    again = estates.load_revision(estate, "HEAD")
    assert again == whole


def test_problems_have_the_places_they_have_in_the_commit(repository: Path) -> None:
    estate = repository / "manifests"
    (estate / "more" / "wrong.yaml").write_text("apiVersion: holdfast/v1alpha1\nkind: BackupPolicies\n")
    commit(repository)
    (estate / "more" / "wrong.yaml").unlink()
    loaded = estates.load_revision(estate, "HEAD")
    assert loaded.desired is None
    assert [one.position.file for one in loaded.diagnostics if one.position] == ["more/wrong.yaml"]


def test_links_within_the_commit_are_followed_and_others_are_told(repository: Path) -> None:
    estate = repository / "manifests"
    (estate / "good.yaml").rename(estate / "hidden.txt")
    (estate / "linked.yaml").symlink_to("hidden.txt")
    (estate / "outside.yaml").symlink_to("../elsewhere.yaml")
    (estate / "folder").symlink_to("more")
    commit(repository)
    loaded = estates.load_revision(estate, "HEAD")
    assert loaded.desired is not None and loaded.desired.policies
    told = [one.position.file for one in loaded.diagnostics if "leads out" in one.message and one.position]
    assert told == ["outside.yaml"]


@pytest.mark.parametrize("name", ["nowhere", "--version", "v1:manifests", "HEAD~99", ""])
def test_what_is_no_revision_is_a_usage_error(repository: Path, name: str) -> None:
    with pytest.raises(errors.UsageError, match=r"revision|git cannot"):
        estates.load_revision(repository / "manifests", name)


def test_without_a_repository_or_before_the_estate_it_says_so(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("plain")
    with pytest.raises(errors.UsageError, match="must lie in a git repository"):
        estates.load_revision(elsewhere, "HEAD")
    (repository / "later").mkdir()
    with pytest.raises(errors.UsageError, match="holds nothing"):
        estates.load_revision(repository / "later", "v1")


def test_no_filter_or_hook_of_the_repository_runs(repository: Path) -> None:
    (repository / ".gitattributes").write_text("*.yaml filter=evil eol=crlf ident\n")
    commit(repository)
    marker = repository / "ran"
    git(repository, "config", "filter.evil.smudge", f"touch {marker}; cat")
    git(repository, "config", "core.fsmonitor", f"touch {marker}")
    assert estates.load_revision(repository / "manifests", "HEAD").desired is not None
    assert not marker.exists()
    assert subprocess.run(["git", "status"], cwd=repository, capture_output=True, check=False).returncode == 0
    assert marker.exists()
