"""Names: unique where they must be, present where they are used, and one mistake reported once."""

from __future__ import annotations

from pathlib import Path

import intake_samples
import pytest

from reconciler.intake import codes

LAND = "{name: land, type: Backup, storage: fast, retention: {type: Fixed, period: 7d}}"
GROUP = "metadata: {name: fast}\n"
SOURCE = "      source: land\n"
RETENTION = "retention: {type: Forever}"


def other(kind: str, name: str, spec: str) -> str:
    return f"---\napiVersion: holdfast/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n"


def dup(name: str, source: str, rest: str = "") -> str:
    return f"\n    - {{name: {name}, type: Duplication, source: {source}, storage: pool, {RETENTION}{rest}}}"


@pytest.mark.parametrize(
    ("old", "new", "code", "said"),
    [
        # dangling
        ("storage: fast,", "storage: @@fats,", codes.DANGLING, "did you mean fast?"),
        ("storage: fast,", "storage: @@tape,", codes.DANGLING, "no StorageUnit or StorageUnitGroup named tape"),
        ("members: [array]", "members: [array, @@aray]", codes.DANGLING, "did you mean array?"),
        ("members: [array]", "members: [array, @@fast]", codes.DANGLING, "is a StorageUnitGroup"),
        ("[array, pool]", "[array, pool, @@pol]", codes.DANGLING, "did you mean pool?"),
        ("      window: night", "      window: @@nights", codes.DANGLING, "did you mean night?"),
        ("window: night}", "window: @@day}", codes.DANGLING, "no BackupWindow named day"),
        ("  lifecycle: gold", "  lifecycle: @@Gold", codes.DANGLING, "did you mean gold?"),
        (SOURCE, "      source: @@lnd\n", codes.DANGLING, "did you mean land?"),
        (SOURCE, SOURCE + "      schedules: [weekly-full, @@weekly]\n", codes.DANGLING, "did you mean weekly-full?"),
        # twice
        ("members: [array]", "members: [array, @@array]", codes.DUPLICATE_NAME, "stands twice"),
        ("[array, pool]", "[array, pool, @@pool]", codes.DUPLICATE_NAME, "stands twice"),
        ("{name: daily, type", "{name: @@weekly-full, type", codes.DUPLICATE_NAME, "two schedules are named"),
        # operations
        (SOURCE, "      source: @@dedupe\n", codes.SOURCE_CYCLE, "dedupe from dedupe"),
        ("type: Backup, storage", "type: Backup, @@source: dedupe, storage", codes.SOURCE_MISPLACED, "has no source"),
        # previous names
        ("  segmentSize: 128KiB", "  previousNames: [@@array]", codes.PREVIOUS_NAME, "still in use"),
        ("  segmentSize: 128KiB", "  previousNames: [@@pool]", codes.PREVIOUS_NAME, "still in use"),
        ("{name: daily,", "{name: daily, previousNames: [@@weekly-full],", codes.PREVIOUS_NAME, "still in use"),
        ("  lifecycle: gold", "  lifecycle: gold\n  previousNames: [@@nightly]", codes.PREVIOUS_NAME, "still in use"),
        (SOURCE, SOURCE + "      previousNames: [@@land]\n", codes.PREVIOUS_NAME, "still in use"),
    ],
)  # fmt: skip
def test_one_mistake_is_one_error(tmp_path: Path, old: str, new: str, code: str, said: str) -> None:
    loaded = intake_samples.expect(tmp_path, intake_samples.changed((old, new)), code)
    assert said in str(loaded.diagnostics[0])


def test_two_operations_cannot_share_a_name(tmp_path: Path) -> None:
    text = intake_samples.changed(("    - name: dedupe", "    - name: @@land"), (SOURCE, "      source: @@land\n"))
    loaded = intake_samples.expect(tmp_path, text, codes.DUPLICATE_NAME, codes.SOURCE_CYCLE)
    assert "two operations are named land" in str(loaded.diagnostics[0])


def test_a_duplicate_names_both_places(tmp_path: Path) -> None:
    again = intake_samples.GOOD.split("---\n")[4].replace("night", "night")
    loaded = intake_samples.load(tmp_path, a=intake_samples.GOOD, b=f"# again\n{again}")
    (found,) = loaded.diagnostics
    assert found.code == codes.DUPLICATE_OBJECT and loaded.desired is None
    assert str(found).startswith("b.yaml:4:18: error HF301: BackupWindow/night: metadata.name: ")
    assert "a.yaml:30:18" in found.message


