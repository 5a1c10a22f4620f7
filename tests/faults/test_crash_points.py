"""A process that dies at any named point is followed by one that converges, and no committed image is ever lost."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from fault_estates import Estate, Holdings

from reconciler.base import crashes

#: Points that only an estate's first pass meets.
FIRST = ("catalog.migrated", "unit.identity-written", "configuration.recorded")
#: Points of a pass that makes use of an approval: the promises are recorded as ended, then the copies go.
APPROVED = ("approval.recorded", "expire.marked", "expire.deleted", "expire.recorded", "expire.marked:2")
RESTORE = ("restore.reading", "restore.before-rename")
#: Only a flat VMDK has an extent; ``test_restore_kills`` dies there.
FLAT = ("restore.extent-named",)
#: Of single files; ``tests/cli/test_cli_files_safety.py`` dies there.
FILES = ("files.before-name",)
#: Points of a rebuild of the catalog, which happens in one transaction.
REBUILD = ("rebuild.loaded", "rebuild.compared")
#: Restores of the tree and verifications: ``tests/cli/test_cli_tree_restores.py`` and ``test_cli_proofs.py`` die there.
PROOFS = ("restore.begun", "restore.proven", "verify.found")
#: Points of a pool's upkeep, which a pass meets only where containers rot; ``tests/dedupe/test_crashes.py`` dies there.
UPKEEP = tuple(point for point in crashes.POINTS if point.startswith(("pool.rewrite-", "pool.scrub-", "pool.damage-")))
#: Points of images that carry documents beside their disks; ``tests/storage/test_conformance_crashes.py`` dies there.
ATTACHED = ("directory.attachment-synced", "pool.attachment-placed", "directory.reattached", "pool.reattached")
#: Only a virtual machine has snapshots and is held: their kills are in ``tests/vsphere/test_vsphere_faults``.
SNAPSHOTS = tuple(point for point in crashes.POINTS if point.startswith(("snapshot.", "holding.", "machine.")))
#: Points that every later pass meets, some of them again a little later.
LATER = tuple(
    point
    for point in crashes.POINTS
    if point not in (*FIRST, *RESTORE, *FLAT, *FILES, *REBUILD, *PROOFS, *UPKEEP, *ATTACHED, *SNAPSHOTS, APPROVED[0])
)
AGAIN = ("unit.identity-written:2", "backup.after-commit:2", "pool.container-renamed:2", "expire.deleted:3")


@pytest.fixture(scope="session")
def undisturbed(templates: Estate) -> Holdings:
    """What the units hold after the fourth day's pass when nothing goes wrong."""
    holdings = templates.put_back("done").holdings()
    templates.require_converged()
    return holdings


def die(estate: Estate, point: str, *arguments: str | Path) -> None:
    """Run a command that passes ``point`` and see it killed there."""
    found = estate.command.crashing(point).run(*arguments, code=None)
    assert found.returncode == -signal.SIGKILL, f"{point} was not passed: {found.returncode} {found.stderr}"


def require_recovery(estate: Estate, expected: Holdings) -> None:
    """The next pass converges to exactly what it would have come to, and what was committed is still there."""
    committed = {(unit, image) for unit, labels in estate.held().items() for image in labels}
    estate.command.run("apply", "--yes", ".")
    estate.require_converged()
    assert estate.holdings() == expected
    left = {(copy["unit"], copy["image"]) for copy in estate.items("copies") if copy["state"] == "Expired"}
    gone = committed - {(unit, image) for unit, labels in estate.held().items() for image in labels}
    assert gone <= left, "an image that a unit had committed is gone, and no rule let it go"


def test_every_point_has_a_scenario(fresh: Estate) -> None:
    assert set(fresh.ask("version")["crashPoints"]) == {
        *FIRST,
        *RESTORE,
        *FILES,
        *PROOFS,
        *FLAT,
        *REBUILD,
        *UPKEEP,
        *ATTACHED,
        *SNAPSHOTS,
        *LATER,
        APPROVED[0],
    }


@pytest.mark.parametrize("point", [*FIRST, "unit.identity-written:2"])
def test_a_crash_in_the_first_pass(fresh: Estate, point: str) -> None:
    die(fresh, point, "apply", "--yes", ".")
    fresh.command.run("apply", "--yes", ".")
    fresh.require_converged()
    clients = sorted((unit, client) for unit, client, _ in fresh.holdings().elements())
    assert clients == [("fast", "vm1"), ("fast", "vm2"), ("pool", "vm1"), ("pool", "vm2")]


@pytest.mark.parametrize("point", [*LATER, *AGAIN[1:]])
def test_a_crash_in_a_later_pass(undisturbed: Holdings, grown: Estate, point: str) -> None:
    die(grown, point, "apply", "--yes", ".")
    require_recovery(grown, undisturbed)


def shorten(estate: Estate) -> set[str]:
    """Keep what the pool holds for ever, then for 25 hours, with the Approval in the same revision; what may go."""
    manifests, text = estate.folder / "estate.yaml", (estate.folder / "estate.yaml").read_text()
    manifests.write_text(text.replace("{type: Keep, last: 2}", "{type: Forever}"))
    estate.command.run("apply", "--yes", ".")
    text = text.replace("{type: Keep, last: 2}", "{type: Fixed, period: 25h}")
    manifests.write_text(text)
    found = estate.ask("plan", ".")["destruction"]
    assert found["copies"] == 2 and not found["approved"]
    spec = f"{{destruction: '{found['digest']}', copies: 2, by: ann, until: '2027-01-01T00:00:00Z', reason: test}}"
    head = "---\napiVersion: holdfast/v1alpha1\nkind: Approval\nmetadata: {name: shorten}\n"
    manifests.write_text(f"{text}{head}spec: {spec}\n")
    assert estate.ask("plan", ".")["destruction"]["approved"]
    return {item["image"] for item in found["items"]}


@pytest.mark.parametrize("point", APPROVED)
def test_a_crash_while_an_approval_is_made_use_of(grown: Estate, point: str) -> None:
    approved = shorten(grown)
    before = set(grown.held()["pool"])
    assert approved < before
    die(grown, point, "apply", "--yes", ".")
    grown.command.run("apply", "--yes", ".")
    grown.require_converged()
    assert set(grown.held()["pool"]) == before - approved


@pytest.mark.parametrize("point", RESTORE)
def test_a_crash_in_a_restore(undisturbed: Holdings, grown: Estate, point: str, tmp_path: Path) -> None:
    target = tmp_path / "restored"
    die(grown, point, "restore", "vm1", "--to", target)
    assert not (target / "system.img").exists(), "a disk has its name before it was proven whole"
    grown.command.run("restore", "vm1", "--to", target)
    assert sorted(path.name for path in target.iterdir()) == ["data.img", "system.img"]
    require_recovery(grown, undisturbed)


@pytest.mark.parametrize("point", ["catalog.migrated", *REBUILD])
def test_a_crash_in_a_rebuild_of_the_catalog(grown: Estate, point: str) -> None:
    held = grown.holdings()
    shutil.rmtree(grown.folder / ".holdfast")
    words = ("catalog", "rebuild", "--from", "fast", "pool")
    die(grown, point, *words)
    assert grown.holdings() == held
    grown.command.run(*words)
    assert len(grown.items("images")) == len({image for labels in grown.held().values() for image in labels})
    grown.command.run(*words, code=4)
    # What came back is held until it is approved; backups go on.
    grown.command.run("apply", "--yes", ".", code=4)
    assert grown.holdings() > held
