"""Machines are backed up side by side, and a machine's disks too, as far as limits allow."""

from __future__ import annotations

from pathlib import Path

import estate_samples


def test_eight_machines_are_eight_jobs_at_once(tmp_path: Path) -> None:
    names = [f"vm{number}" for number in range(1, 9)]
    # The hook makes each job last, so that they overlap on any machine.
    estate = estate_samples.build(tmp_path / "estate", *names, hooks=estate_samples.hook("sleep 3"))
    estate.machine("vm8", disks=("system", "data", "third"))
    assert estate.apply()["succeeded"] == 8
    jobs = estate.get("jobs")
    assert sorted(job["client"] for job in jobs) == names
    assert max(job["startedAt"] for job in jobs) < min(job["finishedAt"] for job in jobs)
    streams = {job["client"]: job["streams"] for job in jobs}
    assert streams["vm8"] == 2
    assert streams["vm1"] == 1


def test_the_policy_limits_it(tmp_path: Path) -> None:
    estate = estate_samples.build(tmp_path / "estate", "vm1", "vm2", hooks=estate_samples.hook("sleep 1"))
    text = (estate.folder / "policy.yaml").read_text()
    estate_samples.replace(estate.folder / "policy.yaml", text.replace("maxConcurrentJobs: 8", "maxConcurrentJobs: 1"))
    estate.apply()
    first, second = sorted(estate.get("jobs"), key=lambda job: job["startedAt"])
    assert first["finishedAt"] <= second["startedAt"]
