"""A plan over a large catalog takes time in proportion to it: microseconds per image, not more with more of them."""

from __future__ import annotations

import datetime as dt
import time

import planning_samples as samples

from reconciler.planning import desired, expiry, observed, planner

KEEP = {"type": "Keep", "daily": 14, "weekly": 8, "monthly": 12, "timeZone": "Europe/Berlin"}


def estate() -> desired.Desired:
    """Fulls for 60 days on one pool, thinned out on another."""
    return samples.estate(
        samples.pool("fast"), samples.pool("deep"),
        samples.lifecycle(
            "gold",
            samples.operation("land", "fast", None, {"type": "Fixed", "period": "60d"}),
            samples.operation("dedupe", "deep", "land", KEEP),
        ),
        samples.policy("gold", {"name": "daily", "type": "Full", "every": "24h"}),
    )  # fmt: skip


def catalog(wanted: desired.Desired, clients: int, images: int) -> observed.Observed:
    """``clients`` series of ``images`` daily images with two copies each."""
    machines = tuple(samples.machine(f"diskimages:/srv/vm{index:05d}") for index in range(clients))
    spec = wanted.lifecycles["gold"].spec
    all_series = []
    for number, machine in enumerate(machines):
        found = [
            samples.image(
                number * images + index + 1,
                samples.NOW - dt.timedelta(days=images - index, seconds=number),
                samples.copy(1, "land", "fast"),
                samples.copy(2, "dedupe", "deep"),
                spec=spec,
            )
            for index in range(images)
        ]
        all_series.append(samples.series(*found, client=machine.id))
    return samples.seen(wanted, *all_series, machines=machines)


def seconds(wanted: desired.Desired, seen: observed.Observed) -> float:
    """CPU seconds for one plan, the better of two."""
    result = []
    for _ in range(2):
        begun = time.process_time()
        planner.plan(wanted, seen, samples.NOW)
        result.append(time.process_time() - begun)
    return min(result)


def test_ten_times_the_images_take_about_ten_times_the_time() -> None:
    wanted = estate()
    small, large = catalog(wanted, 40, 50), catalog(wanted, 400, 50)
    few, many = seconds(wanted, small), seconds(wanted, large)
    assert many < 16 * max(few, 0.01), f"2,000 images: {few:.3f} s, 20,000 images: {many:.3f} s"
    assert many < 4.0


def test_one_long_series_is_no_worse_than_many_short_ones() -> None:
    wanted = estate()
    long, short = catalog(wanted, 1, 5000), catalog(wanted, 100, 50)
    assert seconds(wanted, long) < 4 * max(seconds(wanted, short), 0.02)


def test_decisions_about_every_copy_grow_the_same_way() -> None:
    wanted = estate()
    seen = catalog(wanted, 40, 50)
    begun = time.process_time()
    assert len(list(expiry.decisions(wanted, seen, samples.NOW))) == 4000
    assert time.process_time() - begun < 2.0
