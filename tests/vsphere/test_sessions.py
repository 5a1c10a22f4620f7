"""Sessions with a vCenter: who is trusted, what is repeated and what is not, how one ends; all against a real peer."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest
import vsphere_estates as estates
from holdfast_command import Command
from pyVmomi import SoapAdapter, vim, vmodl
from vsphere_estates import vsphere_labs

from reconciler.base import errors
from reconciler.sources.vsphere.connections import certificates, credentials, faults, properties, sessions

MACHINES = [{"name": f"vm{number:03}", "disks": []} for number in range(60)]
PASSWORD = "correct horse, battery"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[vsphere_labs.Lab]:
    """A vCenter with machines for three pages."""
    estates.needed()
    folder = tmp_path_factory.mktemp("vcenter")
    with vsphere_labs.Lab.start(folder, machines=MACHINES, password=PASSWORD) as started:
        os.environ.update(started.environment())
        started.mode(maxObjects=25)
        yield started


@pytest.fixture
def session(lab: vsphere_labs.Lab) -> Iterator[sessions.Session]:
    """A session of this test's own; nobody is logged in afterwards."""
    made = sessions.Session("lab", estates.vcenter(lab).spec)
    try:
        yield made
    finally:
        lab.clear_faults()
        made.logout()
        assert lab.state()["sessions"] == 0


def names(session: sessions.Session) -> list[str]:
    """Of all machines."""
    return sorted(one.values["name"] for one in properties.everything(session, vim.VirtualMachine, ("name",), "names"))


ALL = sorted(one["name"] for one in MACHINES)


def calls(lab: vsphere_labs.Lab, name: str) -> int:
    """How often something was called so far."""
    return int(lab.state()["calls"].get(name, 0))


# -- trust -------------------------------------------------------------------------------------------------------------------


def opened(lab: vsphere_labs.Lab, **tls: Any) -> sessions.Session:
    """A session under other words on trust."""
    return sessions.Session("lab", estates.vcenter(lab, tls=tls).spec)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_foreign_authority_is_refused_on_the_loopback_too(lab: vsphere_labs.Lab, host: str) -> None:
    before = calls(lab, "Login")
    for tls in ({"caFile": str(lab.other_ca_file)}, {}):
        other = sessions.Session("lab", estates.vcenter(lab, server=host, tls=tls).spec)
        with pytest.raises(certificates.Untrusted, match=rf"{host}:{lab.port}: its certificate is not trusted"):
            other.read("names", lambda other=other: names(other))
    assert calls(lab, "Login") == before


def test_a_name_that_the_certificate_does_not_hold_is_refused(lab: vsphere_labs.Lab) -> None:
    other = sessions.Session("lab", estates.vcenter(lab, server="127.1").spec)
    with pytest.raises(certificates.Untrusted, match="not trusted"):
        names(other)


def test_a_thumbprint_pins_exactly_one_certificate(lab: vsphere_labs.Lab) -> None:
    for thumbprint in (lab.thumbprint_sha1, lab.thumbprint_sha256, lab.thumbprint_sha1.lower()):
        pinned = opened(lab, thumbprint=thumbprint)
        assert names(pinned) == ALL
        assert pinned.thumbprint == lab.thumbprint_sha1
        pinned.logout()
    wrong = lab.thumbprint_sha1[:-2] + ("00" if not lab.thumbprint_sha1.endswith("00") else "01")
    with pytest.raises(certificates.Untrusted, match=f"thumbprint {lab.thumbprint_sha1}, declared is {wrong}"):
        names(opened(lab, thumbprint=wrong))
    with pytest.raises(certificates.Untrusted, match="declared is"):
        names(opened(lab, thumbprint=":".join(["AB"] * 32)))


