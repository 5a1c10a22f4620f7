"""The first transport that leads to exactly these bytes is taken, and what was wrong with those before it is said."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transport_samples as samples
from transport_samples import Lab, Snapshot

from reconciler.base import disks, errors
from reconciler.sources.vsphere.connections import certificates, credentials, sessions
from reconciler.sources.vsphere.transports import choosing, ports

pytestmark = [samples.needs_peer, samples.needs_nbdkit]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One peer for all tests."""
    with samples.peer(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@contextlib.contextmanager
def choose(
    lab: Lab, frozen: ports.Frozen, *transports: str, **extra: Any
) -> Iterator[tuple[disks.Disk, str, list[str]]]:
    """What is opened, by which transport, and what was said."""
    other = samples.session(lab, transports=transports, **extra)
    said: list[str] = []
    try:
        disk, name = choosing.open(dataclasses.replace(frozen, session=other), other.spec, said.append)
        try:
            yield disk, name, said
        finally:
            disk.close()
    finally:
        other.logout()


@pytest.mark.parametrize("name", ["nbdkit-vddk", "datastore", "export"])
def test_the_first_that_can_is_taken_without_a_word(lab: Lab, taken: Snapshot, name: str) -> None:
    others = [one for one in choosing.KNOWN if one != name]
    with choose(lab, taken.frozen["Hard disk 2"], name, *others) as (disk, chosen, said):
        assert (chosen, said) == (name, [])
        assert samples.whole(disk) == samples.content(seed=2)


def test_a_disk_above_another_is_read_by_the_next(lab: Lab, session: sessions.Session, taken: Snapshot) -> None:
    ways = ("datastore", "nbdkit-vddk")
    with samples.snapshot(session) as second, choose(lab, second.frozen["Hard disk 1"], *ways) as (disk, chosen, said):
        assert chosen == "nbdkit-vddk"
        assert samples.whole(disk) == samples.content()
    (line,) = said
    assert line.startswith(
        "VM web 1: Hard disk 1: read by nbdkit-vddk, because datastore: the disk stands on another file"
    )


def test_one_that_fails_to_open_falls_to_the_next(lab: Lab, taken: Snapshot, tmp_path: Path) -> None:
    broken = tmp_path / "nbdkit"
    broken.write_text("#!/bin/sh\necho 'nbdkit: error: host is not licensed' >&2; exit 1\n")
    broken.chmod(0o755)
    frozen = taken.frozen["Hard disk 1"]
    with choose(lab, frozen, "nbdkit-vddk", "datastore", vddk={"nbdkit": str(broken)}) as (_, chosen, said):
        pass
    assert chosen == "datastore"
    assert "not licensed" in said[0] and "because nbdkit-vddk: " in said[0]


def test_where_none_leads_every_reason_is_said(lab: Lab, session: sessions.Session, taken: Snapshot) -> None:
    with samples.snapshot(session) as second:
        frozen = second.frozen["Hard disk 1"]
        with (
            pytest.raises(choosing.NoWay) as caught,
            choose(lab, frozen, "nbdkit-vddk", "datastore", vddk={"nbdkit": "/nowhere/nbdkit"}),
        ):
            pass
    said = caught.value.message
    assert said.startswith("VM web 1: Hard disk 1: no transport leads to it: nbdkit-vddk: /nowhere/nbdkit is not found")
    assert "; datastore: the disk stands on another file" in said
    assert "export" in (caught.value.hint or "")
    assert not caught.value.retryable, "nothing of this heals by itself"
    lab.fault(on="ExportSnapshot", kind="fault", fault="TaskInProgress")
    with (
        pytest.raises(choosing.NoWay, match="export: export: TaskInProgress") as caught,
        choose(lab, taken.frozen["Hard disk 1"], "export"),
    ):
        pass
    assert caught.value.retryable


def test_what_is_wrong_on_every_way_is_not_tried_on_another(
    lab: Lab, taken: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = taken.frozen["Hard disk 1"]
    before = lab.state()["calls"].get("ExportSnapshot", 0)
    wrong = choose(lab, frozen, "datastore", "export", tls={"caFile": str(lab.other_ca_file)})
    with pytest.raises(certificates.Untrusted), wrong:
        pass
    with pytest.raises(errors.SourceError, match=r"no transport|refuses"):
        other = samples.session(lab, transports=["nbdkit-vddk"], credentialRef={"env": "SOMEBODY_ELSE"})
        monkeypatch.setenv("SOMEBODY_ELSE_USERNAME", "nobody")
        monkeypatch.setenv("SOMEBODY_ELSE_PASSWORD", "wrong")
        choosing.open(dataclasses.replace(frozen, session=other), other.spec)
    monkeypatch.delenv("SOMEBODY_ELSE_PASSWORD")
    with pytest.raises(credentials.NoCredential):
        choosing.open(dataclasses.replace(frozen, session=other), other.spec)
    assert lab.state()["calls"].get("ExportSnapshot", 0) == before
