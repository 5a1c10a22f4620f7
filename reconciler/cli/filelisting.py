"""``holdfast files ls``: from the search cache where that knows the image, else from the image.

Light: a listing from the cache loads no storage unit and no browser; ``filebrowsing`` does, and is loaded when needed.
"""

from __future__ import annotations

from typing import Annotated

import typer

from reconciler.base import clocks, errors
from reconciler.catalog.fileindexes import caches
from reconciler.cli import commands, fileoptions, options, outputs, sessions, settings
from reconciler.controller import filechoices, filelistings
from reconciler.operations import cachedtrees
from reconciler.reports import files


def ls(
    client: fileoptions.Client,
    path: Annotated[str, typer.Argument(metavar="PATH", help=f"{fileoptions.PATHS}; / by default.")] = "/",
    image: fileoptions.Image = None,
    as_of: fileoptions.AsOf = None,
    long: Annotated[bool, typer.Option("-l", "--long", help="Rights, owners, links and flags too.")] = False,
    deep: Annotated[bool, typer.Option("-R", "--recursive", help="What lies in its folders too.")] = False,
    unit: fileoptions.Unit = None,
    output: options.Format = options.Output.TEXT,
    state: options.State = None,
    catalog: options.Catalog = None,
) -> int:
    """List a folder of an image: the newest, one by id, or the newest at a time. / lists the volumes of a machine that
    has several: each is /LABEL and /DISK/vN. A plain path means the one volume that holds it. From the index of files,
    without touching a storage unit; images without an index are read, which takes longer."""
    fileoptions.require_alone(unit, image=image, **{"as-of": as_of})
    if unit is not None:
        document = commands.load("filebrowsing").of_folder(unit, client, path, deep=deep)
    else:
        chosen = settings.of_state(state=state, catalog=catalog)
        moment = options.moment(as_of, "--as-of")
        now = clocks.from_environment().now()
        picked = sessions.read(chosen, lambda db: filechoices.choose(db, client, image=image, as_of=moment, now=now))
        tree = known(chosen, picked.id)
        if tree is None:
            document = commands.load("filebrowsing").of_catalog(chosen, picked, path, deep=deep)
        else:
            document = filelistings.listing(
                tree, path, client=picked.client.slug, image=picked.id, time=picked.time, source="Index", deep=deep
            )
            document = document.model_copy(update={"notes": (*picked.notes, *document.notes)})
    outputs.emit(document, output, lambda found: files.listing(found, long=long, deep=deep))
    return 0


def known(chosen: settings.Settings, image: str) -> cachedtrees.CachedTree | None:
    """The tree of an image as the search cache has it; None where it does not."""
    if not (chosen.caches / caches.FILE).exists():
        return None
    found = caches.FileCache(chosen.caches)
    try:
        return cachedtrees.CachedTree(found, image, found.head(image))
    except errors.NotFound:
        return None
    except errors.CatalogError as error:
        # It can be made anew, and the image holds the same.
        outputs.note(f"holdfast: {error}")
        return None