def test_an_authority_that_is_put_right_is_read_anew(lab: vsphere_labs.Lab, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(lab.other_ca_file.read_bytes())
    other = opened(lab, caFile=str(file))
    with pytest.raises(certificates.Untrusted):
        names(other)
    file.write_bytes(lab.ca_file.read_bytes())
    assert names(other) == ALL
    other.logout()


def test_a_certificate_that_is_not_trusted_any_more_is_refused_under_way(lab: vsphere_labs.Lab, tmp_path: Path) -> None:
    """What was asked before goes on with the same objects once the file is right."""
    file = tmp_path / "ca.pem"
    file.write_bytes(lab.ca_file.read_bytes())
    other = opened(lab, caFile=str(file))
    machine = other.object(vim.VirtualMachine, lab.machine("vm000")["moref"])
    assert properties.of(other, machine, ("name",), "a name") == {"name": "vm000"}
    file.write_bytes(lab.other_ca_file.read_bytes())
    other.logout()
    other._doubt()
    with pytest.raises(certificates.Untrusted):
        properties.of(other, machine, ("name",), "a name")
    file.write_bytes(lab.ca_file.read_bytes())
    assert properties.of(other, machine, ("name",), "a name") == {"name": "vm000"}
    other.logout()


def test_a_ca_file_that_is_none_says_so(lab: vsphere_labs.Lab, tmp_path: Path) -> None:
    with pytest.raises(errors.SourceError, match=r"missing\.pem: cannot be read as certificates"):
        names(opened(lab, caFile=str(tmp_path / "missing.pem")))


def test_variables_of_other_programs_change_nothing(lab: vsphere_labs.Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(variable, str(lab.ca_file))
    with pytest.raises(certificates.Untrusted):
        names(opened(lab, caFile=str(lab.other_ca_file)))
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(variable, str(lab.other_ca_file))
    right = opened(lab, caFile=str(lab.ca_file))
    assert names(right) == ALL
    right.logout()


def test_a_port_that_speaks_something_else(lab: vsphere_labs.Lab) -> None:
    other = sessions.Session("lab", estates.vcenter(lab, port=1).spec)
    with pytest.raises(errors.SourceError, match=r"VCenter lab: login: 127\.0\.0\.1:1: Connection refused"):
        names(other)


# -- credentials -------------------------------------------------------------------------------------------------------------


def test_a_wrong_password_is_refused_and_not_tried_again_at_once(
    lab: vsphere_labs.Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_LAB_PASSWORD", "a wrong one")
    before = calls(lab, "Login")
    other = sessions.Session("lab", estates.vcenter(lab).spec)
    for _ in range(3):
        with pytest.raises(
            faults.LoginRefused, match=r"VCenter lab: login: 127\.0\.0\.1 refuses the user or the password"
        ) as refused:
            names(other)
        assert "a wrong one" not in str(refused.value)
        assert not refused.value.retryable
    # Attempts lock accounts: it was tried once.
    assert calls(lab, "Login") == before + 1
    monkeypatch.setenv("HOLDFAST_LAB_PASSWORD", PASSWORD)
    assert names(other) == ALL
    other.logout()


def test_a_credential_that_is_not_there(lab: vsphere_labs.Lab, tmp_path: Path) -> None:
    def using(**reference: str) -> sessions.Session:
        return sessions.Session("lab", estates.vcenter(lab, credentialRef=reference).spec)

    with pytest.raises(credentials.NoCredential, match="NOWHERE_USERNAME is not set"):
        names(using(env="NOWHERE"))
    with pytest.raises(credentials.NoCredential, match="username cannot be read"):
        names(using(folder=str(tmp_path)))
    (tmp_path / "username").write_text(lab.username + "\n")
    (tmp_path / "password").write_text("\n")
    with pytest.raises(credentials.NoCredential, match="password is empty"):
        names(using(folder=str(tmp_path)))
    (tmp_path / "password").write_text(PASSWORD + "\n")
    found = using(folder=str(tmp_path))
    assert names(found) == ALL
    assert PASSWORD not in repr(found.login())
    found.logout()


# -- renewal -----------------------------------------------------------------------------------------------------------------


def test_threads_share_a_session_that_ends_under_them(lab: vsphere_labs.Lab, session: sessions.Session) -> None:
    machine = session.object(vim.VirtualMachine, lab.machine("vm000")["moref"])
    before = calls(lab, "Login")
    lab.fault(on="RetrievePropertiesEx", kind="expire", count=6, skip=10)
    everybody = threading.Barrier(8)

    def ask() -> set[str]:
        everybody.wait()
        return {str(properties.of(session, machine, ("name",), "a name")["name"]) for _ in range(25)}

    with futures.ThreadPoolExecutor(8) as pool:
        found = [one.result() for one in [pool.submit(ask) for _ in range(8)]]
    assert found == [{"vm000"}] * 8
    # Whoever notices first logs in; the others use that session.
    assert 1 <= calls(lab, "Login") - before <= 6
    assert lab.state()["sessions"] == 1


def test_what_a_dead_session_refused_is_done_once_after_a_login(
    lab: vsphere_labs.Lab, session: sessions.Session
) -> None:
    machine = session.object(vim.VirtualMachine, lab.machine("vm001")["moref"])
    session.read("names", lambda: names(session))
    lab.fault(on="CreateSnapshot_Task", kind="expire")
    task = session.act("VM vm001: snapshot", lambda: machine.CreateSnapshot_Task("one", "", False, False))
    properties.wait(session, task, "VM vm001: snapshot")
    assert [one["name"] for one in lab.machine("vm001")["snapshots"]] == ["one"]


def test_an_act_whose_answer_broke_is_not_repeated(lab: vsphere_labs.Lab, session: sessions.Session) -> None:
    machine = session.object(vim.VirtualMachine, lab.machine("vm002")["moref"])
    before = calls(lab, "CreateSnapshot_Task")
    lab.fault(on="CreateSnapshot_Task", kind="reset", count=0)
    with pytest.raises(errors.SourceError, match=r"VM vm002: snapshot: 127\.0\.0\.1"):
        session.act("VM vm002: snapshot", lambda: machine.CreateSnapshot_Task("one", "", False, False))
    assert calls(lab, "CreateSnapshot_Task") - before == 1


@pytest.mark.parametrize("kind", ["http503", "reset", "truncate", "expire"])
@pytest.mark.parametrize("on", ["RetrievePropertiesEx", "ContinueRetrievePropertiesEx", "CreateContainerView"])
def test_reading_survives_what_breaks_on_the_way(
    lab: vsphere_labs.Lab, session: sessions.Session, on: str, kind: str
) -> None:
    for count in (1, 2):
        lab.fault(on=on, kind=kind, count=count, afterBytes=100)
        assert names(session) == ALL


def test_a_read_that_breaks_again_and_again_is_given_up(lab: vsphere_labs.Lab, session: sessions.Session) -> None:
    lab.fault(on="RetrievePropertiesEx", kind="http503", count=0)
    with pytest.raises(errors.SourceError, match=r"names: 127\.0\.0\.1:\d+ gave no whole answer: 503") as given_up:
        names(session)
    assert given_up.value.retryable


def test_a_fault_is_told_in_its_own_words(lab: vsphere_labs.Lab, session: sessions.Session) -> None:
    lab.fault(on="RetrievePropertiesEx", kind="fault", fault="InvalidState", message="Not now.")
    with pytest.raises(faults.VSphereFault, match="names: InvalidState: Not now"):
        names(session)
    machine = session.object(vim.VirtualMachine, lab.machine("vm003")["moref"])
    lab.fault(on="CreateSnapshot_Task", kind="task", fault="FileLocked", message="Somebody holds it.")
    task = session.act("VM vm003: snapshot", lambda: machine.CreateSnapshot_Task("one", "", False, False))
    with pytest.raises(faults.VSphereFault, match="VM vm003: snapshot: FileLocked: Somebody holds it") as told:
        properties.wait(session, task, "VM vm003: snapshot")
    assert told.value.fault == "FileLocked"


def test_a_privilege_that_is_missing_is_named(lab: vsphere_labs.Lab) -> None:
    denied = vim.fault.NoPermission(privilegeId="VirtualMachine.State.CreateSnapshot", msg="Permission was denied.")
    told = faults.translated(estates.vcenter(lab).spec, denied, "VM vm003: snapshot")
    assert isinstance(told, faults.PrivilegeMissing)
    assert not told.retryable
    assert "VM vm003: snapshot: NoPermission: Permission was denied." in str(told)
    assert "give the user VirtualMachine.State.CreateSnapshot" in str(told)


def test_what_is_gone_is_told(lab: vsphere_labs.Lab, session: sessions.Session) -> None:
    gone = session.object(vim.VirtualMachine, "vm-999999")
    with pytest.raises(faults.Vanished):
        properties.of(session, gone, ("name",), "VM gone")
    assert properties.of_many(session, [gone], ("name",), "VM gone") == []


def test_a_vcenter_that_was_restarted_is_logged_in_to_again(tmp_path: Path) -> None:
    estates.needed()
    with vsphere_labs.Lab.start(tmp_path / "vcenter", machines=MACHINES[:3], password=PASSWORD) as own:
        found = sessions.Session("lab", estates.vcenter(own).spec)
        assert names(found) == ALL[:3]
        own.crash()
        with pytest.raises(errors.SourceError, match="Connection refused"):
            names(found)
        own.restart()
        assert names(found) == ALL[:3]
        found.logout()
        assert own.state()["sessions"] == 0


def test_a_vcenter_that_shows_nobody_anything_is_logged_in_to(lab: vsphere_labs.Lab, session: sessions.Session) -> None:
    machine = session.object(vim.VirtualMachine, lab.machine("vm002")["moref"])
    lab.mode(anonymousReads=True)
    try:
        for _ in range(2):
            lab.act("", "expireSessions")
            assert properties.of(session, machine, ("name",), "a name") == {"name": "vm002"}
            lab.act("", "expireSessions")
            assert names(session) == ALL
        lab.fault(on="RetrievePropertiesEx", kind="expire", count=0)
        with pytest.raises(faults.VSphereFault, match="a name: NotAuthenticated") as told:
            properties.of(session, machine, ("name",), "a name")
        assert told.value.retryable, "the credential is right"
    finally:
        lab.clear_faults()
        lab.mode(anonymousReads=False)


@pytest.mark.parametrize(
    ("fault", "hidden"),
    [
        ("<fault xsi:type='NoPermission'><privilegeId>System.Read</privilegeId></fault>", {"b": "NoPermission: no!"}),
        ("<fault xsi:type='InvalidProperty'><name>b</name></fault>", {}),
    ],
)
def test_a_property_that_is_missing_is_hidden_or_not_there(fault: str, hidden: dict[str, str]) -> None:
    content = f"""<obj xmlns='urn:vim25' xmlns:xsi='http://www.w3.org/2001/XMLSchema-instance' xsi:type='ObjectContent'>
        <obj type='VirtualMachine'>vm-1</obj><propSet><name>a</name><val xsi:type='xsd:string' xmlns:xsd=
        'http://www.w3.org/2001/XMLSchema'>x</val></propSet><missingSet><path>b</path>
        <fault>{fault}<localizedMessage>no!</localizedMessage></fault></missingSet></obj>"""
    shown = properties._shown(SoapAdapter.Deserialize(content, vmodl.query.PropertyCollector.ObjectContent))
    assert (shown.values, shown.hidden) == ({"a": "x"}, hidden)


def test_a_session_is_renewed_where_it_ended_and_only_there(lab: vsphere_labs.Lab, session: sessions.Session) -> None:
    cookie = session.cookie()
    assert cookie.startswith('vmware_soap_session="')
    before = calls(lab, "Login")
    session.renew()
    assert session.cookie() == cookie
    assert calls(lab, "Login") == before
    lab.fault(on="RetrievePropertiesEx", kind="expire")
    session.renew()
    assert calls(lab, "Login") == before + 1
    assert session.cookie() != cookie
    assert lab.state()["sessions"] == 1


# -- the end -----------------------------------------------------------------------------------------------------------------


def test_an_idle_session_is_logged_out_and_a_held_one_is_not(lab: vsphere_labs.Lab) -> None:
    found = sessions.of(estates.vcenter(lab, idleLogout="1s"))
    with found.held():
        assert names(found) == ALL
        time.sleep(1.6)
        assert lab.state()["sessions"] == 1
    deadline = time.monotonic() + 20
    while lab.state()["sessions"] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert lab.state()["sessions"] == 0
    assert names(found) == ALL
    found.logout()


def test_a_command_leaves_no_session_behind(lab: vsphere_labs.Lab, holdfast: Command) -> None:
    estate = holdfast.using(folder=estates.write_estate(holdfast.folder / "estate", lab), **lab.environment())
    before = calls(lab, "Login")
    estate.run("plan")
    assert calls(lab, "Login") == before + 1
    assert lab.state()["sessions"] == 0


def test_a_controller_that_is_told_to_stop_logs_out(lab: vsphere_labs.Lab, holdfast: Command) -> None:
    estate = holdfast.using(folder=estates.write_estate(holdfast.folder / "estate", lab), **lab.environment())
    estate.run("apply", "--yes")
    before = calls(lab, "Login")
    with estate.start("run", ".") as running:
        deadline = time.monotonic() + 60
        while calls(lab, "Login") == before and time.monotonic() < deadline:
            time.sleep(0.1)
        assert lab.state()["sessions"] == 1
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=60)
    assert lab.state()["sessions"] == 0


@pytest.mark.parametrize("spoilt", ["authority", "password"])
def test_a_command_says_why_a_vcenter_is_not_asked(lab: vsphere_labs.Lab, holdfast: Command, spoilt: str) -> None:
    spec: dict[str, Any] = {}
    variables = lab.environment()
    match spoilt:
        case "authority":
            spec, said = {"tls": {"caFile": str(lab.other_ca_file)}}, "is not trusted"
            variables |= {"REQUESTS_CA_BUNDLE": str(lab.ca_file), "SSL_CERT_FILE": str(lab.ca_file)}
        case _:
            variables["HOLDFAST_LAB_PASSWORD"] = "swordfish is wrong"
            said = "refuses the user or the password"
    folder = estates.write_estate(holdfast.folder / "estate", lab, spec=spec)
    found = holdfast.using(folder=folder, **variables).run("plan", code=None)
    told = found.stdout + found.stderr
    assert said in told
    assert "Traceback" not in told
    for secret in (PASSWORD, "swordfish is wrong"):
        assert secret not in told
    passed = holdfast.using(folder=folder, **variables).run("apply", "--yes", code=None)
    assert said in passed.stdout, "a pass that could ask nobody says so"
    assert lab.state()["sessions"] == 0
