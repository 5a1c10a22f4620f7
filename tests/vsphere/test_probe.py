"""``holdfast probe`` and ``validate --live``: what is wrong is named where it is, nothing is left, no secret is shown."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from virtual_estates import VirtualEstate, machines, vsphere_labs

from reconciler.sources.vsphere.inventory import checks

PASSWORD = "not to be seen 42"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[vsphere_labs.Lab]:
    """Two machines of two disks, a template, and one that is nobody's."""
    wanted = [
        *machines(2, disks=2, folder="gold"),
        {"name": "golden-image", "template": True, "folder": "gold", "disks": [{"sizeBytes": 1 << 20}]},
        {"name": "other", "disks": [{"sizeBytes": 1 << 20}]},
    ]
    folder = tmp_path_factory.mktemp("probe-lab")
    with vsphere_labs.Lab.start(folder, machines=wanted, password=PASSWORD, taskMillis=5) as found:
        yield found


@pytest.fixture
def estate(tmp_path: Path, lab: vsphere_labs.Lab) -> Iterator[VirtualEstate]:
    """An estate on the lab, which is as new."""
    lab.clear_faults()
    lab.mode(deniedPrivileges=[])
    found = VirtualEstate(tmp_path, lab)
    yield build(found, source={"include": [{"folder": "/DC0/vm/gold"}]})
    lab.clear_faults()
    lab.mode(deniedPrivileges=[])
    left = [one["snapshots"] for one in lab.state()["machines"] if one["snapshots"]]
    assert left == [], "a probe left a snapshot"


def build(estate: VirtualEstate, **more: Any) -> VirtualEstate:
    """Write the manifests."""
    return estate.build(schedules=[{"name": "daily", "type": "Full", "every": "24h"}], **more)


def probed(
    estate: VirtualEstate, *words: str, code: int = 1, **variables: str
) -> dict[tuple[str, str], dict[str, Any]]:
    """The steps of a probe by subject and name, in order; nothing it says is the password."""
    command = estate.command.using(**variables)
    done = command.run("probe", *words, "-o", "json", code=code)
    assert PASSWORD not in done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert document["kind"] == "ProbeResult"
    assert document["passed"] is (code == 0)
    found = {(one["subject"], one["step"]): one for one in document["steps"]}
    assert code == 4 or len(found) == len(document["steps"]), "a step is named once"
    return found


def verdicts(found: dict[tuple[str, str], dict[str, Any]]) -> dict[str, str]:
    """Verdicts by a short name."""
    return {f"{subject.split('/')[0]} {step}": one["verdict"] for (subject, step), one in found.items()}


def test_a_good_estate_passes_and_leaves_no_trace(estate: VirtualEstate) -> None:
    before = sorted(path for path in estate.folder.rglob("*"))
    found = probed(estate, code=0)
    told = verdicts(found)
    assert {verdict for name, verdict in told.items() if not name.startswith("Notifications")} <= {"Passed", "Warning"}
    assert "SHA-1 " + estate.lab.thumbprint_sha1 in found["VCenter/lab", "tls"]["message"]
    assert "API 6.5" in found["VCenter/lab", "login"]["message"]
    selection = found["BackupPolicy/vms", "selection"]
    assert "2 machines: vm1, vm2" in selection["message"]
    assert "golden-image" in selection["message"]
    assert found["StorageUnit/fast", "identity"]["message"].startswith("first use")
    assert sorted(path for path in estate.folder.rglob("*")) == before
    assert estate.lab.machine("vm1")["snapshots"] == []


def test_what_the_disk_library_needs_is_asked_of_the_vcenter_itself(estate: VirtualEstate) -> None:
    build(estate, source={"include": [{"name": "other"}]}, transports=("datastore", "nbdkit-vddk"))
    estate.lab.mode(deniedPrivileges=["Global.EnableMethods"])
    found = probed(estate)["BackupPolicy/vms", "privileges"]
    assert found["message"] == "missing on Datacenters: Global.EnableMethods"


def test_a_server_that_cannot_say_who_may_do_what_is_no_failure(estate: VirtualEstate) -> None:
    estate.lab.fault(on="HasPrivilegeOnEntities", kind="fault", fault="NotSupported", count=0)
    found = probed(estate, code=0)
    assert found["BackupPolicy/vms", "privileges"]["verdict"] == "Skipped"