def test_the_same_name_may_be_used_by_different_kinds(tmp_path: Path) -> None:
    text = intake_samples.GOOD.replace("night", "gold").replace("goldly", "gold")
    assert intake_samples.found(tmp_path, text) == []


def test_a_unit_and_a_group_cannot_share_a_name(tmp_path: Path) -> None:
    text = intake_samples.changed((GROUP, "metadata: {name: @@array}\n"), ("storage: fast,", "storage: array,"))
    loaded = intake_samples.expect(tmp_path, text, codes.AMBIGUOUS_STORAGE)
    assert "file.yaml:3:18" in loaded.diagnostics[0].message


@pytest.mark.parametrize("count", [0, 2, 3])
def test_a_lifecycle_has_exactly_one_backup(tmp_path: Path, count: int) -> None:
    backups = [f"{{name: b{n}, type: Backup, storage: u{n}, {RETENTION}}}" for n in range(count)]
    operations = [
        *backups,
        f"{{name: d, type: Duplication, source: {'b0' if count else 'd'}, storage: u9, {RETENTION}}}",
    ]
    text = "".join(other("StorageUnit", f"u{n}", f"{{type: DedupePool, path: /srv/{n}}}") for n in (*range(count), 9))
    text += other("StorageLifecyclePolicy", "gold", f"{{operations: [{', '.join(operations)}]}}")
    found = [code for _, _, code in intake_samples.found(tmp_path, text)]
    assert found.count(codes.BACKUP_COUNT) == (1 if count == 0 else count - 1)


def test_a_duplication_needs_a_source(tmp_path: Path) -> None:
    text = intake_samples.changed(("    - name: dedupe", "    - @@name: dedupe"), (SOURCE, ""))
    loaded = intake_samples.expect(tmp_path, text, codes.SOURCE_MISPLACED)
    assert loaded.diagnostics[0].hint == "name the operation whose copy is duplicated: land"


def test_every_operation_of_a_circle_is_named(tmp_path: Path) -> None:
    more = dup("b", "@@c") + dup("c", "@@d") + dup("d", "@@b") + dup("e", "d")
    text, places = intake_samples.marked(intake_samples.changed((LAND, LAND + more)))
    found = [one for one in intake_samples.found(tmp_path, text) if one[2] == codes.SOURCE_CYCLE]
    assert found == [(*place, codes.SOURCE_CYCLE) for place in places]


def test_a_previous_name_has_one_heir(tmp_path: Path) -> None:
    text = intake_samples.changed(
        ("  failureDomain: room-1", "  previousNames: [old]\n  failureDomain: room-1"),
        ("  failureDomain: room-2", "  previousNames: [older, @@old]\n  failureDomain: room-2"),
    )
    loaded = intake_samples.expect(tmp_path, text, codes.PREVIOUS_NAME)
    assert "claimed by array" in loaded.diagnostics[0].message


def test_objects_of_a_file_that_cannot_be_read_are_not_reported_as_missing(tmp_path: Path) -> None:
    lines = intake_samples.GOOD.split("---\n")
    loaded = intake_samples.load(tmp_path, a="a: [\n---\n" + lines[4], b="---\n".join(lines[:4] + lines[5:]))
    assert [one.code for one in loaded.diagnostics] == [codes.NOT_YAML]


def test_a_broken_policy_may_have_the_schedule_that_a_filter_names(tmp_path: Path) -> None:
    text = intake_samples.changed(
        (SOURCE, SOURCE + "      schedules: [weekly]\n"), ("  lifecycle: gold", "  @@livecycle: gold")
    )
    clean, _ = intake_samples.marked(text)
    assert codes.DANGLING not in [code for _, _, code in intake_samples.found(tmp_path, clean)]


def test_a_filter_is_not_judged_while_no_policy_uses_the_lifecycle(tmp_path: Path) -> None:
    text = intake_samples.changed((SOURCE, SOURCE + "      schedules: [weekly]\n"))
    assert intake_samples.found(tmp_path, "---\n".join(text.split("---\n")[:-1])) == []


def test_references_cross_files(tmp_path: Path) -> None:
    parts = {f"part{number}": part for number, part in enumerate(reversed(intake_samples.GOOD.split("---\n")))}
    loaded = intake_samples.load(tmp_path, **parts)
    assert loaded.diagnostics == () and loaded.objects == 7
