"""What can be spelled but cannot be meant, within one object and across several."""

from __future__ import annotations

from pathlib import Path

import intake_samples
import pytest

from reconciler.base import diagnostics, times
from reconciler.intake import codes, estates

FIXED = "{type: Fixed, period: 7d}"
KEEP = "{type: Keep, daily: 14, weekly: 8}"
POOL = "  segmentSize: 128KiB"
ARRAY = "  failureDomain: room-1"
GOLD = "  lifecycle: gold"
ALLOW = '{days: [Mon, Tue], start: "20:00", duration: 10h}'
DENY = '{days: [Tue], start: "21:00", duration: 1h}'
WEEKLY = 'type: Full, cron: "0 21 * * Sat", timeZone: Europe/Berlin'
DAILY = 'type: Incremental, cron: "0 21 * * Sun-Fri", timeZone: Europe/Berlin'
SOURCE = "      source: land\n"
STORAGE = "      storage: pool\n"
POOL_PATH = "path: /srv/units/pool"
ARRAY_PATH = "path: /srv/units/array"


WARNINGS = {codes.SHARED_FAILURE_DOMAIN, codes.UNREACHED_UNIT}


@pytest.mark.parametrize(
    ("old", "new", "code", "said"),
    [
        # retention
        (KEEP, "@@{type: Keep}", codes.EMPTY_KEEP, "keeps nothing"),
        (KEEP, "@@{type: Keep, keepOldest: true, prefer: Full, timeZone: UTC}", codes.EMPTY_KEEP, "keeps nothing"),
        (KEEP, "{type: Keep, within: @@0d}", codes.ZERO_DURATION, "longer than nothing"),
        (KEEP, "{type: @@ExpireAfterCopy}", codes.LEAF_EXPIRES_AFTER_COPY, "no operation copies from dedupe"),
        (FIXED, "{type: Fixed, period: @@1d}", codes.RETENTION_TOO_SHORT, "the schedule daily of BackupPolicy/nightly"),
        (FIXED, "{type: Fixed, period: @@0d}", codes.ZERO_DURATION, "longer than nothing"),
        (KEEP, "{type: Fixed, period: @@47h}", codes.RETENTION_TOO_SHORT, "only after 2d"),
        (STORAGE, STORAGE.replace("pool", "@@array"), codes.SHARED_FAILURE_DOMAIN, "domain room-1"),
        # chains
        (STORAGE, "      storage: second\n      schedules: @@[daily]\n", codes.CHAIN_WITHOUT_FULL, "add weekly-full"),
        (f"{{name: weekly-full, {WEEKLY}}}\n    - ", "", codes.SERIES_WITHOUT_FULL, "no schedule makes a Full"),
        # schedules
        (DAILY, DAILY + ", @@every: 24h", codes.CRON_OR_EVERY, "not both"),
        (f"{{name: weekly-full, {WEEKLY}}}", "@@{name: weekly-full, type: Full}", codes.CRON_OR_EVERY, "needs cron"),
        (WEEKLY, 'type: Full, cron: @@"0 21 * *"', codes.BAD_CRON, "has 4 fields"),
        (WEEKLY, 'type: Full, cron: @@"61 21 * * Sat"', codes.BAD_CRON, "not a cron expression"),
        (WEEKLY, 'type: Full, cron: @@"0 21 30 2 *"', codes.BAD_CRON, "Bad day-of-month"),
        (WEEKLY, 'type: Full, cron: @@"@daily"', codes.BAD_CRON, "1 fields"),
        (WEEKLY, "type: Full, every: @@0h", codes.ZERO_DURATION, "longer than nothing"),
        (WEEKLY, WEEKLY + ", @@fullEvery: 7d", codes.MISPLACED_FULL_EVERY, "this one is Full"),
        ("Incremental, cron", "Cumulative, @@fullEvery: 7d, cron", codes.MISPLACED_FULL_EVERY, "is Cumulative"),
        (DAILY, DAILY + ", fullEvery: @@0d", codes.ZERO_DURATION, "longer than nothing"),
        (DAILY, DAILY + ", startingDeadline: @@0h", codes.ZERO_DURATION, "longer than nothing"),
        # windows
        (DENY, '{days: [Mon, Tue], start: "20:00", duration: 10h}', codes.IMPOSSIBLE_WINDOW, "never opens"),
        (DENY, '{days: [Sun], start: "00:00", duration: 7d}', codes.IMPOSSIBLE_WINDOW, "never opens"),
        (ALLOW, ALLOW.replace("10h", "@@0h"), codes.IMPOSSIBLE_WINDOW, "longer than nothing"),
        (ALLOW, ALLOW.replace("10h", "@@169h"), codes.IMPOSSIBLE_WINDOW, "at most 7d"),
        (DENY, DENY.replace("1h", "@@1mo"), codes.IMPOSSIBLE_WINDOW, "at most 7d"),
        # units
        (ARRAY, "  lowWaterMark: @@98%", codes.WATER_MARKS, "must be below"),
        (ARRAY, "  highWaterMark: @@80%", codes.WATER_MARKS, "must be below"),
        (ARRAY, "  highWaterMark: 70%\n  lowWaterMark: @@75%", codes.WATER_MARKS, "75%"),
        (ARRAY, "  @@segmentSize: 128KiB", codes.POOL_SETTING, "a Directory has none"),
        (ARRAY, "  @@compression: {level: 3}", codes.POOL_SETTING, "a Directory has none"),
        (ARRAY, "  @@scrub: {every: 30d}", codes.POOL_SETTING, "a Directory has none"),
        (ARRAY, "  immutability: {period: @@0d}", codes.ZERO_DURATION, "longer than nothing"),
        (ARRAY, "  grace: @@0h", codes.ZERO_DURATION, "longer than nothing"),
        (POOL, "  segmentSize: @@100KiB", codes.POOL_SETTING, "power of two"),
        (POOL, "  segmentSize: @@2KiB", codes.POOL_SETTING, "from 4KiB to 1MiB"),
        (POOL, "  segmentSize: @@2MiB", codes.POOL_SETTING, "from 4KiB to 1MiB"),
        (POOL_PATH, "path: @@/srv/units/array", codes.OVERLAPPING_PATHS, "same folder as"),
        (POOL_PATH, "path: @@/srv/units/x/../array/", codes.OVERLAPPING_PATHS, "same folder"),
        (POOL_PATH, "path: @@//srv/units/array", codes.OVERLAPPING_PATHS, "same folder"),
        (POOL_PATH, "path: @@/srv/units/array/pool", codes.OVERLAPPING_PATHS, "folder of StorageUnit/array"),
        (ARRAY_PATH, "path: @@/srv/units/pool/a/b", codes.OVERLAPPING_PATHS, "folder of StorageUnit/pool"),
        # policies
        ('machines: "vm*"', "machines: @@a/b*", codes.IMPOSSIBLE_GLOB, "put the folder into path"),
        ('machines: "vm*"', 'machines: @@".."', codes.IMPOSSIBLE_GLOB, "no folder"),
        ('["*.img"]', '["*.img", @@"disks/*.img"]', codes.IMPOSSIBLE_GLOB, "name the file alone"),
        (GOLD, f"{GOLD}\n  hooks: {{before: [x], timeout: @@0s}}", codes.ZERO_DURATION, "longer than nothing"),
        (STORAGE, f"{STORAGE}      verify: {{content: @@0d}}\n", codes.ZERO_DURATION, "longer than nothing"),
        # media servers
        ("[array, pool]", "[array]", codes.UNREACHED_UNIT, "no MediaServer reaches pool"),
    ],
)  # fmt: skip
def test_one_mistake_is_one_diagnostic(tmp_path: Path, old: str, new: str, code: str, said: str) -> None:
    text = intake_samples.changed((old, new))
    if "second" in new:
        text += SECOND
    clean, places = intake_samples.marked(text)
    loaded = intake_samples.load(tmp_path, file=clean)
    (found,) = loaded.diagnostics
    assert found.code == code and said in str(found)
    assert (found.severity is diagnostics.Severity.WARNING) == (code in WARNINGS) == (loaded.desired is not None)
    if places:
        assert found.position is not None and (found.position.line, found.position.column) == places[0]


