"""``hold``, ``expire``, ``retire``, ``waive`` and LegalHold through the installed command, days apart."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import estate_samples as samples
import pytest

from reconciler.catalog import database, dumps, standings

#: A minute later each day: the slots of a policy are a day after the moment that put it in force.
DAYS = [f"2026-03-{day:02}T12:{28 + day}:00Z" for day in range(2, 30)]

LEGAL_HOLD = """
apiVersion: holdfast/v1alpha1
kind: LegalHold
metadata: {name: case-4711}
spec: {clients: [%s], from: 2026-03-01T00:00:00Z, to: 2026-03-03T00:00:00Z, reason: "case 4711"%s}
"""

APPROVAL = """
apiVersion: holdfast/v1alpha1
kind: Approval
metadata: {name: wrong}
spec: {destruction: "%s", copies: 9, by: backup-team, until: 2026-12-01T00:00:00Z, reason: "change 1"}
"""


class Days:
    """An estate that lives from day to day: a full of each machine a day, kept for two."""

    def __init__(self, estate: samples.Estate) -> None:
        self.estate = estate
        self.command = estate.at("2026-03-02T12:30:00Z")

    def day(self, number: int, *, code: int | None = 0) -> Any:
        """Go on to a day (from 1) and make a pass."""
        self.command = self.estate.at(DAYS[number - 1])
        return self.command.json("apply", ".", "--yes", code=code)

    def copies(self, image: str) -> dict[str, tuple[str, str]]:
        """``IMAGE/NUMBER`` of what is left of an image -> state and the code of what is decided."""
        items = self.command.json("get", "copies")["items"]
        return {
            f"{one['image']}/{one['number']}": (one["state"], (one["decision"] or {"code": ""})["code"])
            for one in items
            if one["image"] == image and one["state"] != "Expired"
        }

    def images(self, client: str = "vm1") -> list[str]:
        """Ids of a client's images, oldest first."""
        found = self.command.json("get", "images")["items"]
        mine = [one for one in found if one["client"] == client]
        return [one["id"] for one in sorted(mine, key=lambda one: one["sequence"])]

    def drift(self) -> dict[tuple[str, str], str]:
        """Code and object -> message."""
        plan = self.command.json("plan", ".")
        return {(one["code"], one["object"]): one["message"] for one in plan["drift"]}

    def events(self) -> list[tuple[str, str]]:
        """Event and object of the whole trail."""
        return [(one["event"], one["object"]) for one in self.command.json("get", "audit")["items"]]


@pytest.fixture
def days(tmp_path: Path) -> Days:
    """Two machines and no pass yet; copies stay for two days."""
    return Days(samples.build(tmp_path, "vm1", "vm2", retention="{type: Fixed, period: 2d}"))


def test_a_held_image_outlives_its_rule_until_it_is_released(days: Days) -> None:
    days.day(1)
    (first,) = days.images()
    said = days.command.json("hold", first, "--reason", "the auditors asked", "--by", "anna")
    assert said["kind"] == "Result" and said["done"] and said["details"]["changed"]
    again = days.command.json("hold", first, "--reason", "the auditors asked", "--by", "anna")
    assert not again["details"]["changed"], "a hold is recorded once"
    days.day(2)
    days.day(5)
    assert days.copies(first) == {f"{first}/1": ("Complete", "Held")}
    assert days.drift()["Held", f"image/{first}"].startswith("held by anna on 2026-03-02T12:30")
    explained = days.command.run("explain", "image", first).stdout
    assert "held by anna" in explained and f"holdfast hold {first} --release" in explained
    assert (
        days.command.run("hold", first, "--release", "--reason", "they are done").stdout.strip().endswith("no longer")
    )
    days.day(5)
    assert days.copies(first) == {}
    assert [event for event, object in days.events() if object == f"image/{first}"][-2:] == [
        "ImageHeld",
        "HoldReleased",
    ]


