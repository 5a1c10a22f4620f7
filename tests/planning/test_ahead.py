"""Images a little ahead of now count as made now; images clearly ahead are kept and satisfy nothing."""

from __future__ import annotations

import datetime as dt

import planning_samples as samples
import pytest

from reconciler.planning import histories, observed


@pytest.mark.parametrize(
    ("ahead", "sound"),
    [
        (dt.timedelta(), True),
        (dt.timedelta(seconds=5), True),
        (histories.AHEAD, True),
        (histories.AHEAD + dt.timedelta(seconds=1), False),
        (dt.timedelta(days=1), False),
    ],
)
def test_an_image_ahead_of_now(ahead: dt.timedelta, sound: bool) -> None:
    image = samples.image(1, samples.NOW + ahead, samples.copy())
    series = observed.Series(client="c", policy="p", images=(image,))
    history = histories.History(series, samples.NOW)
    assert (image.id in history.doubtful) is not sound
    assert [one.id for one in history.sound] == ([image.id] if sound else [])
