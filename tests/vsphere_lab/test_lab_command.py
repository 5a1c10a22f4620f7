"""``hack/vsphere-lab`` starts and stops the peer for people, and one command holds what an earlier one left."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from lease_clients import Lab
from vsphere_labs import ROOT, LabError


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / "hack" / "vsphere-lab", *arguments], capture_output=True, text=True, check=False)


def test_up_and_down_leave_the_folder_for_the_next_up(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"machines": [{"name": "kept", "disks": [{}]}]}')
    addresses = []
    for _ in range(2):
        up = command("up", tmp_path)
        assert up.returncode == 0, up.stderr
        addresses.append(up.stdout)
        assert command("up", tmp_path).returncode == 1, "it runs already"
        assert command("down", tmp_path).returncode == 0
    assert addresses[0].startswith("https://127.0.0.1:")
    assert addresses[0] == addresses[1]
    assert command("down", tmp_path).returncode == 0, "it is down already"
    with Lab.resume(tmp_path) as lab:
        assert [one["name"] for one in lab.state()["machines"]] == ["kept"]


@pytest.mark.parametrize("arguments", [(), ("up",), ("sideways", "x")])
def test_a_wrong_command_shows_its_usage(arguments: tuple[str, ...]) -> None:
    told = command(*arguments)
    assert told.returncode == 2
    assert "vsphere-lab up FOLDER" in told.stderr


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ('{"machine": []}', "unknown field"),
        ('{"machines": [{"datacenter": "none"}]}', 'no datacenter "none"'),
        ('{"machines": [{"host": "none"}]}', 'no host "none"'),
        ('{"machines": [{"disks": [{"controller": "floppy0:0"}]}]}', "is no slot"),
        ('{"machines": [{"disks": [{"from": "/none"}]}]}', "/none"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path: Path, config: str, complaint: str) -> None:
    (tmp_path / "config.json").write_text(config)
    up = command("up", tmp_path)
    assert up.returncode == 1
    assert complaint in up.stderr


def test_a_configuration_that_cannot_be_is_an_error_in_python_too(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no datacenter"), Lab.start(tmp_path, machines=[{"datacenter": "none"}]):
        pass


def test_a_peer_ends_with_the_program_that_started_it(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, sys, vsphere_labs\n"
        "with vsphere_labs.Lab.start(pathlib.Path(sys.argv[1])) as lab:\n"
        "    print(lab.process.pid, flush=True)\n"
        "    os._exit(9)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, tmp_path], cwd=ROOT / "hack", capture_output=True, text=True, check=False
    )
    assert killed.returncode == 9, killed.stderr
    peer = Path("/proc") / killed.stdout.strip()
    deadline = time.monotonic() + 20
    while peer.exists() and "State:\tZ" not in (peer / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
