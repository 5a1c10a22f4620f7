"""What a Restore or a ServiceLevel may not say, alone and held against the policies that it is about."""

from __future__ import annotations

from pathlib import Path

import intake_samples
import pytest

from reconciler.base import diagnostics
from reconciler.intake import codes, estates

RESTORE = """\
apiVersion: holdfast/v1alpha1
kind: Restore
metadata: {name: drill}
spec:
  client: vm1
  asOf: 2026-11-20T00:00:00Z
  target: {folder: out}
  format: qcow2
"""
VCENTER = """\
---
apiVersion: holdfast/v1alpha1
kind: VCenter
metadata: {name: lab}
spec: {server: vc.example.org, credentialRef: {env: VC}}
"""
LEVEL = """\
apiVersion: holdfast/v1alpha1
kind: ServiceLevel
metadata: {name: erp}
spec:
  selector: {matchLabels: {service: erp}}
  rpo: 80h
  copies: 2
  failureDomains: 2
  retention: 56d
  verified: {content: 30d}
"""
LABELLED = ("metadata: {name: nightly}", "metadata: {name: nightly, labels: {service: erp}}")


def load(folder: Path, text: str, *changes: tuple[str, str]) -> estates.Loaded:
    (folder / "estate.yaml").write_text(intake_samples.changed(LABELLED, *changes))
    (folder / "extra.yaml").write_text(text)
    return estates.load(folder)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{folder: out}", "{}", "none is given"),
        ("{folder: out}", "{folder: out, device: /dev/sdx}", "both is given"),
        ("  client: vm1", "  client: vm1\n  image: img-1", "not by both"),
        ("  client: vm1", "  client: vm1\n  copy: 2", "no image is named"),
        ("  client: vm1", "  client: vm1\n  subformat: flat", "belongs to vmdk"),
        ("{folder: out}\n  format: qcow2", "{device: /dev/sdx}", "will be lost"),
        ("{folder: out}", "{device: /dev/sdx}\n  overwrite: true", "raw bytes"),
        ("{folder: out}\n  format: qcow2", "{device: /dev/sdx}\n  overwrite: true\n  disks: [a, b]", "one disk, not 2"),
        ("{folder: out}", "{folder: out, vmware: {vcenter: lab}}", "both is given"),
        ("{folder: out}", "{vmware: {vcenter: lab}}", "a machine in a vCenter has disks of its own form"),
        ("{folder: out}", "{folder: out, staged: true}", "a staged folder has disks of its own form"),
        ("{folder: out}\n  format: qcow2", "{vmware: {vcenter: lab}, staged: true}", "of a folder, and none is given"),
        ("{folder: out}\n  format: qcow2", "{vmware: {vcenter: lab}}\n  overwrite: true", "never overwritten"),
        (
            "{folder: out}\n  format: qcow2",
            "{vmware: {vcenter: lab}}\n  salvage: true",
            "disks in a folder, not a machine",
        ),
    ],
)
def test_a_restore_says_where_to_and_from_what(tmp_path: Path, old: str, new: str, said: str) -> None:
    loaded = load(tmp_path, RESTORE.replace(old, new) + VCENTER)
    (found,) = loaded.diagnostics
    assert found.code == codes.RESTORE_SETTING and said in str(found)
    assert loaded.desired is None


def test_the_vcenter_of_a_restore_must_be_there(tmp_path: Path) -> None:
    text = RESTORE.replace("{folder: out}\n  format: qcow2", "{vmware: {vcenter: lap}}") + VCENTER
    (found,) = load(tmp_path, text).diagnostics
    assert found.code == codes.DANGLING and "did you mean lab" in str(found.hint)
    assert "extra.yaml:7:30" in str(found) and "no VCenter named lap" in str(found)
    assert load(tmp_path, text.replace("lap", "lab")).desired is not None


def test_the_paths_of_a_restore_begin_at_its_manifest(tmp_path: Path) -> None:
    loaded = load(tmp_path, RESTORE)
    assert loaded.desired is not None, loaded.diagnostics
    assert loaded.desired.restores["drill"].spec.target.folder == str(tmp_path / "out")


