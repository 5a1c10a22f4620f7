"""The history of a file goes with its volume, whatever number that has on its disk from image to image."""

from __future__ import annotations

from pathlib import Path

import fileindex_samples as samples

from reconciler.catalog.fileindexes import answers, caches, indexes, pages
from reconciler.operations import filehistories, fileplaces

#: Labels of a disk's volumes, and the size of the file ``x`` on each, image after image: a partition is added in front,
#: two change places, and one gets a label.
IMAGES = (
    {"data": 1, "": 9},
    {"data": 1, "": 9},
    {"boot": 5, "data": 1, "": 9},
    {"": 9, "data": 2},
    {"win": 7, "data": 2},
)


def test_a_history_goes_with_the_volume(tmp_path: Path) -> None:
    cache = caches.FileCache(tmp_path)
    for number, found in enumerate(IMAGES):
        volumes = tuple(pages.Volume(filesystem="ext", label=label, offset=0, length=1) for label in found)
        rows = [samples.entry("x", size=size)._replace(volume=at) for at, size in enumerate(found.values())]
        built = indexes.build(indexes.ordered(rows), (pages.Disk(name="d0", volumes=volumes),), None)
        image = answers.Image(id=f"{number}", client="c", time=number, sequence=number)
        cache.learn(image, indexes.Index(image.id, samples.Memory(built)))
    histories = filehistories.Histories(cache, "c")

    def told(name: str) -> list[tuple[int, str]]:
        (volume,) = [one for one in histories.volumes if one.name == name]
        return [(one.entry.size, "".join(one.images)) for one in histories.versions(fileplaces.Place(volume, "x"))]

    assert told("data") == [(1, "012"), (2, "34")]
    # What has no label, or had another one that went nowhere, is the same volume by its place alone.
    assert told("win") == [(5, "2"), (9, "3"), (7, "4")]
    assert told("d0/v2") == [(9, "2")]
    place = fileplaces.Place(next(one for one in histories.volumes if one.name == "win"), "x")
    sizes = [(one.entry.size, "".join(one.images)) for one in histories.versions(place, literal=True)]
    assert sizes == [(1, "01"), (5, "2"), (9, "3"), (7, "4")]
