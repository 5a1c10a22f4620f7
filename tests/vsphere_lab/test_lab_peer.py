"""The lab as a server: logins and their end, pages of answers, a crash and what outlives it, and calls that go wrong."""

from __future__ import annotations

import base64
import contextlib
import gc
import http.client
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

import lease_clients as clients
import pytest
from lease_clients import Lab, vim, vmodl
from pyVim import connect
from vsphere_labs import LabError

MIB = 1 << 20
SIZE = 4 * MIB
MACHINES: list[dict[str, Any]] = [
    {
        "name": f"vm{number}",
        "changeTracking": True,
        "folder": "gold/erp" if number % 2 else "",
        "attributes": {"owner": f"team {number}"},
        "powerState": "poweredOff" if number == 7 else "poweredOn",
        "template": number == 6,
        "disks": [{"sizeBytes": SIZE}],
    }
    for number in range(8)
]


#: How a client sees that the connection went.
_GONE = (ConnectionError, http.client.HTTPException, ssl.SSLError)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab.start(tmp_path / "lab", machines=MACHINES, taskMillis=4) as lab:
        yield lab


@pytest.fixture
def instance(lab: Lab) -> Iterator[Any]:
    with clients.session(lab) as instance:
        yield instance


def request(
    lab: Lab, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    with contextlib.closing(clients.connection(lab)) as link:
        link.request(method, path, body, headers)
        answer = link.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())


def basic(lab: Lab, password: str | None = None) -> str:
    return "Basic " + base64.b64encode(f"{lab.username}:{password or lab.password}".encode()).decode()


def flat(vm: str, name: str = "") -> str:
    return f"/folder/{vm}/{name or vm}-flat.vmdk?dcPath=DC0&dsName=ds1"


def test_eight_machines_are_there_within_a_second(tmp_path: Path) -> None:
    Lab.start(tmp_path / "built", machines=[]).__enter__().stop()  # built and in the page cache
    began = time.monotonic()
    with Lab.start(tmp_path / "lab", machines=MACHINES) as lab:
        assert len(lab.state()["machines"]) == 8
        assert time.monotonic() - began < 1


# pyvmomi leaves the sockets of logins that failed to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_another_authority_a_wrong_password_and_a_forgotten_session_are_refused(lab: Lab) -> None:
    stranger = ssl.create_default_context(cafile=str(lab.other_ca_file))
    with pytest.raises(ssl.SSLCertVerificationError):
        connect.SmartConnect(host=lab.host, port=lab.port, user=lab.username, pwd=lab.password, sslContext=stranger)
    for user, password in ((lab.username, "wrong"), ("nobody", lab.password), (lab.username, "")):
        with pytest.raises(vim.fault.InvalidLogin):
            connect.SmartConnect(host=lab.host, port=lab.port, user=user, pwd=password, sslContext=clients.trust(lab))
    gc.collect()
    with clients.session(lab) as instance:
        root = instance.content.rootFolder
        assert root.name == "Datacenters"
        assert lab.state()["sessions"] == 1
        cookie = instance._stub.cookie.split(";")[0]
        assert request(lab, "GET", "/folder/vm7/vm7.vmx?dcPath=DC0&dsName=ds1", Cookie=cookie)[0] == 200
        instance.content.sessionManager.Logout()
        assert lab.state()["sessions"] == 0
        with pytest.raises(vim.fault.NotAuthenticated):
            root.name  # noqa: B018
        assert request(lab, "GET", "/folder/vm7/vm7.vmx?dcPath=DC0&dsName=ds1", Cookie=cookie)[0] == 401


def test_an_idle_session_expires_and_one_in_use_does_not(lab: Lab) -> None:
    lab.mode(sessionSeconds=1)
    with clients.session(lab) as used, clients.session(lab) as idle:
        for _ in range(14):
            time.sleep(0.1)
            assert used.CurrentTime()
        with pytest.raises(vim.fault.NotAuthenticated):
            idle.CurrentTime()
        assert lab.act("", "expireSessions") == {"ended": 1}
        with pytest.raises(vim.fault.NotAuthenticated):
            used.CurrentTime()


