"""VCenters and policies of virtual machines: what is refused where, what stands where nothing is said, whose paths."""

from __future__ import annotations

from pathlib import Path

import intake_samples
import pytest

from reconciler.api import policies, vcenters
from reconciler.base import diagnostics
from reconciler.intake import codes

DISKS = 'diskImages: {path: /srv/guests, machines: "vm*", disks: ["*.img"]}'
VIRTUAL = """vmware:
      vcenter: lab
      include: [{name: "vm*"}]
"""
CENTER = """\
---
apiVersion: holdfast/v1alpha1
kind: VCenter
metadata: {name: lab}
spec:
  server: vcenter.example
  credentialRef: {env: LAB}
"""
SECOND = """\
---
apiVersion: holdfast/v1alpha1
kind: BackupPolicy
metadata: {name: silver}
spec:
  source:
    vmware: {vcenter: lab, include: [{name: "web*"}], holdingArea: {path: %s, maxSize: 1GiB}}
  schedules: [{name: daily, type: Full, every: 24h}]
  lifecycle: gold
"""


def text(source: str = VIRTUAL, center: str = CENTER, more: str = "") -> str:
    """The sample estate with a VCenter and a policy of its machines."""
    return intake_samples.changed((DISKS, source.rstrip("\n"))) + center + more


def center(line: str) -> str:
    """The VCenter with one more line."""
    return CENTER + f"  {line}\n"


def source(line: str) -> str:
    """The source with one more line."""
    return VIRTUAL + f"      {line}\n"


def complaint(folder: Path, written: str, code: str, said: str) -> diagnostics.Diagnostic:
    """The one diagnostic, which stands at the mark and says so."""
    clean, places = intake_samples.marked(written)
    loaded = intake_samples.load(folder, file=clean)
    (found,) = loaded.diagnostics
    assert (found.code, said in str(found)) == (code, True), str(found)
    # What the schema refuses says itself what is allowed.
    assert found.hint or code.startswith("HF2"), "no next step"
    assert found.position is not None and found.position.file == "file.yaml"
    assert [(found.position.line, found.position.column)] == places
    return found


@pytest.mark.parametrize(
    ("written", "code", "said"),
    [
        # credentials and trust
        (CENTER.replace("{env: LAB}", "@@{}"), codes.VCENTER_SETTING, "none is given"),
        (CENTER.replace("{env: LAB}", "@@{env: LAB, folder: secret}"), codes.VCENTER_SETTING, "both is given"),
        (
            center(f"tls: {{caFile: ca.pem, @@thumbprint: '{':'.join(['0A'] * 20)}'}}"),
            codes.VCENTER_SETTING,
            "not by both",
        ),
        (center("tls: {thumbprint: @@'0A:0B'}"), codes.MALFORMED, "thumbprint"),
        (center("tls: {@@verify: false}"), codes.UNKNOWN_FIELD, "verify"),
        (CENTER.replace("{env: LAB}", "{@@password: secret}"), codes.UNKNOWN_FIELD, "password"),
        (CENTER.replace("vcenter.example", "@@https://vcenter.example/sdk"), codes.MALFORMED, "server"),
        # transports
        (center("transports: [@@san]"), codes.WRONG_WORD, "nbdkit-vddk"),
        (center("transports: @@[]"), codes.OUT_OF_RANGE, "transports"),
        (center("transports: [datastore, @@datastore]"), codes.DUPLICATE_NAME, "twice"),
        # limits
        (center("limits: {perHost: @@0}"), codes.OUT_OF_RANGE, "perHost"),
        (center("datastoreFreeSpace: @@100%"), codes.VCENTER_SETTING, "no snapshot would ever be made"),
        (center("maxSnapshotAge: @@0h"), codes.ZERO_DURATION, "longer than nothing"),
        (center("idleLogout: @@0s"), codes.ZERO_DURATION, "longer than nothing"),
    ],
)
def test_one_mistake_in_a_vcenter_is_one_diagnostic(tmp_path: Path, written: str, code: str, said: str) -> None:
    complaint(tmp_path, text(center=written), code, said)


