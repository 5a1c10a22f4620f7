"""``holdfast files find`` and ``files versions``: questions over all images, answered by the search cache alone."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import functools
import itertools
from collections.abc import Generator, Sequence
from typing import Annotated

import typer

from reconciler.api.documents import files as documents
from reconciler.base import errors, times
from reconciler.catalog import database
from reconciler.catalog.fileindexes import answers, caches
from reconciler.cli import commands, fileoptions, options, outputs, sessions, settings
from reconciler.controller import filechoices
from reconciler.operations import cachedtrees, filehistories, fileplaces
from reconciler.reports import files

_TYPES = {"f": "file", "d": "directory", "l": "symlink", "o": "other"}


def find(
    pattern: Annotated[str, typer.Argument(metavar="GLOB", help="'*.docx', 'etc/**/passwd' or, --contains, a piece.")],
    client: Annotated[list[str] | None, typer.Option("--client", help="Only this client; may be repeated.")] = None,
    image: Annotated[list[str] | None, typer.Option("--image", metavar="ID", help="Only this image.")] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="TIME", help="Only images from TIME on.")] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Only images before TIME.")] = None,
    contains: Annotated[bool, typer.Option("--contains", help="GLOB is any piece of a name.")] = False,
    fold: Annotated[bool, typer.Option("-i", "--ignore-case", help="Upper and lower case are the same.")] = False,
    type: Annotated[str | None, typer.Option("--type", help="f files, d folders, l symbolic links, o others.")] = None,
    streams: Annotated[bool, typer.Option("--streams", help="Alternate data streams too.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Stop after so many paths; 0 is all.")] = 1000,
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """Find files by name in the images of all clients, with no storage unit touched. GLOB is a name with * and ?, found
    in any folder; with a / in it the whole path from a volume's root, where ** is any number of folders."""
    if type is not None and type not in _TYPES:
        raise errors.UsageError(f"--type {type}: choose one of {', '.join(_TYPES)}")
    chosen = settings.of_state(state=state, catalog=catalog)
    bounds = [options.moment(since, "--since"), options.moment(until, "--until")]
    slugs, known = sessions.read(chosen, lambda db: _known(db, client))
    asked = [id for id, moment in known.items() if _asked(id, moment, image, bounds)]
    found = _level(chosen, asked)
    query = answers.Query(
        text=pattern,
        contains=contains,
        fold=fold,
        clients=frozenset(slugs) if client else None,
        images=frozenset(image) if image else None,
        since=_nanoseconds(bounds[0]),
        until=_nanoseconds(bounds[1]),
        kinds=(_TYPES[type],) if type else None,
        streams=streams,
    )
    rows: list[list[answers.Version]] = []
    for text in fileplaces.shown_as(pattern):
        query = dataclasses.replace(query, text=text)
        with contextlib.closing(_search(found, query, frozenset(known))) as search:
            rows = rows or list(itertools.islice(search, limit + 1 if limit else None))
    truncated = bool(limit) and len(rows) > limit
    names = _Names(found)
    items = [_item(names, slugs, history) for history in (rows[:limit] if limit else rows)]
    items.sort(key=lambda one: (one.client, one.path, one.stream or ""))
    document = documents.FileFindings(items=tuple(items), truncated=truncated, not_searched=_unsearched(found, asked))
    outputs.emit(document, output, files.findings)
    if truncated:
        outputs.note(f"there are more than {limit}; --limit 0 shows all")
    elif not items:
        outputs.note(f"nothing fits {pattern} in {len(asked)} images (-i ignores case, --contains takes a piece)")
    _tell(document.not_searched)
    return 0


