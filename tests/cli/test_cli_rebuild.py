"""The state folder is lost wholly: the units and the manifests give back what the catalog knew, and nothing goes unasked."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import estate_samples as samples
import pytest
from estate_samples import Estate

#: Another policy on one machine, a backup of the catalog, and a hold.
MORE = """
apiVersion: holdfast/v1alpha1
kind: StorageLifecyclePolicy
metadata: {name: single}
spec: {operations: [{name: only, type: Backup, storage: pool, retention: {type: Keep, last: 2}}]}
---
apiVersion: holdfast/v1alpha1
kind: BackupPolicy
metadata: {name: weekly}
spec:
  source: {diskImages: {path: machines, machines: "delta"}}
  schedules: [{name: full, type: Full, every: 7d}]
  lifecycle: single
---
apiVersion: holdfast/v1alpha1
kind: BackupPolicy
metadata: {name: the-catalog}
spec: {source: {catalog: {}}, schedules: [{name: daily, type: Incremental, every: 24h, fullEvery: 30d}], lifecycle: gold}
---
apiVersion: holdfast/v1alpha1
kind: LegalHold
metadata: {name: case-7}
spec: {clients: [beta], reason: case 7}
"""
#: Tables whose rows a rebuild changes by intention: what waits, numbers passed over, who leads, the trail's last line,
#: the rebuild's own name.
#: Alarms that rose after the last dump are told anew.
CHANGED = {
    "alarms",
    "copies",
    "counters",
    "leases",
    "audit",
    "alembic_version",
    "sqlite_sequence",
    "releases",
    "job_lines",
    "facts",
}
#: Nobody knows any more whether this was made before.
OVERWRITING = """
apiVersion: holdfast/v1alpha1
kind: Restore
metadata: {name: again}
spec: {client: alpha, target: {folder: out}, overwrite: true}
"""
REBUILD = ("catalog", "rebuild", "--from", "fast", "pool", "--reason", "the disk died")
#: When the schedules begin to count.
FIRST = "2026-03-02T11:50:00Z"
END = "2026-03-11T12:30:00Z"


def day(number: int) -> str:
    """Half an hour after a slot of the daily schedules."""
    return f"2026-03-{number:02d}T12:20:00Z"


def rows(estate: Estate) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table of a catalog in a file."""
    db = sqlite3.connect(f"file:{estate.state / 'catalog.sqlite'}?mode=ro", uri=True)
    names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    found = {name: sorted(db.execute(f"SELECT * FROM {name}"), key=repr) for name in names}
    db.close()
    return found


def copies(estate: Estate, *fields: str, clock: str = END) -> dict[tuple[str, int], tuple[Any, ...]]:
    """Some fields of every copy that has not expired."""
    found = estate.at(clock).json("get", "copies")["items"]
    return {(one["image"], one["number"]): tuple(one[f] for f in fields) for one in found if one["state"] != "Expired"}


def held(estate: Estate) -> set[tuple[str, str]]:
    """What lies on the units: unit and image."""
    fast, pool = estate.folder / "storage" / "fast", estate.folder / "storage" / "pool"
    return {("fast", path.parent.name) for path in fast.glob("*/*/image.json")} | {
        ("pool", path.stem) for path in pool.glob("manifests/*.json")
    }


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Estate:
    """An estate with something of everything; what is damaged and what is ruled on stands in ``facts.json``."""
    estate = samples.build(
        tmp_path_factory.mktemp("rebuild") / "estate", "alpha", "beta", "gamma", "delta",
        duplicate="yes", type="Incremental", every="24h, fullEvery: 2d", machines="[abg]*",
    )  # fmt: skip
    (estate.folder / "more.yaml").write_text(MORE)
    estate.apply(clock=FIRST)
    waived = next(one for one in estate.get("images") if one["client"] == "alpha")["id"]
    for number in (3, 4):
        (estate.folder / "machines" / "alpha" / "system.img").write_bytes(bytes([number]) * samples.MIB)
        estate.apply(clock=day(number))
    estate.write(
        duplicate="yes", type="Incremental", every="24h, fullEvery: 2d", machines="[abg]*",
        policy="nocturnal, labels: {kept: x}", hooks="  previousNames: [nightly]",
    )  # fmt: skip
    shutil.rmtree(estate.folder / "machines" / "gamma")
    at = estate.at(day(5))
    estate.apply(clock=day(5))
    kept = [one["id"] for one in estate.get("images") if one["client"] == "alpha"][1]
    at.run("hold", kept, "--reason", "an audit")
    at.run("waive", f"{waived}/1", "--reason", "not worth it")
    at.run("retire", "gamma", "--reason", "sold")
    # The label of a copy that has no other one.
    (image,) = [one["id"] for one in estate.get("images") if one["client"] == "delta"]
    label = next((estate.folder / "storage" / "pool").rglob(f"*{image}*"))
    label.write_bytes(b"{}")
    last = estate.apply(clock=day(11), code=None)
    assert {one["state"] for one in last["actions"]} == {"Succeeded"}, last
    shutil.copytree(estate.folder, estate.folder.with_name("kept"), symlinks=True)
    return estate


