"""Commands around a reading: in order, with what they need to know, and the second one whatever happened."""

from __future__ import annotations

import os
import time
from pathlib import Path

import disk_samples as samples
import pytest

from reconciler.base import errors
from reconciler.sources import hooks
from reconciler.sources.diskimages import readings


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.touch()
    return path


@pytest.fixture(autouse=True)
def disk(machine: Path) -> Path:
    return samples.write_raw(machine / "a b.img", b"content")


def script(tmp_path: Path, name: str, body: str) -> tuple[str, ...]:
    path = tmp_path / name
    path.write_text("#!/bin/sh\n" + body)
    path.chmod(0o755)
    return (str(path), "argument one")


def test_both_run_in_order_and_know_machine_and_disks(machine: Path, tmp_path: Path, log: Path, disk: Path) -> None:
    body = f'printf "%s %s %s %s\\n" "$HOLDFAST_HOOK" "$HOLDFAST_MACHINE" "$HOLDFAST_DISKS" "$1" >> {log}\n'
    commands = hooks.Hooks(before=script(tmp_path, "b", body), after=script(tmp_path, "a", body))
    reading = samples.freeze(samples.source(machine.parent, commands=commands))
    assert log.read_text() == f"before oblVM1 {disk} argument one\n"
    reading.finish()
    reading.close()
    reading.close()
    assert log.read_text().splitlines()[1:] == [f"after oblVM1 {disk} argument one"]


def test_what_the_before_hook_puts_there_is_what_is_read(machine: Path, tmp_path: Path) -> None:
    commands = hooks.Hooks(before=script(tmp_path, "b", f"echo snapshot > {machine}/b.img; rm '{machine}/a b.img'"))
    reading = samples.freeze(samples.source(machine.parent, commands=commands))
    assert [samples.whole(disk) for disk in reading.disks] == [b"snapshot\n"]
    reading.close()


def test_a_failing_before_hook_stops_the_backup_and_after_runs(machine: Path, tmp_path: Path, log: Path) -> None:
    commands = hooks.Hooks(
        before=script(tmp_path, "b", "echo it is frozen already; exit 3"),
        after=script(tmp_path, "a", f"echo ran > {log}"),
    )
    with pytest.raises(errors.HookFailed, match=r"before hook of oblVM1 ended with 3.*it is frozen already") as caught:
        samples.freeze(samples.source(machine.parent, commands=commands))
    assert caught.value.retryable
    assert log.read_text() == "ran\n"


def test_a_before_hook_that_cannot_start_is_a_failed_hook(machine: Path, log: Path, tmp_path: Path) -> None:
    commands = hooks.Hooks(before=("/no/such/command",), after=script(tmp_path, "a", f"echo ran > {log}"))
    with pytest.raises(errors.HookFailed, match="No such file"):
        samples.freeze(samples.source(machine.parent, commands=commands))
    assert log.read_text() == "ran\n"


def test_a_failing_after_hook_is_told_at_close_and_runs_once(machine: Path, tmp_path: Path, log: Path) -> None:
    commands = hooks.Hooks(after=script(tmp_path, "a", f"echo ran >> {log}; exit 1"))
    reading = samples.freeze(samples.source(machine.parent, commands=commands))
    with pytest.raises(errors.HookFailed, match="printed nothing"):
        reading.close()
    reading.close()
    assert log.read_text() == "ran\n"


def test_after_runs_when_opening_fails_in_an_unforeseen_way(
    machine: Path, tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object, **__: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(readings.MachineReading, "_open", explode)
    commands = hooks.Hooks(before=("true",), after=script(tmp_path, "a", f"echo ran > {log}"))
    with pytest.raises(RuntimeError, match="unforeseen"):
        samples.freeze(samples.source(machine.parent, commands=commands))
    assert log.read_text() == "ran\n"


@pytest.mark.parametrize("stubborn", ["", "trap '' TERM\n"])
def test_a_hook_out_of_time_ends_with_all_it_started(machine: Path, tmp_path: Path, log: Path, stubborn: str) -> None:
    body = f"{stubborn}sleep 60 &\necho $! > {log}\nwait\nsleep 60\n"
    commands = hooks.Hooks(before=script(tmp_path, "b", body), timeout=0.4)
    started = time.monotonic()
    with pytest.raises(errors.HookFailed, match=r"took longer than 0\.4 s"):
        samples.freeze(samples.source(machine.parent, commands=commands))
    assert time.monotonic() - started < 8
    child = int(log.read_text())
    for _ in range(100):
        if not _alive(child):
            return
        time.sleep(0.02)
    raise AssertionError("the hook's child lives on")


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2][:3]
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_child_left_behind_keeps_nobody_waiting(machine: Path, tmp_path: Path) -> None:
    commands = hooks.Hooks(before=script(tmp_path, "b", "sleep 3 &\nexit 0\n"))
    started = time.monotonic()
    samples.freeze(samples.source(machine.parent, commands=commands)).close()
    assert time.monotonic() - started < 2
