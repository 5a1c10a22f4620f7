"""The name of what was read: ``main@sha1:<40 hex>`` or ``dir@blake3:<hex>``.

``estates`` asks for it once per load. A commit is named only if the bytes that were read are, file by file, the blobs
of that commit: no file more, none fewer, none changed. That is compared here, over the bytes in hand; git is only asked
which commit is checked out and what it holds, which runs no hook, filter or monitor and takes no lock. Whatever stands
in the way (no git, a foreign owner, SHA-256 objects, linked files, line endings changed at checkout) falls back to the
digest of the folder, which is always right and says less.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path
from typing import Final

from reconciler.base import digests
from reconciler.intake import trees

_SECONDS: Final = 20
_COMMIT: Final = re.compile(r"[0-9a-f]{40}\Z")
_REGULAR: Final = ("100644", "100755")


def name(tree: trees.Tree) -> str:
    """The revision of what ``tree`` holds."""
    return _commit(tree) or folder(tree)


def folder(tree: trees.Tree) -> str:
    """``dir@blake3:<hex>`` over the sorted paths and content digests of the manifest files."""
    return "dir@" + digests.json_digest(sorted([file.path, file.digest] for file in tree.files))


def _commit(tree: trees.Tree) -> str | None:
    if not any((place / ".git").exists() for place in (tree.root, *tree.root.parents)):
        return None
    head = (_git(tree.root, "rev-parse", "--verify", "HEAD^{commit}") or b"").decode(errors="replace").strip()
    if not _COMMIT.match(head):
        return None
    # Paths come relative to the folder that git runs in.
    listing = _git(tree.root, "ls-tree", "-r", "-z", head)
    if listing is None or not _holds(listing, tree):
        return None
    branch = _git(tree.root, "symbolic-ref", "--short", "-q", "HEAD")
    return f"{branch.decode(errors='replace').strip() if branch else 'HEAD'}@sha1:{head}"


def _holds(listing: bytes, tree: trees.Tree) -> bool:
    """Whether the commit's manifest files are exactly those of ``tree``."""
    committed: dict[str, str] = {}
    for entry in listing.split(b"\0"):
        mode, _, rest = os.fsdecode(entry).partition(" ")
        blob, _, path = rest.partition("\t")
        if not path or not trees.is_manifest(path):
            continue
        committed[path] = blob.split(" ")[-1] if mode in _REGULAR else "not a file"
    found = {file.path: file.data for file in (*tree.files, *tree.ignored)}
    new = found.keys() - committed.keys() - {file.path for file in tree.ignored}
    return not new and all(path in found and _blob(found[path]) == blob for path, blob in committed.items())


def _blob(data: bytes) -> str:
    """The name that git gives to these bytes."""
    return hashlib.sha1(b"blob %d\0%b" % (len(data), data), usedforsecurity=False).hexdigest()


def _git(root: Path, *words: str) -> bytes | None:
    """What git prints, None where it fails or is missing."""
    done = ask(root, *words)
    return done.stdout if done is not None and done.returncode == 0 else None


def ask(root: Path, *words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes] | None:
    """Run git in ``root`` with ``given`` on its stdin; None where there is no git, or it takes too long. Neither hooks
    nor filters run, nothing is fetched, no lock is taken."""
    # Variables such as GIT_DIR, which hooks set, would make git speak about another repository.
    scrubbed = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    quiet = {
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "LC_ALL": "C",
    }
    try:
        return subprocess.run(
            ["git", "-C", str(root), "-c", "core.fsmonitor=false", *words],
            env=scrubbed | quiet,
            input=given,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
