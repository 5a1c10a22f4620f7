"""``retention preview``: a rule over times from a file, made up, or of the images that are there."""

from __future__ import annotations

from pathlib import Path

import estate_samples
import holdfast_command
import pytest

NIGHTS = "".join(f"2026-11-{day:02d}T21:00:00Z\n" for day in range(1, 21))


def test_the_document_is_a_bare_list_in_the_order_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "times").write_text(NIGHTS)
    command = holdfast_command.Command(folder=tmp_path)
    found = command.json("retention", "preview", "--keep", "daily=2,weekly=2", "--times", "times")
    assert [one["time"] for one in found] == NIGHTS.split()
    kept = {one["time"][8:10]: one["rules"] for one in found if one["keep"]}
    assert kept == {"20": ["daily", "weekly"], "19": ["daily"], "15": ["weekly"]}
    assert found[-1]["message"] == "kept: daily 1 of 2 (2026-11-20), weekly 1 of 2 (2026-W47)"


def test_text_counts_what_is_kept(tmp_path: Path) -> None:
    command = holdfast_command.Command(folder=tmp_path).at("2026-11-20T22:00:00Z")
    said = command.run("retention", "preview", "--fixed", "2d", "--every", "12h", "--count", "6").stdout
    assert "4 of 6 images kept" in said
    assert "Fixed 2d passed 2026-11-20T10:00" in said


def test_the_images_of_a_client_are_judged_where_they_are(converged: estate_samples.Estate) -> None:
    (image,) = converged.command.json("get", "images", "--client", "alpha")["items"]
    found = converged.command.json("retention", "preview", "--keep", "last=1", "--client", "alpha")
    assert [(one["time"], one["keep"], one["rules"]) for one in found] == [(image["time"], True, ["last"])]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--keep", "daly=7", "--every", "1d"], "daly"),
        (["--keep", "daily", "--every", "1d"], "'daily' is no rule"),
        (["--keep", "daily=7"], "say whose times"),
        (["--every", "1d"], "say one rule"),
        (["--keep", "daily=7", "--fixed", "7d", "--every", "1d"], "say one rule"),
        (["--keep", "daily=7", "--time-zone", "Mars/Olympus", "--every", "1d"], "IANA"),
        (["--keep", "daily=7", "--times", "none"], "No such file"),
        (["--keep", "daily=7", "--times", "bad"], "bad:2:1"),
        (["--keep", "daily=7", "--every", "0s"], "longer than nothing"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "bad").write_text("2026-11-01T21:00:00Z\nyesterday\n")
    done = holdfast_command.Command(folder=tmp_path).run("retention", "preview", *words, "-o", "json", code=64)
    assert said in done.stderr
    assert done.stdout == ""