def test_a_wrong_image_goes_once_approved_and_can_be_taken_back_for_a_day(days: Days) -> None:
    days.day(1)
    (first,) = days.images()
    days.day(2)
    newest = days.images()[-1]
    days.command.run("expire", newest, "--reason", "it was encrypted by the attacker")
    plan = days.command.json("plan", ".")
    assert [one["image"] for one in plan["destruction"]["items"]] == [newest]
    assert ("ExpireOrdered", f"image/{newest}") in days.drift()
    restored = days.command.json("restore", "vm1", "--dry-run", "--to", days.estate.folder / "out")
    assert restored["image"] == first, "nobody is given by default what somebody declared wrong"
    assert days.day(2, code=None)["held"] == 1
    samples.replace(days.estate.folder / "approval.yaml", APPROVAL % plan["destruction"]["digest"])
    days.day(2)
    assert days.copies(newest) == {f"{newest}/1": ("Expiring", "Grace")}
    waits = [one for one in days.command.json("plan", ".")["actions"] if one["image"] == newest]
    assert [(one["state"], one["reason"]["code"]) for one in waits] == [("Waiting", "Grace")]
    refused = days.command.run("restore", "vm1", "--image", newest, "--to", days.estate.folder / "out", code=1)
    assert f"holdfast hold {newest} brings it back" in refused.stderr
    back = days.command.json("expire", newest, "--undo", "--reason", "it was the right one after all")
    assert back["details"]["takenBack"] == [f"{newest}/1"]
    assert days.copies(newest)[f"{newest}/1"][0] == "Complete"
    days.command.run("restore", "vm1", "--image", newest, "--to", days.estate.folder / "out")
    days.command.run("expire", newest, "--reason", "no, it is wrong", "--grace", "0s")
    digest = days.command.json("plan", ".")["destruction"]["digest"]
    assert digest != plan["destruction"]["digest"], "a new order is not approved by the old approval"
    samples.replace(days.estate.folder / "approval.yaml", APPROVAL % digest)
    days.day(2)
    assert days.copies(newest) == {}
    assert days.copies(first)[f"{first}/1"][0] == "Complete", "what is left of the series is its newest now"
    assert ("ExpireOrdered", f"image/{newest}") not in days.drift(), "the order has been carried out"


def test_the_only_image_of_a_series_stays_even_if_it_is_wrong(days: Days) -> None:
    days.day(1)
    (only,) = days.images()
    days.command.run("expire", only, "--reason", "wrong")
    assert days.copies(only) == {f"{only}/1": ("Complete", "NewestImage")}
    plan = days.command.json("plan", ".")
    assert not plan["destruction"]["items"]
    assert [one["state"] for one in plan["actions"] if one["image"] == only] == ["Blocked"]


def test_a_unit_with_a_grace_keeps_what_left_for_a_while(days: Days) -> None:
    storage = days.estate.folder / "storage.yaml"
    samples.replace(storage, storage.read_text().replace("path: storage/fast,", "path: storage/fast, grace: 2d,"))
    days.day(1)
    first, of_other = days.images()[0], days.images("vm2")[0]
    for number in (2, 3, 4):
        days.day(number)
    assert days.copies(first) == {f"{first}/1": ("Expiring", "Grace")}
    said = days.command.run("hold", first, "--reason", "still needed").stdout
    assert f"back again: {first}/1" in said
    refused = days.command.run("expire", of_other, "--undo", "--reason", "r", code=1).stderr
    assert "nobody ordered" in refused and "holdfast hold" in refused
    days.day(8)
    assert days.copies(first) == {f"{first}/1": ("Complete", "Held")}
    assert days.copies(of_other) == {}
    gone = days.command.run("hold", of_other, "--reason", "too late", code=1).stderr
    assert "no copy left" in gone


def test_a_retired_machine_leaves_to_the_last_copy(days: Days) -> None:
    days.day(1)
    (first,) = days.images()
    refused = days.command.run("retire", "vm1", "--reason", "scrapped", code=1).stderr
    assert "policy nightly still matches vm1" in refused
    shutil.rmtree(days.estate.folder / "machines" / "vm1")
    days.day(2)
    days.day(6)
    assert days.copies(first)[f"{first}/1"][1] == "NewestImage"
    assert ("UnprotectedClient", "Client/vm1") in days.drift()
    days.command.run("retire", "vm1", "--reason", "scrapped", "--by", "ben")
    drift = days.drift()
    assert ("UnprotectedClient", "Client/vm1") not in drift
    assert drift["Retired", "Client/vm1"].startswith("retired by ben")
    days.day(6)
    assert days.copies(first) == {}
    days.command.run("retire", "vm1", "--undo", "--reason", "it came back")
    assert ("UnprotectedClient", "Client/vm1") in days.drift()


def test_a_waived_copy_leaves_without_its_child(days: Days) -> None:
    days.estate.write(retention="{type: Fixed, period: 2d}", duplicate="yes")
    pool = days.estate.folder / "storage" / "pool"
    pool.rename(pool.with_name("away"))
    days.day(1, code=None)
    (first,) = days.images()
    days.day(2, code=None)
    days.day(5, code=None)
    assert days.copies(first) == {f"{first}/1": ("Complete", "OwesCopy")}
    assert "names no copy" in days.command.run("waive", first, "--reason", "r", code=64).stderr
    days.command.run("waive", f"{first}:1", "--reason", "the pool burnt down")
    assert ("Waived", f"copy/{first}/1") in days.drift()
    plan = days.command.json("plan", ".")
    assert not [one for one in plan["actions"] if one["type"] == "Duplicate" and one["image"] == first]
    days.day(5, code=None)
    assert days.copies(first) == {}


