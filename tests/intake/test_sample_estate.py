"""``manifests/``, the estate that readers meet first, is good: no errors, no warnings, and it says what it seems to."""

from __future__ import annotations

from pathlib import Path

from reconciler.api import lifecycles
from reconciler.intake import documents, estates

ROOT = Path(__file__).parents[2]
ESTATE = ROOT / "manifests"


def test_it_has_neither_errors_nor_warnings() -> None:
    loaded = estates.load(ESTATE)
    assert loaded.diagnostics == () and loaded.desired is not None and loaded.objects == 10


def test_it_is_the_test_bed() -> None:
    desired = estates.load(ESTATE).desired
    assert desired is not None
    source = desired.policies["obl-gold"].spec.source.disk_images
    assert source is not None and source.path == str(ROOT / "guests") and source.machines == "oblVM[1-8]"
    assert desired.groups["fast"].spec.members == ("emprise-a", "emprise-b")
    assert {desired.units[name].spec.max_concurrent_jobs for name in ("emprise-a", "emprise-b")} == {10}
    assert len({unit.spec.failure_domain for unit in desired.units.values()}) == 3
    land, dedupe = desired.lifecycles["gold"].spec.operations
    assert str(land.retention.period) == "7d" if isinstance(land.retention, lifecycles.Fixed) else False
    assert isinstance(dedupe.retention, lifecycles.Keep) and dedupe.window == "off-peak"
    assert (dedupe.retention.daily, dedupe.retention.weekly, dedupe.retention.monthly) == (14, 8, 12)


def test_the_same_machines_can_be_those_of_a_vcenter() -> None:
    desired = estates.load(ESTATE).desired
    assert desired is not None
    virtual = desired.policies["obl-vms"].spec.source.vmware
    assert virtual is not None and virtual.vcenter in desired.vcenters
    limits = desired.vcenters["vcenter-1"].spec.limits
    assert (limits.per_host, limits.per_datastore, limits.open_snapshots) == (8, 8, 8)
    assert desired.policies["obl-vms"].spec.limits.max_concurrent_jobs == 8


def test_every_file_names_the_schema_and_explains_itself() -> None:
    files = sorted(ESTATE.rglob("*.yaml"))
    assert len(files) >= 5
    for file in files:
        lines = file.read_text().splitlines()
        assert lines[0] == "# yaml-language-server: $schema=../schemas/manifest.json"
        assert (ESTATE / lines[0].partition("=")[2]).resolve().is_file()
        assert lines[1].startswith("# ")
        assert documents.read(file.name, file.read_bytes()).whole
