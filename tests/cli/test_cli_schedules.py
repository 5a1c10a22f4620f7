"""Schedules through the command: work that its window ends, policies that rest."""

from __future__ import annotations

from pathlib import Path

import estate_samples
from estate_samples import Estate

WINDOW = """
apiVersion: holdfast/v1alpha1
kind: BackupWindow
metadata: {name: night}
spec: {overrun: Stop, allow: [{days: [Mon, Tue, Wed, Thu, Fri, Sat, Sun], start: "20:00", duration: 2h}]}
"""


def test_a_window_stops_a_backup_and_the_second_time_the_series_fails_as_too_short(
    empty: Estate, tmp_path: Path
) -> None:
    estate_samples.slow(empty, "alpha")
    policy = empty.folder / "policy.yaml"
    text = policy.read_text().replace("every: 24h", 'cron: "30 20 * * *", window: night')
    estate_samples.replace(policy, text + "---" + WINDOW)
    file = empty.folder / "clock"

    def move(moment: str) -> None:
        estate_samples.set_clock(file, moment)

    def stopped() -> list[dict[str, object]]:
        return [one for one in empty.get("jobs", "--job-state", "Cancelled") if one["type"] == "Backup"]

    move("2026-03-02T20:00:00Z")
    command = empty.at(f"@{file}")
    command.run("apply", ".", "--yes")
    with estate_samples.running(command, tmp_path / "log", "."):
        for night, count in (("2026-03-02", 1), ("2026-03-03", 2)):
            move(f"{night}T20:45:00Z")
            estate_samples.until(lambda: estate_samples.scanned(empty) > 0, what="the backup")
            move(f"{night}T22:00:00Z")
            estate_samples.until(lambda count=count: len(stopped()) == count, what="the stop")
    for one in stopped():
        assert one["error"]["code"] == "WindowClosed"  # type: ignore[index]
        assert "its window closed at 2026-03-0" in one["error"]["message"]  # type: ignore[index]
    status = command.json("status")
    assert any(one["code"] == "Failing" and "WindowTooShort" in one["message"] for one in status["problems"])
    assert "Failing/nightly/alpha" in [one["key"] for one in status["alarms"]]
    (client,) = command.json("get", "clients")["items"]
    plan = command.json("plan", ".")
    waiting = [one for one in plan["actions"] if one["type"] == "Backup" and one["state"] == "Waiting"]
    assert client["images"] == 0 and [one["at"][:16] for one in waiting] == ["2026-03-04T20:00"]


def test_a_suspended_policy_refuses_a_request_loudly(empty: Estate) -> None:
    empty.apply(clock="2026-03-02T12:00:00Z")
    policy = empty.folder / "policy.yaml"
    rest = '  suspend: {reason: "storage move", until: 2026-03-09T06:00:00Z}\n'
    estate_samples.replace(policy, policy.read_text().rstrip("\n") + "\n" + rest)
    empty.apply(clock="2026-03-03T12:00:00Z")
    for options in ((), ("--wait",)):
        found = empty.at("2026-03-03T12:05:00Z").run("backup", "nightly", *options, code=1)
        assert "policy nightly is suspended until 2026-03-09T06:00Z: storage move" in found.stderr
        assert found.stdout == ""
    assert len(empty.get("images")) == 1
    plan = empty.at("2026-03-08T12:00:00Z").json("plan", ".")
    (waiting,) = [one for one in plan["actions"] if one["state"] == "Waiting" and one["type"] == "Backup"]
    assert (waiting["reason"]["code"], waiting["at"][:16]) == ("Suspended", "2026-03-09T06:00")
    # Once the end has passed nothing is suspended, whatever the manifest still says.
    empty.at("2026-03-09T06:00:30Z").run("backup", "nightly", "--wait")
    assert len(empty.get("images")) == 2