@pytest.mark.parametrize(
    ("old", "new", "code", "said"),
    [
        ("copies: 2", "copies: 3", codes.PROMISE_BROKEN, "keeps 2 of every image"),
        ("failureDomains: 2", "failureDomains: 3", codes.SERVICE_LEVEL, "cannot lie in 3"),
        ("retention: 56d", "retention: 400d", codes.PROMISE_BROKEN, "keeps images that long"),
        ("rpo: 80h", "rpo: 1h", codes.PROMISE_BROKEN, "back up more often"),
        ("rpo: 80h", "rpo: 0h", codes.ZERO_DURATION, "longer than nothing"),
        ("content: 30d", "boot: 0d", codes.ZERO_DURATION, "longer than nothing"),
        ("service: erp", "service: crm", codes.SERVICE_LEVEL, "about nothing"),
    ],
)
def test_a_promise_that_cannot_be_kept_is_told_at_once(
    tmp_path: Path, old: str, new: str, code: str, said: str
) -> None:
    loaded = load(tmp_path, LEVEL.replace(old, new))
    (found,) = loaded.diagnostics
    assert found.code == code and said in str(found)
    assert (found.severity is diagnostics.Severity.WARNING) == ("crm" in new) == (loaded.desired is not None)


BUFFER = ("retention: {type: Fixed, period: 7d}}", "retention: {type: ExpireAfterCopy}}")


@pytest.mark.parametrize(
    ("text", "changes", "said"),
    [
        (LEVEL.replace("  failureDomains: 2\n", ""), (BUFFER,), "keeps 1 of every image"),
        (LEVEL.replace("  copies: 2\n", ""), (BUFFER,), "all lie in room-2"),
        (
            LEVEL.replace("  copies: 2\n", ""),
            (BUFFER, ("members: [array]", "members: [array, pool]"), ("storage: pool", "storage: fast")),
            "cannot lie in more failure domains",
        ),
    ],
)
def test_copies_that_do_not_stay_keep_no_promise(
    tmp_path: Path, text: str, changes: tuple[tuple[str, str], ...], said: str
) -> None:
    found = [str(one) for one in load(tmp_path, text, *changes).diagnostics if one.code == codes.PROMISE_BROKEN]
    assert len(found) == 1 and said in found[0]


@pytest.mark.parametrize("folder", ["/srv/units/pool", "/srv/units/../units/array/out"])
def test_nothing_is_restored_into_the_folder_of_a_unit(tmp_path: Path, folder: str) -> None:
    (found,) = load(tmp_path, RESTORE.replace("{folder: out}", f"{{folder: {folder}}}")).diagnostics
    assert found.code == codes.RESTORE_SETTING and "lies inside it" in str(found)
    assert "extra.yaml:7:20" in str(found)


@pytest.mark.parametrize(
    ("change", "said"),
    [(("out", "out"), 0), (("qcow2", "raw\n  overwrite: true"), 0), (("qcow2", "qcow2\n  overwrite: true"), 1)],
)
def test_two_restores_that_replace_what_the_other_made_are_told(
    tmp_path: Path, change: tuple[str, str], said: int
) -> None:
    other = RESTORE.replace("drill", "again").replace("out", "./out/").replace(*change)
    found = load(tmp_path, f"{RESTORE}---\n{other}").diagnostics
    assert [one.code for one in found] == [codes.RESTORE_SETTING] * said
    assert all(one.severity is diagnostics.Severity.WARNING and "same target" in str(one) for one in found)


def test_a_promise_that_can_be_kept_says_nothing(tmp_path: Path) -> None:
    loaded = load(tmp_path, LEVEL)
    assert not loaded.diagnostics
    assert loaded.desired is not None and loaded.desired.service_levels["erp"].spec.copies == 2


def test_an_empty_promise_is_none(tmp_path: Path) -> None:
    text = LEVEL[: LEVEL.index("  rpo")]
    (found,) = load(tmp_path, text).diagnostics
    assert found.code == codes.SERVICE_LEVEL and "promises nothing" in str(found)


def test_copies_that_fail_together_break_a_promise(tmp_path: Path) -> None:
    loaded = load(tmp_path, LEVEL, ("      storage: pool\n", "      storage: array\n"))
    found = {one.code: str(one) for one in loaded.diagnostics}
    assert "all lie in room-1" in found[codes.PROMISE_BROKEN]