def test_a_holding_area_is_looked_at(estate: VirtualEstate) -> None:
    area = {"path": str(estate.root / "area"), "maxSize": "1GiB"}
    build(estate, source={"include": [{"name": "vm1"}], "holdingArea": area})
    found = probed(estate)["BackupPolicy/vms", "holding area"]
    assert (found["verdict"], found["hint"]) == ("Failed", "make it, or mount it")
    (estate.root / "area").mkdir()
    found = probed(estate, code=0)["BackupPolicy/vms", "holding area"]
    assert found["verdict"] == "Passed"
    assert "maxSize 1.00 GiB" in found["message"]
    assert list((estate.root / "area").iterdir()) == []
    build(estate, source={"include": [{"name": "vm1"}], "holdingArea": {**area, "maxSize": "1MiB"}})
    found = probed(estate, code=0)["BackupPolicy/vms", "holding area"]
    assert found["verdict"] == "Warning"


@pytest.mark.parametrize(
    ("spec", "step", "words"),
    [
        ({"tls": {"caFile": "OTHER"}}, "tls", "certificate is not trusted"),
        ({"tls": {"thumbprint": ":".join(["AB"] * 20)}}, "tls", "shows a certificate with thumbprint"),
        ({"port": 1}, "tls", ":1: "),
        ({"credentialRef": {"env": "NOWHERE"}}, "credential", "NOWHERE_USERNAME is not set"),
    ],
)
def test_who_cannot_be_trusted_hears_no_password(
    estate: VirtualEstate, spec: dict[str, Any], step: str, words: str
) -> None:
    if spec.get("tls", {}).get("caFile"):
        spec = {"tls": {"caFile": str(estate.lab.other_ca_file)}}
    build(estate, vcenter=spec)
    before = estate.lab.state()["calls"].get("Login", 0)
    found = probed(estate)
    assert found["VCenter/lab", step]["verdict"] == "Failed"
    assert words in found["VCenter/lab", step]["message"]
    assert found["VCenter/lab", step]["hint"]
    assert found["VCenter/lab", "login"]["verdict"] == "Skipped"
    assert found["BackupPolicy/vms", "selection"]["verdict"] == "Skipped"
    assert found["StorageUnit/fast", "path"]["verdict"] == "Passed", "the rest is tried all the same"
    assert estate.lab.state()["calls"].get("Login", 0) == before


def test_a_wrong_password_is_refused_and_not_shown(estate: VirtualEstate) -> None:
    wrong = "a wrong one, not to be seen"
    done = estate.command.using(HOLDFAST_LAB_PASSWORD=wrong).run("probe", "-o", "json", code=1)
    assert wrong not in done.stdout + done.stderr
    found = probed(estate, HOLDFAST_LAB_PASSWORD=wrong)
    login = found["VCenter/lab", "login"]
    assert (login["verdict"], login["hint"]) == ("Failed", "correct the credential")


def test_an_empty_selection_fails(estate: VirtualEstate) -> None:
    build(estate, source={"include": [{"name": "nobody-*"}]})
    found = probed(estate)
    assert found["BackupPolicy/vms", "selection"]["verdict"] == "Failed"
    assert "nobody-*" in found["BackupPolicy/vms", "selection"]["message"]
    assert ("BackupPolicy/vms", "snapshot") not in found


def test_a_disk_that_no_transport_leads_to_is_named_with_every_reason(estate: VirtualEstate) -> None:
    estate.lab.act("vm2", "foreignSnapshot", name="somebody else's")
    try:
        found = probed(estate, "vms", "--machine", "vm2")
        lost = [one for (_, step), one in found.items() if step.startswith("read")]
        assert {one["verdict"] for one in lost} == {"Failed"}
        assert all("datastore: " in one["message"] for one in lost), lost
        assert found["BackupPolicy/vms", "removal"]["verdict"] == "Passed"
        assert [one["name"] for one in estate.lab.machine("vm2")["snapshots"]] == ["somebody else's"]
    finally:
        estate.lab.act("vm2", "removeAllSnapshots")


