"""Documents that an image carries beside its disks: pages come back in order, and cost only what is new."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import pytest
import unit_samples as samples
from unit_samples import MIB, SampleDisk

from reconciler.base import digests, errors, meters
from reconciler.storage import units

DISK = samples.noise(2 * MIB, 90)


def store(
    unit: units.StorageUnit,
    image: str,
    attached: Mapping[str, Iterable[bytes]],
    *,
    parent: str | None = None,
    disk: bytes = DISK,
) -> units.Commit:
    """Commit an image of one disk that has attachments."""
    label = samples.label(image, parent=parent)
    writer = unit.begin(label, ["d"])
    try:
        writer.write(SampleDisk("d", disk), meter=meters.Meter(), parent=parent)
        for name, pages in attached.items():
            writer.attach(name, pages, parent=parent)
        return writer.commit(label)
    except BaseException:
        writer.abort()
        raise


def load(unit: units.StorageUnit, image: str) -> dict[str, list[bytes]]:
    """All attachments of a stored image, read from their last page to their first."""
    opened = unit.open(image)
    try:
        result = {}
        for name in opened.attachments():
            found = opened.attachment(name)
            assert found.name == name
            pages = [found.read(number) for number in reversed(range(len(found.pages)))][::-1]
            assert [units.Page(digest=digests.digest(page), size=len(page)) for page in pages] == list(found.pages)
            result[name] = pages
        return result
    finally:
        opened.close()


def pages_of(seed: int, count: int = 20, size: int = 60_000) -> list[bytes]:
    """Pages that nothing compresses."""
    return [samples.noise(size, 1000 * seed + number) for number in range(count)]


def test_pages_come_back_in_order_whatever_they_are(
    unit: units.StorageUnit, reopen: Callable[..., units.StorageUnit]
) -> None:
    same = samples.noise(777, 1)
    attached = {
        "files": [b"x", bytes(MIB), same, b"text " * 9_000, same, samples.noise(MIB, 2), bytes(5)],
        "a.b-c": [],
        "0": [same],
    }
    commit = store(unit, "img-1", attached)
    assert load(unit, "img-1") == attached
    assert list(load(reopen(), "img-1")) == ["files", "a.b-c", "0"]
    assert reopen().verify("img-1", meter=meters.Meter()) == ()
    assert samples.held(reopen())["img-1"].stored_bytes == commit.stored_bytes
    assert samples.load(reopen(), "img-1", "d") == DISK


def test_an_image_without_attachments_has_none(unit: units.StorageUnit) -> None:
    store(unit, "img-1", {})
    opened = unit.open("img-1")
    assert opened.attachments() == ()
    with pytest.raises(errors.NotFound, match="it has none"):
        opened.attachment("files")
    opened.close()