@pytest.fixture
def estate(template: Estate) -> Estate:
    """The same estate, as it was before the loss."""
    shutil.rmtree(template.folder)
    shutil.copytree(template.folder.with_name("kept"), template.folder, symlinks=True)
    return template


def lose(estate: Estate) -> dict[str, list[tuple[Any, ...]]]:
    """The state folder goes; what the catalog held."""
    found = rows(estate)
    shutil.rmtree(estate.state)
    return found


def test_the_rebuilt_catalog_is_the_lost_one(estate: Estate) -> None:
    states = {state for (state,) in copies(estate, "state").values()}
    everything = estate.get("copies")
    assert states == {"Complete", "Damaged"} and any(one["state"] == "Expired" for one in everything)
    lost = lose(estate)
    for table in ("holds", "rulings", "anchors", "clients", "units", "objects", "lifecycle_versions", "jobs"):
        assert lost[table], table
    bytes_before = samples.tree(estate.folder / "storage")

    at = estate.at(END)
    dry = at.json(*REBUILD, "--dry-run")
    assert not estate.state.exists() and dry["dryRun"]
    done = at.json(*REBUILD)
    same = {key: value for key, value in done.items() if key not in ("dryRun", "wallSeconds")}
    assert same == {key: value for key, value in dry.items() if key not in ("dryRun", "wallSeconds")}
    assert done["source"]["kind"] == "Dump" and done["units"] == ["fast", "pool"] and done["warnings"] == []
    assert (done["imagesTaken"], done["copiesTaken"], done["lost"]) == (0, 0, 0)
    assert samples.tree(estate.folder / "storage") == bytes_before, "units are only read"

    found = rows(estate)
    assert {name: found[name] for name in found if name not in CHANGED} == {
        name: lost[name] for name in lost if name not in CHANGED
    }
    assert {row for row in found["facts"] if row[0] != "rebuilt"} == set(lost["facts"])
    assert found["audit"][:-1] == lost["audit"] or set(lost["audit"]) < set(found["audit"])
    line = estate.get("audit")[-1]
    assert line["event"] == "CatalogRebuilt" and line["details"]["reason"] == "the disk died" and line["actor"]
    after = at.json("get", "copies")["items"]
    plain = ("image", "number", "client", "policy", "operation", "unit", "state", "createdAt", "storedBytes")
    assert [[one[key] for key in plain] for one in after] == [[one[key] for key in plain] for one in everything]
    assert at.run(*REBUILD, code=4).stderr.count("move the state folder aside") == 1


def test_labels_alone_give_back_what_they_say(estate: Estate) -> None:
    known = {one["id"]: one for one in estate.get("images")}
    plain = ("client", "type", "state", "time", "sequence", "parent", "sizeBytes", "disks", "consistency", "changes")
    before = copies(estate, "operation", "unit", "storedBytes", "state")
    lose(estate)
    for dump in (estate.folder / "storage").glob("*/catalog/dump-*"):
        dump.unlink()
    for backup in (estate.folder / "storage" / "fast" / "catalog").iterdir():
        shutil.rmtree(backup)
    for backup in (estate.folder / "storage" / "pool").rglob("catalog-2026*"):
        backup.unlink()
    (estate.folder / "restore.yaml").write_text(OVERWRITING)
    done = estate.at(END).json(*REBUILD)
    assert done["source"] is None and len(done["warnings"]) == 3
    for said, warning in zip(("holds, waivers", "Restore/again", "cannot be read"), done["warnings"], strict=True):
        assert said in warning
    now = {one["id"]: one for one in estate.get("images")}
    gone = {
        image for (image, _), (_, _, _, state) in before.items() if state == "Damaged" or image.startswith("catalog-")
    }
    left = {image for image, _ in before} - gone
    assert now.keys() == left and left
    assert [[now[one][key] for key in plain] for one in now] == [[known[one][key] for key in plain] for one in now]
    assert copies(estate, "operation", "unit", "storedBytes", "state") == {
        key: value for key, value in before.items() if key[0] in left
    }
    # The manifests give the rest: the renamed policy's history follows it.
    lying = held(estate)
    estate.apply(clock=day(12), code=4)
    assert {one["policy"] for one in estate.get("images") if one["client"] == "beta"} == {"nocturnal"}
    assert lying < held(estate) and not (estate.folder / "out").exists()