def test_answers_come_in_pages_as_asked_for_or_as_the_server_likes(lab: Lab, instance: Any) -> None:
    content = instance.content
    view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
    collector = vmodl.query.PropertyCollector
    wanted = collector.FilterSpec(
        propSet=[collector.PropertySpec(type=vim.VirtualMachine, pathSet=["name", "config.instanceUuid", "snapshot"])],
        objectSet=[
            collector.ObjectSpec(
                obj=view,
                skip=True,
                selectSet=[collector.TraversalSpec(type=vim.view.ContainerView, path="view", skip=False)],
            )
        ],
    )

    def names(most: int | None) -> tuple[list[str], int]:
        answer = content.propertyCollector.RetrievePropertiesEx([wanted], collector.RetrieveOptions(maxObjects=most))
        found, pages = [], 0
        while True:
            pages += 1
            found += [next(one.val for one in item.propSet if one.name == "name") for item in answer.objects]
            if not answer.token:
                return sorted(found), pages
            answer = content.propertyCollector.ContinueRetrievePropertiesEx(answer.token)

    everything = sorted(one["name"] for one in MACHINES)
    assert names(None) == (everything, 1)
    assert names(3) == (everything, 3)
    assert names(8) == (everything, 1)
    lab.mode(maxObjects=1)
    assert names(None) == (everything, 8)
    with pytest.raises(vmodl.fault.InvalidArgument):
        content.propertyCollector.ContinueRetrievePropertiesEx("no token")


def test_the_inventory_is_what_the_configuration_says(lab: Lab, instance: Any) -> None:
    index = instance.content.searchIndex
    vm = index.FindByInventoryPath("DC0/vm/gold/erp/vm3")
    assert vm.name == "vm3"
    assert vm.parent.name == "erp"
    fields = {one.key: one.name for one in instance.content.customFieldsManager.field}
    assert {fields[one.key]: one.value for one in vm.customValue} == {"owner": "team 3"}
    assert vm.runtime.host.name == "esx1"
    assert vm.resourcePool.owner.name == "C0"
    assert [one.summary.type for one in vm.datastore] == ["VMFS"]
    assert index.FindByUuid(None, vm.config.instanceUuid, True, True) == vm
    assert index.FindByInventoryPath("DC0/vm/vm6").config.template
    host = index.FindByInventoryPath("DC0/host/esx3/esx3")
    assert [one.name for one in host.datastore] == ["ds1"]


def test_files_of_a_datastore_are_read_in_ranges_by_who_may(lab: Lab) -> None:
    lab.write("vm7", 2000, 100, b"found")
    for headers in ({}, {"Authorization": basic(lab, "wrong")}, {"Cookie": 'vmware_soap_session="made up"'}):
        status, _, answered = request(lab, "GET", flat("vm7"), **headers)
        assert status == 401
        assert answered["Www-Authenticate"].startswith("Basic")
    right = {"Authorization": basic(lab)}
    status, body, answered = request(lab, "GET", flat("vm7"), Range="bytes=100-104", **right)
    assert (status, body, answered["Content-Range"]) == (206, b"found", f"bytes 100-104/{SIZE}")
    status, body, answered = request(lab, "HEAD", flat("vm7"), **right)
    assert (status, answered["Content-Length"]) == (200, str(SIZE))
    assert request(lab, "GET", flat("vm7"), Range=f"bytes={SIZE}-", **right)[0] == 416
    for path in (flat("vm7", "none"), flat("vm7").replace("ds1", "ds9"), flat("vm7").replace("DC0", "DC9")):
        assert request(lab, "GET", path, **right)[0] == 404
    new = "/folder/vm7/new%20file?dcPath=DC0&dsName=ds1"
    assert request(lab, "PUT", new, b"sent", **right)[0] == 201
    assert request(lab, "PUT", new, b"again", **right)[0] == 200
    assert request(lab, "GET", new, **right)[1] == b"again"
    assert request(lab, "PUT", "/folder/nowhere/x?dcPath=DC0&dsName=ds1", b"", **right)[0] == 404
    assert request(lab, "GET", "/folder/../../config.json?dcPath=DC0&dsName=ds1", **right)[0] == 404


