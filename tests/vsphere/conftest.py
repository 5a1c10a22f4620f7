"""What the tests against a vCenter share: one program, built once, and folders for its estates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import transport_samples
import virtual_estates
from transport_samples import Lab, Snapshot
from vm_restores import DATACENTER, World, machine

from reconciler.sources.vsphere.connections import sessions


@pytest.fixture(scope="session", autouse=True)
def built_lab() -> None:
    """The peer's program; the first test that needs it does not pay for it."""
    lacking = virtual_estates.vsphere_labs.available()
    if lacking:
        pytest.skip(lacking)
    virtual_estates.vsphere_labs.build()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A vCenter with a machine, and an image of it."""
    with virtual_estates.vsphere_labs.Lab.start(
        tmp_path / "lab", machines=[machine(1)], datacenters=[DATACENTER], taskMillis=1
    ) as lab:
        for name, value in lab.environment().items():
            monkeypatch.setenv(name, value)
        made = World(tmp_path, lab)
        made.fill("vm1")
        made.back_up()
        yield made
        sessions.close_all()


@pytest.fixture(scope="module")
def session(lab: Lab) -> Iterator[sessions.Session]:
    """One session with the module's own ``lab``."""
    session = transport_samples.session(lab)
    yield session
    session.logout()


@pytest.fixture(scope="module")
def taken(session: sessions.Session) -> Iterator[Snapshot]:
    """One snapshot for all tests of a module that do not ask for another."""
    with transport_samples.snapshot(session) as taken:
        yield taken
