"""Whole trees side by side: everything that can be asked of every file, from a mount or a folder and from a browser.

``folder`` and ``browsed`` give the same values for the same files, ``compare`` says how two of them differ. Used for
what a browser gives, and for what a restore has written.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import stat
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import blake3

from reconciler.guests import browsing, nodes

#: Bytes that are read at once.
_PIECE = 4 << 20
#: What the kernel shows beside the list it stands for, and what it adds by itself.
_DOUBLED = ("trusted.SGI_ACL_FILE", "trusted.SGI_ACL_DEFAULT", "security.selinux")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What is known of one path; None where it was not asked."""

    #: Type bits of ``st_mode``.
    format: int
    size: int
    #: Of the content; empty for all but files.
    digest: str
    target: str | None
    device: int | None
    #: The first path that leads to the same file.
    same: str
    links: int
    mode: int | None
    uid: int | None
    gid: int | None
    modified: int
    changed: int
    accessed: int
    created: int
    xattrs: tuple[tuple[str, bytes], ...]
    #: Named streams and digests.
    streams: tuple[tuple[str, str], ...]


def _digest(pieces: Iterator[bytes]) -> str:
    found = blake3.blake3()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()


def _file(path: Path) -> str:
    with path.open("rb") as file:
        return _digest(iter(lambda: file.read(_PIECE), b""))


def windows(root: Path, *names: str) -> dict[str, dict[str, bytes]]:
    """Of every path below a mount by NTFS-3G what it keeps for Windows: by these names without ``system.ntfs_``.

    It answers more than was asked for where the buffer is short, so this one is long.
    """
    system, buffer = ctypes.CDLL(None), ctypes.create_string_buffer(64 << 10)
    found: dict[str, dict[str, bytes]] = {}
    for path in root.rglob("*"):
        of = found[str(path.relative_to(root))] = {}
        for name in names:
            length = system.lgetxattr(os.fsencode(path), f"system.ntfs_{name}".encode(), buffer, len(buffer))
            if length >= 0:
                of[name] = buffer.raw[:length]
    return found


def _births(root: Path) -> dict[str, int]:
    """When every file was made, as far as the system knows; in nanoseconds."""
    script = r"find . -mindepth 1 -print0 | xargs -0 -r stat --printf='%.9W %n\0'"
    done = subprocess.run(["sh", "-c", script], capture_output=True, check=True, cwd=root)
    births: dict[str, int] = {}
    for line in done.stdout.split(b"\0")[:-1]:
        moment, _, path = os.fsdecode(line).partition(" ./")
        births[path] = max(int(moment.replace(".", "")), 0)
    return births


def folder(
    root: Path,
    *,
    streams: Mapping[str, Collection[str]] | None = None,
    born: Callable[[Path], int] | None = None,
) -> dict[str, Seen]:
    """Every path below a folder. ``streams``: names of streams by path, read as ``path:name``; ``born``: when a file
    was made, where the system does not know."""
    births, firsts = _births(root), {}
    found: dict[str, Seen] = {}
    for above, names, files in os.walk(root):
        for name in sorted(names + files):
            path = Path(above) / name
            about, where = path.lstat(), str(path.relative_to(root))
            kind = stat.S_IFMT(about.st_mode)
            regular, linked = kind == stat.S_IFREG, kind == stat.S_IFLNK
            xattrs: list[tuple[str, bytes]] = []
            with contextlib.suppress(OSError):
                for key in sorted(os.listxattr(path, follow_symlinks=False)):
                    if key not in _DOUBLED:
                        xattrs.append((key, os.getxattr(path, key, follow_symlinks=False)))
            found[where] = Seen(
                format=kind,
                size=about.st_size if regular or linked else 0,
                digest=_file(path) if regular else "",
                target=os.readlink(path) if linked else None,  # noqa: PTH115  a Path would lose a slash at the end
                device=about.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else None,
                same=firsts.setdefault(about.st_ino, where) if kind != stat.S_IFDIR else where,
                links=about.st_nlink if kind != stat.S_IFDIR else 0,
                mode=about.st_mode,
                uid=about.st_uid,
                gid=about.st_gid,
                modified=about.st_mtime_ns,
                changed=about.st_ctime_ns,
                accessed=about.st_atime_ns,
                created=born(path) if born is not None else births.get(where, 0),
                xattrs=tuple(xattrs),
                streams=tuple(
                    (key, _file(path.with_name(f"{path.name}:{key}"))) for key in sorted((streams or {}).get(where, ()))
                ),
            )
    return _first_paths(found)


def _first_paths(found: dict[str, Seen]) -> dict[str, Seen]:
    """``same`` as the first path in order, however the tree was walked."""
    firsts: dict[str, str] = {}
    for path, one in found.items():
        firsts[one.same] = min(firsts.get(one.same, path), path)
    return {path: dataclasses.replace(one, same=firsts[one.same]) for path, one in found.items()}


def content(browser: browsing.Browser, node: nodes.Node, stream: str = "", *, piece: int = _PIECE) -> Iterator[bytes]:
    """A stream piece by piece."""
    size = dict(node.streams)[stream] if stream else node.size
    for offset in range(0, size, piece):
        yield browser.read(node, offset, min(piece, size - offset), stream)


def browsed(browser: browsing.Browser, volume: int, *, whole: bool = True) -> dict[str, Seen]:
    """Every path of a volume; ``whole``: nothing of it may be unreadable."""
    found: dict[str, Seen] = {}
    firsts: dict[int, str] = {}
    waiting = [("", browser.root(volume))]
    while waiting:
        above, directory = waiting.pop()
        for name, node in browser.children(directory):
            where = f"{above}/{name}" if above else name
            assert not whole or not node.problem, (where, node)
            assert not node.incomplete, (where, node)
            if node.kind == "directory":
                waiting.append((where, node))
            found[where] = Seen(
                format=node.format,
                size=node.size,
                digest=_digest(content(browser, node)) if node.kind == "file" and not node.problem else "",
                target=node.target,
                device=node.device,
                same=firsts.setdefault(node.inode, where) if node.kind != "directory" else where,
                links=node.links if node.kind != "directory" else 0,
                mode=node.mode,
                uid=node.uid,
                gid=node.gid,
                modified=node.modified,
                changed=node.changed,
                accessed=node.accessed,
                created=node.created,
                xattrs=tuple(sorted(node.xattrs)),
                streams=tuple(sorted((key, _digest(content(browser, node, key))) for key, _ in node.streams)),
            )
    return _first_paths(found)


def compare(
    expected: Mapping[str, Seen],
    found: Mapping[str, Seen],
    *,
    leave: Collection[str] = (),
    slack: int = 0,
    without: Collection[str] = (),
) -> list[str]:
    """How two trees differ, a sentence each. ``leave``: fields that are not compared; ``slack``: nanoseconds by which
    moments may differ; ``without``: paths that do not count."""
    told = [f"{path!a} is missing" for path in sorted(set(expected) - set(found) - set(without))]
    told += [f"{path!a} should not be there" for path in sorted(set(found) - set(expected) - set(without))]
    for path in sorted(set(expected) & set(found) - set(without)):
        one, other = expected[path], found[path]
        for field in dataclasses.fields(Seen):
            before, after = getattr(one, field.name), getattr(other, field.name)
            timed = field.name in ("modified", "changed", "accessed", "created")
            if field.name in leave or before == after or (timed and abs(before - after) <= slack):
                continue
            told.append(f"{path!a}: {field.name} is {after!a:.100}, not {before!a:.100}")
    return told