def test_nothing_goes_before_it_was_approved_once_and_backups_go_on(estate: Estate) -> None:
    highest = max(one["sequence"] for one in estate.get("images"))
    known = {one["id"] for one in estate.get("images")}
    lose(estate)
    estate.at(END).run(*REBUILD)
    lying = held(estate)
    for number in (12, 13):
        (estate.folder / "machines" / "alpha" / "system.img").write_bytes(bytes([number]) * samples.MIB)
        estate.apply(clock=day(number), code=4)
        assert lying < held(estate)
    fresh = [one for one in estate.get("images") if one["id"] not in known and one["client"] != "delta"]
    assert {one["client"] for one in fresh} == {"alpha", "beta", "catalog"}
    assert min(one["sequence"] for one in fresh) > highest
    first = next(one for one in fresh if one["client"] == "alpha")
    assert first["type"] == "Incremental" and first["parent"] in known
    assert {one["code"] for one in (item["reason"] for item in _blocked(estate, day(13)))} >= {"RebuiltCatalog"}

    part = estate.at(day(13)).json("plan", ".")["destruction"]
    assert part["copies"] > 0 and not part["approved"]
    estate.at(day(13)).run("approve", part["digest"], "--reason", "looked at")
    estate.apply(clock=day(13))
    after = held(estate)
    left = {(item["unit"], item["image"]) for item in part["items"]} & after
    # Those of the catalog are what its newest incrementals are built on.
    assert {image.partition("-")[0] for _, image in left} == {"catalog"} and len(left) < part["copies"]
    # From now on rules let copies go by themselves, also those whose turn had not come.
    estate.apply(clock=day(20))
    assert estate.at(day(20)).json("plan", ".")["destruction"]["copies"] == 0
    assert (after - held(estate)) & {(unit, image) for unit, image in lying if image in known}


def test_what_was_approved_after_one_rebuild_is_not_approved_after_the_next(estate: Estate) -> None:
    lose(estate)
    at = estate.at(END)
    at.run(*REBUILD)
    part = at.json("plan", ".")["destruction"]
    spec = {"destruction": part["digest"], "copies": part["copies"], "by": "me", "until": "2027-01-01T00:00:00Z"}
    document = {"apiVersion": "holdfast/v1alpha1", "kind": "Approval", "metadata": {"name": "once"}, "spec": spec}
    (estate.folder / "approval.yaml").write_text(json.dumps({**document, "spec": {**spec, "reason": "looked at"}}))
    assert at.json("plan", ".")["destruction"]["approved"]
    lying = held(estate)
    lose(estate)
    at.run(*REBUILD)
    plan = at.json("plan", ".")
    assert plan["destruction"]["copies"] == part["copies"] and not plan["destruction"]["approved"]
    assert plan["destruction"]["digest"] != part["digest"]
    assert "ApprovalUnused" in {one["code"] for one in plan["drift"]}
    estate.apply(clock=END, code=4)
    assert lying <= held(estate)


def _blocked(estate: Estate, clock: str) -> list[dict[str, Any]]:
    return [one for one in estate.at(clock).json("plan", ".")["actions"] if one["state"] == "Blocked"]


def test_an_old_dump_is_brought_up_to_date(estate: Estate, tmp_path: Path) -> None:
    old = tmp_path / "old"
    for unit in ("fast", "pool"):
        shutil.copytree(
            estate.folder / "storage" / unit / "catalog", old / unit, ignore=shutil.ignore_patterns("catalog-*")
        )
    before = {one["id"] for one in estate.get("images")}
    estate.apply(clock=day(12), code=None)
    names = {one["id"]: one["sequence"] for one in estate.get("images")}
    present = copies(estate, "unit", "operation", clock=day(12))
    assert names.keys() > before
    lose(estate)
    for unit in ("fast", "pool"):
        for dump in (estate.folder / "storage" / unit / "catalog").glob("dump-*"):
            dump.unlink()
        shutil.copytree(old / unit, estate.folder / "storage" / unit / "catalog", dirs_exist_ok=True)
    # One that cannot be read is passed over.
    torn = sorted((estate.folder / "storage" / "fast" / "catalog").glob("dump-*"))[-1]
    torn.write_bytes(torn.read_bytes()[:-20])
    missing = next(image for unit, image in sorted(held(estate)) if unit == "fast" and image.startswith("beta-"))
    shutil.rmtree(estate.folder / "storage" / "fast" / "beta" / missing)
    done = estate.at(day(12)).json(*REBUILD)
    assert done["source"]["place"] != str(torn) and done["imagesTaken"] >= 2 and done["lost"] >= 1
    now = {one["id"]: one["sequence"] for one in estate.get("images")}
    assert now == names
    found = copies(estate, "unit", "operation", "state", clock=day(12))
    assert {key: value[:2] for key, value in found.items() if value[2] != "Lost"} == {
        key: value for key, value in present.items() if key[0] != missing or value[0] != "fast"
    }