@pytest.mark.parametrize(
    ("written", "code", "said"),
    [
        # exactly one source
        (f"@@{{{DISKS}, vmware: {{vcenter: lab, include: [{{name: x}}]}}}}", codes.SOURCE_CHOICE, "both is given"),
        ("@@{}", codes.SOURCE_CHOICE, "none is given"),
        # references
        (VIRTUAL.replace("vcenter: lab", "vcenter: @@lap"), codes.DANGLING, "did you mean lab?"),
        (VIRTUAL.replace("vcenter: lab", "vcenter: @@array"), codes.DANGLING, "VCenter"),
        # selections
        (VIRTUAL.replace('[{name: "vm*"}]', "@@[]"), codes.OUT_OF_RANGE, "include"),
        (VIRTUAL.replace('[{name: "vm*"}]', "[{name: x}, @@{}]"), codes.IMPOSSIBLE_GLOB, "matches every machine"),
        (source("exclude: [@@{}]"), codes.IMPOSSIBLE_GLOB, "an empty entry"),
        (VIRTUAL.replace('{name: "vm*"}', "{folder: @@gold}"), codes.IMPOSSIBLE_GLOB, "or */gold"),
        (source("exclude: [{folder: @@vm/old}]"), codes.IMPOSSIBLE_GLOB, "begin with '/'"),
        (source("exclude: [{powerState: @@Running}]"), codes.WRONG_WORD, "Suspended"),
        # disks
        (source("excludeDisks: [{machine: x, disk: y, @@unit: z}]"), codes.UNKNOWN_FIELD, "known here: machine, disk"),
        (source("excludeDisks: [{machine: x, disk: y}, @@{machine: x, disk: y}]"), codes.DUPLICATE_NAME, "y of x"),
        (
            source("excludeDisks: [{machine: x, disk: y}]\n      rdm: [@@{machine: x, disk: y, device: /dev/sdb}]"),
            codes.MACHINE_DISK,
            "stands in excludeDisks too",
        ),
        # holding areas
        (source("holdingArea: {path: /srv/hold, maxSize: @@1000KiB}"), codes.SOURCE_CHOICE, "takes no machine"),
        (
            source("holdingArea: {path: @@/srv/units/pool, maxSize: 1GiB}"),
            codes.OVERLAPPING_PATHS,
            "has the same folder as StorageUnit/pool",
        ),
        (
            source("holdingArea: {path: @@/srv/units/pool/hold, maxSize: 1GiB}"),
            codes.OVERLAPPING_PATHS,
            "the holding area lies inside the folder of StorageUnit/pool (file.yaml:14:9)",
        ),
        # changed blocks
        (source("cbtDistrust: {fullEvery: @@0d}"), codes.ZERO_DURATION, "longer than nothing"),
        (source("cbtDistrust: {share: @@101%}"), codes.MALFORMED, "0% to 100%"),
    ],
)
def test_one_mistake_in_a_source_is_one_diagnostic(tmp_path: Path, written: str, code: str, said: str) -> None:
    whole = text(written)
    if written.startswith("@@{"):
        whole = text().replace("source:\n    " + VIRTUAL.rstrip("\n"), f"source: {written}")
    complaint(tmp_path, whole, code, said)


def test_a_unit_does_not_lie_in_a_holding_area(tmp_path: Path) -> None:
    written = text(source("holdingArea: {path: /srv/hold, maxSize: 1GiB}"))
    written = written.replace("path: /srv/units/pool", "path: @@/srv/hold/pool")
    complaint(
        tmp_path,
        written,
        codes.OVERLAPPING_PATHS,
        "the unit lies inside the folder of the holding area of BackupPolicy",
    )


@pytest.mark.parametrize("path", ["@@/srv/hold", "@@/srv/./hold/", "@@/srv/hold/silver"])
def test_two_policies_do_not_share_a_holding_area(tmp_path: Path, path: str) -> None:
    written = text(source("holdingArea: {path: /srv/hold, maxSize: 1GiB}"), more=SECOND % path)
    found = complaint(tmp_path, written, codes.OVERLAPPING_PATHS, "the holding area of BackupPolicy/nightly")
    assert found.object == "BackupPolicy/silver"


