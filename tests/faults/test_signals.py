"""SIGTERM and SIGINT in the middle of a backup: it stops in order, leaves nothing, and is planned again."""

from __future__ import annotations

import signal
import time

import pytest
from fault_estates import Estate

MANY = 400 << 20


@pytest.mark.parametrize(
    ("command", "number", "code"),
    [
        (("run",), signal.SIGTERM, 0),
        (("apply", "--yes"), signal.SIGINT, 130),
        (("apply", "--yes"), signal.SIGTERM, 130),
    ],
    ids=["run-SIGTERM", "apply-SIGINT", "apply-SIGTERM"],
)
def test_a_stop_in_mid_backup(fresh: Estate, command: tuple[str, ...], number: signal.Signals, code: int) -> None:
    big = fresh.machines / "vm1" / "system.img"
    with big.open("r+b") as file:
        for offset in range(0, MANY, 1 << 20):
            file.seek(offset)
            file.write(offset.to_bytes(8, "little") * 8192)
    process = fresh.command.start(*command, ".")
    deadline = time.monotonic() + 60
    while not list(fresh.paths["fast"].glob("*/.*/*")):
        assert process.poll() is None and time.monotonic() < deadline, "no backup was seen to begin"
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert list(fresh.paths["fast"].rglob(".*")) == []
    states = fresh.job_states()
    assert not states["Running"] and not states["Queued"] and not states["Succeeded"] > 1
    assert states["Lost"] + states["Cancelled"] >= 1
    due = [action for action in fresh.ask("plan", ".")["actions"] if action["state"] == "Due"]
    assert any(action["client"] == "vm1" and action["type"] == "Backup" for action in due), due
    with big.open("r+b") as file:
        file.truncate(0)
    fresh.change(0)
    fresh.command.run("apply", "--yes", ".")
    fresh.require_converged()