SECOND = """\
---
apiVersion: holdfast/v1alpha1
kind: StorageUnit
metadata: {name: second}
spec: {type: Directory, path: /srv/units/second}
---
apiVersion: holdfast/v1alpha1
kind: MediaServer
metadata: {name: other}
spec: {storageUnits: [second, array]}
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (FIXED, "{type: Fixed, period: 2d}"),
        (FIXED, "{type: ExpireAfterCopy}"),
        (FIXED, "{type: Forever}"),
        (KEEP, "{type: Keep, withinYearly: 5y}"),
        (POOL, "  segmentSize: 4KiB"),
        (POOL, "  segmentSize: 1MiB"),
        (POOL, "  compression: {algorithm: zstd, level: 19}"),
        (DENY, '{days: [Tue], start: "00:00", duration: 24h}'),
        (ALLOW, ALLOW.replace("10h", "7d")),
        (DAILY, "type: Incremental, every: 12h, fullEvery: 7d"),
        (GOLD, f"{GOLD}\n  suspend: {{reason: storage move, until: 2001-01-01T00:00:00Z}}"),
        (SOURCE, f"{SOURCE}      schedules: [daily]\n"),
        ("path: /srv/units/pool", "path: /srv/units/array2"),
    ],
)
def test_what_can_be_meant_passes(tmp_path: Path, old: str, new: str) -> None:
    assert intake_samples.found(tmp_path, intake_samples.changed((old, new))) == []


def test_a_week_long_retention_fits_a_weekly_schedule_in_every_zone(tmp_path: Path) -> None:
    text = intake_samples.changed((f"\n    - {{name: daily, {DAILY}, window: night}}", ""))
    assert intake_samples.found(tmp_path, text) == []
    shorter = text.replace("period: 7d", "period: 167h")
    assert [code for _, _, code in intake_samples.found(tmp_path, shorter)] == [codes.RETENTION_TOO_SHORT]


def test_full_every_is_a_full_for_its_series_and_its_filter(tmp_path: Path) -> None:
    text = intake_samples.changed(
        (f"{{name: weekly-full, {WEEKLY}}}\n    - ", ""),
        (DAILY, f"{DAILY}, fullEvery: 7d"),
        (SOURCE + STORAGE, f"{SOURCE}      schedules: [daily]\n      storage: second\n"),
    )
    assert intake_samples.found(tmp_path, text + SECOND) == []


def test_a_series_without_full_may_go_to_pools(tmp_path: Path) -> None:
    text = intake_samples.changed(
        (f"{{name: weekly-full, {WEEKLY}}}\n    - ", ""),
        ("storage: fast,", "storage: pool,"),
        (SOURCE + STORAGE, SOURCE + "      storage: second-pool\n"),
    )
    text += SECOND.replace("second", "second-pool").replace("Directory", "DedupePool")
    assert intake_samples.found(tmp_path, text) == []


def test_a_pool_belongs_to_one_media_server(tmp_path: Path) -> None:
    text = intake_samples.GOOD + SECOND.replace("[second, array]", "[second, array, @@pool]")
    loaded = intake_samples.expect(tmp_path, text, codes.SHARED_POOL)
    assert "media server server already" in loaded.diagnostics[0].message


def test_without_media_servers_every_unit_is_reached(tmp_path: Path) -> None:
    parts = [part for part in intake_samples.GOOD.split("---\n") if "kind: MediaServer" not in part]
    assert intake_samples.found(tmp_path, "---\n".join(parts)) == []


def test_members_of_a_group_in_one_domain_with_the_copy_are_seen(tmp_path: Path) -> None:
    text = intake_samples.changed(
        ("members: [array]", "members: [array, second]"),
        ("storage: pool\n", "storage: @@second\n"),
    )
    loaded = intake_samples.expect(tmp_path, text + SECOND, codes.SHARED_FAILURE_DOMAIN)
    assert "the unit second" in loaded.diagnostics[0].message


def test_an_approval_that_has_run_out_is_told_to_who_asks_what_time_it_is(tmp_path: Path) -> None:
    spec = f"{{destruction: 'blake3:{'0' * 64}', copies: 3, by: ann, until: @@2026-03-01T00:00:00Z, reason: x}}"
    head = "---\napiVersion: holdfast/v1alpha1\nkind: Approval\nmetadata: {name: shorten}\nspec: "
    text, ((line, column),) = intake_samples.marked(intake_samples.GOOD + head + spec + "\n")
    (tmp_path / "file.yaml").write_text(text)
    (found,) = estates.load(tmp_path, times.parse("2026-03-01T00:00:00Z")).diagnostics
    assert found.position is not None and (found.position.line, found.position.column) == (line, column)
    assert (found.code, found.severity) == (codes.APPROVAL_EXPIRED, diagnostics.Severity.WARNING)
    assert estates.load(tmp_path, times.parse("2026-02-28T23:59:00Z")).diagnostics == ()
    # A plan says it as drift, so that it is not said twice.
    assert estates.load(tmp_path).diagnostics == ()


HOLD = "---\napiVersion: holdfast/v1alpha1\nkind: LegalHold\nmetadata: {name: case-7}\nspec: "


@pytest.mark.parametrize(
    ("spec", "code", "said"),
    [
        ("@@{reason: case 7}", codes.EMPTY_HOLD, "it would hold nothing"),
        ("{clients: [vm1], from: @@2026-02-01T00:00:00Z, to: 2026-02-01T00:00:00Z, reason: x}", codes.IMPOSSIBLE_SPAN,
         "from must be before to"),
        ("{clients: [vm1], reason: x, released: {by: ann, at: @@2026-03-02T00:00:00Z, reason: y}}", codes.RELEASED_LATER,
         "has not come yet"),
    ],
)  # fmt: skip
def test_a_legal_hold_that_cannot_be_meant(tmp_path: Path, spec: str, code: str, said: str) -> None:
    text, ((line, column),) = intake_samples.marked(f"{intake_samples.GOOD}{HOLD}{spec}\n")
    (tmp_path / "file.yaml").write_text(text)
    (found,) = estates.load(tmp_path, times.parse("2026-03-01T00:00:00Z")).diagnostics
    assert found.position is not None and (found.position.line, found.position.column) == (line, column)
    assert found.code == code and said in found.message


def test_a_legal_hold_as_it_is_meant(tmp_path: Path) -> None:
    spec = '{clients: ["vm*"], from: 2026-01-01T00:00:00Z, to: 2026-02-01T00:00:00Z, reason: case 7}'
    (tmp_path / "file.yaml").write_text(f"{intake_samples.GOOD}{HOLD}{spec}\n")
    loaded = estates.load(tmp_path, times.parse("2026-03-01T00:00:00Z"))
    assert loaded.desired is not None and list(loaded.desired.legal_holds) == ["case-7"]


def test_every_code_is_explained_and_numbered_by_its_group() -> None:
    listed = {value for name, value in vars(codes).items() if name.isupper() and isinstance(value, str)}
    assert listed == set(codes.MEANINGS) and len(listed) == len(codes.MEANINGS)
    assert all(code.startswith("HF") and code[2] in "1234" and len(code) == 5 for code in listed)


def test_an_estate_with_warnings_alone_is_in_force(tmp_path: Path) -> None:
    loaded = intake_samples.load(tmp_path, file=intake_samples.changed(("[array, pool]", "[array]")))
    assert isinstance(loaded, estates.Loaded) and loaded.desired is not None
    assert [one.severity for one in loaded.diagnostics] == [diagnostics.Severity.WARNING]


@pytest.mark.parametrize("line", ["@@hooks: {before: [/bin/true]}", "@@freeSpace: Skip", "@@exclude: [PageFile]"])
def test_a_catalog_needs_nothing_that_guests_need(tmp_path: Path, line: str) -> None:
    plain = 'diskImages: {path: /srv/guests, machines: "vm*", disks: ["*.img"]}'
    assert intake_samples.load(tmp_path, file=intake_samples.changed((plain, "catalog: {}"))).diagnostics == ()
    text = intake_samples.changed((plain, "catalog: {}")).rstrip() + f"\n  {line}\n"
    intake_samples.expect(tmp_path, text, codes.CATALOG_SETTING)
