"""What sources record of their readings is kept for images that may be parents, and for no others."""

from __future__ import annotations

import catalog_samples as samples
import pytest

from reconciler.base import errors
from reconciler.catalog import database, images, readings


@pytest.fixture(autouse=True)
def machines(db: database.Database) -> None:
    """One known client."""
    samples.see(db, "oblVM1")


def _image(db: database.Database, number: int, kind: str, policy: str = "obl") -> str:
    name = f"img-{policy}-{number}"
    images.begin_image(db, samples.draft(name, type=kind, policy=policy))
    samples.commit(db, name)
    return name


def test_the_newest_images_and_the_newest_fulls_keep_theirs(db: database.Database) -> None:
    kinds = ["Full", "Full", "Incremental", "Full", "Full", "Incremental", "Incremental", "Incremental", "Incremental"]
    names = [_image(db, number, kind) for number, kind in enumerate(kinds)]
    other = _image(db, 0, "Full", "other")
    kept = [name for name in names if readings.recorded(db, name)]
    assert kept == [names[1], names[3], names[4], *names[-3:]]
    assert readings.recorded(db, other)


def test_an_unknown_image_is_named(db: database.Database) -> None:
    with pytest.raises(errors.NotFound, match="img-9"):
        readings.recorded(db, "img-9")