def test_a_transport_that_does_not_lead_there_is_named_with_the_one_that_does(estate: VirtualEstate) -> None:
    missing = {"nbdkit": str(estate.root / "no-such-nbdkit")}
    build(
        estate,
        source={"include": [{"name": "vm1"}]},
        transports=("nbdkit-vddk", "datastore"),
        vcenter={"vddk": missing},
    )
    found = probed(estate, "vms", code=0)["BackupPolicy/vms", "read Hard disk 1"]
    assert "read by datastore, because nbdkit-vddk: " in found["message"], found["message"]
    assert "no-such-nbdkit" in found["message"], found["message"]


def test_a_snapshot_that_is_refused_is_told_in_the_faults_own_words(estate: VirtualEstate) -> None:
    words = "the datastore has had enough"
    estate.lab.fault(on="CreateSnapshot_Task", kind="task", fault="FileFault", message=words, count=0)
    found = probed(estate, "vms")["BackupPolicy/vms", "snapshot"]
    assert found["verdict"] == "Failed"
    assert "vm1" in found["message"]
    assert words in found["message"], found["message"]


def test_a_read_that_fails_is_told_and_the_snapshot_goes_all_the_same(estate: VirtualEstate) -> None:
    build(estate, source={"include": [{"name": "other"}]})
    estate.lab.fault(on="GET /folder", kind="fault", fault="FileFault", count=0)
    found = probed(estate, "vms")
    assert [one["verdict"] for (_, step), one in found.items() if step.startswith("read")] == ["Failed"]
    assert found["BackupPolicy/vms", "removal"]["verdict"] == "Passed"


def test_a_removal_that_is_refused_for_good_names_the_snapshot(estate: VirtualEstate) -> None:
    estate.lab.fault(on="RemoveSnapshot_Task", kind="fault", fault="NoPermission", count=0)
    try:
        found = probed(estate, "vms")["BackupPolicy/vms", "removal"]
        assert found["verdict"] == "Failed"
        assert "of vm1 may still be there" in found["message"]
        assert "NoPermission" in found["message"], found["message"]
    finally:
        estate.lab.clear_faults()
        estate.lab.act("vm1", "removeAllSnapshots")


def waiting(estate: VirtualEstate, *words: str) -> Any:
    """A probe that has made its snapshot and gets no answer to its first read."""
    estate.lab.fault(on="GET /folder", kind="hang", count=0, seconds=6)
    process = estate.command.start("probe", "vms", *words)
    deadline = time.monotonic() + 30
    while not estate.lab.machine("vm1")["snapshots"]:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    return process


def test_what_a_killed_probe_left_carries_the_catalogs_mark_and_the_loop_removes_it(estate: VirtualEstate) -> None:
    estate.apply()
    with waiting(estate) as process:
        process.kill()
    estate.lab.clear_faults()
    assert [one["name"] for one in estate.lab.machine("vm1")["snapshots"]] == ["holdfast-probe"]
    estate.apply()
    assert len(estate.lab.machine("vm1")["snapshots"]) == 1, "somebody may still be trying something"
    estate.set_clock(estate.now() + dt.timedelta(minutes=20))
    estate.apply()
    assert estate.lab.machine("vm1")["snapshots"] == []


def test_without_a_catalog_the_next_probe_sweeps_what_a_killed_one_left(estate: VirtualEstate) -> None:
    with waiting(estate) as process:
        process.kill()
    estate.lab.clear_faults()
    found = probed(estate, "vms", "--machine", "vm2", code=0)
    assert ("BackupPolicy/vms", "sweep vm1") not in found, "somebody may still be reading it"
    estate.set_clock(estate.now() + dt.timedelta(minutes=20))
    found = probed(estate, "vms", "--machine", "vm2", code=0)
    assert found["BackupPolicy/vms", "sweep vm1"]["verdict"] == "Warning"
    assert estate.lab.machine("vm1")["snapshots"] == []


def test_an_interrupt_leaves_no_snapshot(estate: VirtualEstate) -> None:
    with waiting(estate) as process:
        process.send_signal(signal.SIGINT)
        estate.lab.clear_faults()
        out, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert PASSWORD not in out + told
    assert estate.lab.machine("vm1")["snapshots"] == []