def test_the_disk_that_a_running_machine_writes_is_locked(lab: Lab, instance: Any) -> None:
    right = {"Authorization": basic(lab)}
    status, body, _ = request(lab, "GET", flat("vm0"), **right)
    assert status == 500
    assert b"locked" in body
    assert request(lab, "PUT", flat("vm0"), b"x", **right)[0] == 500
    lab.write("vm0", 2000, 0, b"frozen")
    snapshot = clients.snapshot(clients.find(instance, vim.VirtualMachine, "vm0"), "one")
    lab.write("vm0", 2000, 0, b"later!")
    assert request(lab, "GET", flat("vm0"), Range="bytes=0-5", **right)[1] == b"frozen"
    assert request(lab, "GET", flat("vm0").replace("vm0-flat", "vm0-000001-delta"), **right)[0] == 500
    assert request(lab, "PUT", flat("vm0"), b"x", **right)[0] == 500, "read, not written"
    clients.done(snapshot.RemoveSnapshot_Task(removeChildren=False))
    assert request(lab, "GET", flat("vm0"), **right)[0] == 500


def test_a_crash_loses_the_sessions_and_nothing_else(lab: Lab) -> None:
    with clients.session(lab) as instance:
        vm = clients.find(instance, vim.VirtualMachine, "vm1")
        lab.write("vm1", 2000, 0, b"one")
        first = clients.snapshot(vm, "first")
        since = first.config.hardware.device[-1].backing.changeId
        lab.write("vm1", 2000, 3 * MIB, b"two")
        second = clients.snapshot(vm, "second")
        lab.write("vm1", 2000, 2 * MIB, b"three")
        before = lab.state()
        frozen = [lab.frozen("vm1", 2000, one._moId) for one in (first, second)]
        live = lab.content("vm1", 2000)
    lab.crash()
    with pytest.raises(ConnectionError):
        lab.state()
    port = lab.port
    lab.restart()
    assert lab.port == port
    after = lab.state()
    assert after["machines"] == before["machines"]
    assert after["sessions"] == 0
    assert [lab.frozen("vm1", 2000, one._moId) for one in (first, second)] == frozen
    assert lab.content("vm1", 2000) == live
    with clients.session(lab) as instance:
        vm = clients.find(instance, vim.VirtualMachine, "vm1")
        assert [one.name for one in vm.snapshot.rootSnapshotList] == ["first"]
        third = clients.snapshot(vm, "third")
        assert third._moId not in {first._moId, second._moId}
        changed = vm.QueryChangedDiskAreas(third, 2000, 0, since).changedArea
        assert [(one.start, one.length) for one in changed] == [(2 * MIB, 65536), (3 * MIB, 65536)]
        clients.done(vm.RemoveAllSnapshots_Task())
    assert lab.content("vm1", 2000) == live
    lab.crash()
    lab.restart()
    assert lab.machine("vm1")["snapshots"] == []
    assert lab.content("vm1", 2000) == live


def test_a_crash_in_the_middle_of_a_removal_leaves_the_disk_whole(lab: Lab) -> None:
    with clients.session(lab) as instance:
        vm = clients.find(instance, vim.VirtualMachine, "vm1")
        snapshot = clients.snapshot(vm, "one")
        lab.write("vm1", 2000, MIB, b"x" * MIB)
        live = lab.content("vm1", 2000)
        lab.fault(on="RemoveSnapshot_Task", kind="crash")
        with pytest.raises(_GONE):
            snapshot.RemoveSnapshot_Task(removeChildren=False)
    assert lab.process is not None
    lab.process.wait(10)
    lab.restart()
    assert [one["name"] for one in lab.machine("vm1")["snapshots"]] == ["one"]
    assert lab.content("vm1", 2000) == live


def test_a_crash_before_a_task_is_told_to_be_done_leaves_its_effect(lab: Lab) -> None:
    with clients.session(lab) as instance:
        vm = clients.find(instance, vim.VirtualMachine, "vm1")
        lab.fault(on="CreateSnapshot_Task", kind="crash", late=True)
        with contextlib.suppress(*_GONE):
            clients.snapshot(vm, "nobody heard of it")
    assert lab.process is not None
    lab.process.wait(10)
    lab.restart()
    assert [one["name"] for one in lab.machine("vm1")["snapshots"]] == ["nobody heard of it"]


