"""Fields and kinds: each mistake at its key, its value or the mapping that lacks it, in words a user understands."""

from __future__ import annotations

from pathlib import Path

import intake_samples
import pytest

from reconciler.intake import codes

GOLD = "  lifecycle: gold"
UNKNOWN = "kind: BackupWindow\nmetadata: {name: night}"


def test_the_good_estate_is_good(tmp_path: Path) -> None:
    loaded = intake_samples.load(tmp_path, file=intake_samples.GOOD)
    assert loaded.diagnostics == () and loaded.objects == 7
    assert loaded.desired is not None and loaded.desired.revision == loaded.revision
    assert {item.key for item in loaded.desired.objects()} == {
        ("StorageUnit", "array"),
        ("StorageUnit", "pool"),
        ("StorageUnitGroup", "fast"),
        ("MediaServer", "server"),
        ("BackupWindow", "night"),
        ("StorageLifecyclePolicy", "gold"),
        ("BackupPolicy", "nightly"),
    }


@pytest.mark.parametrize(
    ("old", "new", "code", "said"),
    [
        # kinds and versions
        (UNKNOWN, "kind: @@BackupWindw\nmetadata: {name: night}", codes.UNKNOWN_KIND, "did you mean BackupWindow?"),
        (UNKNOWN, "kind: @@backupwindow\nmetadata: {name: night}", codes.UNKNOWN_KIND, "did you mean BackupWindow?"),
        (UNKNOWN, "kind: @@Secret\nmetadata: {name: night}", codes.UNKNOWN_KIND, "known kinds: StorageUnit,"),
        (UNKNOWN, "kind: @@[BackupWindow]\nmetadata: {name: night}", codes.UNKNOWN_KIND, "not a list"),
        # unknown fields: at the key
        ("  failureDomain: room-1", "  @@failuredomain: room-1", codes.UNKNOWN_FIELD, "did you mean failureDomain?"),
        ("  failureDomain: room-1", "  @@failure_domain: room-1", codes.UNKNOWN_FIELD, "did you mean failureDomain?"),
        ("daily: 14, weekly", "@@dayly: 14, weekly", codes.UNKNOWN_FIELD, "did you mean daily?"),
        ("daily: 14, weekly", "@@period: 14d, weekly", codes.UNKNOWN_FIELD, "known here: type, last, hourly"),
        ("{name: night}", "{name: night, @@lables: {}}", codes.UNKNOWN_FIELD, "did you mean labels?"),
        ("{path: /srv/guests,", "{path: /srv/guests, @@glob: x,", codes.UNKNOWN_FIELD, "known here: path, machines"),
        ("  lifecycle: gold", "  lifecycle: gold\n  @@limit: {}", codes.UNKNOWN_FIELD, "did you mean limits?"),
        # missing fields: at the mapping
        ("  type: Directory\n  path: /srv/units/array", "  @@type: Directory", codes.MISSING_FIELD, "path is required"),
        ("{name: server}", "@@{labels: {a: b}}", codes.MISSING_FIELD, "name is required"),
        ("{type: Fixed, period: 7d}", "@@{type: Fixed}", codes.MISSING_FIELD, "period is required"),
        ("{type: Fixed, period: 7d}", "@@{period: 7d}", codes.MISSING_FIELD, "type is required"),
        # wrong values: at the value
        ("type: Directory", "type: @@Direktory", codes.WRONG_WORD, "did you mean Directory?"),
        ("type: Directory", "type: @@directory", codes.WRONG_WORD, "did you mean Directory?"),
        ("type: Fixed", "type: @@fixed", codes.WRONG_WORD, "did you mean Fixed?"),
        ("type: Fixed", "type: @@{}", codes.WRONG_WORD, "found a mapping"),
        ("[Mon, Tue]", "[Mon, @@Tuesday]", codes.WRONG_WORD, "did you mean Tue?"),
        ("maxConcurrentJobs: 8", 'maxConcurrentJobs: @@"8"', codes.WRONG_TYPE, "expected a whole number"),
        ("maxConcurrentJobs: 8", "maxConcurrentJobs: @@true", codes.WRONG_TYPE, "found true"),
        ("maxConcurrentJobs: 8", "maxConcurrentJobs: @@-1", codes.OUT_OF_RANGE, "the least is 0"),
        ("maxConcurrentJobs: 8", "maxConcurrentJobs: @@10001", codes.OUT_OF_RANGE, "the most is 10000"),
        ("daily: 14,", "daily: @@0,", codes.OUT_OF_RANGE, "the least is 1"),
        ("{tier: fast}", "{tier: @@1}", codes.WRONG_TYPE, 'put it in quotes: "1"'),
        ("{tier: fast}", "@@fast", codes.WRONG_TYPE, "expected a mapping"),
        ("members: [array]", "members: @@array", codes.WRONG_TYPE, "expected a list"),
        ("members: [array]", "members: @@[]", codes.OUT_OF_RANGE, "at least 1 entry"),
        ("members: [array]", "@@members: ", codes.WRONG_TYPE, "found nothing"),
        ("{name: server}", "{name: @@-server}", codes.MALFORMED, "is not a name"),
        ("{name: server}", "{name: @@a b}", codes.MALFORMED, "is not a name"),
        ("{name: server}", f"{{name: @@{'a' * 64}}}", codes.MALFORMED, "at most 63"),
        ("{name: server}", "{name: @@007}", codes.WRONG_TYPE, "put it in quotes"),
        ('start: "20:00"', "start: @@24:00", codes.MALFORMED, "not a time of day"),
        ("duration: 10h", "duration: @@10 hours", codes.MALFORMED, "write a number and a unit"),
        ("duration: 10h", "duration: @@36000", codes.MALFORMED, "found 36000"),
        ("segmentSize: 128KiB", "segmentSize: @@131072", codes.MALFORMED, "a size with its unit"),
        ("segmentSize: 128KiB", "segmentSize: @@0B", codes.MALFORMED, "at least one byte"),
        ("  segmentSize: 128KiB", "  highWaterMark: @@95", codes.MALFORMED, "such as 95%"),
        ("  segmentSize: 128KiB", "  highWaterMark: @@101%", codes.MALFORMED, "from 0% to 100%"),
        ("  timeZone: Europe/Berlin\n  allow", "  timeZone: @@CEST/Berlin\n  allow", codes.MALFORMED, "IANA time zone"),
        ("  timeZone: Europe/Berlin\n  allow", "  timeZone: @@../../etc/passwd\n  allow", codes.MALFORMED, "IANA"),
        ("  lifecycle: gold", "  lifecycle: gold\n  index: @@yes", codes.WRONG_TYPE, "expected true or false"),
        (GOLD, f'{GOLD}\n  suspend: {{reason: @@"", until: 2026-12-01T00:00:00Z}}', codes.OUT_OF_RANGE, "empty"),
        (GOLD, f"{GOLD}\n  suspend: {{reason: x, until: @@2026-12-01}}", codes.MALFORMED, "RFC 3339"),
        (GOLD, f"{GOLD}\n  suspend: @@{{reason: x}}", codes.MISSING_FIELD, "until is required"),
        ("path: /srv/units/array", f"path: @@/{'a' * 4096}", codes.OUT_OF_RANGE, "longer than 4096"),
        # values whose syntax was wrong are not judged again
        ("maxConcurrentJobs: 8", "maxConcurrentJobs: @@1.5", codes.FLOAT, "no floats"),
        ("{name: night}", "{name: night, @@name: day}", codes.DUPLICATE_KEY, "stands twice"),
    ],
)  # fmt: skip
def test_one_mistake_is_one_diagnostic(tmp_path: Path, old: str, new: str, code: str, said: str) -> None:
    loaded = intake_samples.expect(tmp_path, intake_samples.changed((old, new)), code)
    assert said in str(loaded.diagnostics[0])
    assert "pydantic" not in str(loaded.diagnostics[0]) and "Input should" not in str(loaded.diagnostics[0])


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("@@just text\n", (codes.NOT_OBJECT,)),
        ("@@- a\n", (codes.NOT_OBJECT,)),
        ("@@{}\n", (codes.UNKNOWN_VERSION, codes.UNKNOWN_KIND)),
        ("@@kind: BackupWindow\n", (codes.UNKNOWN_VERSION, codes.MISSING_FIELD, codes.MISSING_FIELD)),
        ("apiVersion: @@holdfast/v1\nkind: @@Bakup\n", (codes.UNKNOWN_VERSION, codes.UNKNOWN_KIND)),
        ("@@apiVersion: holdfast/v1alpha1\n", (codes.UNKNOWN_KIND,)),
    ],
)
def test_what_is_no_object_says_so(tmp_path: Path, text: str, problems: tuple[str, ...]) -> None:
    clean, places = intake_samples.marked(text)
    expected = [(*places[min(index, len(places) - 1)], code) for index, code in enumerate(problems)]
    assert intake_samples.found(tmp_path, clean) == sorted(expected)


