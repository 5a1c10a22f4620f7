"""The files of an estate as a commit has them: branch, tag or hash, read beside the work tree, which stays as it is.

``estates.load_revision`` asks, for ``plan --from`` and ``--to``. The blobs come out of git as they were committed:
nothing is checked out, no filter or hook runs. Relative paths in manifests begin where they would if the commit were
checked out: in the estate's own folder. Links to other files of the commit are followed; what lies behind a link that
leads elsewhere is no part of a commit, and a warning says so.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from reconciler.base import diagnostics, errors
from reconciler.intake import codes, revisions, trees

_HASH: Final = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?\Z")
_REGULAR: Final = frozenset({"100644", "100755"})
_LINK: Final = "120000"
#: Links to links that are followed.
_HOPS: Final = 8


def read_tree(root: Path, revision: str) -> tuple[trees.Tree, str]:
    """The tree of ``revision`` under the estate ``root``, and its full name, such as ``main@sha1:<40 hex>``.

    Raises ``UsageError`` where there is no repository, no such revision, or the estate was not in it.
    """
    place = root.resolve()
    commit = _resolve(place, revision)
    listed = dict(_listing(place, revision, commit))
    if not listed:
        raise errors.UsageError(
            f"revision {revision} holds nothing under {place}", hint="name a revision in which the estate exists"
        )
    regular = {path: blob for path, (mode, blob) in listed.items() if mode in _REGULAR}
    links = {path: blob for path, (mode, blob) in listed.items() if mode == _LINK and not _hidden(path)}
    targets = _blobs(place, sorted(set(links.values())))
    wanted: dict[str, str] = {path: blob for path, blob in regular.items() if trees.is_manifest(path)}
    away: list[str] = []
    folders = {folder for path in listed for folder in _parents(path)}
    for path in sorted(links):
        end = _follow(path, links, targets)
        if end in regular:
            if trees.is_manifest(path):
                wanted[path] = regular[end]
        elif end is None or end not in folders:
            away.append(path)
    contents = _blobs(place, sorted(set(wanted.values())))
    tree = trees.gather(place, [(path, contents[wanted[path]]) for path in sorted(wanted)])
    warnings = tuple(_left_out(path) for path in away)
    name = revision if not _HASH.match(revision) and not commit.startswith(revision) else "HEAD"
    algorithm = "sha1" if len(commit) == 40 else "sha256"
    found = trees.Tree(
        root=tree.root, files=tree.files, ignored=tree.ignored, diagnostics=(*tree.diagnostics, *warnings)
    )
    return found, f"{name}@{algorithm}:{commit}"


def _resolve(root: Path, revision: str) -> str:
    done = revisions.ask(root, "rev-parse", "--verify", "--quiet", "--end-of-options", revision + "^{commit}")
    if done is None:
        raise errors.UsageError("git cannot be run", hint="install git, or leave --from and --to out")
    found = done.stdout.decode(errors="replace").strip()
    if done.returncode == 0 and _HASH.match(found):
        return found
    said = done.stderr.decode(errors="replace").strip().removeprefix("fatal: ")
    if not said:
        raise errors.UsageError(
            f"{root} has no revision {revision}", hint="name a branch, a tag or a commit; a shallow clone lacks most"
        )
    raise errors.UsageError(f"git cannot read {root}: {said}", hint="the estate must lie in a git repository")


def _listing(root: Path, revision: str, commit: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Path below ``root`` -> mode and blob, of everything that the commit has there."""
    # Paths come relative to the folder that git runs in.
    for entry in _asked(root, revision, "ls-tree", "-r", "-z", commit).split(b"\0"):
        mode, _, rest = os.fsdecode(entry).partition(" ")
        blob, _, path = rest.partition("\t")
        if path:
            yield path, (mode, blob.split(" ")[-1])


def _blobs(root: Path, names: Sequence[str]) -> Mapping[str, bytes]:
    """The bytes of blobs by their names. Raises ``UsageError`` for one that the repository lacks."""
    if not names:
        return {}
    data = _asked(root, "", "cat-file", "--batch", given="".join(f"{name}\n" for name in names).encode())
    result = {}
    position = 0
    for name in names:
        end = data.index(b"\n", position)
        head = data[position:end].split()
        if len(head) != 3 or head[1] != b"blob":
            raise errors.UsageError(f"the repository lacks blob {name}", hint="fetch it: this clone is not whole")
        size = int(head[2])
        result[name] = data[end + 1 : end + 1 + size]
        position = end + 1 + size + 1
    return result


def _asked(root: Path, revision: str, *words: str, given: bytes = b"") -> bytes:
    done = revisions.ask(root, *words, given=given)
    if done is None or done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip() if done is not None else "it takes too long"
        raise errors.UsageError(f"git cannot read {revision or 'its objects'}: {said}", hint="check the repository")
    return done.stdout


def _follow(path: str, links: Mapping[str, str], targets: Mapping[str, bytes]) -> str | None:
    """Where a link ends, as a path below the root; None where that is elsewhere, or nowhere."""
    for _ in range(_HOPS):
        if path not in links:
            return path
        target = os.fsdecode(targets[links[path]])
        path = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if path.startswith(("/", "..")):
            return None
    return None


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _parents(path: str) -> Iterator[str]:
    while path := posixpath.dirname(path):
        yield path


def _left_out(path: str) -> diagnostics.Diagnostic:
    return diagnostics.Diagnostic(
        severity=diagnostics.Severity.WARNING,
        code=codes.UNREADABLE,
        message="the link leads out of the commit; manifests behind it are not part of this revision",
        position=diagnostics.Position(file=path, line=1, column=1),
        hint="commit the files themselves",
    )