def test_a_unit_that_is_not_there_is_believed_to_be_as_it_was(estate: Estate) -> None:
    before = copies(estate, "unit", "state")
    lose(estate)
    away = estate.folder / "away"
    (estate.folder / "storage" / "pool").rename(away)
    done = estate.at(END).json("catalog", "rebuild", "--from", estate.folder / "storage" / "fast")
    (gone,) = done["unreachable"]
    assert gone["unit"] == "pool" and gone["copies"] > 0 and "pool was not given" in done["warnings"][0]
    now = copies(estate, "unit", "state")
    assert {key: value[0] for key, value in now.items()} == {key: value[0] for key, value in before.items()}
    assert {state for unit, state in now.values() if unit == "pool"} == {"Unreachable", "Damaged"}
    away.rename(estate.folder / "storage" / "pool")
    assert copies(estate, "unit", "state") == before
    taken = estate.at(END).json("unit", "adopt", "pool", "--yes")["message"]
    assert "pool adopted: 0 images taken" in taken


def test_the_catalog_protects_itself(estate: Estate, tmp_path: Path) -> None:
    at = estate.at(END)
    backups = [one for one in estate.get("images") if one["client"] == "catalog"]
    assert [one["type"] for one in backups][:2] == ["Full", "Incremental"] and len(backups) == 5
    assert all(one["consistency"] == "Snapshot" and one["state"] == "Complete" for one in backups)
    at.run("restore", "catalog", "--to", tmp_path / "out")
    lines = (tmp_path / "out" / "catalog.img").read_bytes().replace(b"\0", b"").splitlines()
    assert json.loads(lines[0])["holdfast"] == "catalog" and json.loads(lines[-1])["rows"] > 100
    known = [one["id"] for one in estate.get("images")]
    lose(estate)
    alone = at.json("catalog", "rebuild", "--from", tmp_path / "out" / "catalog.img", "--dry-run")
    assert alone["source"]["kind"] == "File" and alone["units"] == [] and len(alone["unreachable"]) == 2
    # A dump is newer, unless somebody chooses.
    chosen = at.json(*REBUILD, "--image", backups[2]["id"], "--dry-run")
    assert chosen["source"]["place"] == backups[2]["id"] and chosen["imagesTaken"] > 0
    at.run(*REBUILD, "--image", "other", code=1)
    for dump in (estate.folder / "storage").glob("*/catalog/dump-*"):
        dump.unlink()
    done = at.json(*REBUILD)
    assert (done["source"]["kind"], done["source"]["place"]) == ("Image", backups[-1]["id"])
    assert [one["id"] for one in estate.get("images")] == known


def test_what_cannot_be_rebuilt_from_and_one_of_several_catalogs(estate: Estate) -> None:
    lose(estate)
    (estate.folder / "words.txt").write_text("words")
    other = estate.folder / "other"
    other.mkdir()
    unit = json.loads((estate.folder / "storage" / "fast" / "unit.json").read_text())
    (other / "unit.json").write_text(json.dumps({**unit, "id": "u-2", "owner": "c-2"}))
    (estate.folder / "clone").mkdir()
    shutil.copy(estate.folder / "storage" / "fast" / "unit.json", estate.folder / "clone")
    for words, code, said in (
        ((), 64, "--from UNIT"),
        (("--from", "nowhere"), 1, "holds no unit"),
        (("--from", "words.txt"), 64, "neither a dump nor a backup"),
        (("--from", "fast", "other"), 64, "several catalogs"),
        (("--from", "fast", "clone"), 64, "one is a copy of the other"),
        (("--from", "fast", "--image", "x"), 1, "holds a backup x"),
    ):
        assert said in estate.at(END).run("catalog", "rebuild", *words, code=code).stderr
        assert not (estate.state / "catalog.sqlite").exists()
    words = ("--from", "fast", str(other), "--catalog-id", unit["owner"])
    done = estate.at(END).json("catalog", "rebuild", *words)
    assert done["catalog"] == unit["owner"] and "belongs to catalog c-2" in done["warnings"][0]
