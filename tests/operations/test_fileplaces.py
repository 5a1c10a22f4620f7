"""What paths mean: volumes by name, plain paths, backslashes, either case, patterns."""

from __future__ import annotations

import datetime as dt
import os
import zlib

import pytest

from reconciler.base import errors
from reconciler.controller import filelistings
from reconciler.operations import fileplaces
from reconciler.operations.fileplaces import Place, Row

DISKS = [
    ("a.img", 0, "swap", "", 10),
    ("a.img", 1, "ext", "root", 10),
    ("a.img", 2, None, "", 10),
    ("b.img", 0, "ntfs", "Daten", 10),
    ("c.img", 0, "ext", "same", 10),
    ("d.img", 0, "ext", "SAME", 10),
]
FILES = {
    "root": ("etc/passwd", "etc/hosts", "Daten/x", "odd/[1]", "odd/back\\slash", "odd/\udcff"),
    "Daten": ("Users/Max/Brief.docx", "Users/max.txt", "etc/other"),
    "c.img/v0": ("etc/hosts",),
    "d.img/v0": ("x/y/z", "x/z"),
}


class Tree:
    """A tree of names."""

    def __init__(self, *names: str) -> None:
        self.volumes = tuple(one for one in fileplaces.named(DISKS) if not names or one.name in names)

    def unread(self) -> tuple[str, ...]:
        return ("e.img: volume at byte 0 holds an encrypted LUKS volume, which is not read",)

    def row(self, place: Place) -> Row:
        paths = FILES[place.volume.name]
        if place.path in paths:
            return self._row(place.path, "file")
        if not place.path or any(path.startswith(f"{place.path}/") for path in paths):
            return self._row(place.path, "directory")
        raise errors.NotFound(place.path)

    def folder(self, place: Place) -> tuple[Row, ...]:
        above = f"{place.path}/" if place.path else ""
        below = {path.removeprefix(above).split("/")[0] for path in FILES[place.volume.name] if path.startswith(above)}
        return tuple(self.row(Place(place.volume, above + name)) for name in sorted(below))

    @staticmethod
    def _row(path: str, kind: str) -> Row:
        return Row(path, kind, 0, 0, 0, 0, 1, zlib.crc32(os.fsencode(path)), (), ())


def shown(tree: Tree, places: list[Place]) -> list[str]:
    return [fileplaces.show(tree.volumes, place) for place in places]


def test_volumes_are_called_by_labels_of_their_own() -> None:
    assert [one.name for one in Tree().volumes] == ["root", "Daten", "c.img/v0", "d.img/v0"]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("/etc/passwd", "/root/etc/passwd"),
        ("etc/passwd", "/root/etc/passwd"),
        ("/root/etc/passwd", "/root/etc/passwd"),
        ("/ROOT//etc/./passwd/", "/root/etc/passwd"),
        ("/a.img/v1/etc/passwd", "/root/etc/passwd"),
        ("Users\\Max", "/Daten/Users/Max"),
        ("C:\\users\\MAX\\brief.DOCX", "/Daten/Users/Max/Brief.docx"),
        ("c:/Users", "/Daten/Users"),
        ("/Daten/Users", "/Daten/Users"),
        ("odd/[1]", "/root/odd/[1]"),
        ("odd/back\\slash", "/root/odd/back\\slash"),
        ("odd/\\xff", "/root/odd/\udcff"),
        ("/d.img/v0", "/d.img/v0"),
        ("/Daten/x", "/root/Daten/x"),
    ],
)
def test_one_place(text: str, meant: str) -> None:
    tree = Tree()
    place = fileplaces.resolve(tree, text)
    assert place is not None and shown(tree, [place]) == [meant]
    assert fileplaces.expand(tree, text) == [place]


def test_the_root_of_one_volume_or_the_list_of_several() -> None:
    assert fileplaces.resolve(Tree(), "/") is None
    tree = Tree("root")
    assert fileplaces.resolve(tree, "/") == Place(tree.volumes[0], "")
    assert shown(tree, fileplaces.expand(tree, "/root/etc")) == ["/etc"]
    assert fileplaces.resolve(tree, "/Daten/x") == Place(tree.volumes[0], "Daten/x")


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("/etc/hosts", errors.UsageError, r"/a.img/v1/etc/hosts, or /c.img/v0/etc/hosts"),
        ("/Daten", errors.UsageError, r"/a.img/v1/Daten, or /b.img/v0"),
        ("/none", errors.NotFound, r"/root, /Daten, /c.img/v0, /d.img/v0"),
        ("/root/ETC", errors.NotFound, "there is no /root/ETC"),
        ("/etc/../etc", errors.UsageError, "without"),
        ("none*", errors.NotFound, "nothing fits"),
    ],
)
def test_what_means_nothing_or_too_much_says_so(text: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        fileplaces.expand(Tree(), text)


def test_an_image_without_files_says_what_it_holds_instead() -> None:
    tree = Tree()
    tree.volumes = ()
    with pytest.raises(errors.NotFound, match=r"can be read: e.img: volume at byte 0 holds an encrypted LUKS volume"):
        fileplaces.resolve(tree, "/")


@pytest.mark.parametrize(("text", "told"), [("/", True), ("/root", False), ("/root/etc", False)])
def test_what_is_not_read_of_an_image_is_noted_beside_its_volumes(text: str, told: bool) -> None:
    now = dt.datetime(2026, 3, 2, tzinfo=dt.UTC)
    found = filelistings.listing(Tree(), text, client="c", image="i", time=now, source="Image", deep=False)
    assert (found.notes == tuple(Tree().unread())) is told


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("/root/etc/*", ["/root/etc/hosts", "/root/etc/passwd"]),
        ("/root/etc/pass??", ["/root/etc/passwd"]),
        ("/root/etc/[!p]*", ["/root/etc/hosts"]),
        ("**/hosts", ["/root/etc/hosts", "/c.img/v0/etc/hosts"]),
        ("/d.img/v0/**/z", ["/d.img/v0/x/z", "/d.img/v0/x/y/z"]),
        ("C:\\Users\\M*", ["/Daten/Users/Max", "/Daten/Users/max.txt"]),
        ("/d.img/v0/**", ["/d.img/v0/x"]),
    ],
)
def test_patterns(text: str, meant: list[str]) -> None:
    tree = Tree()
    assert sorted(shown(tree, fileplaces.expand(tree, text))) == sorted(meant)


class Turning(Tree):
    """A tree in which each of two folders leads back to the one above."""

    def folder(self, place: Place) -> tuple[Row, ...]:
        if not place.path:
            return (self._row("d", "directory"),)
        same = self._row("d", "directory")
        names = ("one", "two")
        return (
            self._row(f"{place.path}/file", "file"),
            *(same._replace(path=f"{place.path}/{name}") for name in names),
        )


def test_folders_that_lead_back_are_looked_into_once() -> None:
    tree = Turning("root")
    assert shown(tree, fileplaces.expand(tree, "**/file")) == ["/d/file"]


@pytest.mark.parametrize("name", ["plain", "a\nb", "\x1b[31m", "\udcff\udc80x", "e\u0301", "🦄", "\x7f"])
def test_what_is_shown_can_be_asked_for(name: str) -> None:
    told = fileplaces.readable(name)
    assert told.isprintable()
    assert name in fileplaces._spellings(told) and name in fileplaces.shown_as(told)
    assert fileplaces.shown_as("a\\x2a\\x00") == ["a\\x2a\\x00"]
