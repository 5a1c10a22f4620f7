"""Change tracking where the server does not say that a machine can have it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import vsphere_estates as estates
from pyVmomi import vim
from vsphere_estates import vsphere_labs

from reconciler.base import meters
from reconciler.sources.vsphere.connections import properties, sessions
from reconciler.sources.vsphere.reading import tracking

SILENT = {"config.changeTrackingEnabled": None, "capability.changeTrackingSupported": None, "snapshot": None}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[vsphere_labs.Lab]:
    """One machine that can, and one that cannot."""
    estates.needed()
    machines = [{"name": "can"}, {"name": "cannot", "changeTrackingSupported": False}]
    with vsphere_labs.Lab.start(tmp_path_factory.mktemp("lab") / "vcenter", machines=machines) as lab:
        yield lab


@pytest.mark.parametrize(
    ("name", "version", "code", "asked"),
    [
        ("can", "vmx-04", "TrackingUnsupported", 0),
        ("can", None, "TrackingUnsupported", 0),
        ("cannot", "vmx-07", "TrackingUnsupported", 1),
        ("can", "vmx-13", "TrackingEnabled", 1),
    ],
)
def test_a_server_that_promises_nothing_is_asked_all_the_same(
    lab: vsphere_labs.Lab, monkeypatch: pytest.MonkeyPatch, name: str, version: str | None, code: str, asked: int
) -> None:
    for variable, value in lab.environment().items():
        monkeypatch.setenv(variable, value)
    session = sessions.Session("lab", estates.vcenter(lab).spec)
    machine = session.object(vim.VirtualMachine, lab.machine(name)["moref"])
    shown: dict[str, Any] = {**SILENT, "config.version": version}
    before = lab.state()["calls"].get("ReconfigVM_Task", 0)
    found = tracking.enable(session, machine, name, shown, meters.Meter())
    assert found is not None
    assert found.code == code
    assert lab.state()["calls"].get("ReconfigVM_Task", 0) - before == asked
    now = properties.of(session, machine, ("config.changeTrackingEnabled",), "tracking")
    assert bool(now.get("config.changeTrackingEnabled")) == (code == "TrackingEnabled")
    session.logout()
