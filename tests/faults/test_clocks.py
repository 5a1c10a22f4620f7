"""A clock that goes back or leaps ahead costs no image, and no backup is made twice for it."""

from __future__ import annotations

import datetime as dt
import signal
import time

from fault_estates import Estate


def test_a_clock_set_back_a_day_expires_nothing_and_starts_no_storm(grown: Estate) -> None:
    grown.command.run("apply", "--yes", ".")
    held, jobs = grown.held(), len(grown.items("jobs"))
    grown.set_clock(grown.now() - dt.timedelta(days=1))
    for _ in range(2):
        grown.command.run("apply", "--yes", ".", code=None)
    assert grown.held().keys() == held.keys()
    assert all(set(grown.held()[unit]) >= set(labels) for unit, labels in held.items())
    assert len(grown.items("jobs")) - jobs <= 4, "a clock that went back started a storm"
    grown.set_clock(grown.now() + dt.timedelta(days=1, minutes=5))
    grown.command.run("apply", "--yes", ".")
    grown.require_converged()


def test_a_clock_that_goes_back_while_running(grown: Estate) -> None:
    grown.command.run("apply", "--yes", ".")
    held, jobs = grown.held(), len(grown.items("jobs"))
    process = grown.command.start("run", ".")
    time.sleep(4)
    grown.set_clock(grown.now() - dt.timedelta(days=1), jump=True)
    time.sleep(4)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert all(set(grown.held()[unit]) >= set(labels) for unit, labels in held.items())
    assert len(grown.items("jobs")) - jobs <= 4


def test_a_leap_of_a_year_holds_expiry(grown: Estate) -> None:
    grown.command.run("apply", "--yes", ".")
    held = grown.held()
    grown.set_clock(grown.now() + dt.timedelta(days=365), jump=True)
    for _ in range(2):
        # The second pass knows of an image that the first one made at the same wrong time.
        grown.command.run("apply", "--yes", ".", code=None)
    assert all(set(grown.held()[unit]) >= set(labels) for unit, labels in held.items()), "a wrong clock took images"
    assert not [job for job in grown.items("jobs") if job["type"] == "Expire" and job["startedAt"] > "2027-06"]
    # Either it was wrong, and what is right goes on, or it was right, and is believed after a day.
    grown.set_clock(grown.now() + dt.timedelta(days=1, minutes=5), jump=True)
    grown.command.run("apply", "--yes", ".")
    assert [job for job in grown.items("jobs") if job["type"] == "Expire" and job["startedAt"] > "2027-06"]
