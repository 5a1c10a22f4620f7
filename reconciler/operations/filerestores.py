"""Restore of single files and folders: a walk through the trees of an image that tells a sink what it meets.

Called by ``holdfast files get``. What cannot be read, or what the target refuses, is reported file by file and the rest
goes on; a target that is full or read-only, a unit that went away and a request to stop end the walk. Files with
several names keep them: the first is written, the others are linked to it.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from reconciler.base import errors, meters
from reconciler.guests import browsing, nodes, scans
from reconciler.operations import browsedtrees, filecontents, fileplaces

#: Folders in folders; each costs an open file.
_DEEPEST: Final = 800
#: What is said of a volume that was in use and whose journal or log was read all the same.
_READ: Final = frozenset((scans.JOURNAL, scans.LOG))
#: What a file system, or a copy, lacks of one file or folder.
_UNREADABLE: Final = (errors.GuestUnreadable, errors.NotFound, errors.ImageDamaged)
#: What one file meets, all the others will meet, too.
_FATAL: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EPIPE))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Pick:
    """Something to restore, with all that lies in it."""

    place: fileplaces.Place
    #: Its path in the image, for messages.
    shown: str
    #: Folders above it in the target, then its name there.
    names: tuple[str, ...]


@dataclasses.dataclass(slots=True)
class _Level:
    """A folder that is being walked."""

    browser: browsing.Browser
    disk: str
    children: Iterator[tuple[str, nodes.Node]]
    names: tuple[str, ...]
    shown: str


def picks(volumes: Sequence[fileplaces.Volume], places: Sequence[fileplaces.Place], *, paths: bool) -> tuple[Pick, ...]:
    """What to restore under which names: the last part of each path, or with ``paths`` all of it.

    Raises ``UsageError`` where two would have one name.
    """
    found: dict[tuple[str, ...], Pick] = {}
    for place in dict.fromkeys(places):
        shown = fileplaces.show(volumes, place)
        parts = tuple(part for part in place.path.split("/") if part)
        root = tuple(place.volume.name.split("/"))
        if paths:
            names = (*(root if len(volumes) > 1 else ()), *parts)
        else:
            names = parts[-1:] or (root if len(volumes) > 1 else ())
        if names in found:
            raise errors.UsageError(
                f"{found[names].shown} and {shown} would have one name", hint="--paths keeps the folders above them"
            )
        found[names] = Pick(place=place, shown=shown, names=names)
    for names, pick in found.items():
        above = next((found[names[:end]] for end in range(len(names)) if names[:end] in found), None)
        if above is not None:
            raise errors.UsageError(f"{pick.shown} lies in {above.shown}, which is restored as a whole")
    return tuple(found.values())


def restore(
    browsers: browsedtrees.Browsers,
    chosen: Sequence[Pick],
    sink: filecontents.Sink,
    report: filecontents.Report,
    meter: meters.Meter,
) -> None:
    """Tell the sink everything that was picked; ``report`` says what came of it.

    Raises ``TargetError``, ``UnitOffline``, ``Cancelled``: then what is there is whole, and not all is there.
    """
    _Walk(browsers, sink, report, meter).run(chosen)
    sink.finish()


class _Walk:
    def __init__(
        self,
        browsers: browsedtrees.Browsers,
        sink: filecontents.Sink,
        report: filecontents.Report,
        meter: meters.Meter,
    ) -> None:
        self._browsers, self._sink, self._report, self._meter = browsers, sink, report, meter
        #: Where files with several names were written first.
        self._firsts: dict[tuple[str, int, int], tuple[str, ...]] = {}
        #: The folders of the pick at hand by their numbers, as they are shown: damage can lead back into one of them.
        self._entered: dict[int, str] = {}

    def run(self, chosen: Sequence[Pick]) -> None:
        """Pick after pick."""
        for pick in chosen:
            volume = pick.place.volume
            try:
                browser = self._browsers.of(volume.disk)
                node = browser.find(volume.number, pick.place.path)
            except _UNREADABLE as error:
                self._report.fail(pick.shown, error.code, error.message)
                continue
            self._report_state(browser, volume, pick.shown)
            entered = 0
            try:
                for name in pick.names[:-1]:
                    if self._enter(name, filecontents.PLAIN, pick.shown):
                        entered += 1
                if entered == len(pick.names) - 1 or not pick.names:
                    self._tree(browser, volume.disk, node, pick)
            finally:
                for _ in range(entered):
                    self._sink.leave()

    def _report_state(self, browser: browsing.Browser, volume: fileplaces.Volume, shown: str) -> None:
        """Say what the volume wrote last and may hold nowhere else, if that is not read."""
        found = browser.volumes[volume.number]
        if not found.clean and found.reason not in _READ:
            self._report.lose(
                f"what was written last may be missing, for of the volume is known: {found.reason}", shown
            )

    def _tree(self, browser: browsing.Browser, disk: str, node: nodes.Node, pick: Pick) -> None:
        levels: list[_Level] = []
        self._entered = {} if pick.names else {node.inode: pick.shown}
        if not pick.names:
            shown = pick.shown.rstrip("/")
            levels.append(_Level(browser, disk, self._children(browser, node, shown), (), shown))
        else:
            self._one(browser, disk, pick.names, node, pick.shown, levels)
        roots = 0 if pick.names else 1
        try:
            while levels:
                level = levels[-1]
                found = self._next(level)
                if found is None:
                    levels.pop()
                    if len(levels) >= roots:
                        self._sink.leave()
                    continue
                name, child = found
                self._one(browser, disk, (*level.names, name), child, f"{level.shown}/{name}", levels)
        finally:
            for _ in levels[roots:]:
                self._sink.leave()

    def _children(self, browser: browsing.Browser, node: nodes.Node, shown: str) -> Iterator[tuple[str, nodes.Node]]:
        return browser.children(
            node,
            lambda count: self._report.fail(
                shown or "/",
                "NamelessFiles",
                f"of what lies in it, {count} cannot be restored: no file can bear such names",
            ),
        )

    def _next(self, level: _Level) -> tuple[str, nodes.Node] | None:
        try:
            return next(level.children, None)
        except _UNREADABLE as error:
            self._report.fail(level.shown, error.code, f"not all that lies in it can be read: {error.message}")
            return None

    def _enter(self, name: str, node: nodes.Node, shown: str) -> bool:
        return self._attempt(shown, lambda: self._sink.directory(name, node, shown))

    def _one(
        self,
        browser: browsing.Browser,
        disk: str,
        names: tuple[str, ...],
        node: nodes.Node,
        shown: str,
        levels: list[_Level],
    ) -> None:
        """One entry; a folder that was entered becomes a level."""
        self._meter.check()
        if node.incomplete:
            self._report.lose(f"could not be read of it: {node.incomplete}", shown)
        if node.kind == "directory":
            if len(levels) >= _DEEPEST:
                self._report.fail(shown, "TooDeep", f"it lies deeper than {_DEEPEST} folders")
                return
            if node.inode in self._entered:
                again = f"it is {self._entered[node.inode]} once more, as damage alone makes a folder"
                self._report.fail(shown, "SameFolder", again)
                return
            if self._enter(names[-1], node, shown):
                self._report.directories += 1
                self._entered[node.inode] = shown
                levels.append(_Level(browser, disk, self._children(browser, node, shown), names, shown))
                self._streams(browser, "", node, shown)
            return
        key = (disk, node.volume, node.inode)
        first = self._firsts.get(key)
        if first is not None:
            linked: list[bool] = []
            done = self._attempt(shown, lambda: linked.append(self._sink.link(names[-1], first, node, shown)))
            self._report.links += linked == [True]
            if not done or linked == [True]:
                return
        if self._made(browser, names[-1], node, shown) and node.links > 1:
            self._firsts[key] = names

    def _made(self, browser: browsing.Browser, name: str, node: nodes.Node, shown: str) -> bool:
        if node.kind == "symlink":
            done = self._attempt(shown, lambda: self._sink.symlink(name, node, shown))
            self._report.symlinks += done
        elif node.kind == "file":
            content = filecontents.Content(browser, node, "", self._meter)
            done = self._attempt(shown, lambda: self._sink.file(name, node, content, shown))
            self._report.files += done
            self._report.bytes += content.size if done else 0
            if done:
                self._streams(browser, name, node, shown)
        else:
            made: list[bool] = []
            done = self._attempt(shown, lambda: made.append(self._sink.special(name, node, shown))) and made == [True]
            self._report.specials += done
        return done

    def _streams(self, browser: browsing.Browser, name: str, node: nodes.Node, shown: str) -> None:
        """The alternate data streams of a file, or for no name of the folder that was entered."""
        for stream, _ in node.streams:
            content = filecontents.Content(browser, node, stream, self._meter)
            path = f"{shown}:{stream}"
            if self._attempt(path, functools.partial(self._sink.stream, name, stream, node, content, path)):
                self._report.streams += 1
                self._report.bytes += content.size

    def _attempt(self, shown: str, act: Callable[[], object]) -> bool:
        """Whether it was done. What concerns one file is reported; what will befall all is raised."""
        try:
            act()
        except (errors.UnitOffline, errors.TargetError):
            raise
        except (errors.GuestUnreadable, errors.NotFound, errors.TargetExists, errors.UnitError) as error:
            self._report.fail(shown, error.code, error.message)
            return False
        except OSError as error:
            if error.errno in _FATAL:
                raise errors.TargetError(f"{shown} cannot be written: {error.strerror}") from error
            self._report.fail(shown, "TargetRefused", error.strerror or str(error))
            return False
        return True
