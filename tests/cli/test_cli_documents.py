"""What ``-o json`` prints: exactly the pinned keys, sorted, with times, sizes and ids in their formats."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from estate_samples import Estate

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")
MILLIS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
REVISION = re.compile(r"dir@blake3:[0-9a-f]{64}")
DIGEST = re.compile(r"blake3-1m:[0-9a-f]{64}")

ITEMS = {
    "images": (
        "ImageList",
        "id client clientId policy schedule lifecycle type state time sequence revision parent changes consistency"
        " sizeBytes disks warnings copies",
    ),
    "copies": (
        "CopyList",
        "image number client policy operation unit state createdAt storedBytes expiresAt decision",
    ),
    "jobs": (
        "JobList",
        "id address type state attempt client policy image copy unit sourceUnit startedAt finishedAt wallSeconds"
        " scannedBytes nonZeroBytes sentBytes storedBytes cacheHitRatio streams error",
    ),
    "clients": (
        "ClientList",
        "id name slug source policies images oldestImage newestImage lastSuccess conditions",
    ),
    "units": (
        "UnitList",
        "name id type path state failureDomain capacityBytes freeBytes usedBytes images runningJobs maxConcurrentJobs",
    ),
    "policies": ("PolicyList", "name lifecycle schedules clients images lastSuccess nextSlot state"),
    "audit": ("AuditList", "id time actor event object details"),
}
PLAN = (
    "apiVersion kind formatVersion now horizon revision inForce digest problems drift configuration actions destruction"
    " summary"
)
ACTION = "address type state at after policy schedule client image copy operation unit sourceUnit bytes reason"
DIAGNOSTIC = "severity code file line column object path message hint"


def keys(value: dict[str, Any]) -> list[str]:
    return sorted(value)


def names(text: str) -> list[str]:
    return sorted(text.split())


def times_in(value: Any, key: str = "") -> list[tuple[str, str]]:
    """Every (key, text) that a name says is a time."""
    if isinstance(value, dict):
        return [pair for name, inner in value.items() for pair in times_in(inner, name)]
    if isinstance(value, list):
        return [pair for inner in value for pair in times_in(inner, key)]
    named = key in ("time", "now", "horizon", "at", "since", "nextSlot", "lastSuccess") or key.endswith(("At", "Image"))
    return [(key, value)] if named and isinstance(value, str) else []


@pytest.mark.parametrize("what", sorted(ITEMS))
def test_lists_have_exactly_the_pinned_keys_and_are_sorted_by_the_first(converged: Estate, what: str) -> None:
    kind, pinned = ITEMS[what]
    document = converged.command.json("get", what)
    assert (document["apiVersion"], document["kind"]) == ("holdfast/v1alpha1", kind)
    assert keys(document) == ["apiVersion", "items", "kind"]
    assert document["items"]
    for item in document["items"]:
        assert keys(item) == names(pinned)
    first = pinned.split()[0]
    order = [(item[first], item.get("number", 0)) for item in document["items"]]
    assert order == sorted(order)
    wrong = [pair for pair in times_in(document) if not TIME.fullmatch(pair[1])]
    assert wrong == []


def test_images_say_what_they_are(converged: Estate) -> None:
    images = converged.get("images")
    assert [image["client"] for image in images] == ["alpha", "beta", "gamma"]
    gamma = images[2]
    assert re.fullmatch(r"gamma-\d{8}T\d{6}Z-[0-9a-f]{6}", gamma["id"])
    assert [keys(disk) for disk in gamma["disks"]] == [names("name sizeBytes digest")] * 2
    assert [(disk["name"], disk["sizeBytes"]) for disk in gamma["disks"]] == [
        ("data.img", 1 << 20),
        ("system.img", 1 << 20),
    ]
    assert all(DIGEST.fullmatch(disk["digest"]) for disk in gamma["disks"])
    assert gamma["sizeBytes"] == 2 << 20
    assert (gamma["type"], gamma["state"], gamma["parent"], gamma["copies"]) == ("Full", "Complete", None, [1, 2])
    assert REVISION.fullmatch(gamma["revision"])
    assert len({image["sequence"] for image in images}) == 3


def test_copies_name_the_rule_that_keeps_them(converged: Estate) -> None:
    copies = [copy for copy in converged.get("copies") if copy["client"] == "alpha"]
    assert [(copy["number"], copy["unit"], copy["state"]) for copy in copies] == [
        (1, "fast", "Complete"),
        (2, "pool", "Complete"),
    ]
    assert [keys(copy["decision"]) for copy in copies] == [["code", "message"]] * 2
    assert "Fixed 7d" in copies[0]["decision"]["message"]
    assert copies[0]["expiresAt"] is not None
    assert copies[1]["expiresAt"] is None
    assert copies[1]["decision"]["code"] == "Forever"


def test_jobs_count_what_they_did_to_the_millisecond(converged: Estate) -> None:
    jobs = [job for job in converged.get("jobs") if job["client"] == "alpha" or job["image"]]
    backup = next(job for job in jobs if job["type"] == "Backup" and job["client"] == "alpha")
    assert re.fullmatch(r"j-\d{6}", backup["id"])
    assert MILLIS.fullmatch(backup["startedAt"]) and MILLIS.fullmatch(backup["finishedAt"])
    assert backup["startedAt"] <= backup["finishedAt"]
    assert (backup["state"], backup["attempt"], backup["error"]) == ("Succeeded", 1, None)
    assert backup["scannedBytes"] == backup["nonZeroBytes"] == 1 << 20
    assert backup["wallSeconds"] > 0
    assert backup["address"].startswith("backup/nightly/alpha@")
    duplicate = next(job for job in jobs if job["type"] == "Duplicate")
    assert (duplicate["unit"], duplicate["sourceUnit"], duplicate["copy"]) == ("pool", "fast", 1)


def test_filters_narrow_the_lists(converged: Estate) -> None:
    image = converged.get("images", "--client", "beta")
    assert [one["client"] for one in image] == ["beta"]
    assert len(converged.get("copies", "--image", image[0]["id"])) == 2
    assert {one["unit"] for one in converged.get("copies", "--unit", "pool")} == {"pool"}
    assert converged.get("jobs", "--job-state", "Running") == []
    assert len(converged.get("audit", "--limit", "2")) == 2


def test_plan_has_exactly_the_pinned_keys(converged: Estate, empty: Estate) -> None:
    document = empty.command.json("plan", "--horizon", "48h")
    assert keys(document) == names(PLAN)
    assert (document["kind"], document["formatVersion"]) == ("Plan", "1.0")
    assert {action["state"] for action in document["actions"]} == {"Due", "Planned"}
    for action in document["actions"]:
        assert keys(action) == names(ACTION)
        assert keys(action["reason"]) == ["code", "message"]
    assert {keys(one)[0] for one in document["configuration"]} == {"change"}
    assert [keys(one) for one in document["configuration"]] == [names("change kind name fields")] * 4
    assert keys(document["destruction"]) == names("digest copies bytes estimated approved items clients")
    assert keys(document["summary"]) == names("due waiting blocked planned changes")
    assert document["revision"] == converged.command.json("plan", empty.folder)["revision"]
    assert all(TIME.fullmatch(text) for _, text in times_in(document))


def test_validation_result_and_diagnostics(empty: Estate) -> None:
    (empty.folder / "sub").mkdir()
    (empty.folder / "sub" / "bad.yaml").write_text("apiVersion: holdfast/v1alpha1\nkind: LegalHolt\n")
    document = empty.command.json("validate", code=4)
    assert keys(document) == names("apiVersion kind valid errors warnings objects revision diagnostics")
    (found,) = document["diagnostics"]
    assert keys(found) == names(DIAGNOSTIC)
    assert (found["severity"], found["file"], found["line"], found["column"]) == ("Error", "sub/bad.yaml", 2, 7)


def test_restore_result(converged: Estate, tmp_path: Path) -> None:
    document = converged.command.json("restore", "gamma", "--to", tmp_path / "out")
    assert keys(document) == names(
        "apiVersion kind client image imageTime copy unit format subformat target dryRun state wallSeconds"
        " estimatedSeconds dataBytes resumedBytes neededBytes freeBytes copies disks notes"
    )
    assert [keys(disk) for disk in document["disks"]] == [
        names("name path sizeBytes writtenBytes resumedBytes readBackBytes digest verified")
    ] * 2
    assert (document["state"], document["dryRun"], document["format"]) == ("Verified", False, "raw")
    image = converged.get("images", "--client", "gamma")[0]
    assert {disk["digest"] for disk in document["disks"]} == {disk["digest"] for disk in image["disks"]}


def test_pool_stats_are_arithmetic_over_all_images(converged: Estate) -> None:
    stats = converged.command.json("pool", "stats", "pool")
    assert keys(stats) == names(
        "apiVersion kind unit images logicalBytes nonZeroBytes storedBytes attachmentBytes ratio nonZeroRatio segments"
        " containers deadBytes reclaimableBytes cacheHitRatio generation"
    )
    assert (stats["images"], stats["logicalBytes"], stats["nonZeroBytes"]) == (3, 4 << 20, 4 << 20)
    of_disks = stats["storedBytes"] - stats["attachmentBytes"]
    assert stats["ratio"] == pytest.approx(stats["logicalBytes"] / of_disks, rel=0.01)
    assert stats["nonZeroRatio"] == pytest.approx(stats["nonZeroBytes"] / of_disks, rel=0.01)


def test_every_other_command_prints_one_whole_document(converged: Estate) -> None:
    image = converged.get("images")[0]["id"]
    for arguments, kind in {
        ("status",): "Status",
        ("logs", "j-000001"): "JobLog",
        ("describe", "Client", "alpha"): "Description",
        ("describe", "image", image): "Description",
        ("describe", "unit", "pool"): "Description",
        ("describe", "policy", "nightly"): "Description",
        ("describe", "job", "j-000001"): "Description",
        ("apply", ".", "--yes"): "ApplyResult",
        ("pool", "check", "pool"): "Result",
    }.items():
        document = converged.command.json(*arguments)
        assert (document["apiVersion"], document["kind"]) == ("holdfast/v1alpha1", kind)


def test_text_fits_80_columns_without_colour(converged: Estate) -> None:
    narrow = converged.command.using(COLUMNS="80")
    for arguments in (["get", "images"], ["get", "copies"], ["get", "jobs"], ["get", "clients"], ["get", "units"],
                      ["get", "policies"], ["get", "audit"], ["plan"], ["status"], ["plan", "-v"]):  # fmt: skip
        text = narrow.run(*arguments).stdout
        assert text.strip()
        assert [line for line in text.splitlines() if len(line) > 80] == [], arguments
        assert "\x1b" not in text


def test_a_plan_as_markdown_begins_with_its_marker(empty: Estate) -> None:
    text = empty.command.run("plan", ".", "-o", "markdown", "--max-bytes", "4096").stdout
    assert text.startswith("<!-- holdfast-plan -->\n## Holdfast plan for `dir@blake3:")
    assert len(text.encode()) <= 4096
    assert "### Configuration" in text
    empty.command.run("plan", ".", "-o", "markdown", "--max-bytes", "10", code=64)