def test_what_is_not_said_has_a_default(tmp_path: Path) -> None:
    wanted = intake_samples.load(tmp_path, file=text()).desired
    assert wanted is not None
    spec = wanted.vcenters["lab"].spec
    assert (spec.port, spec.transports, spec.datastore_free_space) == (443, ("datastore",), "10%")
    assert (str(spec.max_snapshot_age), str(spec.idle_logout)) == ("12h", "15m")
    assert (spec.limits.per_host, spec.limits.per_datastore, spec.limits.open_snapshots) == (4, 4, 32)
    assert spec.tls == vcenters.Tls() and spec.vddk == vcenters.Vddk()
    assert (spec.vddk.nbdkit, spec.vddk.transports) == ("nbdkit", ("san", "hotadd", "nbdssl", "nbd"))
    virtual = policy(tmp_path, text())
    assert (virtual.quiesce, virtual.change_tracking, virtual.consolidate) == ("Try", "Enable", False)
    assert (virtual.holding_area, virtual.rdm, virtual.exclude_disks) == (None, (), ())
    assert (virtual.cbt_distrust.share, virtual.cbt_distrust.full_every) == ("0%", None)


def test_paths_begin_at_the_folder_of_the_manifest(tmp_path: Path) -> None:
    written = text(
        source(
            "holdingArea: {path: hold, maxSize: 1GiB}\n"
            "      rdm: [{machine: db*, disk: Hard disk 2, device: devices/a}, {machine: x, disk: y, device: /dev/sdb}]"
        ),
        center(
            "tls: {caFile: ../ca.pem}\n  transports: [nbdkit-vddk]\n  vddk: {nbdkit: bin/nbdkit, libdir: lib/../vddk}"
        ).replace("{env: LAB}", "{folder: secret}"),
    )
    (tmp_path / "sites").mkdir()
    wanted = intake_samples.load(tmp_path, **{"sites/one": written}).desired
    assert wanted is not None
    spec, here = wanted.vcenters["lab"].spec, tmp_path / "sites"
    assert spec.tls.ca_file == str(tmp_path / "ca.pem")
    assert spec.credential_ref.folder == str(here / "secret")
    assert (spec.vddk.nbdkit, spec.vddk.libdir) == (str(here / "bin/nbdkit"), str(here / "vddk"))
    virtual = wanted.policies["nightly"].spec.source.vmware
    assert virtual is not None and virtual.holding_area is not None
    assert virtual.holding_area.path == str(here / "hold")
    assert [one.device for one in virtual.rdm] == [str(here / "devices/a"), "/dev/sdb"]


@pytest.mark.parametrize(
    "written",
    [
        text(center=center("transports: [nbdkit-vddk, datastore, export]")),
        # A transport may be taken out for a while, and its settings stay.
        text(center=center("vddk: {libdir: /opt/vddk}")),
        text(center=center("transports: [nbdkit-vddk]\n  vddk: {transports: [nbd], compression: fastlz}")),
        text(center=center(f"tls: {{thumbprint: '{':'.join(['ab'] * 32)}'}}")),
        text(center=CENTER.replace("vcenter.example", "127.0.0.1") + "  port: 8989\n"),
        # A name may hold a slash; a folder's pattern may begin anywhere.
        text(
            VIRTUAL.replace('{name: "vm*"}', '{name: "a/b", folder: "*/gold", tag: backup/gold, attributes: {x: "*"}}')
        ),
        text(
            source('excludeDisks: [{machine: "a/b", disk: "*"}]\n      rdm: [{machine: c, disk: "*", device: /dev/x}]')
        ),
        text(source("holdingArea: {path: /srv/units/hold, maxSize: 1MiB}"), more=SECOND % "/srv/units/hold2"),
        text(source("cbtDistrust: {share: 5%, fullEvery: 30d}\n      quiesce: Require\n      changeTracking: AsIs")),
    ],
)
def test_what_can_be_meant_passes(tmp_path: Path, written: str) -> None:
    loaded = intake_samples.load(tmp_path, file=written)
    assert loaded.diagnostics == () and loaded.desired is not None


def policy(folder: Path, written: str) -> vcenters.VMware:
    """The source of the policy."""
    wanted = intake_samples.load(folder, file=written).desired
    assert wanted is not None
    found = wanted.policies["nightly"]
    assert isinstance(found, policies.BackupPolicy) and found.spec.source.vmware is not None
    return found.spec.source.vmware
