"""What a server folds into one text a column is what a file says image by image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import catalog_samples as samples
import pytest
import sqlalchemy as sa

from reconciler.catalog import database, dumps, histories, images, tables


@samples.on_postgresql
@pytest.mark.parametrize("clients", [1, 45])
def test_series_of_a_server_are_those_of_a_file(db: database.Database, tmp_path: Path, clients: int) -> None:
    samples.see(db, *(f"vm{number}" for number in range(clients)))
    for number in range(3 * clients):
        client = f"diskimages:/srv/guests/vm{number % clients}"
        parent = f"img-{number - clients}" if number >= clients else None
        samples.image(db, f"img-{number}", client_id=client, parent=parent, type="Incremental" if parent else "Full")
        if number % 2:
            samples.duplicate(db, f"img-{number}")
    samples.expire(db, "img-1", 1)
    file = database.open_writing(str(tmp_path / "catalog.sqlite"))
    dumps.load_dump(file, dumps.dump(db))
    found = [(one.client, one.policy, tuple(one.images)) for one in images.series(db)]
    assert len(found) == clients
    assert found == [(one.client, one.policy, tuple(one.images)) for one in images.series(file)]
    file.close()


@samples.on_postgresql
def test_columns_that_were_folded_in_another_order_are_set_right(
    db: database.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples.see(db, "oblVM1")
    for number in range(5):
        samples.image(db, f"img-{number}")
    query = histories._query

    def backwards(*chosen: sa.ColumnElement[bool]) -> sa.Select[Any]:
        return query(*chosen).order_by(None).order_by(tables.IMAGES.c.sequence.desc())

    monkeypatch.setattr(histories, "_query", backwards)
    (found,) = images.series(db)
    assert [image.id for image in found.images] == [f"img-{number}" for number in range(5)]
    assert [image.sequence for image in found.images] == [1, 2, 3, 4, 5]