def test_all_mistakes_of_an_object_are_reported_at_once(tmp_path: Path) -> None:
    text = intake_samples.changed(
        ("type: Directory\n  path: /srv/units/array", "@@type: @@Directry\n  @@paht: /srv/units/array"),
        ("operations:\n    - {name: land,", "operations:\n    - {name: @@_, @@nam: x,"),
        ("period: 7d", "period: @@7"),
        ("[Mon, Tue]", "[@@Mo, @@Di]"),
    )
    intake_samples.expect(
        tmp_path,
        text,
        codes.MISSING_FIELD,
        codes.WRONG_WORD,
        codes.UNKNOWN_FIELD,
        codes.WRONG_WORD,
        codes.WRONG_WORD,
        codes.MALFORMED,
        codes.UNKNOWN_FIELD,
        codes.MALFORMED,
    )


def test_a_diagnostic_names_object_field_and_place(tmp_path: Path) -> None:
    text = intake_samples.changed(("retention: {type: Keep, daily: 14", "retention: {type: Keep, daily: x"))
    (found,) = intake_samples.load(tmp_path, gold=text).diagnostics
    assert found.object == "StorageLifecyclePolicy/gold"
    assert found.path == "spec.operations[1].retention.daily"
    assert found.position is not None and found.position.file == "gold.yaml"


def test_an_object_with_errors_still_answers_to_its_name(tmp_path: Path) -> None:
    text = intake_samples.changed(
        ("type: DedupePool", "type: @@Pool"), ("maxConcurrentJobs: 8", "maxConcurrentJobs: @@x")
    )
    intake_samples.expect(tmp_path, text, codes.WRONG_WORD, codes.WRONG_TYPE)


def test_a_flood_of_unknown_fields_is_cut_and_ends_soon(tmp_path: Path) -> None:
    labels = "".join(f"  k{number}: v\n" for number in range(20_000))
    loaded = intake_samples.load(tmp_path, file=intake_samples.GOOD + labels)
    assert len(loaded.diagnostics) == 101 and "19900 more problems" in loaded.diagnostics[-1].message


def test_snake_case_names_are_not_accepted(tmp_path: Path) -> None:
    text = intake_samples.changed(("maxConcurrentJobs: 8", "@@max_concurrent_jobs: 8"))
    intake_samples.expect(tmp_path, text, codes.UNKNOWN_FIELD)
