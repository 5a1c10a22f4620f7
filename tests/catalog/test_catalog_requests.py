"""A request waits for the controller, whichever that is, and is answered once."""

from __future__ import annotations

import catalog_samples as samples
import pytest

from reconciler.base import errors
from reconciler.catalog import audits, database, requests


def test_a_request_is_pending_until_it_is_answered(db: database.Database, location: str) -> None:
    first = requests.add(db, "Backup", {"policy": "obl", "client": "x"}, samples.NOW, "me@host")
    second = requests.add(db, "Apply", {"estate": "/srv"}, samples.later(minutes=1), "me@host")
    assert (first, second) == ("r-000001", "r-000002")
    elsewhere = database.open_reading(location)
    assert elsewhere is not None
    assert [row.id for row in requests.pending(elsewhere)] == [first, second]
    assert requests.pending(elsewhere, "Backup") == (
        requests.RequestRow(
            id=first, kind="Backup", payload={"policy": "obl", "client": "x"}, at=samples.NOW, actor="me@host"
        ),
    )
    assert requests.outcome(elsewhere, first) is None
    requests.finish(db, first, {"state": "Done", "jobs": [1, 2]}, samples.later(minutes=2))
    requests.finish(db, first, {"state": "Other"}, samples.later(minutes=3))
    assert requests.outcome(elsewhere, first) == {"state": "Done", "jobs": [1, 2]}
    assert [row.id for row in requests.pending(elsewhere)] == [second]
    elsewhere.close()
    assert [entry.object for entry in audits.entries(db)] == ["Backup/r-000001", "Apply/r-000002"]


@pytest.mark.parametrize("id", ["r-000001", "j-000001", "", "r-x"])
def test_an_unknown_request_is_named(db: database.Database, id: str) -> None:
    with pytest.raises(errors.NotFound, match="no request"):
        requests.outcome(db, id)
    with pytest.raises(errors.NotFound):
        requests.finish(db, id, {}, samples.NOW)