def test_a_probe_runs_beside_a_controller_and_what_it_makes_is_left_alone(estate: VirtualEstate) -> None:
    before = estate.lab.state()["calls"].get("RemoveSnapshot_Task", 0)
    with estate.command.start("run", ".") as controller:
        try:
            deadline = time.monotonic() + 60
            # Both machines were backed up: the catalog is there, and the loop goes on looking.
            while estate.lab.state()["calls"].get("RemoveSnapshot_Task", 0) < before + 2:
                assert time.monotonic() < deadline and controller.poll() is None
                time.sleep(0.1)
            found = probed(estate, "vms", code=0)
            assert found["StorageUnit/fast", "identity"]["verdict"] == "Passed"
            assert found["BackupPolicy/vms", "removal"]["verdict"] == "Passed"
        finally:
            controller.terminate()
            controller.wait(30)


def test_missing_privileges_are_named_where_they_are_missing(estate: VirtualEstate) -> None:
    estate.lab.mode(deniedPrivileges=["VirtualMachine.Config.ChangeTracking", "Datastore.Browse"])
    found = probed(estate, "--machine", "vm2")["BackupPolicy/vms", "privileges"]
    assert found["verdict"] == "Failed"
    assert found["message"] == ("missing on vm2: VirtualMachine.Config.ChangeTracking; on ds1: Datastore.Browse"), (
        found["message"]
    )


def test_a_machine_that_is_not_selected_and_a_policy_that_is_not_there(estate: VirtualEstate) -> None:
    found = probed(estate, "vms", "--machine", "other")
    assert found["BackupPolicy/vms", "machine"]["verdict"] == "Failed"
    assert "2 machines: vm1, vm2" in found["BackupPolicy/vms", "machine"]["hint"]
    assert ("StorageUnit/pool", "path") not in found, "only what the policy uses is tried"
    done = estate.command.run("probe", "nothing", code=1)
    assert "no policy nothing" in done.stderr
    assert done.stdout == ""


def test_units_that_are_missing_full_or_unreachable(estate: VirtualEstate) -> None:
    text = (estate.folder / "estate.yaml").read_text()
    more = text.replace("failureDomain: one", "failureDomain: one, highWaterMark: 1%, lowWaterMark: 0%")
    server = {"apiVersion": "holdfast/v1alpha1", "kind": "MediaServer", "metadata": {"name": "here"}}
    server["spec"] = {"storageUnits": ["pool"]}  # type: ignore[assignment]
    (estate.folder / "estate.yaml").write_text(more + "\n---\n" + json.dumps(server))
    shutil.rmtree(estate.folder / "units" / "pool")
    found = probed(estate)
    assert found["StorageUnit/fast", "space"]["verdict"] == "Failed"
    assert "over its 1% mark" in found["StorageUnit/fast", "space"]["message"]
    assert found["StorageUnit/fast", "media servers"]["verdict"] == "Failed"
    assert found["StorageUnit/pool", "path"]["verdict"] == "Failed"
    assert "is not a folder" in found["StorageUnit/pool", "path"]["message"]


def test_manifests_with_errors_are_told_and_nothing_is_tried(estate: VirtualEstate) -> None:
    with (estate.folder / "estate.yaml").open("a") as file:
        file.write("\n---\nkind: Nonsense\n")
    before = estate.lab.state()["calls"].get("Login", 0)
    done = estate.command.run("validate", "--live", code=4)
    assert "Nonsense" in done.stderr
    assert "nothing is tried" in done.stderr
    found = probed(estate, code=4)
    assert any("Nonsense" in one["message"] for one in found.values())
    assert estate.lab.state()["calls"].get("Login", 0) == before


def test_validate_live_reads_well_at_80_columns(estate: VirtualEstate) -> None:
    estate.lab.mode(deniedPrivileges=["Datastore.Browse"])
    done = estate.command.using(COLUMNS="80", HOLDFAST_NOTIFY="mailto://me:hidden-word@example.org").run(
        "validate", "--live", estate.folder, code=1
    )
    assert "hidden-word" not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "BackupPolicy/vms" in lines
    assert "Notifications/mailto#1" in lines
    assert any(line.startswith("  Failed   privileges ") for line in lines)
    assert lines[-1].startswith("failed: ")
    plain = estate.command.run("validate", estate.folder)
    assert plain.stdout.startswith("valid: ")


def test_the_readme_lists_every_privilege() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    every = {
        *checks.MACHINE,
        *checks.TRACKING,
        *checks.DATASTORE,
        *(p for some in (*checks.TRANSPORTS.values(), *checks.ROOT.values()) for p in some),
    }
    assert [one for one in sorted(every) if one not in readme] == []