def test_a_task_fails_as_told_for_the_machine_and_the_time_told(lab: Lab, instance: Any) -> None:
    one, other = (clients.find(instance, vim.VirtualMachine, name) for name in ("vm1", "vm2"))
    lab.fault(on="CreateSnapshot_Task", kind="task", fault="TaskInProgress", message="busy", vm="vm1", skip=1, count=2)
    clients.snapshot(one, "skipped")
    for _ in range(2):
        with pytest.raises(vim.fault.TaskInProgress) as failed:
            clients.snapshot(one, "fails")
        assert failed.value.msg == "busy"
        clients.snapshot(other, "not meant")
    clients.snapshot(one, "spent")
    assert [item["name"] for item in lab.machine("vm1")["snapshots"]] == ["skipped", "spent"]
    lab.fault(on="CreateSnapshot_Task", kind="task", fault="FileLocked", late=True)
    with pytest.raises(vim.fault.FileLocked):
        clients.snapshot(one, "made all the same")
    assert [item["name"] for item in lab.machine("vm1")["snapshots"]][-1] == "made all the same"
    assert lab.state()["calls"]["CreateSnapshot_Task"] == 7
    lab.fault(on="RemoveAllSnapshots_Task", kind="task", fault="InsufficientStorageSpace", count=0)
    for _ in range(3):
        with pytest.raises(vim.fault.InsufficientStorageSpace):
            clients.done(one.RemoveAllSnapshots_Task())
    lab.clear_faults()
    clients.done(one.RemoveAllSnapshots_Task())


def test_a_task_may_be_stuck(lab: Lab, instance: Any) -> None:
    vm = clients.find(instance, vim.VirtualMachine, "vm1")
    lab.fault(on="CreateSnapshot_Task", kind="stuck", seconds=0.5)
    began = time.monotonic()
    task = vm.CreateSnapshot_Task(name="slow", description="", memory=False, quiesce=False)
    while time.monotonic() < began + 0.3:
        assert str(task.info.state) in ("queued", "running")
    assert lab.machine("vm1")["snapshots"] == []
    clients.done(task)
    assert time.monotonic() - began > 0.5
    lab.fault(on="CreateSnapshot_Task", kind="stuck")
    stuck = vm.CreateSnapshot_Task(name="never", description="", memory=False, quiesce=False)
    waiting = vm.RemoveAllSnapshots_Task()
    time.sleep(0.2)
    assert (str(stuck.info.state), str(waiting.info.state)) == ("running", "queued")


def _failing(instance: Any, lab: Lab, **rule: Any) -> Callable[[], Any]:
    lab.fault(on="CurrentTime", **rule)
    return instance.CurrentTime


def test_calls_fail_in_every_way_there_is(lab: Lab, instance: Any) -> None:
    instance.CurrentTime()
    with pytest.raises(vmodl.fault.SystemError):
        _failing(instance, lab, kind="fault")()
    with pytest.raises(http.client.HTTPException, match="503"):
        _failing(instance, lab, kind="http503")()
    for kind in ("reset", "truncate"):
        with pytest.raises((*_GONE, expat.ExpatError)):
            _failing(instance, lab, kind=kind, afterBytes=100)()
    began = time.monotonic()
    _failing(instance, lab, kind="slow", seconds=0.4)()
    assert time.monotonic() - began > 0.4
    with pytest.raises(_GONE):
        _failing(instance, lab, kind="hang", seconds=0.2)()
    assert instance.CurrentTime()
    with pytest.raises(vim.fault.NotAuthenticated):
        _failing(instance, lab, kind="expire")()