def hold_clients(days: Days, *names: str, released: str = "") -> None:
    """Write the legal hold."""
    samples.replace(days.estate.folder / "hold.yaml", LEGAL_HOLD % (", ".join(names), released))


def test_a_legal_hold_stands_through_renames_and_without_its_manifest(days: Days) -> None:
    hold_clients(days, "vm1")
    days.day(1)
    (first,) = days.images()
    days.day(2)
    policy = days.estate.folder / "policy.yaml"
    samples.replace(
        policy,
        policy.read_text()
        .replace("name: nightly}", "name: daily}")
        .replace("spec:\n", "spec:\n  previousNames: [nightly]\n"),
    )
    days.day(3)
    (days.estate.folder / "hold.yaml").unlink()
    days.day(8)
    assert days.copies(first) == {f"{first}/1": ("Complete", "LegalHold")}
    message = days.drift()["Held", "LegalHold/case-4711"]
    assert "images of vm1 from 2026-03-01T00:00Z to 2026-03-03T00:00Z" in message and "its manifest is gone" in message
    explained = days.command.run("explain", "image", first).stdout
    assert "under LegalHold case-4711: case 4711" in explained
    assert "in the manifest of LegalHold case-4711" in " ".join(explained.split())
    refused = days.command.run("hold", first, "--release", "--reason", "r", code=1).stderr
    assert "released: {by, at, reason}" in refused
    hold_clients(days, "vm1", released=", released: {by: judge, at: 2026-03-09T00:00:00Z, reason: settled}")
    days.day(8)
    assert days.copies(first) == {}
    assert ("LegalHoldReleased", "LegalHold/case-4711") in days.events()


def test_a_name_that_matches_nothing_is_told_and_the_rest_holds(days: Days) -> None:
    hold_clients(days, "vm1", "vm7")
    days.day(1)
    (problem,) = days.command.json("plan", ".")["problems"]
    assert (problem["code"], problem["severity"], problem["object"]) == ("HF493", "Error", "LegalHold/case-4711")
    assert "vm7" in problem["message"]
    (first,) = days.images()
    days.day(2)
    hold_clients(days, "vm7")
    days.day(6)
    assert days.copies(first) == {f"{first}/1": ("Complete", "LegalHold")}, "a narrower manifest lets nothing go"


def test_a_ruling_is_on_the_units_before_the_command_says_done(days: Days, tmp_path: Path) -> None:
    days.day(1)
    (first,) = days.images()
    days.command.run("hold", first, "--reason", "auditors", "--by", "anna")
    newest = dumps.list_dumps(days.estate.folder / "storage" / "fast")[-1]
    again = database.open_writing(str(tmp_path / "again" / "catalog.sqlite"))
    dumps.load_dump(again, newest.read_bytes())
    (ruling,) = standings.read(again).rulings
    again.close()
    assert (ruling.kind, ruling.object, ruling.by, ruling.reason) == ("Hold", first, "anna", "auditors")


def test_a_living_controller_takes_a_ruling_up(days: Days) -> None:
    days.day(1)
    (first,) = days.images()
    days.day(2)
    days.command.run("hold", first, "--reason", "wait")
    command = days.estate.at(DAYS[5])
    with samples.running(command, days.estate.folder / "log"):
        samples.until(lambda: len(left(command)) == 3, what="the day's backups")
        said = command.json("hold", first, "--release", "--reason", "go")
        assert said["details"]["controller"]
        samples.until(lambda: first not in left(command), what="the expiry of what was released")


def left(command: Any) -> list[str]:
    """Ids of images that still have a copy."""
    return [one["image"] for one in command.json("get", "copies")["items"] if one["state"] != "Expired"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("hold", "img-none", "--reason", "r"), 1, "there is no image img-none"),
        (("expire", "img-none", "--reason", "r"), 1, "holdfast get images lists them"),
        (("waive", "img-none/1", "--reason", "r"), 1, "holdfast get copies lists them"),
        (("retire", "vm11", "--reason", "r"), 1, "did you mean vm1"),
        (("hold", "img-none"), 64, "--reason TEXT"),
        (("expire", "img-none", "--reason", "r", "--grace", "soon"), 64, "such as 24h"),
    ],
)
def test_what_cannot_be_ruled_says_what_to_do(days: Days, arguments: tuple[str, ...], code: int, says: str) -> None:
    days.day(1)
    assert says in days.command.run(*arguments, code=code).stderr
