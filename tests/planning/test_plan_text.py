"""The page a reviewer reads, whole, as files beside this one. ``GOLDEN=write`` writes them anew: then read the diff."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path

import planning_samples as samples
import pytest
import test_comments
import test_golden
from hypothesis import given
from hypothesis import strategies as st

from reconciler.api.documents import plans
from reconciler.base import diagnostics
from reconciler.planning import actions, planfile, planner
from reconciler.reports import folds, tables
from reconciler.reports import plans as reports

GOLDEN = Path(__file__).parent / "golden"


def first() -> plans.Plan:
    """Nothing is in force yet."""
    return planfile.document(test_golden.world().plan())


def converged() -> plans.Plan:
    """Everything is done."""
    world = test_golden.world()
    world.settle()
    world.pass_by(hours=10)
    world.settle()
    return planfile.document(world.plan())


def shortened() -> plans.Plan:
    """Twelve machines lose most of their restore points."""
    return test_comments.shortened(12)


def noisy() -> plans.Plan:
    """Four hundred images of many machines still owe their copy in the pool, and the pool is away for some reason."""
    wanted = samples.small()
    spec = wanted.lifecycles["gold"].spec
    names = [f"diskimages:/srv/guests/vm{number:03}" for number in range(400)]
    found = [
        samples.series(samples.image(number + 1, samples.ago(hours=1), spec=spec), client=name)
        for number, name in enumerate(names)
    ]
    machines = tuple(samples.machine(name) for name in names)
    return planfile.document(planner.plan(wanted, samples.seen(wanted, *found, machines=machines), samples.NOW))


def troubled() -> plans.Plan:
    """Manifests that draw warnings, a pool that is away, a machine that is there twice, copies that were lost."""
    wanted = samples.small(samples.policy("silver", lifecycle="nowhere"))
    spec = wanted.lifecycles["gold"].spec
    lost = [
        samples.image(
            number,
            samples.ago(days=9 - number),
            samples.copy(state="Lost"),
            samples.copy(2, "dedupe", "deep"),
            spec=spec,
        )
        for number in range(1, 9)
    ]
    twice = (samples.machine(), dataclasses.replace(samples.machine(), source="/srv/other/oblVM1"))
    seen = samples.seen(wanted, samples.series(*lost), machines=twice)
    away = dataclasses.replace(seen.units["deep"], state="Offline", message="/srv/deep is not a folder; mount it")
    seen = dataclasses.replace(seen, units={**seen.units, "deep": away}, in_force="main@sha1:" + "ab" * 20)
    warnings = tuple(
        diagnostics.Diagnostic(
            severity=diagnostics.Severity.WARNING,
            code="HF431",
            message="copies of land and dedupe may both lie in the failure domain one",
            position=diagnostics.Position(file=f"sites/{number}.yaml", line=7, column=3),
            object=f"StorageLifecyclePolicy/site-{number}",
            hint="write them to units that do not fail together",
        )
        for number in range(30)
    )
    plan = planner.plan(wanted, seen, samples.NOW)
    return planfile.document(dataclasses.replace(plan, problems=(*plan.problems, *warnings)))


PAGES: dict[str, Callable[[], plans.Plan]] = {
    "first": first, "converged": converged, "shortened": shortened, "noisy": noisy, "troubled": troubled,
}  # fmt: skip


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_as_it_is_written_down(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    # What exactly a digest covers is told elsewhere.
    text = re.sub(r"blake3:[0-9a-f]{64}", "blake3:" + "0" * 64, reports.text(PAGES[name](), verbose=False)) + "\n"
    text = re.sub(r"destroy-[0-9a-f]{8}", "destroy-00000000", text)
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        file.write_text(text)
    assert text == file.read_text()
    assert all(tables.measure(line) <= 80 for line in text.splitlines() if " " in line.strip())


@pytest.mark.parametrize("name", PAGES)
def test_a_long_page_leaves_nothing_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    document = PAGES[name]()
    text = reports.text(document, verbose=True)
    held = {(item.image, item.copy_number) for item in document.destruction.items}
    for action in document.actions:
        assert action.address in text or (action.image, action.copy_number) in held
    for item in document.destruction.items:
        assert f"! {item.image} copy {item.copy_number} on {item.unit}" in text
    for problem in document.problems:
        assert problem.message in text
    assert "-v shows all" not in text


def test_many_of_a_kind_are_three_lines_and_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = reports.text(noisy(), verbose=False)
    assert text.count("+ duplicate/img-") == 3
    assert "  … and 397 more copies, 388 KiB (-v shows all)\n" in text
    assert text.splitlines()[-1] == "Plan: 400 copies due."


def test_nothing_to_do_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    wanted = samples.estate(samples.unit("fast"))
    plan = planner.plan(wanted, samples.seen(wanted, machines=()), samples.NOW)
    text = reports.text(planfile.document(plan), verbose=False)
    assert text == "No changes. 0 actions until 2026-11-24 21:00."


def test_colours_change_no_word() -> None:
    for make in PAGES.values():
        document = make()
        plain, coloured = (reports.text(document, verbose=True, colour=colour) for colour in (False, True))
        assert re.sub(r"\x1b\[\d+m", "", coloured) == plain
        assert "\x1b[" in coloured


@given(words=st.lists(st.text("abc→»é漢", min_size=1, max_size=12), min_size=1, max_size=30), width=st.integers(20, 90))
def test_wrapping_keeps_every_word_and_the_width(words: list[str], width: int) -> None:
    lines = folds.Line(words[0], " ".join(words[1:])).rendered(width)
    assert " ".join(" ".join(lines).split()).replace(":", "") == " ".join(words)
    assert all(tables.measure(line) <= width for line in lines if " " in line.strip(": "))


def test_every_type_of_action_has_its_words() -> None:
    assert set(reports._NOUNS) == {type.value for type in actions.Type}


def test_what_changed_in_a_long_list_is_shown_and_not_cut_away() -> None:
    entry = {"name": "vm*", "folder": None, "datacenter": None, "attributes": {}}
    rest = [{**entry, "name": f"a-rather-long-name-{number}*"} for number in range(4)]
    field = plans.FieldItem(path="spec.source.vmware.include", before=[entry, *rest], after=[entry, *rest, entry])
    change = plans.ConfigurationItem(change="Update", kind="BackupPolicy", name="vms", fields=(field,))
    document = converged().model_copy(update={"configuration": (change,)})
    shown = reports.text(document, verbose=False, colour=False)
    assert shown.count('"vm*"') == 3 and "folder" not in shown