def versions(
    client: fileoptions.OneClient,
    path: Annotated[str, typer.Argument(metavar="PATH", help=fileoptions.PATHS)],
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """Every version of one file that an image of the client holds, oldest first; of folders when they were there."""
    chosen = settings.of_state(state=state, catalog=catalog)
    slugs, known, good = sessions.read(chosen, lambda db: (*_known(db, [client]), filechoices.good(db, client)))
    ((id, slug),) = slugs.items()
    found = _level(chosen, list(known))
    histories = filehistories.Histories(found, id)
    place, literal = _place(found, id, histories, path)
    told = tuple(
        row for one in histories.versions(place, literal=literal) if (row := _version(one, known, good)) is not None
    )
    document = documents.FileVersions(
        client=slug,
        path=fileplaces.readable(fileplaces.show(histories.volumes, place)),
        versions=told,
        not_searched=_unsearched(found, list(known)),
    )
    outputs.emit(document, output, files.versions)
    _tell(document.not_searched)
    return 0


def _known(db: database.Database, names: list[str] | None) -> tuple[dict[str, str], dict[str, dt.datetime]]:
    """Slugs of clients by id, and moments of images by id."""
    slugs = filechoices.clients(db, names)
    if not names:
        return slugs, filechoices.moments(db)
    found: dict[str, dt.datetime] = {}
    for id in slugs:
        found.update(filechoices.moments(db, id))
    return slugs, found


def _level(chosen: settings.Settings, images: Sequence[str]) -> caches.FileCache:
    """The search cache, once it has learned these images as far as their indexes can be read."""
    found = caches.FileCache(chosen.caches)
    missing = set(images).difference(found.known())
    if missing:
        outputs.note(f"reading the indexes of {len(missing)} images from their storage units first")
        commands.load("filelearning").catch_up(chosen, found)
    return found


def _search(
    found: caches.FileCache, query: answers.Query, images: frozenset[str]
) -> Generator[list[answers.Version], None, None]:
    """The versions of one path at a time, as far as these images hold them."""
    # Many versions lie in the same images.
    asked: dict[tuple[str, ...], tuple[str, ...]] = {}
    for _, some in itertools.groupby(found.search(query), key=_path):
        kept = []
        for one in some:
            if (ids := asked.get(one.images)) is None:
                ids = asked[one.images] = tuple(image for image in one.images if image in images)
            if ids:
                kept.append(one if ids == one.images else dataclasses.replace(one, images=ids))
        if kept:
            yield kept


def _path(one: answers.Version) -> tuple[str, str, int, str, str]:
    return one.client, one.entry.disk, one.entry.volume, one.entry.path, one.entry.stream


class _Names:
    """What volumes are called, as the newest image that holds a file calls them."""

    def __init__(self, found: caches.FileCache) -> None:
        self._found = found
        self._volumes: dict[str, tuple[fileplaces.Volume, ...]] = {}

    def show(self, one: answers.Version) -> str:
        image = one.images[-1]
        if image not in self._volumes:
            self._volumes[image] = cachedtrees.volumes(self._found.head(image))
        volumes = self._volumes[image]
        for volume in volumes:
            if (volume.disk, volume.number) == (one.entry.disk, one.entry.volume):
                return fileplaces.readable(fileplaces.show(volumes, fileplaces.Place(volume, one.entry.path)))
        return fileplaces.readable(f"/{one.entry.disk}/v{one.entry.volume}/{one.entry.path}")


def _item(names: _Names, slugs: dict[str, str], history: Sequence[answers.Version]) -> documents.FoundFile:
    newest = history[-1]
    return documents.FoundFile(
        client=slugs.get(newest.client, newest.client),
        path=names.show(newest),
        stream=fileplaces.readable(newest.entry.stream) or None,
        type=documents.type_of(newest.entry.kind),
        size_bytes=newest.entry.size,
        modified=documents.moment(newest.entry.modified),
        versions=len(history),
        images=newest.images if len(history) == 1 else tuple(image for one in history for image in one.images),
    )


def _version(
    one: answers.Version, moments: dict[str, dt.datetime], good: frozenset[str]
) -> documents.FileVersion | None:
    """A version as far as images of the catalog hold it; None where none does any more."""
    held = [image for image in one.images if image in moments]
    if not held:
        return None
    return documents.FileVersion(
        type=documents.type_of(one.entry.kind),
        size_bytes=one.entry.size,
        modified=documents.moment(one.entry.modified),
        changed=documents.moment(one.entry.changed),
        first_image=held[0],
        first_time=moments[held[0]],
        last_image=held[-1],
        last_time=moments[held[-1]],
        images=tuple(held),
        good=any(image in good for image in held),
    )


def _place(
    found: caches.FileCache, client: str, histories: filehistories.Histories, text: str
) -> tuple[fileplaces.Place, bool]:
    """The path whose history is asked for, gone or not, and whether only that place of the disk knows it, no volume.

    Raises ``NotFound`` and ``UsageError``.
    """
    if not histories.volumes:
        raise errors.NotFound("no image of this client has an index of files", hint="holdfast files ls reads images")

    def exists(place: fileplaces.Place, *, literal: bool) -> str | None:
        volume, path = place
        if not path or histories.versions(place, literal=literal):
            return path or None
        if volume.filesystem not in fileplaces.FOLDING:
            return None
        query = answers.Query(text=f"/{path}", fold=True, clients=(client,))
        wanted = (volume.disk, volume.number, path.casefold())
        entries = (one.entry for one in found.search(query))
        same = {one.path for one in entries if (one.disk, one.volume, one.path.casefold()) == wanted}
        spelled = fileplaces.Place(volume, same.pop()) if len(same) == 1 else None
        return spelled.path if spelled is not None and histories.versions(spelled, literal=literal) else None

    literal = False
    try:
        place = fileplaces.places(histories.volumes, text, functools.partial(exists, literal=False))
    except errors.NotFound:
        literal = True
        place = fileplaces.places(histories.volumes, text, functools.partial(exists, literal=True))
    if place is None:
        raise errors.UsageError(f"{text} has no history", hint="name a file or a folder in it")
    return place, literal


def _asked(id: str, moment: dt.datetime, images: list[str] | None, bounds: list[dt.datetime | None]) -> bool:
    since, until = bounds
    return (not images or id in images) and (since is None or moment >= since) and (until is None or moment < until)


def _unsearched(found: caches.FileCache, images: list[str]) -> tuple[str, ...]:
    """Which of these images the cache knows no files of."""
    known = found.known()
    return tuple(sorted(image for image in images if not known.get(image)))


def _tell(unsearched: tuple[str, ...]) -> None:
    if unsearched:
        outputs.note(
            f"{len(unsearched)} images have no index that is known here and were not searched;"
            " holdfast files ls reads them"
        )


def _nanoseconds(moment: dt.datetime | None) -> int | None:
    return times.to_number(moment) * 1000 if moment is not None else None
