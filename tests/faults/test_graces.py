"""A copy that was decided to go comes back whole, or not at all, whenever the process that deletes it dies."""

from __future__ import annotations

import datetime as dt
import json
import signal

import pytest
from fault_estates import Estate


@pytest.fixture
def patient(grown: Estate) -> Estate:
    """An estate whose fast unit gives two hours of grace; the next pass decides that some of its copies go."""
    manifests = grown.folder / "estate.yaml"
    text = manifests.read_text()
    manifests.write_text(text.replace("path: units/fast,", "path: units/fast, grace: 2h,"))
    return grown


def leaving(estate: Estate) -> set[tuple[str, int]]:
    """Copies that are on their way out."""
    return {(one["image"], one["number"]) for one in estate.items("copies") if one["state"] == "Expiring"}


def die(estate: Estate, point: str) -> None:
    """A pass that is killed at a point."""
    found = estate.command.crashing(point).run("apply", "--yes", ".", code=None)
    assert found.returncode == -signal.SIGKILL, f"{point} was not passed: {found.stderr}"


def hold_all(estate: Estate, copies: set[tuple[str, int]]) -> set[tuple[str, int]]:
    """Hold every image of these copies; the copies that came back, which are Complete again."""
    back: set[tuple[str, int]] = set()
    for image in sorted({image for image, _ in copies}):
        found = estate.command.run("hold", image, "--reason", "not yet", "-o", "json", code=None)
        assert found.returncode == 0 or "has begun" in found.stderr or "no copy left" in found.stderr
        for one in json.loads(found.stdout)["details"]["takenBack"] if found.returncode == 0 else ():
            held, number = one.split("/")
            back.add((held, int(number)))
    states = {(one["image"], one["number"]): one["state"] for one in estate.items("copies")}
    assert {copy: states[copy] for copy in back} == dict.fromkeys(back, "Complete")
    return back


def require_whole(estate: Estate, back: set[tuple[str, int]], gone: set[tuple[str, int]]) -> None:
    """What came back is on its unit, what did not is gone; every byte that is left is right.

    A hold keeps one good copy of an image: where the pool has another, the rule lets the first one go anew.
    """
    states = {(one["image"], one["number"]): one["state"] for one in estate.items("copies")}
    assert all(states[copy] in ("Complete", "Expiring") for copy in back)
    assert {copy: states[copy] for copy in gone} == dict.fromkeys(gone, "Expired")
    held = set(estate.held()["fast"])
    assert {image for image, _ in back} <= held and not {image for image, _ in gone} & held
    assert estate.require_bytes()


def test_a_crash_before_the_grace_is_over_loses_nothing(patient: Estate) -> None:
    die(patient, "expire.marked")
    begun = leaving(patient)
    assert begun
    assert hold_all(patient, begun) == begun
    patient.command.run("apply", "--yes", ".")
    require_whole(patient, begun, set())


@pytest.mark.parametrize("point", ["expire.begun", "directory.delete-renamed", "expire.deleted", "expire.recorded"])
def test_what_has_begun_goes_and_the_rest_comes_back(patient: Estate, point: str) -> None:
    patient.command.run("apply", "--yes", ".")
    decided = leaving(patient)
    assert len(decided) > 1
    patient.command.run("apply", "--yes", ".")
    assert leaving(patient) == decided, "nothing goes while its grace runs"
    assert patient.require_bytes()
    patient.set_clock(patient.now() + dt.timedelta(hours=3))
    die(patient, point)
    back = hold_all(patient, decided)
    gone = decided - back
    assert gone, "the one whose deletion had begun did not come back"
    patient.command.run("apply", "--yes", ".")
    require_whole(patient, back, gone)
