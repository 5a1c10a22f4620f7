"""``explain`` from outside: words that agree with ``get copies`` and ``plan``."""

from __future__ import annotations

import pytest
from estate_samples import Estate


def test_an_image_says_why_its_copies_stay(converged: Estate) -> None:
    image = converged.get("images", "--client", "alpha")[0]["id"]
    copies = {one["number"]: one for one in converged.get("copies") if one["image"] == image}
    document = converged.command.json("explain", "image", image)
    assert (document["kind"], document["of"], document["name"]) == ("Explanation", "image", image)
    said = {one["about"]: one for one in document["sentences"]}
    assert set(said) == {f"copy {number} on {one['unit']}" for number, one in copies.items()}
    for number, copy in copies.items():
        one = said[f"copy {number} on {copy['unit']}"]
        assert (one["code"], one["message"]) == (copy["decision"]["code"], copy["decision"]["message"])
        assert one["release"]


def test_a_client_and_its_policy_say_when_they_are_backed_up_next(converged: Estate) -> None:
    plan = converged.command.json("plan", ".")
    slots = {
        one["address"]: one["at"] for one in plan["actions"] if one["type"] == "Backup" and one["client"] == "beta"
    }
    said = converged.command.json("explain", "client", "beta")["sentences"]
    assert {one["about"]: one["at"] for one in said if one["about"].startswith("backup/")} == slots
    said = converged.command.json("explain", "policy", "nightly")["sentences"]
    assert "schedule" in said[0]["about"]
    assert len([one for one in said if one["about"].startswith("backup/")]) == 3


def test_a_unit_says_what_it_takes(converged: Estate) -> None:
    text = converged.command.run("explain", "unit", "fast").stdout
    assert "it takes new copies" in text
    assert text.startswith("unit fast\n")


@pytest.mark.parametrize("kind", ["image", "client", "policy", "unit", "vcenter"])
def test_what_is_not_there_is_named(converged: Estate, kind: str) -> None:
    done = converged.command.run("explain", kind, "nothing", code=1)
    assert "nothing" in done.stderr