def test_downloads_are_cut_and_slowed_as_told(lab: Lab) -> None:
    right = {"Authorization": basic(lab)}
    lab.fault(on="GET /folder", kind="reset", afterBytes=MIB, vm="vm7")
    # Python's TLS may show a reset as an early end.
    with contextlib.closing(clients.connection(lab)) as link, pytest.raises(_GONE):
        link.request("GET", flat("vm7"), headers=right)
        link.getresponse().read()
    lab.fault(on="GET /folder", kind="truncate", afterBytes=MIB, vm="vm7")
    with contextlib.closing(clients.connection(lab)) as link, pytest.raises(http.client.IncompleteRead) as cut:
        link.request("GET", flat("vm7"), headers=right)
        link.getresponse().read()
    assert len(cut.value.partial) == MIB
    lab.fault(on="GET /folder", kind="http503", vm="vm7")
    assert request(lab, "GET", flat("vm7"), **right)[0] == 503
    assert request(lab, "GET", flat("vm7"), **right)[0] == 200
    lab.mode(diskBytesPerSecond=8 * MIB)
    began = time.monotonic()
    assert len(request(lab, "GET", flat("vm7"), **right)[1]) == SIZE
    assert 0.4 < time.monotonic() - began < 3


def test_an_upload_is_cut_and_what_came_of_it_stays(lab: Lab) -> None:
    target = "/folder/vm7/sent?dcPath=DC0&dsName=ds1"
    for kind in ("reset", "truncate"):
        lab.fault(on="PUT /folder", kind=kind, afterBytes=MIB)
        with pytest.raises(_GONE):
            request(lab, "PUT", target, b"x" * SIZE, Authorization=basic(lab))
        assert len(request(lab, "GET", target, Authorization=basic(lab))[1]) == MIB
    assert request(lab, "PUT", target, b"x" * SIZE, Authorization=basic(lab))[0] == 200


def test_rules_count_calls_and_several_may_meet_one_call(lab: Lab, instance: Any) -> None:
    lab.fault(on="CurrentTime", kind="slow", seconds=0.15, count=2)
    lab.fault(on="CurrentTime", kind="fault", fault="RequestCanceled", skip=1)
    began = time.monotonic()
    instance.CurrentTime()
    assert time.monotonic() - began > 0.15
    assert [one["hits"] for one in lab.state()["faults"]] == [1, 1], "once a call, however often it holds"
    with pytest.raises(vmodl.fault.RequestCanceled):
        instance.CurrentTime()
    assert time.monotonic() - began > 0.3
    assert instance.CurrentTime()


@pytest.mark.parametrize("version", ["6.5", "7.0.0.0", "8.0.1.0"])
def test_the_peer_speaks_as_the_version_it_is_told(tmp_path: Path, version: str) -> None:
    machines = [{"name": "one", "vtpm": True, "disks": [{}]}]
    with Lab.start(tmp_path, machines=machines, apiVersion=version) as lab, clients.session(lab) as instance:
        assert instance.content.about.apiVersion == version
        vm = clients.find(instance, vim.VirtualMachine, "one")
        labels = [one.deviceInfo.label for one in vm.config.hardware.device]
        assert "Virtual TPM" in labels
        clients.snapshot(vm, "one")
        clients.done(vm.RemoveAllSnapshots_Task())


def test_mistakes_in_what_the_lab_is_told_are_errors(lab: Lab) -> None:
    for told in (
        lambda: lab.fault(on="X", kind="none"),
        lambda: lab.fault(kind="task"),
        lambda: lab.fault(on="X", kind="task", fault="NoSuchFault"),
        lambda: lab.mode(unheardOf=1),
        lambda: lab.act("vm1", "unheardOf"),
        lambda: lab.act("nobody", "rename", name="x"),
        lambda: lab.write("vm1", 2000, SIZE - 1, b"xx"),
        lambda: lab.write("vm1", "Hard disk 9", 0, b"x"),
        lambda: lab.frozen("vm1", 2000, "none"),
    ):
        with pytest.raises(LabError):
            told()


def test_privileges_are_denied_as_told(lab: Lab, instance: Any) -> None:
    vm = clients.find(instance, vim.VirtualMachine, "vm1")
    wanted = ["VirtualMachine.State.CreateSnapshot", "Datastore.Browse"]
    manager = instance.content.authorizationManager
    key = instance.content.sessionManager.currentSession.key
    lab.mode(deniedPrivileges=["Datastore.Browse"])
    (answer,) = manager.HasPrivilegeOnEntities([vm], key, wanted)
    assert {one.privId: one.isGranted for one in answer.privAvailability} == {wanted[0]: True, wanted[1]: False}
